"""fit: the only training loop. Everything it needs is handed to it."""

import dataclasses
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from plmjax import Exit, PlmjaxError
from plmjax.data.loader import read_ahead
from plmjax.train import sharding
from plmjax.train.checkpoint import Checkpoints
from plmjax.train.config import TrainConfig
from plmjax.train.metrics import MetricWriter, added, fetch, means
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

    Handlers are installed within `with`, in the main thread of a single process only:
    several processes stop together through JAX's preemption service.
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


@dataclasses.dataclass
class Result:
    """How a fit ended: `stopped` names the signal that cut it short, or is None."""

    state: State
    stopped: str | None
    seconds: float
    tokens: int


@dataclasses.dataclass
class Clock:
    """Training time and tokens since the run's first step, restarts counted in."""

    seconds: float = 0.0
    tokens: int = 0


def evaluate(
    evaluation: Callable, params, frozen, mesh: Mesh, batches: Iterator[dict]
) -> dict[str, float]:
    """Returns the metrics' means over all batches."""
    total: Any = None
    for batch in batches:
        metrics = evaluation(params, frozen, sharding.put_rows(mesh, batch))
        total = added(total, fetch(metrics))
    return means(total)


def fit(
    state: State,
    frozen,
    step: Callable,
    config: TrainConfig,
    mesh: Mesh,
    batch: Callable[[int], dict],
    steps: int,
    evaluate_state: Callable[[State], dict[str, float]],
    checkpoints: Checkpoints,
    meta: dict,
    writer: MetricWriter,
    display: Display,
    stop: Stop,
    *,
    clock: Clock,
    flops_per_step: float,
    peak: float | None,
) -> Result:
    """Trains from state.step to `steps`, evaluating and saving on the way.

    Raises:
      PlmjaxError: too many updates in a row were not finite (exit code 6).
    """
    now = int(state.step)
    waiting: deque = deque()
    meter = _Meter(config, checkpoints, writer, display, clock, flops_per_step, peak)

    def save(at: int):
        checkpoints.save(at, state, meta)

    def evaluated(at: int):
        with meter.paused():
            values = evaluate_state(state)
            writer.write("evaluation", at, values | meter.totals())
            best = checkpoints.best()
            display.say(f"step {at}: held-out loss {values['loss']:.3f}")
            if best is None or values["loss"] < best["loss"]:
                save(at)
                checkpoints.set_best(at, values["loss"])

    batches = read_ahead(batch, now, steps)
    while now < steps and not stop.received:
        arrays = next(batches)
        tokens = int((arrays["segments"] > 0).sum()) * jax.process_count()
        state, metrics = step(state, frozen, sharding.put_rows(mesh, arrays))
        now += 1
        waiting.append((now, tokens, metrics))
        while len(waiting) > _IN_FLIGHT:
            meter.record(*waiting.popleft())
        checkpoint_due = now % config.checkpoint_every_steps == 0
        evaluation_due = now % config.evaluate_every_steps == 0 or now == steps
        if checkpoint_due or evaluation_due or now == steps or stop.received:
            while waiting:
                meter.record(*waiting.popleft())
        if evaluation_due and not stop.received:
            evaluated(now)
        if checkpoint_due or now == steps:
            with meter.paused():
                save(now)
    while waiting:
        meter.record(*waiting.popleft())
    if stop.received:
        save(now)
    checkpoints.wait()
    return Result(state, stop.received if now < steps else None, *meter.spent())


class _Meter:
    """Reads metrics that have arrived: logs them, counts time, stops a broken run."""

    def __init__(self, config, checkpoints, writer, display, clock, flops, peak):
        self.config, self.checkpoints = config, checkpoints
        self.writer, self.display, self.clock = writer, display, clock
        self.flops, self.peak = flops, peak
        self._mark = time.perf_counter()
        self._begin_window()

    def _begin_window(self) -> None:
        self._tokens = self._steps = 0
        self._window = 0.0
        self._sums: Any = None

    def paused(self):
        return _Paused(self)

    def _tick(self) -> None:
        now = time.perf_counter()
        self._window += now - self._mark
        self.clock.seconds += now - self._mark
        self._mark = now

    def totals(self) -> dict[str, float]:
        return {"tokens": self.clock.tokens, "seconds": self.clock.seconds}

    def spent(self) -> tuple[float, int]:
        return self.clock.seconds, self.clock.tokens

    def record(self, step: int, tokens: int, metrics) -> None:
        metrics = fetch(metrics)
        self._tick()
        self.clock.tokens += tokens
        self._tokens += tokens
        self._steps += 1
        bad = int(metrics.pop("bad_steps")[0])
        if not bad:
            self._sums = added(self._sums, metrics)
        else:
            self.display.say(
                f"WARNING: step {step}: loss or gradient is not finite; "
                f"the update is skipped ({bad} in a row)."
            )
        if bad >= self.config.max_bad_steps:
            self.checkpoints.wait()
            good = self.checkpoints.steps()
            raise PlmjaxError(
                f"{bad} updates in a row up to step {step} were not finite.",
                hint=(
                    f"The last good checkpoint is step {good[-1]}. "
                    if good
                    else "There is no checkpoint yet. "
                )
                + "Lower train.optimizer.learning_rate or warm up for longer.",
                code=Exit.NUMERIC,
            )
        if step % self.config.log_every_steps == 0:
            if self._sums is not None:
                self._write(step, means(self._sums))
            self._begin_window()

    def _write(self, step: int, values: dict[str, float]) -> None:
        """Writes and shows the means over the steps since the last record."""
        values["tokens_per_second"] = self._tokens / max(self._window, 1e-9)
        if self.peak is not None:
            speed = self.flops * self._steps / max(self._window, 1e-9)
            values["mfu"] = speed / (self.peak * jax.device_count())
        self.writer.write("train", step, values | self.totals())
        self.display.update(step, values)


class _Paused:
    """Time spent in here counts neither as training nor against tokens a second."""

    def __init__(self, meter: _Meter):
        self.meter = meter

    def __enter__(self):
        self.meter._tick()

    def __exit__(self, *_):
        self.meter._mark = time.perf_counter()
