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
import fcntl
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from plmjax import Exit, PlmjaxError
from plmjax import config as config_lib
from plmjax.experiments.sweep_plan import Plan, Values, describe, overrides_of
from plmjax.experiments.verbs import FINETUNE, verb_of
from plmjax.files import write_json
from plmjax.train.metrics import read_metrics
from plmjax.workdir import Workdir

State = Literal["finished", "pruned", "failed", "stopped", "waiting"]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    number: int
    values: Values
    config: dict[str, Any]
    directory: Path

    @property
    def name(self) -> str:
        return f"trial {self.number}"

    def save(self) -> None:
        """Writes trial.json, which reserves the trial's number."""
        Workdir(self.directory).create()
        what = {"values": self.values, "config": self.config}
        write_json(self.directory / "trial.json", what)

    def command(self, fixed: Sequence[str]) -> list[str]:
        """Returns the arguments of `plmjax` that run or resume it."""
        overrides = [*fixed, *overrides_of(self.values)]
        return [
            verb_of(self.config).name,
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


def make(root: Path, number: int, values: Values, config: dict[str, Any]) -> Trial:
    """Returns a new trial with its directory, not yet saved."""
    return Trial(number, values, config, root / "trials" / f"{number:04d}")


def saved(root: Path) -> list[Trial]:
    """Returns the trials that have been started or handed out, by number."""
    found = []
    for path in sorted((root / "trials").glob("*/trial.json")):
        what = Workdir(path.parent).read("trial.json", values=dict, config=dict)
        assert what is not None
        number = int(path.parent.name)
        found.append(Trial(number, what["values"], what["config"], path.parent))
    return sorted(found, key=lambda trial: trial.number)


def settle(root: Path, plan: Plan) -> list[Trial]:
    """Returns all trials of a list; those that are on disk keep their numbers.

    A trial is recognised by its config, so that the list may grow at any position.

    Raises:
      PlmjaxError: a trial that has been started is no longer listed.
    """
    assert plan.listed is not None
    before = {_identity(trial.config): trial for trial in saved(root)}
    known = [before.pop(_as_key(config), None) for config in plan.configs]
    if before:
        raise _vanished(next(iter(before.values())), plan.configs)
    taken = {trial.number for trial in known if trial is not None}
    free = (number for number in range(2 * len(known)) if number not in taken)
    return sorted(
        (
            trial or make(root, next(free), values, config)
            for trial, values, config in zip(
                known, plan.listed, plan.configs, strict=True
            )
        ),
        key=lambda trial: trial.number,
    )


def in_order(plan: Plan, known: Sequence[Trial]) -> list[Trial]:
    """Returns the trials in the order of the list, not by number."""
    found = {_identity(trial.config): trial for trial in known}
    return [found[_as_key(config)] for config in plan.configs]


def check_unchanged(plan: Plan, trials: Sequence[Trial]) -> None:
    """Raises PlmjaxError if the file would give a started trial another config."""
    for trial in trials:
        config = plan.config(trial.values)
        if _identity(config) != _identity(trial.config):
            raise _vanished(trial, [config])


def _full(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a config with defaults for keys that are newer than it."""
    built = config_lib.build(verb_of(config).config, config)
    filled = config_lib.to_dict(built)
    return json.loads(json.dumps(filled))


def _as_key(config: dict[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)


def _identity(config: dict[str, Any]) -> str:
    return _as_key(_full(config))


def _vanished(trial: Trial, configs: Sequence[dict[str, Any]]) -> PlmjaxError:
    old = _full(trial.config)
    nearest = min((config_lib.changes(old, c) for c in configs), key=len)
    lines = [f"  {key}: {a!r} -> {b!r}" for key, (a, b) in nearest.items()]
    return PlmjaxError(
        f"{trial.directory} has been started ({describe(trial.values)}), and the sweep "
        "no longer has this trial. The nearest that it has:\n" + "\n".join(lines),
        hint=f"\nChoose another --workdir, or delete {trial.directory} to drop it.",
    )


def agree(root: Path, plan: Plan) -> None:
    """Compares the definition of a study with the saved one.

    Raises:
      PlmjaxError: the kind, or the objective or space of a search, has changed.
    """
    before = Workdir(root).read("sweep.json")
    if before is not None and (changed := config_lib.changes(before, _stands_on(plan))):
        lines = [f"  {key}: {a!r} -> {b!r}" for key, (a, b) in changed.items()]
        raise PlmjaxError(
            f"{root} holds another study:\n" + "\n".join(lines),
            hint="\nChoose another --workdir.",
        )


def note(root: Path, plan: Plan) -> None:
    """Writes the definition of a study, and the config that its commands name."""
    write_json(root / "sweep.json", _stands_on(plan))
    write_json(root / "base.json", plan.base)


def _stands_on(plan: Plan) -> dict[str, Any]:
    if plan.space is None:
        verb = {"verb": "finetune"} if verb_of(plan.base) is FINETUNE else {}
        return {"kind": "list"} | verb
    space = {key: dataclasses.asdict(r) for key, r in plan.space.items()}
    goal = {"objective": plan.study.objective, "maximise": plan.study.maximise}
    return json.loads(json.dumps({"kind": "search", **goal, "space": space}))


def result(trial: Trial, objective: str) -> Result:
    """Returns the result of a trial, read from its directory.

    Raises:
      PlmjaxError: its workdir holds a run with another config.
    """
    workdir = Workdir(trial.directory)
    records = read_metrics(workdir / "metrics.jsonl")
    curve = tuple(
        (record["step"], record[objective])
        for record in records
        if record["kind"] == "evaluation" and objective in record
    )
    common = {
        "trial": trial,
        "seconds": records[-1].get("seconds") if records else None,
        "curve": curve,
    }
    last = {"step": curve[-1][0], "value": curve[-1][1]} if curve else {}
    scores = workdir.read("scores.json", step=int)
    if scores is not None:
        _check_own(trial, workdir.read("config.json") or {})
        step = scores.pop("step")
        scores = verb_of(trial.config).figures(scores)
        value = scores.get(objective, last.get("value"))
        if value is None:
            raise unknown_objective(objective, scores)
        end = {"value": value, "step": step, "figures": scores}
        return Result(state="finished", **common | end)
    outcome = workdir.read("outcome.json", state=str)
    if outcome is not None:
        lines = tuple(outcome.get("log", ()))
        how = {"state": outcome["state"], "code": outcome.get("code"), "log": lines}
        return Result(**common | last | how)
    state = "stopped" if (workdir / "config.json").exists() else "waiting"
    return Result(state=state, **common | last)


def _check_own(trial: Trial, config: dict[str, Any]) -> None:
    """Raises PlmjaxError if the run in a trial's directory is not the trial."""
    if config != trial.config and _identity(config) != _identity(trial.config):
        raise PlmjaxError(
            f"{trial.directory} holds a run that is not the sweep's {trial.name}.",
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
    told = {"state": state, "code": code, "log": list(log)}
    write_json(trial.directory / "outcome.json", told)


def held_by(directory: Path) -> str | None:
    """Returns the name of the process that locks a workdir; None if it is free."""
    lock = directory / ".lock"
    if not lock.exists():
        return None
    with open(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return file.read().strip() or "another process"
    return None


def wait_until_free(
    directories: Iterable[Path], log: Callable[[str], Any], limit_seconds: float = 120.0
) -> None:
    """Waits for processes of a killed sweep, which save before they end.

    Raises:
      PlmjaxError: a process still runs after the limit.
    """
    end = time.monotonic() + limit_seconds
    for directory in directories:
        if holder := held_by(directory):
            log(f"Waiting for {holder}, which has {directory}.")
        while holder := held_by(directory):
            if time.monotonic() > end:
                raise PlmjaxError(
                    f"{directory} is in use by {holder}.",
                    hint="Stop it, or wait for it; then run the sweep again.",
                    code=Exit.RESUMABLE,
                )
            time.sleep(0.2)
