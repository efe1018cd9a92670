"""The start of fine-tuning touches what it says, and nothing else."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from interop.cases import draw

from plmjax import PlmjaxError, tree
from plmjax.evaluate.model import Model
from plmjax.finetune.build import check
from plmjax.finetune.config import FinetuneConfig
from plmjax.finetune.start import StartConfig, describe, start
from plmjax.models import EncoderConfig
from plmjax.tasks.task import Task
from plmjax.train import sharding
from plmjax.train.config import MeshConfig

CONFIG = EncoderConfig(
    vocab_size=13, layers=3, width=4, heads=2, ffn_width=6, max_positions=8
)
CLASSES = Task("classes", ("no", "yes", "maybe"))


@functools.cache
def model(heads=("head", "pair"), **changes) -> Model:
    """A model whose every parameter is random, biases too."""
    config = dataclasses.replace(CONFIG, **changes)
    tokenizer: Any = None
    return Model(config, draw(config, heads), tokenizer, "bert")


def apart(given: Model, found: dict) -> set[str]:
    """Names whose values are not the model's."""
    ours, theirs = tree.flatten(given.params), tree.flatten(found)
    return {n for n, x in theirs.items() if not np.array_equal(x, ours.get(n))}


HEAD = {f"sequence/classifier/{leaf}" for leaf in ("kernel", "bias")}
POOLER = {f"sequence/pooler/dense/{leaf}" for leaf in ("kernel", "bias")}


def test_only_the_classifier_is_new_and_the_pooler_is_taken_over():
    config, found = start(model(), CLASSES, StartConfig(), 0)
    assert config == CONFIG and found.keys() == {"encoder", "sequence"}
    assert apart(model(), found) == HEAD | POOLER
    for leaf, array in found["sequence"]["pooler"]["dense"].items():
        np.testing.assert_array_equal(
            array, model().params["pair"]["pooler"]["dense"][leaf]
        )
    assert found["sequence"]["classifier"]["kernel"].shape == (4, 3)
    assert "new: classifier." in describe(model(), CLASSES, StartConfig())


def test_the_last_layers_and_the_pooler_are_drawn_anew():
    config = StartConfig(reinit_layers=2, reinit_pooler=True)
    _, found = start(model(), CLASSES, config, 0)
    names = tree.flatten(found["encoder"])
    last = {f"encoder/{n}" for n in names if n.startswith(("layer_1/", "layer_2/"))}
    assert apart(model(), found) == HEAD | POOLER | last
    pooler = found["sequence"]["pooler"]["dense"]["kernel"]
    assert not np.array_equal(
        pooler, model().params["pair"]["pooler"]["dense"]["kernel"]
    )
    # As fresh: small kernels, biases 0, scales 1.
    flat = tree.flatten(found)
    assert np.abs(flat["encoder/layer_2/ffn/up/kernel"]).max() < 0.1
    assert not flat["encoder/layer_2/ffn/up/bias"].any()
    assert (flat["encoder/layer_1/ffn_norm/scale"] == 1).all()
    said = describe(model(), CLASSES, config)
    assert "new: classifier, pooler, the last 2 layers." in said


def test_seeds_draw_what_is_new():
    one, same, other = (
        start(model(), CLASSES, StartConfig(), seed)[1] for seed in (1, 1, 2)
    )
    assert not tree.differences(one, same)
    kernels = [p["sequence"]["classifier"]["kernel"] for p in (one, same, other)]
    np.testing.assert_array_equal(*kernels[:2])
    assert not np.array_equal(kernels[0], kernels[2])


def test_only_the_first_layers_are_taken():
    config, found = start(model(), CLASSES, StartConfig(layers=2), 0)
    assert config == dataclasses.replace(CONFIG, layers=2)
    assert "layer_1" in found["encoder"] and "layer_2" not in found["encoder"]
    assert apart(model(), found) == HEAD | POOLER


def test_shared_layers_can_be_fewer_but_not_new():
    shared = model(sharing="all", family="albert")
    config, found = start(shared, CLASSES, StartConfig(layers=1), 0)
    assert config.layers == 1 and apart(shared, found) == HEAD | POOLER
    with pytest.raises(PlmjaxError, match="share their parameters"):
        start(shared, CLASSES, StartConfig(reinit_layers=1), 0)
    several = model(sharing="all", family="albert", groups=3)
    with pytest.raises(PlmjaxError, match="3 sets of parameters"):
        start(several, CLASSES, StartConfig(layers=2), 0)


def test_heads_without_a_pooler_take_none():
    _, found = start(model(), Task("answers"), StartConfig(), 0)
    assert found["answers"].keys() == {"classifier"}
    _, found = start(model(), Task("choices"), StartConfig(), 0)
    assert found["choices"]["classifier"]["kernel"].shape == (4, 1)
    np.testing.assert_array_equal(
        found["choices"]["pooler"]["dense"]["bias"],
        model().params["pair"]["pooler"]["dense"]["bias"],
    )


def test_a_family_whose_head_has_a_pooler_of_its_own_starts_it_anew():
    roberta = model(heads=("head",), family="roberta", position_offset=2)
    assert "new: classifier, pooler." in describe(roberta, CLASSES, StartConfig())


@pytest.mark.parametrize(
    "values, message",
    [
        ({"layers": 4}, "bert has only 3 layers"),
        ({"reinit_layers": 4}, "there are only 3 layers"),
        ({"layers": 1, "reinit_layers": 2}, "there are only 1 layers"),
    ],
)
def test_more_layers_than_there_are(values, message):
    with pytest.raises(PlmjaxError, match=message):
        start(model(), CLASSES, StartConfig(**values), 0)


@pytest.mark.parametrize("values", [{"layers": 0}, {"reinit_layers": -1}])
def test_numbers_that_mean_nothing(values):
    with pytest.raises(PlmjaxError, match="it must"):
        StartConfig(**values)


def test_gpt2_has_no_such_head():
    given = dataclasses.replace(
        model(), encoder=dataclasses.replace(CONFIG, family="gpt2")
    )
    with pytest.raises(PlmjaxError, match="no head to fine-tune"):
        start(given, CLASSES, StartConfig(), 0)


def test_vectors_that_are_not_there_are_refused_before_any_work():
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(PlmjaxError, match="vectors=no.vec is not a file"):
        check(FinetuneConfig(model="a", vectors="no.vec"), mesh)
    check(FinetuneConfig(model="a", vectors="no.vec", baselines=False), mesh)
