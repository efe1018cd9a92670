"""The trials of a sweep on disk: their definitions and results.

DIR/sweep.json                    the definition of the study
DIR/base.json                     the config that all trials start from
DIR/trials/0007/trial.json        the trial's values and its full config
DIR/trials/0007/log.txt           the output of its process
DIR/trials/0007/outcome.json      how it ended, unless it finished
DIR/trials/0007/...               the workdir of `plmjax pretrain` or `plmjax finetune`

A trial has finished when its scores.json exists; the run itself writes it, whoever
started the run. A trial that was stopped has neither file, and is resumed.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from plmjax import PlmjaxError
from plmjax import config as config_lib
from plmjax.experiments.runs import (
    Run,
    check_directory,
    check_same_config,
    with_defaults,
)
from plmjax.experiments.sweep_plan import Plan, Values, describe, overrides_of
from plmjax.experiments.verbs import FINETUNE, verb_of
from plmjax.files import with_nan, write_json
from plmjax.workdir import Workdir

State = Literal["finished", "pruned", "failed", "stopped", "waiting"]


@dataclasses.dataclass(frozen=True)
class Trial(Run):
    """One run of a sweep; `values` are those of its config that the sweep varies."""

    number: int
    values: Values
    config: dict[str, Any]
    directory: Path

    @property
    def name(self) -> str:
        return f"trial {self.number}"

    def save(self) -> None:
        """Writes trial.json, which reserves the trial's number."""
        self.workdir.create()
        definition = {"values": self.values, "config": self.config}
        write_json(self.directory / "trial.json", definition)

    def command(self, fixed: Sequence[str]) -> list[str]:
        """Returns the arguments of `plmjax` that run or resume it."""
        overrides = [*fixed, *overrides_of(self.values)]
        return [
            self.verb.name,
            f"--config={self.directory.parents[1] / 'base.json'}",
            *(f"--config.{override}" for override in overrides),
            f"--workdir={self.directory}",
        ]


@dataclasses.dataclass(frozen=True)
class Result:
    """State and results of a trial so far."""

    trial: Trial
    state: State
    # The objective at the end, or of the last evaluation; None before the first one.
    value: float | None = None
    step: int | None = None
    seconds: float | None = None
    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    # (step, objective) of each evaluation.
    curve: tuple[tuple[int, float], ...] = ()
    # For a failure: the exit code, and the last lines of its log.
    code: int | None = None
    log: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether the trial needs no further work, except to retry a failure."""
        return self.state in ("finished", "pruned", "failed")


class Queue(Protocol):
    """Chooses the next trial, and receives the result of each."""

    # Those of the trials that are on disk, or listed, at the beginning.
    results: list[Result]

    def next(self) -> Trial | None:
        """Returns the next trial; None if no trial is left."""
        ...

    def ended(self, result: Result) -> None:
        """Receives the result of a trial."""
        ...


class Listed:
    """The trials of a list that have not ended, in their order."""

    def __init__(self, results: list[Result], retry_failed: bool = False):
        self.results, self._left = results, unfinished(results, retry_failed)

    def next(self) -> Trial | None:
        return self._left.pop(0) if self._left else None

    def ended(self, result: Result) -> None:
        """Does nothing: a list does not depend on results."""


def unfinished(results: Sequence[Result], retry_failed: bool = False) -> list[Trial]:
    """Returns the trials that have not ended, and with `retry_failed` failed ones."""
    return [
        result.trial
        for result in results
        if not result.ended or (retry_failed and result.state == "failed")
    ]


def new_trial(root: Path, number: int, values: Values, config: dict[str, Any]) -> Trial:
    """Returns a trial with its directory, not yet saved."""
    return Trial(number, values, config, directory_of(root, number))


def directory_of(root: Path, number: int) -> Path:
    """Returns the directory of a trial."""
    return root / "trials" / f"{number:04d}"


def saved_trials(root: Path) -> list[Trial]:
    """Returns the trials that have been started or handed out, by number."""
    trials = []
    for path in sorted((root / "trials").glob("*/trial.json")):
        saved = Workdir(path.parent).read("trial.json", values=dict, config=dict)
        assert saved is not None
        number = int(path.parent.name)
        trials.append(Trial(number, saved["values"], saved["config"], path.parent))
    return sorted(trials, key=lambda trial: trial.number)


def listed_trials(root: Path, plan: Plan) -> list[Trial]:
    """Returns all trials of a list, in its order; those on disk keep their numbers.

    A trial is recognised by its config, so that the list may grow at any position.

    Raises:
      PlmjaxError: a trial that has been started is no longer listed.
    """
    assert plan.listed is not None
    before = {_key(_complete(trial)): trial for trial in saved_trials(root)}
    known = [before.pop(_key(config), None) for config in plan.configs]
    for trial in before.values():
        _check_listed(trial, plan.configs)
    numbers = {trial.number for trial in known if trial is not None}
    free = (number for number in range(2 * len(known)) if number not in numbers)
    return [
        trial or new_trial(root, next(free), values, config)
        for trial, values, config in zip(known, plan.listed, plan.configs, strict=True)
    ]


def check_unchanged(plan: Plan, trials: Sequence[Trial]) -> None:
    """Raises PlmjaxError if the file would give a started trial another config."""
    for trial in trials:
        _check_listed(trial, [plan.config(trial.values)])


def _check_listed(trial: Trial, configs: Sequence[dict[str, Any]]) -> None:
    before = _complete(trial)
    check_same_config(
        trial.directory,
        before,
        min(configs, key=lambda config: len(config_lib.changes(before, config))),
        f"has been started ({describe(trial.values)}), and the sweep no longer has "
        "this trial. The nearest that it has",
        hint=f"Choose another --workdir, or delete {trial.directory} to drop it.",
    )


def _complete(trial: Trial) -> dict[str, Any]:
    return with_defaults(trial.verb.config, trial.config)


def _key(config: dict[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)


def check_definition(root: Path, plan: Plan) -> None:
    """Compares the definition of a study with the saved one.

    Raises:
      PlmjaxError: the kind, or the objective or space of a search, has changed.
    """
    check_directory(root, "sweep.json")
    before, now = Workdir(root).read("sweep.json"), _definition(plan)
    if before is not None and before.get("kind") != now["kind"]:
        # Lists and searches have no other key in common.
        before, now = {"kind": before.get("kind")}, {"kind": now["kind"]}
    check_same_config(root, before, now, "holds another sweep")


def save_definition(root: Path, plan: Plan) -> None:
    """Writes the definition of a study, and the config that its commands name."""
    write_json(root / "sweep.json", _definition(plan))
    write_json(root / "base.json", plan.base)


def _definition(plan: Plan) -> dict[str, Any]:
    if plan.space is None:
        verb = {"verb": "finetune"} if verb_of(plan.base) is FINETUNE else {}
        return {"kind": "list"} | verb
    space = {key: dataclasses.asdict(r) for key, r in plan.space.items()}
    goal = {"objective": plan.study.objective, "maximise": plan.study.maximise}
    return {"kind": "search", **goal, "space": space}


def read_result(trial: Trial, objective: str) -> Result:
    """Returns the result of a trial, read from its directory.

    Raises:
      PlmjaxError: its workdir holds a run with another config.
    """
    workdir, progress = trial.workdir, trial.progress(objective)
    curve = progress["curve"]
    last = {"step": curve[-1][0], "value": curve[-1][1]} if curve else {}
    scores = workdir.read("scores.json", step=int)
    if scores is not None:
        _check_run(trial)
        step = scores.pop("step")
        figures = with_nan(trial.verb.figures(scores))
        value = figures.get(objective, last.get("value"))
        if value is None:
            raise unknown_objective(objective, figures)
        return Result(trial, "finished", value, step, figures=figures, **progress)
    end = workdir.read("outcome.json", state=str)
    if end is not None:
        log = tuple(end.get("log", ()))
        state, code = end["state"], end.get("code")
        return Result(trial, state, code=code, log=log, **last, **progress)
    begun = (trial.directory / "config.json").exists()
    return Result(trial, "stopped" if begun else "waiting", **last, **progress)


def read_results(root: Path, plan: Plan) -> list[Result]:
    """Returns the results of the trials, by number; of a search, of the drawn ones."""
    known = saved_trials(root) if plan.listed is None else listed_trials(root, plan)
    known = sorted(known, key=lambda trial: trial.number)
    return [read_result(trial, plan.study.objective) for trial in known]


def _check_run(trial: Trial) -> None:
    """Raises PlmjaxError if the run in a trial's directory is not the trial."""
    config = trial.workdir.read("config.json") or {}
    if config == trial.config:
        return
    check_same_config(
        trial.directory,
        with_defaults(verb_of(config).config, config),
        _complete(trial),
        f"holds a run that is not the sweep's {trial.name}",
        hint="Move it elsewhere.",
    )


def unknown_objective(objective: str, known: Iterable[str]) -> PlmjaxError:
    """Returns the error for an objective that no trial reports."""
    return PlmjaxError(
        f"the objective {objective!r} is no figure of the trials.",
        hint=config_lib.nearest(objective, sorted(known)),
    )


def write_outcome(trial: Trial, state: State, code: int | None = None, log=()) -> None:
    """Writes outcome.json of a trial that was pruned or failed."""
    outcome = {"state": state, "code": code, "log": list(log)}
    write_json(trial.directory / "outcome.json", outcome)
