"""fit: the training loop of all objectives."""

import contextlib
import dataclasses
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from plmjax import RESUME, Exit, PlmjaxError, processes, tree
from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.console import TrainingDisplay
from plmjax.data.loader import read_ahead
from plmjax.stop import Stop, Watchdog
from plmjax.train import memory, rollback, sharding
from plmjax.train.job import Training, shapes_of, step_for, weights_of
from plmjax.train.metrics import MetricWriter, Sums, added, fetch, means, peak_flops
from plmjax.train.rollback import BadStep
from plmjax.train.schedule import moved_share
from plmjax.train.step import State

# Steps in flight on the device before their metrics are read: enough that the device
# never waits for the host, few enough that memory stays bounded.
_IN_FLIGHT = 2
# After so many steps the step is compiled, and those before it are read.
_COMPILED = _IN_FLIGHT + 2
# The batches that a training with a clock reads ahead have this end.
_ENDLESS = 2**31 - 1


@dataclasses.dataclass
class Progress:
    """Counters that a checkpoint stores besides the state.

    Seconds of training and tokens since the first step; for the steps since the last
    record of metrics: sums, number, tokens, FLOPs and seconds; the last losses, to
    detect spikes; the batches that are left out (see rollback.py).
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
        """Resets the sums since the last record of metrics."""
        self.sums, self.window_steps, self.window_tokens = None, 0, 0
        self.window_flops = self.window_seconds = 0.0

    def totals(self) -> dict[str, float]:
        """Returns the totals since the first step, for records."""
        return {"tokens": self.tokens, "seconds": self.seconds}


class Result(NamedTuple):
    """How a training ended: `stopped` names the signal that cut it short, or is None.

    `saved` is the newest checkpoint; `weights` are those of `step` to use: the average
    if one is kept. `failure` is the error of a disk on which the end is not saved.
    """

    stopped: str | None
    saved: int | None
    weights: dict
    step: int
    scores: dict[str, float]
    failure: PlmjaxError | None = None

    @contextlib.contextmanager
    def exporting(self, folder: Path) -> Iterator[None]:
        """Context manager of the export to a folder; then raises `failure`, if any."""
        if self.failure is None:
            yield
            return
        message, hint = self.failure.message, self.failure.hint
        try:
            yield
        except (PlmjaxError, OSError) as error:
            message = f"{message} The weights could not be exported either: {error}"
            raise PlmjaxError(message, hint=hint, code=Exit.DISK) from error
        message = f"{message} The weights of step {self.step:,} are in {folder}."
        processes.raise_on_all(PlmjaxError(message, hint=hint, code=Exit.DISK))


def evaluate(
    evaluation: Callable, params, frozen, mesh: Mesh, batches: Iterator[dict]
) -> Sums:
    """Returns the sums of the metrics over all batches; {} if there are none."""
    total = pending = None
    for batch in batches:
        metrics = evaluation(params, frozen, sharding.put_rows(mesh, batch))
        # Metrics are fetched one batch late, so that the device computes meanwhile.
        total = total if pending is None else added(total, fetch(pending))
        pending = metrics
    return added(total, fetch(pending)) if pending else {}


def fit(training: Training, log: Callable[[str], Any]) -> Result:
    """Trains to the end or until a signal, resuming from the newest good checkpoint.

    Raises:
      PlmjaxError: a bad step, or too many of them (exit code 6); too little memory
        (7); a checkpoint of another run; a disk that fails.
    """
    run = None
    try:
        run = Fit(training, log)
        with run.checkpoints, run.display, run.stop, run.watchdog:
            run.begin()
            while run.has_next_step():
                bad = run.step()
                run.aim()
                if bad is not None:
                    run.roll_back(bad)
                elif run.evaluation_due() or run.save_due():
                    run.pause()
            run.end()
        return run.result()
    except BaseException as error:
        if run is not None:
            run.writer.close("failed" if isinstance(error, Exception) else "stopped")
        shape = run.compiled_for and run.compiled_for["segments"] if run else None
        if (problem := memory.step_error(training, shape, error)) is None:
            raise
        raise problem from error
    finally:
        if run is not None:
            run.close()


class Fit:
    """A running training: its state, its step, and the writers of its results."""

    def __init__(self, training: Training, log: Callable[[str], Any]):
        self.training, self.config, self.log = training, training.config, log
        self.stop, self.progress = Stop(), Progress()
        self.checkpoints = Checkpoints(
            training.checkpoints, self.config.keep_checkpoints, log, together=True
        )
        self.checkpoints.remove_unfinished()
        processes.run_on_all(lambda: memory.check_activations(training))
        arguments = training.objective, self.config, training.mesh, training.zero1
        self.shapes = shapes_of(*arguments, training.batch(0, 0))
        self._log_sizes()
        processes.run_on_all(lambda: memory.check_state(training, self.shapes, log))
        hang = training.directory / f"hang-{jax.process_index()}.txt"
        self.watchdog = Watchdog(self.config.hang_after_seconds, hang)
        self.ends = self.config.schedule.ends
        self.state = self._first_or_saved_state()
        # `now` counts all steps, `turn` those since this process started.
        self.now = self.start = int(self.state.step)
        self.turn = self.rollbacks = self.evaluations = 0
        self.writer = processes.run_on_all(
            lambda: MetricWriter(
                training.directory, self.config.tracker_names, self.now, log
            )
        )
        # metrics.jsonl may know of a rollback that no checkpoint has recorded yet.
        left_out = processes.broadcast_from_first(self.writer.skips)
        self.progress.skips = max(self.progress.skips, left_out, key=len)
        # The steps and seconds of training at the last aim, and the step of the next.
        self.aimed: tuple[int, float] | None = None
        self.next_aim = self.now + 1
        self.display = TrainingDisplay(self.steps, self.now)
        self.objective: Any = None  # that of `train_step`
        self.waiting: deque = deque()  # steps whose metrics have not been read
        self.scores: dict[str, float] | None = None  # of the last evaluation
        self.over = False  # no evaluation was better for too long
        self.compiled_for: Any = None  # the shapes of a batch

    def _log_sizes(self) -> None:
        training = self.training
        kind = jax.devices()[0].device_kind
        self.log(
            f"Model: {training.encoder.layers} layers x {training.encoder.width}, "
            f"{tree.count(self.shapes.params):,} parameters, {training.encoder.dtype}; "
            f"{'about ' * (training.clock is not None)}{training.steps:,} steps on "
            f"{training.mesh.size} {kind}"
            + (f" of {jax.process_count()} processes." if processes.several() else ".")
        )
        for sentence in sharding.undivided(training.mesh, self.shapes.params):
            self.log(f"WARNING: {sentence}")

    def _first_or_saved_state(self) -> State:
        training = self.training
        saved = self.checkpoints.good_step(set_aside=True)
        if saved is None:
            self.checkpoints.check_room(self.shapes)
            return training.first_state(self.shapes)
        meta = self.checkpoints.meta(saved)
        processes.run_on_all(lambda: training.check_meta(meta))
        state, self.progress = (
            self.checkpoints.load(saved, self.shapes),
            Progress.of(meta),
        )
        if saved >= self.steps:
            done = f"{saved:,} of {self.steps:,} steps"
            self.log(f"{training.directory} is finished: {done} done.")
        else:
            self.log(f"Going on from step {saved:,}.")
        return state

    @property
    def steps(self) -> int:
        """The number of steps, as far as is known."""
        return self.ends[-1][1] if self.ends else self.training.steps

    def begin(self) -> None:
        """Makes up for an evaluation that a signal interrupted in the last start."""
        self.meter = _Meter(self)
        due = self.evaluation_due() and self.now not in self.writer.evaluated
        if processes.broadcast_from_first(due) and self.evaluate():
            if self.is_best():
                self.save()
                with self.watchdog.resting():
                    self.checkpoints.wait()  # has_lost_patience reads the best step
        self.over = self.has_lost_patience()
        if self.now < self.steps and not self.over:
            self.log(f"Ctrl-C saves the step and stops the run. {RESUME}")
        self.batches = self.upcoming()

    def has_next_step(self) -> bool:
        """Returns True if another step is to run; all processes call it each time."""
        ended = self.now >= self.steps or self.over
        return not ended and not self.stop.due(self.turn)

    def step(self) -> BadStep | None:
        """Runs a step; returns the first bad step among those read, or None."""
        training = self.training
        rows = sharding.put_rows(training.mesh, next(self.batches))
        shapes, objective = jax.tree.map(np.shape, rows), training.objective
        if training.objective_at is not None:
            objective = training.objective_at(self.now)
        compiles = shapes != self.compiled_for or objective is not self.objective
        if objective is not self.objective:
            more = self.config, training.mesh, training.zero1, training.steps
            self.objective, self.train_step = objective, step_for(objective, *more)
        if compiles:
            self.watchdog.compiles()
            self.display.announce(self.now, "compiling")
            self.compiled_for = shapes
        rate = {}
        if self.ends:
            share = moved_share(self.config.schedule, self.ends, self.now)
            rate["rate"] = np.float32(self.config.optimizer.learning_rate * share)
        self.state, metrics = self.train_step(self.state, training.frozen, rows, **rate)
        if compiles:
            self.display.announce(self.now, "")
        self.now, self.turn = self.now + 1, self.turn + 1
        self.waiting.append((self.now, self.training.flops(self.now - 1), metrics))
        pauses = self.evaluation_due() or self.save_due()
        bad = self.meter.read(keep=0 if pauses else _IN_FLIGHT)
        self.watchdog.moved(self.now)
        return bad

    def aim(self) -> None:
        """Moves the end of the schedule to where the time of the clock is up."""
        clock, config = self.training.clock, self.config
        if clock is None or not self.next_aim <= self.now < self.steps:
            return
        if self.aimed is not None:
            seconds, steps = self.progress.seconds, self.now - self.aimed[0]
            clock.measured(seconds - self.aimed[1], steps)
        left = clock.steps_left(
            config.evaluate_every_steps, config.checkpoint_every_steps
        )
        # The first aim, after the step that compiles, takes the time of a step from the
        # plan or an earlier start.
        self.next_aim = self.now + _COMPILED
        if self.turn > _COMPILED:
            self.aimed = self.now, self.progress.seconds
            self.next_aim = self.now + max(left // 8, 1)
        warm = config.schedule.warmup_steps or 0
        begin, end = max(self.now, warm), self.now + left
        before = tuple(pair for pair in self.ends if pair[0] < begin)
        self.ends = (*before, (begin, max(end, begin + 1)))
        self.display.resize(self.steps)

    def pause(self) -> None:
        """Evaluates and saves where due."""
        with self.meter.paused() as begin:
            self.scores, best = None, False
            if self.evaluation_due() and not self.stop.received and self.evaluate():
                best = self.is_best()
                self.over = not best and self.has_lost_patience()
            if self.save_due() or best or self.over:
                self.save()
            if (clock := self.training.clock) is not None:
                part = "pause" if self.scores else "save"
                setattr(clock, part, time.perf_counter() - begin)

    def end(self) -> None:
        """Saves if a signal stopped the training, and waits for running saves."""
        bad = self.meter.read(keep=0)
        if bad is None and self.stop.received and self.now > self.start:
            # A bad step is not saved: the next start meets it again, and rolls back.
            self.scores = None
            self.save()
        with self.watchdog.resting():
            self.checkpoints.wait()
        if self.over and not self.stop.received:
            self.display.print_line(
                f"Ends at step {self.now}: no evaluation was better for "
                f"{self.config.patience_evaluations} in a row "
                "(train.patience_evaluations)."
            )
        self.stopped = self.stop.received

    def result(self) -> Result:
        """Returns how the training ended, with the weights and scores to use.

        Raises:
          PlmjaxError: a signal stopped the training, and a disk failed.
        """
        self.writer.close("stopped" if self.stopped else "finished")
        failure = self._disk_failure()
        if self.stopped:
            if failure is not None:
                processes.raise_on_all(failure)
            saved = self.checkpoints.steps()
            newest = saved[-1] if saved else None
            return Result(self.stopped, newest, {}, int(self.state.step), {})
        if skipped := int(self.state.skipped):
            self.log(
                f"WARNING: {skipped:,} updates were skipped; they were not finite."
            )
        keep_best = self.training.keep_best
        keeps = self.over if keep_best is None else keep_best
        best = self.checkpoints.best() if keeps else None
        if best is not None and best[0] != int(self.state.step):
            self.log(f"Step {best[0]:,} was the best one; its weights are used.")
            if not keep_best:
                self.log("Other commands read it by --checkpoint=best.")
            self.state, self.scores = self.checkpoints.load(best[0], self.shapes), None
        scores, step = self.scores or self._score(), int(self.state.step)
        weights = weights_of(self.state)
        return Result(None, self.now, weights, step, scores, failure=failure)

    def _disk_failure(self) -> PlmjaxError | None:
        """Returns on all processes the error of checkpoints or metrics, or None."""
        failure = self.checkpoints.failure
        if failure is None:
            try:
                self.writer.check()
            except PlmjaxError as error:
                failure = error
        texts = failure and [failure.message, failure.hint]
        texts = processes.broadcast_from_first(texts)
        return texts and PlmjaxError(texts[0], hint=texts[1], code=Exit.DISK)

    def close(self) -> None:
        """Releases all arrays, since later work needs the devices' memory."""
        vars(self).clear()

    # --- evaluations

    def evaluation_due(self) -> bool:
        """Returns True if the current step is one to evaluate."""
        every, last = self.config.evaluate_every_steps, self.steps
        # An end that has moved may be near: one evaluation is then enough.
        near = bool(self.ends) and last - self.now < every // 2
        due = self.now == last or self.now % every == 0 and not near
        return self.now > 0 and due

    def evaluate(self) -> bool:
        """Scores the state; returns False if a signal interrupted the evaluation."""
        scores = self._score()
        if self.stop.received:
            return False
        self.scores = scores
        self.writer.write("evaluation", self.now, scores | self.progress.totals())
        self.display.print_line(f"step {self.now}: {self.training.describe(scores)}")
        return True

    def _score(self) -> dict[str, float]:
        def watched(batches: Iterator) -> Iterator:
            # A signal ends the evaluation at once; its partial scores are dropped.
            for batch in itertools.takewhile(lambda _: not self.stop.received, batches):
                self.watchdog.moved()
                yield batch

        if not self.evaluations:
            self.watchdog.compiles()
        self.evaluations += 1
        done = int(self.state.step)
        return self.training.score(weights_of(self.state), watched, done)

    def rank(self) -> float:
        """Returns the rank of the last scores; infinite before all is pruned."""
        assert self.scores is not None
        prune, done = self.config.prune, 100 * self.now / self.training.steps
        if prune.sparsity and done < prune.end_percent:
            return math.inf
        return self.training.rank(self.scores)

    def is_best(self) -> bool:
        """Returns True if the last scores rank better than all saved steps."""
        rank = self.rank()
        # The step that is being written may be the best so far.
        with self.watchdog.resting():
            self.checkpoints.wait(patient=False)
        best = self.checkpoints.best()
        return math.isfinite(rank) and (best is None or rank < best[1])

    def has_lost_patience(self) -> bool:
        """Returns True if the best step is train.patience_evaluations ago."""
        if self.config.patience_evaluations is None:
            return False
        best = self.checkpoints.best()
        patience = self.config.patience_evaluations * self.config.evaluate_every_steps
        return best is not None and self.now - best[0] >= patience

    # --- checkpoints

    def save_due(self) -> bool:
        """Returns True if the current step is one to save."""
        every, last = self.config.checkpoint_every_steps, self.steps
        return self.now % every == 0 or self.now == last

    def save(self) -> None:
        """Starts saving the state, with its scores if it was evaluated."""
        if self.training.clock is not None:
            self.training.clock.write(self.ends)
        meta = self.training.origin | dataclasses.asdict(self.progress)
        if self.scores is not None:
            meta["loss"] = self.scores["loss"]
            meta["rank"] = self.rank()
        ended = self.now == self.steps or self.over
        last = ended or self.stop.received is not None
        with self.watchdog.resting():  # saving has its time limit
            self.checkpoints.save(self.now, self.state, meta, last)

    def roll_back(self, bad: BadStep) -> None:
        """Rolls back to the last good checkpoint, without the batches up to a bad step.

        Raises:
          PlmjaxError: on_bad_step is "raise", there is no checkpoint, or the run has
            rolled back too often.
        """
        self.waiting.clear()
        message = f"step {bad.step}: {bad.reason} ({self._rows_of(bad)})."
        with self.watchdog.resting():
            # Also before raising: afterwards the processes exit, and a running save
            # needs all of them.
            self.checkpoints.wait()
            if self.config.on_bad_step == "raise":
                processes.raise_on_all(
                    PlmjaxError(message, hint=_LOWER, code=Exit.NUMERIC)
                )
            to = self.checkpoints.good_step(set_aside=True)
        if to is None or self.rollbacks == self.config.max_rollbacks:
            why = "the run has no checkpoint yet to roll back to"
            if to is not None:
                times = f"{self.rollbacks} times (train.max_rollbacks)"
                why = f"the run has rolled back {times}"
            message = f"{message} {why}."
            processes.raise_on_all(PlmjaxError(message, hint=_LOWER, code=Exit.NUMERIC))
        with self.watchdog.resting():
            self.state = self.checkpoints.load(to, self.shapes)
        entry = rollback.skip(bad, to, self.config.rollback_batches)
        progress = Progress.of(self.checkpoints.meta(to))
        # The time of the undone steps still counts.
        progress.seconds = self.progress.seconds
        progress.skips = rollback.with_skip(self.progress.skips, entry)
        self.progress = progress
        self.writer.rewind(to)
        record = {"bad_step": bad.step, "reason": bad.reason, "skips": progress.skips}
        self.writer.write("rollback", to, record)
        self.display.print_line(
            f"WARNING: {message} Going back to step {to}, and on without {entry[1]} "
            f"batches from step {entry[0]} on."
        )
        self.now, self.rollbacks = to, self.rollbacks + 1
        self.start, self.batches = min(self.start, to), self.upcoming()

    def _rows_of(self, bad: BadStep) -> str:
        skipped = rollback.skipped_batches(self.progress.skips, bad.step - 1)
        rows = self.training.rows(bad.step - 1, skipped)
        more = ", ..." if len(rows) > 8 else ""
        return f"its {len(rows):,} rows are {', '.join(map(str, rows[:8]))}{more}"

    def upcoming(self) -> Iterator[dict]:
        """Returns the batches from the next step on, read ahead by threads."""
        # A copy: a rollback changes progress.skips and calls this method again.
        skips = list(self.progress.skips)

        def batch(step: int) -> dict:
            return self.training.batch(step, rollback.skipped_batches(skips, step))

        endless = self.training.clock is not None
        return read_ahead(batch, self.now, _ENDLESS if endless else self.steps)


_LOWER = "Lower train.optimizer.learning_rate or warm up for longer."


class _Meter:
    """Reads metrics of finished steps: logs them, counts time, detects bad steps."""

    def __init__(self, run: Fit):
        self.run, self.config = run, run.config
        self._peak = peak_flops()
        self._mark = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[float]:
        """Context manager whose time counts neither as training nor in tokens/s.

        Its value is the time.perf_counter() of its begin.
        """
        self._spend(self._elapsed())
        yield self._mark
        self._mark = time.perf_counter()

    def _elapsed(self) -> float:
        """Returns the seconds since the last call."""
        before, self._mark = self._mark, time.perf_counter()
        return self._mark - before

    def _spend(self, seconds: float) -> None:
        self.run.progress.window_seconds += seconds
        self.run.progress.seconds += seconds

    def read(self, keep: int) -> BadStep | None:
        """Reads the metrics of all steps but the newest `keep`, in order.

        Returns the first bad step, or None; steps after it are not counted. Steps that
        are read together share the elapsed time equally.
        """
        waiting = self.run.waiting
        steps = [waiting.popleft() for _ in range(len(waiting) - keep)]
        arrived = [(step, flops, fetch(metrics)) for step, flops, metrics in steps]
        seconds = self._elapsed() if arrived else 0.0
        for step, flops, sums in arrived:
            self._spend(seconds / len(arrived))
            if (bad := self._bad_step(step, sums)) is not None:
                return bad
            self._record(step, flops, sums)
        return None

    def _bad_step(self, step: int, metrics: Sums) -> BadStep | None:
        """Returns the step as a BadStep if it is bad; always None for "skip"."""
        if self.config.on_bad_step == "skip":
            return None
        loss, losses = metrics["objective"][0], self.run.progress.losses
        if metrics["bad_steps"][0]:
            return BadStep(step, "the loss or the gradient is not finite")
        if self.config.spike_sigmas is None or not self._has_loss(metrics):
            return None
        if reason := rollback.spike(losses, loss, self.config.spike_sigmas):
            return BadStep(step, reason)
        self.run.progress.losses = [*losses, loss][-rollback.WINDOW :]
        return None

    def _has_loss(self, metrics: Sums) -> bool:
        """Returns False if a term of the loss has no prediction, so counts as 0."""
        weights = self.run.training.objective.weights
        return all(metrics[name][1] for name, weight in weights.items() if weight)

    def _record(self, step: int, flops: float, metrics: Sums) -> None:
        progress = self.run.progress
        tokens = int(metrics.pop("tokens")[0])
        progress.tokens += tokens
        progress.window_tokens += tokens
        progress.window_flops += flops
        progress.window_steps += 1
        bad = int(metrics.pop("bad_steps")[0])
        if not self._has_loss(metrics):
            metrics["objective"] = (0.0, 0.0)
        if not bad:
            progress.sums = added(progress.sums, metrics)
        else:
            self._warn(step, bad)
        if step % self.config.log_every_steps == 0:
            if progress.sums is not None:
                self._write(step, means(progress.sums))
            progress.begin_window()

    def _warn(self, step: int, bad: int) -> None:
        self.run.display.print_line(
            f"WARNING: step {step}: loss or gradient is not finite; "
            f"the update is skipped ({bad} in a row)."
        )
        if bad < self.config.max_bad_steps:
            return
        with self.run.watchdog.resting():
            self.run.checkpoints.wait()
        good = self.run.checkpoints.steps()
        last = (
            f"The last good checkpoint is step {good[-1]}."
            if good
            else "There is no checkpoint yet."
        )
        message = f"{bad} updates in a row up to step {step} were not finite."
        processes.raise_on_all(
            PlmjaxError(message, hint=f"{last} {_LOWER}", code=Exit.NUMERIC)
        )

    def _write(self, step: int, values: dict[str, float]) -> None:
        """Writes and shows the means over the steps since the last record."""
        values |= self.run.training.objective.scores(values)
        seconds = max(self.run.progress.window_seconds, 1e-9)
        values["tokens_per_second"] = self.run.progress.window_tokens / seconds
        if self._peak is not None:
            speed = self.run.progress.window_flops / seconds
            values["mfu"] = speed / (self._peak * jax.device_count())
        self.run.writer.write("train", step, values | self.run.progress.totals())
        self.run.display.update(step, values)
