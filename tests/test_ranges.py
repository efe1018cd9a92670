"""Every number of every config: its range is kept however the number comes in."""

import dataclasses
import json
import math
import re
import typing

import pytest

from plmjax import PlmjaxError, config
from plmjax.experiments.compare_plan import Repeats
from plmjax.experiments.pseudo import Plan
from plmjax.experiments.pseudo_labels import PseudoConfig
from plmjax.experiments.sweep_plan import StudyConfig
from plmjax.finetune.config import FinetuneConfig
from plmjax.models import EncoderConfig
from plmjax.train.config import OptimizerConfig
from plmjax.workdir import RunConfig

# Options of commands, and what no config file has a block for.
OTHERS = (StudyConfig, Repeats, PseudoConfig, Plan, EncoderConfig)
# Numbers that may be any.
ANY = {"lora.alpha", "seed"}
# What a border needs beside it, in a block that has such a key.
BESIDE = {
    "width": {"heads": 1},
    "mask_share": {"random_share": 0.0},
    "random_share": {"mask_share": 0.0},
    "mlm_weight": {"pairs": "nsp"},
    "generator_weight": {"tie": "none"},
    "detector_weight": {"variant": "replace_mlm"},
    "spike_sigmas": {"on_bad_step": "raise"},
    "fsdp": {"data": 1},
    "tensor": {"data": 1},
}


def blocks(schema: type, prefix: str = ""):
    """Yields (dataclass, where it stands) of a schema and all blocks in it."""
    yield schema, prefix
    kinds = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        for block in config.variants(kinds[field.name]).values():
            yield from blocks(block, f"{prefix}{field.name}.")


PLACES = [*blocks(RunConfig), *blocks(FinetuneConfig)]
BLOCKS = dict.fromkeys([*(block for block, _ in PLACES), *OTHERS])


def numbers(block: type) -> dict[str, str]:
    """{field: its types} of the fields that may be numbers."""
    kinds = typing.get_type_hints(block)
    named = {f.name: config.describe(kinds[f.name]) for f in dataclasses.fields(block)}
    kept = {k: {*v.split(" | ")} for k, v in named.items()}
    # A value that may be a tuple has a check of its own.
    return {
        k: named[k]
        for k, v in kept.items()
        if {"int", "float"} & v and "tuple" not in v
    }


CASES = [
    pytest.param(block, name, id=f"{block.__name__}.{name}")
    for block in BLOCKS
    for name in numbers(block)
]


def limits_of(block: type, name: str) -> config.Range | None:
    return block.__dataclass_fields__[name].metadata.get("range")


def make(block: type, name: str, value):
    known = {field.name for field in dataclasses.fields(block)}
    beside = {k: v for k, v in BESIDE.get(name, {}).items() if k in known}
    texts = ("texts/*.txt",) if block is Plan else ()
    return block(*texts, **beside | {name: value})


def ends(limits: config.Range, kind: str) -> tuple[list, list]:
    """The outermost numbers inside a range, and those next to them outside."""
    whole = "float" not in kind.split(" | ")
    inside, outside = [], []
    for bound, way, closed in (
        (limits.at_least, -1, True),
        (limits.above, 1, False),
        (limits.at_most, 1, True),
        (limits.below, -1, False),
    ):
        if math.isfinite(bound):
            # `way` leads from the bound to its neighbour on the other side of the end.
            next_to_it = bound + way if whole else math.nextafter(bound, way * math.inf)
            (inside if closed else outside).append(bound)
            (outside if closed else inside).append(next_to_it)
    return inside, outside


@pytest.mark.parametrize("block, name", CASES)
def test_a_border_is_accepted_and_the_next_number_is_refused(block, name):
    limits, key = limits_of(block, name), f"{getattr(block, 'prefix', '')}{name}"
    if key in ANY:
        assert limits is None
        return
    assert limits is not None, f"{key} has no range"
    inside, outside = ends(limits, numbers(block)[name])
    assert inside and outside
    for value in inside:
        assert getattr(make(block, name, value), name) == value
    for value in [*outside, math.nan, math.inf, -math.inf]:
        told = f"{key}={value} must" if "--" in key else f"{key} is {value}; it must"
        with pytest.raises(PlmjaxError, match=f"^{re.escape(f'{told} be {limits}')}"):
            make(block, name, value)


def test_blocks_know_where_they_stand():
    for block, prefix in PLACES:
        assert getattr(block, "prefix", prefix) == prefix, block
        assert issubclass(block, config.Block) or not numbers(block), block


def test_none_and_words_pass_where_the_type_says_so():
    for block in BLOCKS:
        for name, kind in numbers(block).items():
            for word in {*kind.split(" | ")} - {"int", "float"}:
                value = None if word == "none" else word
                assert getattr(make(block, name, value), name) == value


def test_kinds_of_a_block_that_share_a_key_share_its_range():
    found = {}
    for block, prefix in PLACES:
        for name in numbers(block):
            kind = found.setdefault((prefix, name), limits_of(block, name))
            assert kind == limits_of(block, name), (prefix, name)


def test_every_way_in_is_checked(tmp_path):
    values = {"train": {"optimizer": {"b1": 1.0}}}
    saved, file = tmp_path / "config.json", tmp_path / "mine.py"
    saved.write_text(json.dumps(values))
    file.write_text(f"def get_config():\n    return {values}\n")
    override = ["train.optimizer.b1=1"]
    for way in (
        lambda: OptimizerConfig(b1=1.0),
        lambda: dataclasses.replace(OptimizerConfig(), b1=1.0),
        lambda: config.build(RunConfig, values),
        lambda: config.load(RunConfig, base=values),
        lambda: config.load(RunConfig, str(saved)),
        lambda: config.load(RunConfig, str(file)),
        lambda: config.load(RunConfig, None, override),
    ):
        with pytest.raises(PlmjaxError) as caught:
            way()
        assert str(caught.value) == (
            "train.optimizer.b1 is 1.0; it must be at least 0 and below 1."
        )


def test_an_error_has_the_hint_and_the_words_that_may_be():
    with pytest.raises(PlmjaxError) as caught:
        config.load(RunConfig, None, ["objective.kind=electra", "mesh.data=0"])
    assert str(caught.value) == "mesh.data is 0; it must be at least 1, or auto."
    with pytest.raises(PlmjaxError, match="must be 0 to 1. .9 is usual."):
        PseudoConfig(threshold=2.0)


def test_the_range_stands_beside_each_key(capsys):
    config.show(config.load(RunConfig))
    shown = capsys.readouterr().out.splitlines()
    assert "train.batch = 16  (int, at least 1)" in shown
    assert "train.ema_decay = None  (float | none, above 0 and below 1)" in shown
    assert "objective.short_share = 0.1  (float, 0 to 1)" in shown
    assert "model.preset = 'bert-tiny'  (str)" in shown
