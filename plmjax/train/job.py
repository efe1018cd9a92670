"""What a training is, as one record, and the programs that it runs."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plmjax.models import EncoderConfig
from plmjax.objectives import Objective
from plmjax.train import sharding
from plmjax.train.config import TrainConfig
from plmjax.train.optimizer import make_optimizer
from plmjax.train.schedule import make_schedule
from plmjax.train.step import State, init_state, make_step

# Ends the batches of an evaluation at a signal, and tells the watchdog of each.
Watched = Callable[[Iterator], Iterator]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """All that `fit` needs; pretraining and fine-tuning hand in what differs.

    The rows of a step, as functions of (step, how many batches were left out before):
    `batch` gives this process's rows as numpy, `rows` the ids of all of them; `flops`
    says what a step costs.

    `first_state` makes the state before the first step, of its shapes and shardings.
    `score` takes (weights, watched) and gives the scores of an evaluation, {} where a
    signal came first; `rank` makes of scores the figure that is lowest for the best
    checkpoint, and `describe` what a person reads.

    `origin` is written into each checkpoint, and `check_meta` raises for a checkpoint
    of another run. With `keep_best` the best checkpoint is what comes out, not the last
    one.
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
    score: Callable[[dict, Watched], dict[str, float]]
    origin: dict
    check_meta: Callable[[dict], None]
    rank: Callable[[dict[str, float]], float] = lambda scores: scores["loss"]
    describe: Callable[[dict[str, float]], str] = lambda scores: (
        f"held-out loss {scores['loss']:.3f}"
    )
    keep_best: bool = False


def initialise(objective: Objective, config: TrainConfig) -> Callable[[dict], State]:
    """Returns batch -> the state before the first step, fresh parameters in it."""
    return functools.partial(
        init_state,
        objective,
        make_optimizer(config.optimizer),
        config.seed,
        ema=config.averages,
    )


def shapes_of(
    objective: Objective, config: TrainConfig, mesh, zero1: bool, batch: dict
) -> State:
    """Returns shapes and shardings of the state; takes no memory."""
    shapes = jax.eval_shape(initialise(objective, config), batch)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
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
        zero1=zero1,
    )


def with_params(state: State, params: dict, places: State) -> State:
    """Returns the first state with other parameters, a copy of them as its average."""
    params = jax.device_put(params, places.params)
    if state.average is None:
        return state._replace(params=params)
    copy = jax.jit(
        lambda tree: jax.tree.map(jax.numpy.copy, tree), out_shardings=places.average
    )
    return state._replace(params=params, average=copy(params))


def weights_of(state: State) -> dict:
    """Returns the weights to use: the average where one is kept."""
    return state.params if state.average is None else state.average
