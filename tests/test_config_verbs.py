"""`plmjax config`: show, diff, validate, schema."""

import json
import typing

import jsonschema
import pytest

from plmjax import config as config_lib
from plmjax.cli import main
from plmjax.finetune.config import FinetuneConfig
from plmjax.workdir import RunConfig, Workdir


@pytest.fixture
def run(tmp_path):
    """A workdir that holds nothing but a config."""
    workdir = Workdir(tmp_path / "run")
    workdir.create()
    workdir.write_config(config_lib.load(RunConfig, None, ["train.steps=7"]))
    return str(workdir.path)


def printed(capsys, *words: str) -> typing.Any:
    assert main(["config", *words]) in (None, 0)
    return json.loads(capsys.readouterr().out)


def test_show_has_every_key_with_its_range(run, capsys):
    shown = printed(capsys, "show", run, "--config.train.batch=12")
    assert shown["train.batch"] == {"value": 12, "type": "int", "range": "at least 1"}
    assert shown["train.steps"]["value"] == 7
    assert "range" not in shown["model.preset"]
    assert printed(capsys, "show", "bert_mini")["train.batch"]["value"] == 32


def test_diff_prints_what_differs(run, capsys):
    recipe = "pretrain/docstrings"
    found = printed(capsys, "diff", run, recipe, "--json")
    assert found["train.steps"][0] == 7 and "train.seed" not in found
    assert printed(capsys, "diff", run, run, "--json") == {}
    assert main(["config", "diff", run, "tags:upos"]) == 2
    assert "different verbs" in capsys.readouterr().err


def test_validate_says_what_is_wrong(run, capsys):
    assert main(["config", "validate", run]) in (None, 0)
    for words, message in (
        (["bert_mini", "--config.train.batch=0"], "it must be at least 1"),
        (["bert_mini", "--config.train.lr=1"], "has no key train.lr"),
        ([run, "--config.data.length=999"], "longer than the model's 512"),
        (["bert_min"], "Did you mean bert_mini?"),
    ):
        assert main(["config", "validate", *words]) == 2
        assert message in capsys.readouterr().err


def test_the_schema_accepts_configs_and_refuses_what_is_out_of_range(run, capsys):
    schema = printed(capsys, "schema")
    jsonschema.Draft202012Validator.check_schema(schema)
    config = json.loads((Workdir(run) / "config.json").read_text())
    jsonschema.validate(config, schema)
    for block, key, wrong in (
        ("train", "batch", 0),
        ("train", "batch", "8"),
        ("train", "bach", 8),
        ("objective", "kind", "none"),
        ("data", "held_out_percent", 100),
    ):
        changed = config | {block: config[block] | {key: wrong}}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed, schema)
    finetune = printed(capsys, "schema", "finetune")
    default = json.loads(json.dumps(config_lib.to_dict(FinetuneConfig())))
    jsonschema.validate(default, finetune)
