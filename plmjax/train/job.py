"""Training, the record of all that a training needs, and the programs that it runs."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plmjax import LESS_MEMORY
from plmjax.models import EncoderConfig
from plmjax.objectives import Objective
from plmjax.train import sharding
from plmjax.train.clock import Clock
from plmjax.train.config import TrainConfig
from plmjax.train.optimizer import make_optimizer
from plmjax.train.pruning import make_pruning
from plmjax.train.schedule import make_schedule
from plmjax.train.step import State, init_state, make_step

# Wraps the batches of an evaluation: stops at a signal, reports each to the watchdog.
Watched = Callable[[Iterator], Iterator]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Everything that `fit` needs; pretraining and fine-tuning fill it differently.

    `batch` and `rows` are functions of (step, number of batches left out before):
    `batch` returns this process's rows as numpy arrays, `rows` the ids of all rows.
    `flops` returns the FLOPs of a step, `activations` an estimate of their bytes on a
    device; `less_memory` is a hint on how to lower them.

    `first_state` makes the state before the first step from its shapes and shardings.
    `score` takes (weights, watched, steps done) and returns the scores of an
    evaluation, {} if a signal interrupted it; `rank` turns scores into the number that
    is lowest for the best checkpoint, and `describe` into text for people.

    `origin` is written into each checkpoint, and `check_meta` raises for a checkpoint
    of another run. With `keep_best` the result is the best checkpoint, not the last; if
    it is None, only where training ended early for want of a better one.
    """

    directory: Path
    checkpoints: str | Path
    config: TrainConfig
    mesh: jax.sharding.Mesh
    zero1: bool
    encoder: EncoderConfig
    objective: Objective
    frozen: Any
    steps: int
    batch: Callable[[int, int], dict]
    rows: Callable[[int, int], np.ndarray]
    flops: Callable[[int], float]
    first_state: Callable[[State], State]
    score: Callable[[dict, Watched, int], dict[str, float]]
    origin: dict
    check_meta: Callable[[dict], None]
    rank: Callable[[dict[str, float]], float] = lambda scores: scores["loss"]
    describe: Callable[[dict[str, float]], str] = lambda scores: (
        "held-out loss: no figure"
        if math.isnan(scores["loss"])
        else f"held-out loss {scores['loss']:.3f}"
    )
    keep_best: bool | None = None
    # The objective of a step, if it is not always `objective`; of equal parameters.
    objective_at: Callable[[int], Objective] | None = None
    activations: Callable[[], int] = lambda: 0
    # Moves the end of the schedule; None: the training has its number of steps.
    clock: Clock | None = None
    less_memory: str = LESS_MEMORY


def initialise(objective: Objective, config: TrainConfig) -> Callable[[dict], State]:
    """Returns a function from a batch to the state before the first step."""
    return functools.partial(
        init_state,
        objective,
        make_optimizer(config.optimizer),
        config.seed,
        ema=config.averages,
        loss_scale=config.loss_scale,
    )


def shapes_of(
    objective: Objective, config: TrainConfig, mesh, zero1: bool, batch: dict
) -> State:
    """Returns shapes and shardings of the state, without allocating it."""
    shapes = jax.eval_shape(initialise(objective, config), batch)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        sharding.shardings(mesh, shapes, zero1),
    )


def step_for(
    objective: Objective, config: TrainConfig, mesh, zero1: bool, steps: int
) -> functools.partial:
    """Returns the jitted step of a training whose schedule has `steps` steps."""
    return make_step(
        objective,
        make_optimizer(config.optimizer),
        make_schedule(config.schedule, config.optimizer.learning_rate, steps),
        mesh,
        seed=config.seed,
        steps=steps,
        accumulation=config.accumulation,
        ema_decay=config.ema_decay,
        average_from=config.average_from(steps),
        loss_scale_steps=config.loss_scale_steps,
        zero1=zero1,
        prune=make_pruning(config.prune, steps),
    )


def with_params(state: State, params: dict, shardings: State) -> State:
    """Returns the state with other parameters, and a copy of them as its average."""
    params = jax.device_put(params, shardings.params)
    if state.average is None:
        return state._replace(params=params)
    copy = jax.jit(
        lambda tree: jax.tree.map(jax.numpy.copy, tree), out_shardings=shardings.average
    )
    return state._replace(params=params, average=copy(params))


def weights_of(state: State) -> dict:
    """Returns the weights to use: the average where one is kept."""
    return state.params if state.average is None else state.average
