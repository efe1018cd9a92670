"""A training from its first state or newest checkpoint to its end, whatever it learns.

Pretraining and fine-tuning hand in what differs, as functions.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from plmjax import processes, tree
from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.console import TrainingDisplay
from plmjax.models import EncoderConfig
from plmjax.objectives import Objective
from plmjax.stop import Stop, Watchdog
from plmjax.train import sharding
from plmjax.train.config import MeshConfig, TrainConfig
from plmjax.train.loop import Outlets, Progress, Work, fit
from plmjax.train.metrics import MetricWriter
from plmjax.train.optimizer import make_optimizer
from plmjax.train.schedule import make_schedule
from plmjax.train.step import State, Step, init_state, make_step

# Ends the batches of an evaluation at a signal, and tells the watchdog of each.
Watched = Callable[[Iterator[dict]], Iterator[dict]]


@dataclasses.dataclass(frozen=True)
class Job:
    """What there is to train.

    `batch` and `rows` are as in train.loop.Work. fresh(abstract, frozen) -> the state
    before the first step; score(weights, frozen, watched) -> what is compared, {} where
    a signal came first, of which `rank` makes the figure that is lowest for the best
    checkpoint and `tell` what is shown; check_meta(meta) raises for a checkpoint of
    another run. `noted` is written into each checkpoint. With `takes_best` the best
    checkpoint's state is what comes out, not the last.
    """

    directory: Path
    checkpoints: str | Path
    train: TrainConfig
    mesh_config: MeshConfig
    mesh: jax.sharding.Mesh
    encoder: EncoderConfig
    objective: Objective
    frozen: Any
    steps: int
    batch: Callable[[int, int], dict]
    rows: Callable[[int, int], np.ndarray]
    flops: Callable[[int], float]
    fresh: Callable[[State, Any], State]
    score: Callable[[dict, Any, Watched], dict[str, float]]
    check_meta: Callable[[dict], None]
    noted: dict
    rank: Callable[[dict[str, float]], float] = lambda values: values["loss"]
    tell: Callable[[dict[str, float]], str] = lambda values: (
        f"held-out loss {values['loss']:.3f}"
    )
    takes_best: bool = False


class Ended(NamedTuple):
    """How a job ended: `stopped` names the signal that cut it short, or is None.

    `saved` is the newest checkpoint then. `weights` are those to use, of `step`: the
    average where one is kept.
    """

    stopped: str | None
    saved: int | None
    weights: dict
    step: int
    scores: dict[str, float]


def initialise(objective: Objective, train: TrainConfig) -> Callable[[dict], State]:
    """Returns batch -> the state before the first step, fresh parameters in it."""
    return functools.partial(
        init_state,
        objective,
        make_optimizer(train.optimizer),
        train.seed,
        ema=train.averages,
    )


def shapes_of(
    objective: Objective, train: TrainConfig, mesh, zero1: bool, batch: dict
) -> State:
    """Returns shapes and shardings of the state; takes no memory."""
    shapes = jax.eval_shape(initialise(objective, train), batch)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        sharding.shardings(mesh, shapes, zero1),
    )


def step_for(
    objective: Objective, train: TrainConfig, mesh, zero1: bool, steps: int
) -> Step:
    """Returns the jitted step of a training whose schedule has `steps` steps."""
    return make_step(
        objective,
        make_optimizer(train.optimizer),
        make_schedule(train.schedule, train.optimizer.learning_rate, steps),
        mesh,
        seed=train.seed,
        steps=steps,
        accumulation=train.accumulation,
        ema_decay=train.ema_decay,
        average_from=train.average_from(steps),
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


def run_job(job: Job, log: Callable[[str], Any]) -> Ended:
    """Trains to the end, or until a signal; goes on from the newest good checkpoint."""
    train = job.train
    checkpoints = Checkpoints(
        job.checkpoints, train.keep_checkpoints, log, together=True
    )
    checkpoints.remove_unfinished()
    zero1 = job.mesh_config.zero1
    abstract = shapes_of(job.objective, train, job.mesh, zero1, job.batch(0, 0))
    _introduce(job, abstract, log)
    stop, progress = Stop(), Progress()
    hang = job.directory / f"hang-{jax.process_index()}.txt"
    watchdog, scorings = Watchdog(train.hang_after_seconds, hang), itertools.count()

    def watched(batches: Iterator[dict]) -> Iterator[dict]:
        # A signal ends it at once; what it gave until then is thrown away.
        for batch in itertools.takewhile(lambda _: not stop.received, batches):
            watchdog.moved()
            yield batch

    def scored(state: State) -> dict[str, float]:
        if not next(scorings):
            watchdog.compiles()
        return job.score(weights_of(state), job.frozen, watched)

    resumed = checkpoints.good_step(set_aside=True)
    if resumed is None:
        state = job.fresh(abstract, job.frozen)
    else:
        meta = checkpoints.meta(resumed)
        processes.together(lambda: job.check_meta(meta))
        state = checkpoints.load(resumed, abstract)
        progress = Progress.of(meta)
        if resumed >= job.steps:
            log(
                f"{job.directory} is finished: {resumed:,} of {job.steps:,} steps done."
            )
        else:
            log(f"Going on from step {resumed:,}.")
    done = int(state.step)
    writer = processes.together(
        lambda: MetricWriter(job.directory, train.tensorboard, done, log)
    )
    # A return to a checkpoint is on record before the next checkpoint knows of it.
    left_out = processes.agreed(writer.skips)
    progress.skips = max(progress.skips, left_out, key=len)
    display = TrainingDisplay(job.steps, done)
    work = Work(
        step_for(job.objective, train, job.mesh, zero1, job.steps),
        job.batch,
        job.rows,
        scored,
        job.objective.scores,
        lambda step: checkpoints.load(step, abstract),
        job.flops,
        job.steps,
        job.mesh,
        job.rank,
        job.tell,
    )
    outlets = Outlets(checkpoints, writer, display, stop, watchdog)
    with checkpoints, display, stop, watchdog:
        result = fit(state, job.frozen, train, work, outlets, progress, job.noted)
    writer.close()
    if checkpoints.failure is not None:
        processes.fail(checkpoints.failure)
    processes.together(writer.check)
    state, scores = result.state, result.scores
    if result.stopped:
        saved = checkpoints.steps()
        newest = saved[-1] if saved else None
        return Ended(result.stopped, newest, {}, int(state.step), {})
    if skipped := int(state.skipped):
        log(f"WARNING: {skipped:,} updates were skipped; they were not finite.")
    best = checkpoints.best() if job.takes_best else None
    if best is not None and best[0] != int(state.step):
        log(f"Step {best[0]:,} was the best one; its weights are taken.")
        state, scores = checkpoints.load(best[0], abstract), None
    scores = scores or scored(state)
    step = int(state.step)
    return Ended(None, step, weights_of(state), step, scores)


def weights_of(state: State) -> dict:
    """Returns the weights to use: the average where one is kept."""
    return state.params if state.average is None else state.average


def _introduce(job: Job, abstract: State, log: Callable[[str], Any]) -> None:
    kind = jax.devices()[0].device_kind
    log(
        f"Model: {job.encoder.layers} layers x {job.encoder.width}, "
        f"{tree.count(abstract.params):,} parameters, {job.encoder.dtype}; "
        f"{job.steps:,} steps on {job.mesh.size} {kind}"
        + (f" of {jax.process_count()} processes." if processes.several() else ".")
    )
    for sentence in sharding.undivided(job.mesh, abstract.params):
        log(f"WARNING: {sentence}")
