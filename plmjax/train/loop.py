"""fit: the only training loop. Everything it needs is handed to it."""

import contextlib
import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from plmjax import Exit, PlmjaxError, processes
from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.data.loader import read_ahead
from plmjax.stop import Stop, Watchdog
from plmjax.train import rollback, sharding
from plmjax.train.config import TrainConfig
from plmjax.train.metrics import (
    MetricWriter,
    Sums,
    added,
    fetch,
    means,
    peak_flops,
)
from plmjax.train.rollback import BadStep
from plmjax.train.step import State

# Steps that may be on their way to the device before their metrics are read: enough
# that the device never waits for the host, few enough that memory stays bounded.
_IN_FLIGHT = 2


class Display(Protocol):
    """Shows progress to a person."""

    def update(self, step: int, values: dict[str, float]) -> None: ...
    def say(self, message: str) -> None: ...


@dataclasses.dataclass(frozen=True)
class Work:
    """What there is to do, as functions.

    `step` is the jitted step; `batch` gives this process's rows of a step as numpy, so
    many batches ahead, and `rows` the ids of all of its rows; `evaluate` scores a
    state, `scores` makes of a step's means what is compared; `restore` loads the state
    of a checkpoint; `flops` says what a step costs; `rank` makes of an evaluation what
    is lowest for the best one, and `tell` what a person sees of it.
    """

    step: Callable
    batch: Callable[[int, int], dict]
    rows: Callable[[int, int], np.ndarray]
    evaluate: Callable[[State], dict[str, float]]
    scores: Callable[[dict[str, float]], dict[str, float]]
    restore: Callable[[int], State]
    flops: Callable[[int], float]
    steps: int
    mesh: Mesh
    rank: Callable[[dict[str, float]], float]
    tell: Callable[[dict[str, float]], str]


@dataclasses.dataclass(frozen=True)
class Outlets:
    """Where a run's results go, and what may stop it."""

    checkpoints: Checkpoints
    writer: MetricWriter
    display: Display
    stop: Stop
    watchdog: Watchdog


@dataclasses.dataclass
class Progress:
    """What a checkpoint remembers besides the state.

    Seconds of training and tokens since the first step; the steps since the last record
    of metrics: their sums, number, tokens, FLOPs and seconds; the last losses, which
    spikes are measured against; the batches that are left out (see rollback.py).
    """

    seconds: float = 0.0
    tokens: int = 0
    sums: Sums | None = None
    window_steps: int = 0
    window_tokens: int = 0
    window_flops: float = 0.0
    window_seconds: float = 0.0
    losses: list[float] = dataclasses.field(default_factory=list)
    skips: list[list[int]] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, meta: dict) -> "Progress":
        """Returns the progress that a checkpoint's meta holds."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: meta[name] for name in names if name in meta})

    def begin_window(self) -> None:
        self.sums, self.window_steps, self.window_tokens = None, 0, 0
        self.window_flops = self.window_seconds = 0.0

    def totals(self) -> dict[str, float]:
        return {"tokens": self.tokens, "seconds": self.seconds}

    def ahead(self, step: int) -> int:
        """Returns how many batches are left out before the one of a step."""
        return rollback.batches_ahead(self.skips, step)


class Result(NamedTuple):
    """How a fit ended: `stopped` names the signal that cut it short, or is None.

    `scores` are those of the final evaluation, if it took place in this fit.
    """

    state: State
    stopped: str | None
    scores: dict[str, float] | None


def evaluate(
    evaluation: Callable, params, frozen, mesh: Mesh, batches: Iterator[dict]
) -> dict[str, float]:
    """Returns the metrics' means over all batches."""
    total = pending = None
    for batch in batches:
        metrics = evaluation(params, frozen, sharding.put_rows(mesh, batch))
        # One batch late, so that the device computes while the host gathers.
        total = total if pending is None else added(total, fetch(pending))
        pending = metrics
    return means(added(total, fetch(pending)) if pending else {})


def fit(
    state: State,
    frozen,
    config: TrainConfig,
    work: Work,
    outlets: Outlets,
    progress: Progress,
    meta: dict,
) -> Result:
    """Trains from state.step to the end, evaluating and saving on the way.

    `meta` is written into each checkpoint, with the progress.

    Raises:
      PlmjaxError: a bad step, or too many of them (exit code 6).
    """
    checkpoints, stop, watchdog = outlets.checkpoints, outlets.stop, outlets.watchdog
    now = start = int(state.step)
    waiting: deque = deque()
    meter = _Meter(config, outlets, progress, work.scores)
    found: dict[str, float] | None = None
    rollbacks = turn = 0
    over = False  # nothing better has come for too long
    known: dict | None = None  # the shapes that the step was compiled for

    def save(more: dict):
        more = meta | dataclasses.asdict(progress) | more
        last = now == work.steps or over or stop.received is not None
        with watchdog.resting():  # a disk has limits of its own
            checkpoints.save(now, state, more, last)

    def evaluated() -> dict[str, float] | None:
        """Scores the state; None if that was interrupted: the next start does it."""
        values = work.evaluate(state)
        if stop.received:
            return None
        outlets.writer.write("evaluation", now, values | progress.totals())
        outlets.display.say(f"step {now}: {work.tell(values)}")
        return values

    def is_best(rank: float) -> bool:
        # What is being written may be the best so far.
        with watchdog.resting():
            checkpoints.wait(patient=False)
        best = checkpoints.best()
        return math.isfinite(rank) and (best is None or rank < best[1])

    def has_lost_patience() -> bool:
        if config.patience_evaluations is None:
            return False
        best = checkpoints.best()
        patience = config.patience_evaluations * config.evaluate_every_steps
        return best is not None and now - best[0] >= patience

    def evaluation_due() -> bool:
        return now > 0 and (now % config.evaluate_every_steps == 0 or now == work.steps)

    def upcoming() -> Iterator[dict]:
        # Bound now: threads read ahead, and a return to a checkpoint starts anew.
        skips = list(progress.skips)

        def batch(step: int) -> dict:
            return work.batch(step, rollback.batches_ahead(skips, step))

        return read_ahead(batch, now, work.steps)

    def rows_of(bad: BadStep) -> str:
        rows = work.rows(bad.step - 1, progress.ahead(bad.step - 1))
        more = ", ..." if len(rows) > 8 else ""
        return f"its {len(rows):,} rows are {', '.join(map(str, rows[:8]))}{more}"

    def go_back(bad: BadStep) -> int:
        """Restores the last good checkpoint; returns its step."""
        nonlocal state
        told = f"step {bad.step}: {bad.reason} ({rows_of(bad)})."
        with watchdog.resting():
            # Before anything is raised, too: several processes then part, and what is
            # being written needs them all.
            checkpoints.wait()
            if config.on_bad_step == "raise":
                processes.fail(PlmjaxError(told, hint=_LOWER, code=Exit.NUMERIC))
            to = checkpoints.good_step(set_aside=True)
        if to is None or rollbacks == config.max_rollbacks:
            why = "there is no checkpoint yet to go back to"
            if to is not None:
                why = f"the run has gone back {rollbacks} times (train.max_rollbacks)"
            processes.fail(
                PlmjaxError(f"{told} {why}.", hint=_LOWER, code=Exit.NUMERIC)
            )
        with watchdog.resting():
            state = work.restore(to)
        entry = rollback.skip(bad, to, config.rollback_batches)
        skips = rollback.with_skip(progress.skips, entry)
        # In place: the meter holds it, too. Time that was spent is spent.
        seconds = progress.seconds
        vars(progress).update(vars(Progress.of(checkpoints.meta(to))))
        progress.seconds, progress.skips = seconds, skips
        outlets.writer.rewind(to)
        record = {"bad_step": bad.step, "reason": bad.reason, "skips": skips}
        outlets.writer.write("rollback", to, record)
        outlets.display.say(
            f"WARNING: {told} Going back to step {to}, and on without {entry[1]} "
            f"batches from step {entry[0]} on."
        )
        return to

    if processes.agreed(evaluation_due() and now not in outlets.writer.evaluated):
        # The signal that ended the last start came before this.
        found = evaluated()
        if found is not None:
            more = {"loss": found["loss"], "rank": work.rank(found)}
            if is_best(more["rank"]):
                save(more)
                with watchdog.resting():
                    checkpoints.wait()  # what follows asks for the best
    over = has_lost_patience()
    batches = upcoming()
    while now < work.steps and not over and not stop.due(turn):
        rows = sharding.put_rows(work.mesh, next(batches))
        if (form := jax.tree.map(np.shape, rows)) != known:
            watchdog.compiles()
            known = form
        state, metrics = work.step(state, frozen, rows)
        now, turn = now + 1, turn + 1
        waiting.append((now, work.flops(now - 1), metrics))
        save_due = now % config.checkpoint_every_steps == 0 or now == work.steps
        pause = evaluation_due() or save_due
        bad = meter.take(waiting, keep=0 if pause else _IN_FLIGHT)
        watchdog.moved(now)
        if bad is not None:
            waiting.clear()
            now, rollbacks = go_back(bad), rollbacks + 1
            start, batches = min(start, now), upcoming()
            continue
        if not pause:
            continue
        with meter.paused():
            found = evaluated() if evaluation_due() and not stop.received else None
            more, best = {}, False
            if found is not None:
                more = {"loss": found["loss"], "rank": work.rank(found)}
                best = is_best(more["rank"])
                over = not best and has_lost_patience()
            if save_due or best or over:
                save(more)
    if meter.take(waiting, keep=0) is None and stop.received and now > start:
        # A bad step is not saved: the next start meets it again, and goes back.
        save({})
    with watchdog.resting():
        checkpoints.wait()
    if over and not stop.received:
        outlets.display.say(
            f"Ends at step {now}: no evaluation was better for "
            f"{config.patience_evaluations} in a row (train.patience_evaluations)."
        )
    done = over or now == work.steps
    return Result(state, stop.received, found if done else None)


_LOWER = "Lower train.optimizer.learning_rate or warm up for longer."


class _Meter:
    """Reads metrics that have arrived: logs them, counts time, stops a broken run."""

    def __init__(
        self,
        config: TrainConfig,
        outlets: Outlets,
        progress: Progress,
        scores: Callable[[dict[str, float]], dict[str, float]],
    ):
        self.config, self.outlets, self.progress = config, outlets, progress
        self._scores = scores
        self._peak = peak_flops()
        self._mark = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in here counts neither as training nor against tokens a second."""
        self._spend(self._elapsed())
        yield
        self._mark = time.perf_counter()

    def _elapsed(self) -> float:
        """Returns the seconds since the last call."""
        before, self._mark = self._mark, time.perf_counter()
        return self._mark - before

    def _spend(self, seconds: float) -> None:
        self.progress.window_seconds += seconds
        self.progress.seconds += seconds

    def take(self, waiting: deque, keep: int) -> BadStep | None:
        """Takes the metrics of all steps but the newest `keep`, in order.

        Returns the first step that must not stand; those after it are not counted.
        Steps that are waited for together share the time: one has not taken all of it,
        and the next none.
        """
        steps = [waiting.popleft() for _ in range(len(waiting) - keep)]
        arrived = [(*rest, fetch(metrics)) for *rest, metrics in steps]
        seconds = self._elapsed() if arrived else 0.0
        for step, flops, sums in arrived:
            self._spend(seconds / len(arrived))
            if (bad := self._judged(step, sums)) is not None:
                return bad
            self._record(step, flops, sums)
        return None

    def _judged(self, step: int, metrics: Sums) -> BadStep | None:
        """Returns a step that the config does not let stand."""
        if self.config.on_bad_step == "skip":
            return None
        loss, losses = metrics["objective"][0], self.progress.losses
        if metrics["bad_steps"][0]:
            return BadStep(step, "the loss or the gradient is not finite")
        if self.config.spike_sigmas is None:
            return None
        if reason := rollback.spike(losses, loss, self.config.spike_sigmas):
            return BadStep(step, reason)
        self.progress.losses = [*losses, loss][-rollback.WINDOW :]
        return None

    def _record(self, step: int, flops: float, metrics: Sums) -> None:
        progress = self.progress
        tokens = int(metrics.pop("tokens")[0])
        progress.tokens += tokens
        progress.window_tokens += tokens
        progress.window_flops += flops
        progress.window_steps += 1
        bad = int(metrics.pop("bad_steps")[0])
        if not bad:
            progress.sums = added(progress.sums, metrics)
        else:
            self._warn(step, bad)
        if step % self.config.log_every_steps == 0:
            if progress.sums is not None:
                self._write(step, means(progress.sums))
            progress.begin_window()

    def _warn(self, step: int, bad: int) -> None:
        self.outlets.display.say(
            f"WARNING: step {step}: loss or gradient is not finite; "
            f"the update is skipped ({bad} in a row)."
        )
        if bad < self.config.max_bad_steps:
            return
        with self.outlets.watchdog.resting():
            self.outlets.checkpoints.wait()
        good = self.outlets.checkpoints.steps()
        last = (
            f"The last good checkpoint is step {good[-1]}."
            if good
            else "There is no checkpoint yet."
        )
        told = f"{bad} updates in a row up to step {step} were not finite."
        processes.fail(PlmjaxError(told, hint=f"{last} {_LOWER}", code=Exit.NUMERIC))

    def _write(self, step: int, values: dict[str, float]) -> None:
        """Writes and shows the means over the steps since the last record."""
        values |= self._scores(values)
        seconds = max(self.progress.window_seconds, 1e-9)
        values["tokens_per_second"] = self.progress.window_tokens / seconds
        if self._peak is not None:
            speed = self.progress.window_flops / seconds
            values["mfu"] = speed / (self._peak * jax.device_count())
        self.outlets.writer.write("train", step, values | self.progress.totals())
        self.outlets.display.update(step, values)
