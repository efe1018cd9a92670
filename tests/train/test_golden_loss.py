"""Thirty losses, and the weights they end with, that a refactoring must reproduce.

To accept a change of the mathematics, run this file as a program, with the environment
of conftest.py: it writes the new values.
"""

import json
import math
from pathlib import Path

import jax
import numpy as np
from test_step import run

from plmjax import tree
from plmjax.train.config import OptimizerConfig

# A rate and a decay that show in thirty steps.
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1)
# float32, one device, dropout .1. Other processors add in another order: thirty steps
# of that stay far below the tolerance, and a change of a mask, a seed or a formula is
# above it.
GOLDEN = Path(__file__).parents[1] / "golden" / "loss_trace.json"


def trace() -> dict[str, list[float]]:
    """Returns the losses, and the length of each block's weights at the end."""
    losses, norms, state = run((1, 1, 1), steps=30, optimizer=OPTIMIZER)
    blocks: dict[str, float] = {}
    for name, leaf in tree.flatten(jax.device_get(state.params)).items():
        block = name.rsplit("/", 1)[0]
        blocks[block] = blocks.get(block, 0.0) + float(np.sum(np.square(leaf)))
    lengths = [math.sqrt(total) for total in blocks.values()]
    found = {"losses": losses, "norms": norms, "lengths": lengths}
    return {k: [round(float(x), 6) for x in values] for k, values in found.items()}


def test_the_loss_trace_is_what_it_was():
    golden = json.loads(GOLDEN.read_text())
    for name, values in trace().items():
        np.testing.assert_allclose(values, golden[name], rtol=1e-4, err_msg=name)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(trace()))
