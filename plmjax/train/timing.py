"""The time of training steps, run as `fit` runs them."""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator

import jax

from plmjax.train import sharding
from plmjax.train.step import State

# Steps that may be queued on the device before one is waited for, as in training.
_IN_FLIGHT = 2


@dataclasses.dataclass
class Timed:
    """Seconds between consecutive finished steps, and in total in the loader."""

    steps_s: list[float]
    loader_s: float


def run_steps(
    step: Callable,
    state: State,
    frozen,
    batches: Iterator[dict],
    mesh: jax.sharding.Mesh,
    steps: int,
) -> tuple[State, Timed]:
    """Runs `steps` steps as `fit` does: metrics are fetched two steps later."""
    arrived, waiting, loader_s = [time.perf_counter()], deque(), 0.0
    for _ in range(steps):
        begin = time.perf_counter()
        arrays = sharding.put_rows(mesh, next(batches))
        loader_s += time.perf_counter() - begin
        state, metrics = step(state, frozen, arrays)
        waiting.append(metrics)
        if len(waiting) > _IN_FLIGHT:
            jax.device_get(waiting.popleft())
            arrived.append(time.perf_counter())
    while waiting:
        jax.device_get(waiting.popleft())
        arrived.append(time.perf_counter())
    intervals = [b - a for a, b in zip(arrived, arrived[1:], strict=False)]
    return state, Timed(intervals, loader_s)
