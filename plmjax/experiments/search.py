"""A search by Optuna: each trial is drawn with knowledge of the results so far.

Optuna provides the sampler and the journal, DIR/journal.log. The result of a trial is
read from the trial's directory and reported to Optuna, at once or when the sweep is
started again. Trials have Optuna's numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import Exit, PlmjaxError
from plmjax.experiments import trials
from plmjax.experiments.space import Choices, Range
from plmjax.experiments.sweep_plan import Plan
from plmjax.experiments.trials import Result, Trial


class Search:
    """A study of trials drawn from a space; its directory is locked by the caller."""

    def __init__(
        self,
        root: Path,
        plan: Plan,
        log: Callable[[str], Any],
        retry_failed: bool = False,
    ):
        """Opens the study, and reports to Optuna the results that it lacks.

        Raises:
          PlmjaxError: Optuna is not installed, its journal is missing, or the file now
            describes a started trial differently.
        """
        self._optuna = optuna = require_optuna()
        from optuna.storages.journal import JournalFileBackend

        self.root, self.plan, self.log = root, plan, log
        journal = root / "journal.log"
        _repair(journal)
        backend = JournalFileBackend(str(journal))
        self._study = optuna.create_study(
            study_name="sweep",
            storage=optuna.storages.JournalStorage(backend),
            direction="maximize" if plan.study.maximise else "minimize",
            load_if_exists=True,
        )
        assert plan.space is not None
        self._space = distributions(plan.space)
        self._save_drawn()
        known = trials.saved_trials(root)
        if known and known[-1].number >= len(self._study.trials):
            raise PlmjaxError(
                f"{journal} does not know {known[-1].directory}.",
                hint="Restore it, or choose another --workdir.",
            )
        trials.check_unchanged(plan, known)
        self.results = trials.read_results(root, plan)
        self._left = trials.unfinished(self.results, retry_failed)
        self._count = len(known)
        for result in self.results:
            self.ended(result)

    def _save_drawn(self) -> None:
        """Saves the trials that a killed sweep had drawn but not saved."""
        state = self._optuna.trial.TrialState
        for frozen in self._study.get_trials(states=(state.RUNNING,)):
            if frozen.params.keys() != self._space.keys():
                self._study.tell(frozen.number, state=state.FAIL)
            elif not trials.directory_of(self.root, frozen.number).exists():
                self._save(frozen.number, frozen.params)

    def next(self) -> Trial | None:
        """Returns a trial to start or resume; None when all have been drawn."""
        if self._left:
            return self._left.pop(0)
        while self._count < (self.plan.study.trials or 0):
            self._count += 1
            self._study.sampler = self._sampler(len(self._study.trials))
            drawn = self._study.ask(self._space)
            if trial := self._save(drawn.number, drawn.params):
                return trial
        return None

    def _sampler(self, number: int):
        """Returns the sampler of a trial.

        Each trial has a new seed: a resumed search must not repeat the draws of its
        beginning.
        """
        words = np.random.SeedSequence([self.plan.study.seed, number])
        seed = int(words.generate_state(1)[0])
        samplers = self._optuna.samplers
        kinds = {"tpe": samplers.TPESampler, "random": samplers.RandomSampler}
        return kinds[self.plan.study.sampler](seed=seed)

    def _save(self, number: int, values: dict[str, Any]) -> Trial | None:
        """Saves a drawn trial; returns None if its values cannot work together."""
        try:
            config = self.plan.config(values)
        except PlmjaxError as error:
            self.log(f"Trial {number} is left out: {error}")
            self._study.tell(number, state=self._optuna.trial.TrialState.FAIL)
            return None
        trial = trials.new_trial(self.root, number, values, config)
        trial.save()
        return trial

    def ended(self, result: Result) -> None:
        """Reports the result of a trial to Optuna, unless it is known there."""
        if not result.ended:
            return
        state = self._optuna.trial.TrialState
        number, value = result.trial.number, result.value
        before = self._study.trials[number]
        if result.state == "finished" and _finite(value):
            now = state.COMPLETE
        elif result.state == "failed" and result.code != Exit.NUMERIC:
            now = state.FAIL
        else:
            # Optuna ignores failures, but must avoid values that do not learn.
            now = state.PRUNED
        if before.state == state.RUNNING:
            trial = self._optuna.trial.Trial(self._study, before._trial_id)
            for step, seen in result.curve:
                if step not in before.intermediate_values:
                    trial.report(seen, step)
            self._study.tell(number, value if now == state.COMPLETE else None, now)
        elif now == state.COMPLETE != before.state and not self._is_retried(number):
            # A retry succeeded, but Optuna cannot change the record of the failure.
            self._study.add_trial(
                self._optuna.trial.create_trial(
                    params=result.trial.values,
                    distributions=self._space,
                    value=value,
                    intermediate_values=dict(result.curve),
                    user_attrs={"retried": number},
                )
            )

    def _is_retried(self, number: int) -> bool:
        known = self._study.trials
        return any(trial.user_attrs.get("retried") == number for trial in known)


def require_optuna():
    """Returns the optuna module, set to log warnings and errors only.

    Raises:
      PlmjaxError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise PlmjaxError(
            "a search space needs Optuna, which is not installed.",
            hint="pip install 'plmjax[sweep]', or list the trials in get_hyper.",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _repair(journal: Path) -> None:
    """Removes the leftovers of a killed sweep: its lock, and half a line."""
    for leftover in journal.parent.glob(f"{journal.name}.lock*"):
        leftover.unlink(missing_ok=True)
    if not journal.exists():
        return
    with open(journal, "rb+") as file:
        complete, newline, half = file.read().rpartition(b"\n")
        if half:
            file.truncate(len(complete) + len(newline))


def distributions(space: Mapping[str, Range]) -> dict[str, Any]:
    """Returns a space as Optuna's distributions."""
    kinds = require_optuna().distributions
    by_key = {}
    for key, r in space.items():
        if isinstance(r, Choices):
            by_key[key] = kinds.CategoricalDistribution(r.values)
        elif r.whole:
            step = 1 if r.step is None else int(r.step)
            low, high = int(r.low), int(r.high)
            by_key[key] = kinds.IntDistribution(low, high, log=r.log, step=step)
        else:
            by_key[key] = kinds.FloatDistribution(r.low, r.high, log=r.log, step=r.step)
    return by_key


def study_of(results: Sequence[Result], space: Mapping[str, Range], maximise: bool):
    """Returns the finished results as a study in memory.

    Raises:
      PlmjaxError: Optuna is not installed.
    """
    optuna, kinds = require_optuna(), distributions(space)
    study = optuna.create_study(direction="maximize" if maximise else "minimize")
    for r in results:
        if r.state == "finished" and _finite(r.value):
            given = {"params": r.trial.values, "distributions": kinds}
            study.add_trial(optuna.trial.create_trial(value=r.value, **given))
    return study


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
