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
from tests_common import campaign

from plmjax.interop.config_json import from_json
from plmjax.interop.weights import from_tensors, model_entries
from plmjax.models.heads import HEADS, outputs
from plmjax.models.layers import cross_entropy
from plmjax.train.config import OptimizerConfig
from plmjax.train.optimizer import make_optimizer
from plmjax.tree import flatten

RATE, EPS = 1e-3, 1e-6
GOLDEN = Path(__file__).parents[1] / "golden"


def _goldens():
    spec = importlib.util.spec_from_file_location("m", GOLDEN / "make_goldens.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GOLDENS = _goldens()


def quick(function):
    """Compiles with less care: tiny arrays take longer to compile for than to use."""
    options = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    }
    return jax.jit(function, compiler_options=options)


def compute(config, params, batch):
    """Logits by head, loss and gradients by our own encoder and heads."""
    mask = jnp.asarray(batch["mask"], jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape)
    rows = {
        "tokens": jnp.asarray(batch["tokens"], jnp.int32),
        "segments": mask,
        "positions": positions,
        "types": jnp.asarray(batch["types"], jnp.int32),
        "mask_positions": positions,
        "cls": jnp.zeros((mask.shape[0], 1), jnp.int32),
    }
    labels = {name: np.asarray(batch[name]) for name in HEADS if name in batch}
    if config.causal:
        # A token is the label of the place before it.
        after = labels["head"][:, 1:]
        labels["head"] = np.pad(after, ((0, 0), (0, 1)), constant_values=-100)

    def loss(params):
        found = outputs(config, params, rows)
        if "pair" in found:
            found["pair"] = found["pair"][:, 0]
        return sum(term(found, labels, name, mask) for name in labels), found

    (value, logits), grads = quick(jax.value_and_grad(loss, has_aux=True))(params)
    return logits, value, grads


def term(found, labels, name, mask):
    """The mean over what is labelled, as transformers has it for each head."""
    if name == "detector":
        # Minus the log of the probability of what is so.
        sign = 1 - 2 * labels[name]
        return (jax.nn.softplus(sign * found[name]) * mask).sum() / mask.sum()
    used = labels[name] >= 0
    nats, _ = cross_entropy(
        found[name].reshape(-1, found[name].shape[-1]),
        jnp.asarray(np.where(used, labels[name], 0).ravel(), jnp.int32),
    )
    return (nats * used.ravel()).sum() / used.sum()


def adamw():
    """A step of our AdamW with make_goldens' settings: (params, grads) -> params."""
    optimizer = make_optimizer(
        OptimizerConfig(b1=0.9, b2=0.999, eps=EPS, weight_decay=0.01, clip_norm=None)
    )

    @quick
    def step(params, grads):
        direction, _ = optimizer.update(grads, optimizer.init(params), params)
        return jax.tree.map(lambda p, d: p - jnp.float32(RATE) * d, params, direction)

    return step


def largest(found, wanted):
    """The largest absolute difference of any leaf, with its name."""
    found, wanted = flatten(found), flatten(wanted)
    assert found.keys() == wanted.keys()
    return max((float(np.abs(found[n] - wanted[n]).max()), n) for n in wanted)


def check(case, config, theirs, batch, gradient):
    """Asserts parity; each bound is a few times what float32 rounding leaves."""
    heads = [name for name in HEADS if name in batch]
    wanted_tensors = model_entries(config, heads)

    def ours(prefix):
        return jax.tree.map(
            jnp.asarray,
            from_tensors(wanted_tensors, heads, lambda name: theirs[prefix + name]),
        )

    params, wanted, wanted_after = ours("before/"), ours("grads/"), ours("after/")
    assert len(wanted_tensors) == sum(name.startswith("grads/") for name in theirs)
    logits, loss, grads = compute(config, params, batch)
    step = adamw()
    after = step(params, grads)
    real = np.asarray(batch["mask"]) > 0
    apart = {
        "loss": abs(float(loss) - float(theirs["loss"])),
        "gradient": largest(grads, wanted),
        "step": largest(after, wanted_after),
        "step on their gradients": largest(step(params, wanted), wanted_after),
    }
    for head in heads:
        apart[head] = np.abs(np.asarray(logits[head]) - theirs[f"logits/{head}"])
        apart[head] = float(
            apart[head].max() if head == "pair" else apart[head][real].max()
        )
    print(case, config.width, apart)
    assert all(apart[head] < 1e-5 for head in heads)
    assert apart["loss"] < 3e-6
    assert apart["gradient"][0] < gradient
    assert apart["step on their gradients"][0] < 3e-7
    # A first step of Adam goes by lr * g / (|g| + eps), whose slope is
    # lr * eps / (|g| + eps)**2: up to 1,000 where a gradient is nothing but rounding,
    # as a key's bias always is (softmax does not see it).
    after, wanted_after, wanted = map(flatten, (after, wanted_after, wanted))
    for name in wanted:
        smallest = np.maximum(np.abs(wanted[name]) - gradient, 0) + EPS
        bound = 5e-7 + gradient * RATE * EPS / smallest**2
        assert (np.abs(after[name] - wanted_after[name]) < bound).all(), name


@pytest.mark.parametrize(
    "case",
    [
        # Shared layers; attention that is disentangled; one side; all that BERT has;
        # windows and rotations; windows and global tokens.
        case
        if case
        in ("albert_sop", "deberta_v3", "gpt2", "bert_nsp", "modernbert", "longformer")
        else pytest.param(case, marks=pytest.mark.slow)
        for case in GOLDENS.GOLDEN
    ],
)
def test_golden_parity(case):
    with np.load(GOLDEN / f"{case}.npz") as file:
        theirs = GOLDENS.unpack(file)
    prefix = "batch/"
    batch = {n.removeprefix(prefix): a for n, a in theirs.items() if prefix in n}
    config, _, _ = from_json(json.loads(str(theirs["config"])), "golden")
    check(case, config, theirs, batch, gradient=5e-7)


SIZES = ((10, 5, 14), (35, 5, 57), (160, 5, 333))


@pytest.mark.peer
@pytest.mark.parametrize("case", GOLDENS.CASES)
@pytest.mark.parametrize("width, heads, ffn", campaign(SIZES, SIZES[0]))
def test_live_parity(case, width, heads, ffn):
    width += heads * (width // heads % 2) * (case in GOLDENS.ROTATED)
    sizes = GOLDENS.SIZES | {
        "vocab_size": 211,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "max_position_embeddings": 40,
    }
    model = GOLDENS.make_model(case, sizes, seed=width)
    batch = GOLDENS.make_batch(case, model, (33, 20, 1, 7), seed=width)
    body = json.loads(json.dumps(model.config.to_diff_dict()))
    config, _, _ = from_json(body, "live")
    theirs = GOLDENS.reference(model, batch)
    # Theirs is as far from the truth as ours.
    check(case, config, theirs, batch, gradient=1e-6)
