"""State and scores of a run, read from its directory."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from plmjax import PlmjaxError
from plmjax import config as config_lib
from plmjax.evaluate.model import is_folder
from plmjax.experiments.compare_plan import Plan, Run
from plmjax.files import write_json
from plmjax.finetune.config import FinetuneConfig
from plmjax.train.metrics import read_metrics
from plmjax.workdir import Workdir

# Keys that may change between two starts of a study: no score depends on them.
HARMLESS = (
    "train.log_every_steps",
    "train.keep_checkpoints",
    "train.hang_after_seconds",
    "train.tensorboard",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "mesh.zero1",
    "baselines",
    "vectors",
    "name",
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of a run: `scores` by split, and `curve`, its (step, score) pairs.

    `learned` is False where one answer for all examples would score as well, and None
    where this cannot be determined.
    """

    run: Run
    state: Literal["finished", "failed", "waiting"]
    scores: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    metric: str | None = None
    step: int | None = None
    seconds: float | None = None
    curve: tuple[tuple[int, float], ...] = ()
    message: str = ""
    learned: bool | None = None

    @property
    def split(self) -> str:
        """The split that gives the score: test if the task has one, else held_out."""
        return "test" if "test" in self.scores else "held_out"

    @property
    def score(self) -> float | None:
        """The score on the test set, else on held-out data; None if not finite."""
        if self.metric is None or not self.scores:
            return None
        value = self.scores[self.split][self.metric]
        return value if math.isfinite(value) else None


def state_of(run: Run) -> Literal["finished", "failed", "waiting"]:
    """Returns the state of a run; it is finished once its export exists."""
    if (run.directory / "failure.json").exists():
        return "failed"
    done = (run.directory / "scores.json").exists()
    return "finished" if done and is_folder(run.directory / "export") else "waiting"


def read_outcome(run: Run) -> Outcome:
    """Returns the outcome of a run.

    Raises:
      PlmjaxError: a file of the run is damaged.
    """
    state = state_of(run)
    workdir = Workdir(run.directory)
    records = read_metrics(run.directory / "metrics.jsonl")
    seconds = records[-1].get("seconds") if records else None
    if state != "finished":
        told = workdir.read("failure.json", message=str) or {"message": ""}
        return Outcome(run, state, seconds=seconds, message=told["message"])
    found = workdir.read("scores.json", metric=str, step=int, held_out=dict)
    assert found is not None
    metric = found["metric"]
    return Outcome(
        run=run,
        state=state,
        scores={
            split: found[split] for split in ("held_out", "test") if split in found
        },
        metric=metric,
        step=found["step"],
        seconds=seconds,
        curve=tuple(
            (record["step"], record[metric])
            for record in records
            if record["kind"] == "evaluation" and metric in record
        ),
    )


def note_failure(run: Run, error: PlmjaxError) -> None:
    """Records why a run failed, because it would fail again."""
    what = {"message": error.message, "hint": error.hint, "code": int(error.code)}
    write_json(run.directory / "failure.json", what)


def agree(plan: Plan) -> None:
    """Compares a study with the earlier one in its directory.

    A study may grow: by seeds, models, tasks and settings.

    Raises:
      PlmjaxError: the directory holds another study, or something else.
    """
    root = plan.root
    if (root / "config.json").exists():
        raise PlmjaxError(
            f"{root} holds a single run or model, no study.",
            hint="Choose another --workdir.",
        )
    before = Workdir(root).read("study.json")
    if before is not None:
        lines = [
            f"  {key}: {before.get(key)!r} -> {new!r}"
            for key, new in _json(plan.stands_on).items()
            if not _grows(before.get(key), new, key)
        ]
        if lines:
            raise PlmjaxError(
                f"{root} holds another study:\n" + "\n".join(lines),
                hint="\nChoose another --workdir; a study can only grow.",
            )
    for run in plan.runs:
        _check_own(run)


def _grows(old: Any, new: Any, key: str) -> bool:
    if isinstance(old, dict):
        return all(new.get(name) == value for name, value in old.items())
    return old <= new if key == "seeds" else old == new


def _json(values: dict[str, Any]) -> dict[str, Any]:
    """Returns values as they would be read back from a JSON file."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _check_own(run: Run) -> None:
    """Raises PlmjaxError if a run that has started had another config."""
    workdir = Workdir(run.directory, FinetuneConfig)
    saved = workdir.read("config.json")
    if saved is None or (state_of(run) == "waiting" and not workdir.begun):
        return
    before, now = (
        config_lib.to_dict(config_lib.build(FinetuneConfig, values))
        for values in (saved, run.values)
    )
    changed = config_lib.changes(before, now)
    lines = [
        f"  {key}: {a!r} -> {b!r}"
        for key, (a, b) in changed.items()
        if key not in HARMLESS
    ]
    if lines:
        raise PlmjaxError(
            f"{run.directory} holds a run with another config:\n" + "\n".join(lines),
            hint="\nChoose another --workdir, or go on with the config it has.",
        )


def is_study(root: Path) -> bool:
    """Whether a directory is that of a study."""
    return (root / "study.json").exists()
