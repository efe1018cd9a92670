"""The arguments of a command: recipes, paths, short forms, and the right spelling."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests_common import environment

from plmjax import Exit, PlmjaxError, cli, config
from plmjax.cli import pretrain, recipes
from plmjax.cli.parser import make_parser
from plmjax.experiments import sweep_plan
from plmjax.files import missing, no_empty_directory
from plmjax.finetune.config import FinetuneConfig
from plmjax.pretrain.run import DEFAULT_CONFIG
from plmjax.workdir import RunConfig


def read(*words: str):
    return make_parser().read(words)


@pytest.fixture
def error(capsys, tmp_path, monkeypatch):
    """error(*arguments) -> the message of a command that must exit with 2."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        assert cli.main([*arguments]) == Exit.USAGE
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
        return err

    return run


@pytest.mark.parametrize(
    ("verb", "typed", "full"),
    [
        ("pretrain", "electra:tiny", "pretrain/electra:tiny"),
        ("pretrain", "bert_mini", "pretrain/bert_mini"),
        ("pretrain", "configs/pretrain/bert_mini.py", "pretrain/bert_mini"),
        ("bench", "electra.py:tiny", "pretrain/electra:tiny"),
        ("pretrain", "docstrings", "pretrain/docstrings"),
        ("pretrain", "distill/docstrings:runs/a", "distill/docstrings:runs/a"),
        ("pretrain", "distilbert:a/b", "distill/distilbert:a/b"),
        ("finetune", "classes:small", "finetune/classes:small"),
        ("finetune", "finetune/classes", "finetune/classes"),
        ("sweep", "albert:small", "sweeps/albert:small"),
        # A file of another machine, and one of this.
        ("pretrain", "there/mine.py:a", "there/mine.py:a"),
        ("pretrain", "nsp", "nsp"),
    ],
)
def test_a_recipe_is_named_by_its_verb(verb, typed, full, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nsp").touch()
    assert recipes.resolve(typed, verb) == full


def test_what_is_no_recipe_is_answered_with_what_there_is(error):
    message = error("pretrain", "--config=elektra")
    assert "`plmjax pretrain` has no recipe 'elektra'. Did you mean electra?" in message
    assert "It has albert, bert," in message and "distill/docstrings," in message
    assert "It is one of `plmjax finetune`." in error("pretrain", "--config=classes")
    assert "It is one of `plmjax pretrain`." in error("sweep", "--config=electra:tiny")
    few = error("pretrain", "--config=electra:huge")
    assert "has no argument 'huge'. It has tiny, small, base, large." in few
    none = error("pretrain", "--config=bert_mini:small")
    assert "bert_mini has no arguments, so 'small' cannot be one." in none
    needed = error("finetune", "--config=glue")
    assert "finetune/glue needs an argument: --config=finetune/glue:TASK." in needed
    assert "It has cola, sst2," in needed
    task = ["--tasks=classes:huge", "--workdir=x"]
    assert "has no argument 'huge'" in error("compare", "a", "b", *task)


@pytest.mark.parametrize(
    "program",
    [
        "SIZES = {'tiny': 1, 'wide': 2}\ndef get_config(size):\n    return SIZES[size]",
        "def get_config(size):\n    s = {'tiny': 1, 'wide': 2}\n    return s[size]",
        "ARGUMENTS = ('tiny', 'wide')\ndef get_config(size='tiny'): return {}",
    ],
)
def test_the_arguments_of_a_file_are_listed(program, error):
    Path("mine.py").write_text(program + "\n")
    expected = "mine.py has no argument 'large'. It has tiny, wide."
    assert expected in error("pretrain", "--config=mine.py:large")
    Path("mine.py").write_text("def get_config(size):\n    return {}['batch']\n")
    assert "KeyError: 'batch'" in error("pretrain", "--config=mine.py:large")


def test_the_list_has_every_recipe_with_its_arguments_and_needs_no_jax(tmp_path):
    program = (
        "import sys\nfrom plmjax import cli\n"
        "assert cli.main(['pretrain', '--list']) == 0 and 'jax' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("  electra "))
    assert lines[at].endswith(
        "ELECTRA as Clark et al. (2020, arXiv:2003.10555) trained it."
    )
    assert lines[at + 1].strip() == ":tiny, :small (default), :base, :large"
    assert "                      :TEACHER (default: runs/docstrings)" in lines
    assert {line.split()[0] for line in lines if line[:3].strip()} >= {
        *("albert", "bert_mini", "distilbert", "distill/docstrings", "docstrings")
    }
    for verb in ("finetune", "compare", "sweep"):
        for folder in ("finetune",) if verb != "sweep" else ("sweeps",):
            for full in config.recipes(folder):
                assert f"  {full.partition('/')[2]} " in recipes.table(verb)


@pytest.mark.parametrize(
    ("words", "overrides", "paths"),
    [
        ("pretrain a.txt b --steps=5", ["train.steps=5"], ["a.txt", "b"]),
        ("pretrain a --steps 5 b c --workdir x d", ["train.steps=5"], [*"abcd"]),
        ("pretrain --dry_run a.txt", [], ["a.txt"]),
        ("pretrain --dry_run shapes a.txt", [], ["a.txt"]),
        ("pretrain --yes a", ["data.accept_warnings=True"], ["a"]),
        ("pretrain --config.train.steps 200 a", ["train.steps=200"], ["a"]),
        ("pretrain --config.train.seed = 7", ["train.seed=7"], []),
        ("pretrain --config.train.seed =7", ["train.seed=7"], []),
        (
            "finetune --steps=9 --config.mixout 0.1",
            ["mixout=0.1", "train.steps=9"],
            None,
        ),
        ("pretrain --config.train.steps", ["train.steps"], []),
    ],
)
def test_words_become_overrides_and_paths(words, overrides, paths):
    args = read(*words.split())
    assert args.overrides == overrides and getattr(args, "paths", None) == paths
    if "--dry_run" in words:
        assert args.dry_run == ("shapes" if "shapes" in words else "compile")


def test_the_same_key_twice_is_refused(error):
    twice = error("pretrain", "--steps=5", "--config.train.steps=6")
    assert "--steps=5 and --config.train.steps=6 set the same key" in twice
    both = error("pretrain", "--steps=5", "--config.train.epochs=6")
    assert "train.steps=5 and train.epochs=6.0 both set" in both
    for paths in (
        "--config.data.source.paths=b.txt",
        "--config.data.source.paths b.txt",
    ):
        given = error("pretrain", "a.txt", "c.txt", *paths.split())
        assert "twice: as a.txt and by --config.data.source.paths=b.txt" in given
    assert "train.steps is 0; it must be at least 1" in error("pretrain", "--steps=0")
    # Of the file and --steps, the latter counts.
    base = {"train": {"epochs": 3.0}}
    built = config.load(
        RunConfig, overrides=read("pretrain", "--steps=5").overrides, base=base
    )
    assert (built.train.steps, built.train.epochs) == (5, None)


# (verb, words, the hint): misspelt options, keys without config., other tools' names.
SPELLINGS = [
    ("pretrain", "--wordir=x", "--workdir=x"),
    ("pretrain", "--confg.train.steps=3", "--config.train.steps=3"),
    ("pretrain", "--train.steps=3", "--config.train.steps=3"),
    ("pretrain", "--step=20", "--steps=20"),
    ("pretrain", "-config=x.py", "--config=x.py"),
    ("pretrain", "--dry-run", "--dry_run"),
    ("pretrain", "--lr 1e-4", "--config.train.optimizer.learning_rate=1e-4"),
    (
        "pretrain",
        "--learning_rate=1e-4",
        "--config.train.optimizer.learning_rate=1e-4",
    ),
    ("pretrain", "--output_dir=x", "--workdir=x"),
    ("pretrain", "--batch-size=8", "--config.train.batch=8"),
    ("pretrain", "train.steps=3", "--config.train.steps=3"),
    ("finetune", "--max_seq_length=128", "--config.task.length=128"),
    ("finetune", "--num_train_epochs 3", "--config.train.epochs=3"),
    ("finetune", "--train_file=a.csv", "--config.task.train=a.csv"),
    ("finetune", "--sead=3", "--seeds=3"),
    ("finetune", "--show", "--show_config"),
    ("finetune", "--model=runs/a", "--config.model=runs/a"),
    ("finetune", "--task=tags", "--config.task.kind=tags"),
    ("pretrain", "--data=my.txt", "--config.data.source.paths=my.txt"),
    ("evaluate", "--workdir=x --bach=3", "--batch=3"),
    ("fill", "a --model=m --topk=3", "--top=3"),
    ("sweep", "--paralel=2", "--parallel=2"),
    ("bench", "train --stepz=2", "--steps=2"),
    ("bench", "train --config.lr=2", "train.optimizer.learning_rate"),
    ("pretrain", "--config.hidden_size=9", "model.width"),
    ("pretrain", "--config.max_length=9", "data.length"),
    ("finetune", "--config.max_length=9", "task.length"),
    ("pretrain", "--config.gradient_accumulation_steps=9", "train.accumulation"),
    ("pretrain", "--config.train.mlm_probability=.2", "objective.probability"),
    ("pretrain", "--config.save_steps=9", "train.checkpoint_every_steps"),
    ("pretrain", "--config.output_dir=x", "--workdir"),
    ("pretrain", "--config.trian.steps=9", "train.steps"),
]


@pytest.mark.parametrize(("verb", "words", "meant"), SPELLINGS)
def test_the_right_spelling_is_named(verb, words, meant, error):
    message = error(verb, *words.split())
    assert f"Did you mean {meant}?" in message or f"Did you mean {meant}," in message


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--wandb", "Metrics are in metrics.jsonl and tensorboard/ of the workdir"),
        (
            "--config.report_to=wandb",
            "train.trackers=wandb,mlflow,trackio sends them there",
        ),
        ("--model=bert-base", "--config=NAME chooses a recipe, and `plmjax import`"),
        # Nothing is near.
        ("--bogus=x", "has no option --bogus=x. `plmjax pretrain --help` lists them."),
        ("--bf16", "Set model.dtype=bfloat16 in pretraining"),
        ("--fp16", "Set model.dtype=float16 in pretraining"),
        ("--config.warmup_ratio=0.1", "train.schedule.warmup_percent: 6 is a ratio"),
        ("--resume_from_checkpoint=x", "--workdir of a run resumes that run"),
    ],
)
def test_what_has_another_unit_or_no_key_is_told_in_words(words, sentence, error):
    assert sentence in error("pretrain", words)


def test_every_other_name_means_a_key_or_an_option_that_there_is():
    known = {*dict(config.fields(RunConfig)), *dict(config.fields(FinetuneConfig))}
    options = {word for verb in ("pretrain", "finetune") for word in OPTIONS[verb]}
    for meant in config._OTHER_NAMES:
        if not meant.endswith("."):
            assert set(meant.split()) <= known | options, meant
    names = " ".join(config._OTHER_NAMES.values()).split()
    assert len(names) == len(set(names)) and known & set(names) == {"model"}


OPTIONS = {
    verb: parser._option_string_actions
    for verb, parser in make_parser().verbs.choices.items()
}


def test_a_text_or_a_verb_that_is_none_is_answered(error):
    Path("my.txt").touch()
    assert "has no verb 'my.txt'. Did you mean plmjax pretrain my.txt?" in error(
        "my.txt"
    )
    assert "has no verb 'evalute'. Did you mean evaluate?" in error("evalute")
    nothing = error("evaluate", "--workdir=a", "b")
    assert "no argument b. `plmjax evaluate --help` lists them." in nothing


def test_a_sweep_file_starts_from_a_recipe_by_name(error):
    Path("rates.py").write_text(
        "def get_config(): return 'pretrain/electra:tiny'\n"
        "def get_hyper(hyper): return hyper.sweep('train.batch', [8, 16])\n"
    )
    sweep = sweep_plan.load("rates.py", ["data.source.paths=a.txt"])
    assert [trial["name"] for trial in sweep.configs] == ["electra-tiny"] * 2
    assert [trial["train"]["batch"] for trial in sweep.configs] == [8, 16]
    hint = "plmjax sweep --config=sweep.py"
    Path("sweep.py").write_text("def get_config(): return '../a.py'")
    assert hint in error("pretrain", "--config=sweep.py")


def test_a_sweep_of_a_runs_config_is_told_what_a_sweep_needs(error):
    Path("config.json").write_text("{}")
    message = error("sweep", "--config=config.json")
    assert "config.json is the config of one run" in message and "get_hyper" in message


def test_a_reader_that_leaves_is_no_error(monkeypatch, capsys):
    command = f"{sys.executable} -m plmjax --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], env=environment(), capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
    monkeypatch.setattr(cli, "_close_output", lambda: None)
    for words in ("--show_config", "--dry_run=shapes", "--steps=3"):
        args = read("pretrain", words)
        code = Exit.RESUMABLE if words == "--steps=3" else Exit.OK
        assert cli._explain(BrokenPipeError(), args) == code
        assert (capsys.readouterr().err == "") == (code == Exit.OK)
    args = read("finetune", "--steps=3")
    assert cli._explain(BrokenPipeError(), args) == Exit.RESUMABLE
    assert "the run stopped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        ("my.txt", "my"),
        ("a/my.jsonl.gz,b.txt", "my"),
        ("more/,b.txt", "more"),
        ("texts/*.txt", "texts"),
        ("wiki/**/*.txt.gz", "wiki"),
        ("parts/part-*.txt", "part-"),
        ("läufe/日本.txt", "日本"),
        ("./.hidden.txt", "here"),
        (None, "docstrings"),
    ],
)
def test_the_default_directory_is_named_after_the_first_path(
    paths, name, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    given = {"data": {"source": {"paths": paths}}}
    assert pretrain.run_name(config.load(RunConfig, base=given)) == name
    named = config.load(RunConfig, overrides=["name=x"], base=given)
    assert pretrain.run_name(named) == "x"


def save(directory: str, schema: type, **values) -> dict:
    """Writes the config of a run; returns it."""
    saved = config.to_dict(config.load(schema, base=values))
    Path(directory).mkdir(parents=True)
    (Path(directory) / "config.json").write_text(json.dumps(saved))
    return saved


def test_a_directory_with_a_run_keeps_its_config(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save("x", RunConfig, train={"epochs": 2.0, "batch": 4}, data={"length": 64})
    built, workdir = pretrain._config(read("pretrain", "--workdir=x", "--steps=9"))
    assert workdir == Path("x")
    assert (built.train.steps, built.train.epochs, built.train.batch) == (9, None, 4)
    assert built.data.length == 64 and built.model.preset != DEFAULT_CONFIG["model"]
    # A config file is meant as it is.
    by_file, _ = pretrain._config(read("pretrain", "--workdir=x", "--config=bert_mini"))
    assert by_file.train.batch == 32
    # The default directories, too.
    save("runs/x", RunConfig, name="x", train={"steps": 7})
    named, workdir = pretrain._config(read("pretrain", "--config.name=x"))
    assert (named.train.steps, workdir) == (7, Path("runs/x"))
    save("y", FinetuneConfig, model="m", mixout=0.1)
    arguments = ("finetune", "--workdir=y", "--show_config", "--config.lora.rank=0")
    assert cli.main([*arguments]) == Exit.OK
    assert "\nmixout = 0.1 " in capsys.readouterr().out
    for verb, other, directory in (
        ("pretrain", "finetune", "y"),
        ("finetune", "pretrain", "x"),
    ):
        assert cli.main([verb, f"--workdir={directory}"]) == Exit.USAGE
        assert f"{directory} holds a run of `plmjax {other}`" in capsys.readouterr().err


def test_texts_have_their_own_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def source(*words: str):
        built, _ = pretrain._config(read("pretrain", *words))
        return built.data.source

    assert source("a.jsonl", "b/", "c,d.jsonl").paths == ("a.jsonl", "b/", "c,d.jsonl")
    assert source("a.jsonl", "b/").paths == "a.jsonl,b/"
    for words in (["a.jsonl"], ["--config.data.source.paths=a.jsonl"]):
        by_recipe = source("--config=electra:tiny", *words)
        assert (by_recipe.kind, by_recipe.document) == (None, None)
        typed = source("--config.data.source.kind=jsonl", *words)
        assert (typed.kind, typed.paths) == ("jsonl", "a.jsonl")
    # A recipe without a text does not train on another.
    assert source("--config=electra:tiny").kind == "text"
    assert source().kind is None
    program = "def get_config(): return {'data': {'source': {'kind': 'hf'}}}"
    Path("mine.py").write_text(program)
    assert source("--config=mine.py", "folder").kind == "hf"
    # A run that has its kind keeps it.
    save("x", RunConfig, data={"source": {"kind": "text", "paths": "a.txt"}})
    assert source("--config=bert_mini", "a.txt", "--workdir=x").kind == "text"


def test_two_texts_do_not_meet_in_a_default_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("runs/my", RunConfig, data={"source": {"kind": "text", "paths": "a/my.txt"}})
    with pytest.raises(
        PlmjaxError, match="runs/my holds a run on another text"
    ) as caught:
        pretrain._config(read("pretrain", "b/my.txt", "--steps=1"))
    assert "'a/my.txt', not 'b/my.txt'" in str(caught.value)
    with pytest.raises(PlmjaxError, match="'a/my.txt', not None"):
        pretrain._config(read("pretrain", "--config.name=my"))
    again, workdir = pretrain._config(read("pretrain", "a/my.txt", "--steps=1"))
    assert workdir == Path("runs/my") and again.train.steps == 1


def test_a_command_that_fails_leaves_no_directory(tmp_path):
    with pytest.raises(KeyError), no_empty_directory(missing(tmp_path / "runs/x")):
        (tmp_path / "runs/x/data").mkdir(parents=True)
        (tmp_path / "runs/x/.lock").touch()
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    with pytest.raises(KeyError), no_empty_directory(missing(tmp_path / "runs/x")):
        (tmp_path / "runs/x").mkdir()
        raise KeyError
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]
    with pytest.raises(KeyError), no_empty_directory(missing(tmp_path / "runs/x")):
        (tmp_path / "runs/x").mkdir()
        (tmp_path / "runs/x/config.json").touch()
        raise KeyError
    assert (tmp_path / "runs/x/config.json").exists()
