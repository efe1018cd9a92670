"""The verbs as Python functions: names, options, results, errors, own objectives."""

import ast
import json
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from tests_common import TINY, run_python

import plmjax
from plmjax import PlmjaxError, api, cli, config
from plmjax.cli import options
from plmjax.cli.parser import make_parser
from plmjax.train import sharding

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text()
KEYS = dict(word.removeprefix("--config.").split("=") for word in TINY)
KEYS |= {"train.steps": 2, "model.layers": 1, "train.evaluate_every_steps": 2}
KEYS |= {"train.checkpoint_every_steps": 1, "model.dtype": "float32"}

ORDERS = """
import sys

def fresh():
    for name in [n for n in sys.modules if n.partition(".")[0] == "plmjax"]:
        del sys.modules[name]

import plmjax
light = not {"jax", "numpy", "argparse"} & set(sys.modules)
assert light and set(plmjax.VERBS) <= set(dir(plmjax))
fresh()
import plmjax
assert plmjax.pretrain.__name__ == "plmjax.pretrain" and callable(plmjax.embed)
from plmjax import config
assert callable(config) and config.Block
fresh()
import plmjax.evaluate
from plmjax import evaluate, predict
assert callable(evaluate) and plmjax.evaluate is evaluate and callable(predict)
fresh()
import plmjax.api
assert callable(plmjax.finetune) and callable(plmjax.fill)
fresh()
from plmjax.pretrain.run import pretrain as function
import plmjax
assert callable(plmjax.pretrain) and plmjax.pretrain.run.pretrain is function
assert not hasattr(plmjax, "nothing")
"""


def test_every_order_of_imports_gives_functions():
    done = run_python("-c", ORDERS)
    assert done.returncode == 0, done.stderr


def test_each_verb_is_a_function():
    verbs = {
        verb if verb != "import" else "import_" for verb in make_parser().verbs.choices
    }
    assert verbs | {"load", "fit"} <= set(plmjax.VERBS)
    assert all(callable(getattr(plmjax, verb)) for verb in plmjax.VERBS)
    assert plmjax.pretrain.__doc__ == api.pretrain.__doc__
    assert all(api.__getattr__(verb).__doc__ for verb in verbs - {*vars(api)})
    assert "`plmjax data --help`" in (plmjax.data.__doc__ or "")
    tree = ast.parse(Path(plmjax.__file__).read_text())
    typed = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    typed = {n.names[0].name for n in typed if n.module == "plmjax.api"}
    assert typed == {name for name in plmjax.VERBS if name in vars(api)} - {"config"}


def test_a_module_with_the_name_of_a_verb_is_called():
    assert plmjax.config("show", "bert_mini")["train.batch"]["value"] == 32
    assert plmjax.config("validate", "bert_mini") is None


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.fill(None),
        lambda model: model.fill([5]),
        lambda model: model.fill({"text": "a [MASK]"}),
        lambda model: model.fill("a [MASK]", top=-3),
        lambda model: model.detect(5),
        lambda model: model.next(None, "b"),
        lambda model: model.predict(None),
        lambda model: model.predict(["a", {"text": "b"}]),
        lambda model: plmjax.load(None),  # type: ignore[arg-type]
        lambda model: plmjax.load("a", checkpoint=None),  # type: ignore[arg-type]
        lambda model: plmjax.pretrain(None),
        lambda model: plmjax.pretrain("a.txt", keys=5),  # type: ignore[arg-type]
    ],
)
def test_wrong_values_are_answered_in_words(call, monkeypatch):
    model = api.Loaded.__new__(api.Loaded)
    monkeypatch.setattr(api.Loaded, "_model", lambda self, head: None)
    with pytest.raises(PlmjaxError, match="must be (a|the path)"):
        call(model)
    with pytest.raises(PlmjaxError, match="what JSON cannot: Object of type set"):
        model.predict({"text": {1}})


def test_a_misspelt_name_gets_one_hint():
    done = run_python("-c", "import plmjax; plmjax.pretrian")
    assert done.stderr.count("Did you mean") == 1
    assert done.stderr.endswith("'pretrian'. Did you mean: 'pretrain'?\n")


def given(monkeypatch, verb: str, *words, **more):
    """The parsed options of a call, without the verb's work."""
    seen = {}

    def parser():
        made = make_parser()
        for one in made.verbs.choices.values():
            one.set_defaults(run=lambda args: seen.update(vars(args)) or 0)
        return made

    monkeypatch.setattr(api, "make_parser", parser)
    getattr(api, verb)(*words, **more)
    return seen


BATCH = {"train": {"batch": 4}, "train.epochs": None, "data.phases": ((2, 8),)}
EMBED = {"model": "m", "input": "a"}
CALLS = [
    (
        ("pretrain", "a.txt", Path("b")),
        {"steps": 9, "yes": True, "keys": BATCH},
        "pretrain a.txt b --steps=9 --yes --config.train.batch=4 "
        "--config.train.epochs=None '--config.data.phases=((2, 8),)'",
    ),
    (
        ("evaluate",),
        {"text": ["a", "b=c"], "model": "m", "rows": None},
        "evaluate --json --text=a --text=b=c --model=m",
    ),
    (
        ("embed",),
        EMBED | {"normalize": True},
        "embed --model=m --input=a --normalize",
    ),
    (
        ("embed",),
        EMBED | {"output": "b.npy"},
        "embed --model=m --input=a --output=b.npy --json",
    ),
    (
        ("import_",),
        {"from_": "a", "workdir": "b"},
        "import --from=a --workdir=b",
    ),
    (
        ("predict",),
        {"model": ["a", "b"], "text": "t", "keys": {"length": 9}},
        "predict --model=a,b --text=t --config.length=9",
    ),
]


@pytest.mark.parametrize("words, more, line", CALLS)
def test_a_call_is_a_command(words, more, line, monkeypatch):
    ours = given(monkeypatch, *words, **more)
    wanted = vars(make_parser().read(shlex.split(line)))
    for name in wanted.keys() - {"run"}:
        assert ours[name] == wanted[name], name


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: api.pretrain("a", stepz=3), "Did you mean steps=3?"),
        (
            lambda: api.pretrain("a", learning_rate=1e-4),
            "plmjax.pretrain() has no argument learning_rate=0.0001. Did you mean "
            "keys={'train.optimizer.learning_rate': 0.0001}?",
        ),
        (lambda: api.finetune(keys={"task.max_length": 9}), "mean task.length?"),
        (lambda: plmjax.tokenizer("trian", "a", to="b"), "trian"),
        (lambda: plmjax.fill("a [MASK]"), "arguments are required: model"),
        (lambda: plmjax.bench("train", steps="x"), "steps: invalid int value: 'x'"),
        (lambda: plmjax.load("nothing"), "nothing"),
        (lambda: plmjax.fit("a.txt"), "the objective 'a.txt' cannot be called."),
        (lambda: plmjax.pretrain(["a", "b"]), "must be a text. Several are given as"),
        (
            lambda: plmjax.pretrain("a", minutes=1, steps=3),
            "minutes= cannot be combined with steps=3. minutes= measures what this "
            "machine can do, and sets the steps; the schedule is linear, as its end "
            "can be moved. dry_run=True shows the choice",
        ),
    ],
)
def test_a_wrong_call_says_what_is_right(call, message, capsys):
    with pytest.raises(PlmjaxError) as caught:
        call()
    assert message in str(caught.value)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "shell, python",
    [
        ("Set --config.train.steps=none, or leave", "Set keys={'train.steps': None}, "),
        ("or --config.data.phases='()'.", "or keys={'data.phases': ()}."),
        ("Lower --config.train.batch.", "Lower keys={'train.batch': ...}."),
        (
            "see `plmjax import --from=a/b --to=c`",
            "plmjax.import_(from_='a/b', to='c')",
        ),
        ("`plmjax data --help` has", "`plmjax data --help` has"),
        ("`hf download NAME --local-dir=a`", "`hf download NAME --local-dir=a`"),
    ],
)
def test_hints_speak_python(shell, python):
    with pytest.raises(PlmjaxError) as caught, api._errors_as_python():
        raise PlmjaxError("no.", hint=shell)
    assert python in str(caught.value)


def example() -> dict:
    """The names that the page's own objective defines; its training is left out."""
    (block,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.S)
        if "class" in block
    ]
    names = {"__name__": "example"}
    exec(block.partition("\nplmjax.fit(")[0], names)
    return names


def test_an_objective_of_ones_own_trains_resumes_and_exports(
    corpus, tmp_path, monkeypatch, capsys
):
    make = sharding.make_mesh
    monkeypatch.setattr(
        sharding, "make_mesh", lambda c, _=None: make(c, jax.devices()[:2])
    )
    Smoothed, text = example()["Smoothed"], {"data.source.paths": corpus}
    run, calls = tmp_path / "run", []

    def smoothed(*given, **more):
        calls.append(given)
        return Smoothed(*given, **more)

    smoothed.__qualname__ = "Smoothed"
    keys = KEYS | text
    scores = plmjax.fit(smoothed, workdir=run, keys=keys)
    kept = json.loads((run / "scores.json").read_text())
    assert calls and scores.items() <= kept.items()
    assert scores["loss"] > 0 and options.COLLECTED.get() is None
    # The objective of the config would give another loss: it is resumed by no other.
    with pytest.raises(
        PlmjaxError, match="objective: Smoothed, not that of its config"
    ):
        plmjax.pretrain(workdir=run)
    with pytest.raises(PlmjaxError, match="was trained by plmjax.fit with Smoothed"):
        plmjax.evaluate(workdir=run)
    more = plmjax.fit(smoothed, workdir=run, steps=3)
    assert more["loss"] != scores["loss"]
    assert "Going on from step 2." in capsys.readouterr().out
    records = [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3]

    model = plmjax.load(run)
    (guesses,) = model.fill("the [MASK] of [MASK]", top=3)
    assert [len(mask) for mask in guesses] == [3, 3]
    vectors = model.embed(["the row", "a"], normalize=True)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    again = plmjax.fill("the [MASK] of [MASK]", model=run / "export", top=3)
    np.testing.assert_allclose(
        [[g["probability"] for g in mask] for mask in again["masks"]],
        [[g.probability for g in mask] for mask in guesses],
        rtol=1e-5,
    )
    for call, message in (
        (lambda: model.embed("a", poolin="cls"), "Did you mean pooling?"),
        (lambda: model.detect("a b"), "no detector head"),
        (lambda: model.next("a", "b"), "no sentence-pair head"),
        (lambda: model.predict("a"), "no head of a task"),
    ):
        with pytest.raises(PlmjaxError, match=re.escape(message)):
            call()


def test_the_smoothed_loss_is_the_cross_entropy_with_smoothed_targets():
    from test_loss_scale import SMALL
    from test_step import make_batch, pieces

    from plmjax.objectives import Key, MLMConfig
    from plmjax.objectives.masked import masked_logits

    ours = example()["Smoothed"](MLMConfig(), SMALL, pieces(96))

    @jax.jit
    def both(batch, key):
        params = ours.init(jax.random.key(0), batch)
        batch = ours.corrupt(ours.tables(), batch, key, 0.0)
        loss = ours.loss(params, ours.tables(), batch, key, True)[0]
        logits, _ = masked_logits(SMALL, params, batch, key.noise(batch))
        return loss, logits, batch

    smoothed, logits, batch = both(make_batch(4), Key(np.uint32(0), np.uint32(0)))
    logs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    targets = np.full(logs.shape, 0.1 / 96)
    targets[np.arange(len(logs)), np.asarray(batch["labels"]).reshape(-1)] += 0.9
    weights = np.asarray(batch["weights"]).reshape(-1)
    wanted = -(weights * (targets * logs).sum(-1)).sum()
    np.testing.assert_allclose(smoothed, wanted, rtol=1e-5)


def test_the_page_of_names_is_the_table_of_the_hints():
    page = (ROOT / "docs" / "coming-from.md").read_text()
    rows = []
    for meant, names in config._OTHER_NAMES.items():
        keys = " or ".join(f"`{key}`" for key in meant.split())
        theirs = ", ".join(f"`{name}`" for name in names.split())
        rows.append(f"| {theirs} | {meant if meant.endswith('.') else keys} |")
    table = page.partition("| there | here |\n|---|---|\n")[2]
    assert table.splitlines() == rows, "\n".join(rows)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    notebook = json.loads((ROOT / "docs" / "plmjax.ipynb").read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    program = "\n".join("".join(cell["source"]) for cell in code)
    done = run_python("-c", f"import os; os.chdir({str(tmp_path)!r})\n{program}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my-model" / "model.safetensors").exists()


def test_verbs_print_what_a_function_returns(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a b c\n\nd e f\n" * 30)
    words = ["data", "inspect", str(tmp_path / "a.txt"), "--json"]
    assert cli.main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert plmjax.data("inspect", tmp_path / "a.txt") == printed
