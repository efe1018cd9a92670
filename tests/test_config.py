"""The border: defaults, files, overrides, and what a typo gets."""

import json

import pytest

from plmjax import PlmjaxError, config
from plmjax.pretrain import build as run
from plmjax.pretrain.run import DEFAULT_CONFIG
from plmjax.train import sharding
from plmjax.workdir import RunConfig, Workdir


def load(*overrides, path=None, base=None):
    return config.load(RunConfig, path, overrides, base)


def test_overrides_take_their_keys_type():
    found = load(
        "train.steps=20",
        "train.optimizer.learning_rate=1",
        "tokenizer.lowercase=false",
        "tokenizer.path=123",
        "model.heads=3",
        "data.phases=((10, 16, 8), (5, 32, 4))",
    )
    assert found.train.steps == 20
    built = found
    assert built.train.optimizer.learning_rate == 1.0
    assert built.tokenizer.lowercase is False and built.tokenizer.path == "123"
    assert built.data.phases == ((10, 16, 8), (5, 32, 4))


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.stepz=1", "no key train.stepz. Did you mean train.steps"),
        ("train.lr=1", "key train.lr. Did you mean train.optimizer.learning_rate?"),
        ("train.b1=1", "no key train.b1. Did you mean train.optimizer.b1?"),
        ("hidden=1", "no key hidden. --show_config prints every key."),
        ("learning_rate=1", "Did you mean train.optimizer.learning_rate?"),
        ("train.batch=3.5", "train.batch is 3.5; it must be: int"),
        ("train.batch=many", "train.batch is 'many'; it must be: int"),
        ("train.batch=True", "train.batch is True; it must be: int"),
        ("train.optimizer.kind=adam", "Did you mean adamw?"),
        ("train.steps", "has no value. Write --config.train.steps=..."),
        ("train=5", "no key train"),
        ("data.phases=(1,2)", "each phase is (steps, length, batch)"),
        ("train.batch=0", "must be at least 1"),
        ("objective.probability=1.5", "must be above 0 and below 1"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_right(override, message):
    with pytest.raises(PlmjaxError) as caught:
        load(override)
    assert message in str(caught.value) and caught.value.code == 2


def test_steps_and_epochs_replace_each_other(tmp_path):
    assert load("train.epochs=2").train.steps is None
    assert load("train.steps=5", base={"train": {"epochs": 2}}).train.epochs is None
    with pytest.raises(PlmjaxError, match="both set the length of training"):
        load("train.steps=5", "train.epochs=2")


NYSTROM = "model.preset=nystromformer-tiny"


@pytest.mark.parametrize(
    "overrides, message",
    [
        ((), "does not set how long to train"),
        (("train.steps=9", "data.phases=((9, 16, 8),)"), "train.steps both set"),
        (("train.epochs=1", "data.length=600"), "longer than the model's 512"),
        (("train.epochs=1", NYSTROM), "documents of a packed row"),
        (
            ("train.epochs=1", NYSTROM, "data.rows=single", "data.length=32"),
            "landmarks=64 is more than the 32 tokens",
        ),
        (("data.phases=((9, 16, 8, 50.0),)",), "no effect with model.positions='lear"),
        (("data.phases=((9, 16, 8),)", "train.batch=9"), "train.batch has no effect"),
        (("data.phases=((9, 16, 8),)", "data.length=9"), "data.length has no effect"),
        (("train.steps=9", "data.batch_ramp=(90, 16)"), "batch of 16 is no multiple"),
        (("train.epochs=1", "train.batch=12", "mesh.data=8"), "nearest batch .* is 16"),
        (("train.steps=9", "train.schedule.warmup_steps=9"), "does not fit into 9"),
        (("train.steps=9", "model.causal=True"), "hides the tokens on the right"),
        (("train.steps=9", "data.held_out_percent=0"), "above 0 and below 100"),
        (
            (
                "train.steps=9",
                "objective.kind=electra",
                "objective.variant=electra_15",
                "objective.generator.kind=uniform",
            ),
            "their labels are the same",
        ),
        (("train.steps=9", "objective.kind=clm"), "needs a causal model"),
        (
            (
                "train.steps=9",
                "objective.masks=static",
                "objective.final_probability=0.3",
            ),
            "static masks cannot follow",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused_before_any_work(overrides, message):
    with pytest.raises(PlmjaxError, match=message):
        built = load(*overrides)
        run.check(built, sharding.make_mesh(built.mesh))


def test_a_preset_takes_the_values_of_earlier_layers_away():
    base = {"model": {"preset": "bert-tiny", "width": 256, "heads": 4}}
    assert load("model.preset=bert-mini", base=base).model.width is None
    assert load("model.layers=3", base=base).model.width == 256
    found = load("model.preset=bert-mini", "model.heads=8", base=base)
    assert (found.model.heads, found.model.width) == (8, None)


def test_files_lie_over_defaults_and_under_overrides(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(size='small'):\n"
        "    config = ConfigDict()\n"
        "    config.train = ConfigDict({'batch': 4, 'seed': 9})\n"
        "    config.name = size\n"
        "    return config\n"
    )
    found = load("train.seed=1", path=f"{path}:large")
    assert (found.train.batch, found.train.seed, found.name) == (4, 1, "large")
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps(config.to_dict(found)))
    assert load(path=str(saved)) == found


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "def get_config():\n    return {'train': {'bach': 1}}",
            "no key train.bach. Did",
        ),
        ("def get_config():\n    return 1 / 0", "ZeroDivisionError"),
        ("def get_config(:", "SyntaxError"),
        ("x = 1", "AttributeError"),
        ("def get_config():\n    return {'train': 3}", "must be a block of keys"),
    ],
)
def test_errors_inside_a_config_file_are_one_line(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(PlmjaxError, match=message):
        load(path=str(path))


def test_a_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "bert_base.py").write_text("")
    with pytest.raises(PlmjaxError, match="Did you mean .*bert_base.py"):
        load(path=str(tmp_path / "bert_bass.py"))


def test_the_kind_of_a_block_says_which_keys_it_has():
    assert not hasattr(load("objective.kind=clm").objective, "probability")
    # Another kind begins with its own defaults; what was said of the first is void.
    base = {"objective": {"kind": "mlm", "probability": 0.4}}
    objective = load("objective.kind=clm", base=base).objective
    assert not hasattr(objective, "probability")
    found = load("objective.kind=mlm", base={"objective": {"kind": "clm"}})
    assert found.objective.probability == 0.15
    # The same kind again takes nothing away.
    assert load("objective.kind=mlm", base=base).objective.probability == 0.4
    with pytest.raises(PlmjaxError, match="is a key of objective.kind=mlm and electra"):
        load("objective.kind=clm", "objective.copies=2")
    with pytest.raises(PlmjaxError, match="kind=electra alone. Set .*kind=electra"):
        load("objective.generator.layers=2")
    with pytest.raises(PlmjaxError, match=r"objective.kind cannot be \['mlm'\]"):
        load(base={"objective": {"kind": ["mlm"]}})
    with pytest.raises(PlmjaxError, match="objective.kind cannot be 'mlmm'.*mlm"):
        load("objective.kind=mlmm")
    kinds = dict(config.fields(RunConfig))
    assert "mlm | " in config.describe(kinds["objective.kind"])
    assert config.describe(kinds["objective.copies"]) == "int"


def test_the_config_is_locked():
    with pytest.raises(AttributeError, match="stepz"):
        load().train.stepz = 3


def test_changes_name_old_and_new():
    a, b = map(config.to_dict, (load(), load("train.batch=4")))
    assert config.changes(a, b) == {"train.batch": (16, 4)}


def test_the_embedded_default_is_the_job_that_the_readme_tells_of():
    built = load(base=DEFAULT_CONFIG)
    # Without a kind and paths, the text is the docstrings.
    assert (built.data.source.kind, built.data.source.paths) == (None, None)
    assert built.objective.kind == "mlm"
    assert (built.tokenizer.kind, built.tokenizer.vocab_size) == ("wordpiece", 8192)
    assert (built.model.preset, built.model.width) == ("bert-tiny", 256)
    assert (built.train.steps, built.train.batch, built.data.length) == (2400, 8, 128)


def test_none_is_a_choice_where_a_key_has_it():
    overrides = ["objective.pairs=none", "model.sharing=none", "train.ema_decay=none"]
    values = config.to_dict(config.load(RunConfig, overrides=overrides))
    assert values["objective"]["pairs"] == values["model"]["sharing"] == "none"
    assert values["train"]["ema_decay"] is None


def test_paths_are_text_or_a_tuple():
    def paths(text):
        return load(f"data.source.paths={text}").data.source.paths

    assert paths("a.txt,b.txt") == "a.txt,b.txt" == paths("('a.txt', 'b.txt')")
    assert paths("('a, b.txt', 'c.txt')") == ("a, b.txt", "c.txt")
    assert paths("1,2") == "1,2" and paths("12") == "12" and paths("none") is None


def test_a_run_resumes_with_the_kind_that_its_files_gave():
    def compare(*now):
        saved = load("data.source.kind=text", "data.source.paths=a.txt")
        configs = (config.to_dict(c) for c in (saved, load(*now)))
        return Workdir("run").compare(*configs)

    assert compare("data.source.paths=a.txt", "data.source.field=body") == {}
    with pytest.raises(PlmjaxError, match=r"data.source.kind: 'text' -> 'jsonl'"):
        compare("data.source.paths=a.txt", "data.source.kind=jsonl")
    with pytest.raises(PlmjaxError, match=r"data.source.paths: 'a.txt' -> 'b.txt'"):
        compare("data.source.paths=b.txt")


def test_phases_keep_their_proportions_at_another_length():
    from plmjax.data.config import DataConfig

    data = DataConfig(phases=((900, 128, 256), (90, 256, 128), (10, 512, 64)))
    shorter = data.shortened(100).phases
    assert shorter == ((90, 128, 256), (9, 256, 128), (1, 512, 64))
    assert data.shortened(3).phases == ((3, 128, 256),)
    assert sum(steps for steps, *_ in data.shortened(777).phases) == 777
