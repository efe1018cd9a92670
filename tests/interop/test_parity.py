"""The same numbers as transformers on PyTorch: logits, loss, gradients, one step.

The default suite compares with tests/golden/*.npz; `-m peer` with PyTorch, live.
"""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plmjax.interop.config_json import from_json
from plmjax.interop.names import FAMILIES, entries
from plmjax.objectives.base import Key
from plmjax.objectives.mlm import MLMConfig, Pieces, mlm
from plmjax.train.config import OptimizerConfig
from plmjax.train.optimizer import make_optimizer
from plmjax.tree import flatten, unflatten

RATE, EPS = 1e-3, 1e-6
# What float32 leaves of a gradient's elements, PyTorch's own against float64 included.
GRADIENT = 5e-7
GOLDEN = Path(__file__).parents[1] / "golden"


def goldens():
    spec = importlib.util.spec_from_file_location("m", GOLDEN / "make_goldens.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ours(config, theirs, prefix):
    """The arrays under `prefix`, as our parameters."""
    flat = {}
    for entry in entries(FAMILIES[config.family], config.layers):
        array = theirs[prefix + entry.theirs]
        flat[entry.ours] = jnp.asarray(array.T if entry.transposed else array)
    return unflatten(flat)


def compute(config, params, batch):
    """Logits, loss and gradients by our own encoder, head and objective."""
    mask = jnp.asarray(batch["mask"], jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape)
    labels = np.asarray(batch["labels"])
    used = labels >= 0
    rows = {
        "tokens": jnp.asarray(batch["tokens"], jnp.int32),
        "segments": mask,
        "positions": positions,
        "types": jnp.asarray(batch["types"], jnp.int32),
        "row": jnp.arange(mask.shape[0]),
        "mask_positions": positions,
        "labels": jnp.asarray(np.where(used, labels, 0), jnp.int32),
        "weights": jnp.asarray(used / used.sum(), jnp.float32),
    }
    key = Key(jnp.uint32(0), jnp.uint32(0))
    pieces = Pieces(4, (0, 1, 2, 3, 4), [1] * config.vocab_size)
    objective = mlm(MLMConfig(), config, pieces)
    loss, grads = jax.jit(
        jax.value_and_grad(lambda p: objective.loss(p, {}, rows, key, False)[0])
    )(params)
    return jax.jit(objective.outputs)(params, rows), loss, grads


def adamw_step(params, grads):
    """The parameters after a step of our AdamW with make_goldens' settings."""
    optimizer = make_optimizer(
        OptimizerConfig(b1=0.9, b2=0.999, eps=EPS, weight_decay=0.01, clip_norm=None)
    )
    direction, _ = optimizer.update(grads, optimizer.init(params), params)
    return jax.tree.map(lambda p, d: p - jnp.float32(RATE) * d, params, direction)


def largest(found, wanted):
    """The largest absolute difference of any leaf, with its name."""
    found, wanted = flatten(found), flatten(wanted)
    assert found.keys() == wanted.keys()
    return max((float(np.abs(found[n] - wanted[n]).max()), n) for n in wanted)


def check(config, theirs, batch):
    """Asserts parity; each bound is a few times what float32 rounding leaves."""
    params = ours(config, theirs, "before/")
    wanted, wanted_after = (
        ours(config, theirs, "grads/"),
        ours(config, theirs, "after/"),
    )
    logits, loss, grads = compute(config, params, batch)
    after = adamw_step(params, grads)
    real = np.asarray(batch["mask"]) > 0
    apart = {
        "logits": float(np.abs(logits - theirs["logits"])[real].max()),
        "loss": abs(float(loss) - float(theirs["loss"])),
        "gradient": largest(grads, wanted),
        "step": largest(after, wanted_after),
        "step on their gradients": largest(adamw_step(params, wanted), wanted_after),
    }
    print(config.family, config.width, apart)
    assert apart["logits"] < 1e-5
    assert apart["loss"] < 3e-6
    assert apart["gradient"][0] < GRADIENT
    assert apart["step on their gradients"][0] < 3e-7
    # A first step of Adam goes by lr * g / (|g| + eps), whose slope is
    # lr * eps / (|g| + eps)**2: up to 1,000 where a gradient is nothing but rounding,
    # as a key's bias always is (softmax does not see it).
    after, wanted_after, wanted = map(flatten, (after, wanted_after, wanted))
    for name in wanted:
        smallest = np.maximum(np.abs(wanted[name]) - GRADIENT, 0) + EPS
        bound = 5e-7 + GRADIENT * RATE * EPS / smallest**2
        assert (np.abs(after[name] - wanted_after[name]) < bound).all(), name


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_golden_parity(family):
    with np.load(GOLDEN / f"{family}.npz") as file:
        theirs = dict(file)
    batch = {key: theirs[f"batch/{key}"] for key in ("tokens", "mask", "types")}
    batch["labels"] = theirs["batch/labels"]
    config, _, _ = from_json(json.loads(str(theirs["config"])), "golden")
    check(config, theirs, batch)


@pytest.mark.peer
@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("width, heads, ffn", [(10, 5, 14), (35, 5, 57), (160, 5, 333)])
def test_live_parity(family, width, heads, ffn):
    maker = goldens()
    sizes = maker.SIZES | {
        "vocab_size": 211,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "max_position_embeddings": 40,
    }
    model = maker.make_model(family, sizes, seed=width)
    batch = maker.make_batch(model, (33, 20, 1, 7), seed=width)
    body = json.loads(json.dumps(model.config.to_diff_dict()))
    config, _, _ = from_json(body, "live")
    check(config, maker.reference(model, batch), batch)
