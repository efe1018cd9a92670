"""fit: the only training loop. Everything it needs is handed to it."""

import contextlib
import dataclasses
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import jax
from jax.sharding import Mesh

from plmjax import Exit, PlmjaxError
from plmjax.data.loader import read_ahead
from plmjax.train import sharding
from plmjax.train.checkpoint import Checkpoints
from plmjax.train.config import TrainConfig
from plmjax.train.metrics import (
    MetricWriter,
    Sums,
    added,
    fetch,
    means,
    peak_flops,
)
from plmjax.train.step import State

# Steps that may be on their way to the device before their metrics are read: enough
# that the device never waits for the host, few enough that memory stays bounded.
_IN_FLIGHT = 2


class Display(Protocol):
    """Shows progress to a person."""

    def update(self, step: int, values: dict[str, float]) -> None: ...
    def say(self, message: str) -> None: ...


class Stop:
    """Turns Ctrl-C, SIGTERM and SIGUSR2 into a flag; a second Ctrl-C interrupts.

    Handlers are installed within `with`, in the main thread, and put back after it.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

    def __init__(self):
        self.received: str | None = None
        self._old: dict = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._old[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _receive(self, number, _frame):
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        # Not print(): the signal may have come in the midst of one.
        os.write(2, b"\nStopping after this step; Ctrl-C again stops at once.\n")


@dataclasses.dataclass(frozen=True)
class Work:
    """What there is to do, as functions.

    `step` is the jitted step; `batch` gives this process's rows of a step as numpy;
    `evaluate` scores a state, `scores` makes of a step's means what is compared;
    `flops` says what a step costs.
    """

    step: Callable
    batch: Callable[[int], dict]
    evaluate: Callable[[State], dict[str, float]]
    scores: Callable[[dict[str, float]], dict[str, float]]
    flops: Callable[[int], float]
    steps: int
    mesh: Mesh


@dataclasses.dataclass(frozen=True)
class Outlets:
    """Where a run's results go, and what may stop it."""

    checkpoints: Checkpoints
    writer: MetricWriter
    display: Display
    stop: Stop


@dataclasses.dataclass
class Progress:
    """What a checkpoint remembers besides the state.

    Seconds of training and tokens since the first step, and the steps since the last
    record of metrics: their sums, number, tokens, FLOPs and seconds.
    """

    seconds: float = 0.0
    tokens: int = 0
    sums: Sums | None = None
    window_steps: int = 0
    window_tokens: int = 0
    window_flops: float = 0.0
    window_seconds: float = 0.0

    def begin_window(self) -> None:
        self.sums, self.window_steps, self.window_tokens = None, 0, 0
        self.window_flops = self.window_seconds = 0.0

    def totals(self) -> dict[str, float]:
        return {"tokens": self.tokens, "seconds": self.seconds}


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
      PlmjaxError: too many updates in a row were not finite (exit code 6).
    """
    checkpoints, stop = outlets.checkpoints, outlets.stop
    now = start = int(state.step)
    waiting: deque = deque()
    meter = _Meter(config, outlets, progress, work.scores)
    found: dict[str, float] | None = None

    def save(more: dict):
        checkpoints.save(now, state, meta | dataclasses.asdict(progress) | more)

    def evaluated() -> dict[str, float] | None:
        """Scores the state; None if that was interrupted: the next start does it."""
        values = work.evaluate(state)
        if stop.received:
            return None
        outlets.writer.write("evaluation", now, values | progress.totals())
        outlets.display.say(f"step {now}: held-out loss {values['loss']:.3f}")
        return values

    def is_best(loss: float) -> bool:
        checkpoints.wait()  # what is being written may be the best so far
        best = checkpoints.best()
        return math.isfinite(loss) and (best is None or loss < best[1])

    def evaluation_due() -> bool:
        return now > 0 and (now % config.evaluate_every_steps == 0 or now == work.steps)

    if evaluation_due() and now not in outlets.writer.evaluated:
        # The signal that ended the last start came before this.
        found = evaluated()
    batches = read_ahead(work.batch, now, work.steps)
    while now < work.steps and not stop.received:
        arrays = next(batches)
        tokens = int((arrays["segments"] > 0).sum()) * jax.process_count()
        rows = sharding.put_rows(work.mesh, arrays)
        state, metrics = work.step(state, frozen, rows)
        now += 1
        waiting.append((now, tokens, work.flops(now - 1), metrics))
        save_due = now % config.checkpoint_every_steps == 0 or now == work.steps
        pause = evaluation_due() or save_due
        meter.take(waiting, keep=0 if pause else _IN_FLIGHT)
        if not pause:
            continue
        with meter.paused():
            found = evaluated() if evaluation_due() and not stop.received else None
            loss = {} if found is None else {"loss": found["loss"]}
            if save_due or (loss and is_best(loss["loss"])):
                save(loss)
    meter.take(waiting, keep=0)
    if stop.received and now > start:
        save({})
    checkpoints.wait()
    return Result(state, stop.received, found if now == work.steps else None)


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

    def take(self, waiting: deque, keep: int) -> None:
        """Takes the metrics of all steps but the newest `keep`, in order.

        Steps that are waited for together share the time: one has not taken all of it,
        and the next none.
        """
        steps = [waiting.popleft() for _ in range(len(waiting) - keep)]
        arrived = [(*rest, fetch(metrics)) for *rest, metrics in steps]
        seconds = self._elapsed() if arrived else 0.0
        for step, tokens, flops, sums in arrived:
            self._record(step, tokens, flops, sums, seconds / len(arrived))

    def _record(
        self, step: int, tokens: int, flops: float, metrics: Sums, seconds: float
    ) -> None:
        progress = self.progress
        self._spend(seconds)
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
        self.outlets.checkpoints.wait()
        good = self.outlets.checkpoints.steps()
        last = (
            f"The last good checkpoint is step {good[-1]}."
            if good
            else ("There is no checkpoint yet.")
        )
        raise PlmjaxError(
            f"{bad} updates in a row up to step {step} were not finite.",
            hint=f"{last} Lower train.optimizer.learning_rate or warm up for longer.",
            code=Exit.NUMERIC,
        )

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
