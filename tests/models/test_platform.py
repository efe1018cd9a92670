"""One model is another program for each platform, whatever this machine has."""

import dataclasses
import types

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from tests_common import campaign

from plmjax.models import PRESETS, Platform, heads, task_heads
from plmjax.models.layers import cross_entropy
from plmjax.models.noise import Noise
from plmjax.models.platform import ANY
from plmjax.tasks.task import Task
from plmjax.tree import flatten

GPU = Platform("gpu", multiplies_bf16=True)
TPU = Platform("tpu", multiplies_bf16=True)
# A CPU with a unit for bf16, alone and one of several.
CPU = Platform("cpu", multiplies_bf16=True, one_device=True)
CPUS = dataclasses.replace(CPU, one_device=False)
SIZES = dict(vocab_size=96, layers=1, width=16, heads=2, ffn_width=32, max_positions=40)
FAMILIES = {
    "bert": PRESETS["bert-tiny"],
    "electra": dataclasses.replace(PRESETS["electra-tiny"], embedding_width=8),
    "deberta-v2": dataclasses.replace(
        PRESETS["deberta-v2-xlarge"], position_buckets=8, remat="dots"
    ),
    "gpt2": PRESETS["gpt2"],
}


def equations(jaxpr):
    """Yields the equations of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def step_of(family: str, platform: Platform) -> list:
    """Returns the equations of the gradient of a bf16 model with all its heads."""
    config = dataclasses.replace(FAMILIES[family], **SIZES, dtype="bfloat16")
    ids = jnp.zeros((2, 12), jnp.int32)
    names = ("tokens", "segments", "positions", "types", "mask_positions", "cls")
    batch = dict.fromkeys(names, ids)
    params = jax.eval_shape(
        lambda: heads.init_model(config, jax.random.key(0), batch, heads.HEADS)
    )

    def loss(params):
        said = heads.outputs(config, params, batch, platform)
        return sum(jnp.sum(scores) for scores in said.values())

    return list(equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))


def products(found: list) -> set[tuple[str, str]]:
    """Returns the types of what is multiplied as matrices."""
    return {
        tuple(str(operand.aval.dtype) for operand in equation.invars)
        for equation in found
        if equation.primitive.name == "dot_general"
    }


@pytest.mark.parametrize("family", campaign([*FAMILIES], "bert", "deberta-v2"))
def test_the_platform_says_what_is_multiplied(family):
    narrow, wide = ("bfloat16", "bfloat16"), ("float32", "float32")
    assert products(step_of(family, GPU)) == {narrow}
    assert products(step_of(family, TPU)) == {narrow}
    assert products(step_of(family, CPU)) == {narrow, wide}
    assert products(step_of(family, ANY)) == {wide}


def test_one_cpu_alone_copies_an_operand():
    names = [[e.primitive.name for e in step_of("bert", p)] for p in (CPU, CPUS, GPU)]
    assert ["layout_constraint" in found for found in names] == [True, False, False]


def gradients(config, platform: Platform) -> dict:
    """Returns the loss and gradients of packed rows with dropout, float32, by name."""
    random = np.random.default_rng(0)
    ids = random.integers(5, 96, (4, 12)).astype(np.int32)
    segments = np.repeat(np.array([[1] * 5 + [2] * 6 + [0]], np.int32), 4, 0)
    position = np.tile(np.arange(12, dtype=np.int32), (4, 1))
    batch = dict(tokens=ids, segments=segments, positions=position, types=segments * 0)
    batch |= dict(mask_positions=position[:, 1:5], cls=position[:, :2])
    params = heads.init_model(config, jax.random.key(0), batch, ["head"])
    noise = Noise(jnp.uint32(1), jnp.uint32(2), jnp.arange(4))

    def loss(params):
        x_BLH = heads.encode(config, params, batch, noise, platform)
        x_TH = heads.gather_positions(x_BLH, batch["mask_positions"])
        logits_TV = heads.vocabulary_logits(config, params, x_TH, platform)
        return jnp.mean(cross_entropy(logits_TV, ids[:, 1:5].reshape(-1))[0])

    value, found = jax.jit(jax.value_and_grad(loss))(params)
    return flatten(found) | {"loss": value}


@pytest.mark.parametrize(
    "family", campaign([*FAMILIES, "window"], "deberta-v2", "window")
)
def test_the_program_of_a_gpu_has_the_same_gradients(family):
    """In bf16, as far from float32 as the program of a CPU, to the half."""
    config = dataclasses.replace(
        FAMILIES.get(family, FAMILIES["bert"]), **SIZES, attention_dropout=0.2
    )
    if family == "window":
        kinds = dict(layer_kinds=("local",), window=4, positions="rope", norm="rms")
        config = dataclasses.replace(config, **kinds, kv_heads=1)
    gpu = dataclasses.replace(GPU, one_device=True)
    exact, found = gradients(config, ANY), gradients(config, gpu)
    for name, value in exact.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=2e-6)
    config = dataclasses.replace(config, dtype="bfloat16")
    errors = [
        np.linalg.norm(
            [np.linalg.norm(rounded[name] - value) for name, value in exact.items()]
        )
        for rounded in (gradients(config, ANY), gradients(config, gpu))
    ]
    assert 0 < errors[1] < 1.5 * errors[0]


@pytest.mark.parametrize("kind", ["classes", "tags", "embeddings"])
def test_the_platform_reaches_the_heads_of_fine_tuning(kind):
    config = dataclasses.replace(FAMILIES["bert"], **SIZES, dtype="bfloat16")
    labels = () if kind == "embeddings" else ("a", "b")
    task, ids = Task(kind, labels), jnp.zeros((2, 12), jnp.int32)
    ids = ids[:, None] if kind == "embeddings" else ids
    batch = dict.fromkeys(("tokens", "segments", "positions", "types"), ids)
    params = jax.eval_shape(
        lambda: task_heads.init_model(config, task, jax.random.key(0), batch)
    )

    def says(platform):
        found = jax.make_jaxpr(
            lambda params: task_heads.task_logits(
                config, task, params, batch, None, platform=platform
            )
        )(params)
        return products(list(equations(found.jaxpr)))

    assert says(TPU) == {("bfloat16", "bfloat16")} and says(ANY) != says(TPU)


def test_a_platform_is_that_of_the_devices_and_not_of_this_machine():
    tpus = [types.SimpleNamespace(platform="tpu")] * 4
    assert Platform.of(tpus) == TPU
    assert Platform.of(tpus[:1]) == dataclasses.replace(TPU, one_device=True)
    here = Platform.of(jax.devices())
    assert here.kind == jax.default_backend()
    assert here.one_device == (jax.device_count() == 1)


def test_no_platform_changes_the_parameters():
    """Nothing of it is in names or shapes, and so nowhere in a checkpoint."""
    config = dataclasses.replace(FAMILIES["bert"], **SIZES)
    ids = jnp.zeros((2, 12), jnp.int32)
    batch = dict.fromkeys(("tokens", "segments", "positions", "types"), ids)
    params = jax.eval_shape(
        lambda: heads.init_model(config, jax.random.key(0), batch, heads.HEADS)
    )
    assert not any("platform" in name for name in flatten(params))
    assert "platform" not in {field.name for field in dataclasses.fields(config)}
