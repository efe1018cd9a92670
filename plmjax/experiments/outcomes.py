"""State and scores of a comparison's runs, read from their directories."""

import dataclasses
from typing import Any, Literal

from plmjax import PlmjaxError
from plmjax.evaluate.model import is_folder
from plmjax.experiments.compare_plan import Plan, Repetition
from plmjax.experiments.repeats import finite
from plmjax.experiments.runs import check_directory, check_same_config, with_defaults
from plmjax.files import with_nan, write_json
from plmjax.workdir import Workdir

State = Literal["finished", "failed", "waiting"]
# Keys that may change between two starts of a study: no score depends on them.
HARMLESS = frozenset(
    """
    train.log_every_steps train.keep_checkpoints train.hang_after_seconds
    train.tensorboard train.trackers mesh.data mesh.fsdp mesh.tensor mesh.zero1
    baselines baselines_seconds vectors name card.license card.language
    card.datasets card.base_model
    """.split()
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of a run: `scores` by split, and `curve`, its (step, score) pairs.

    `learned` is False where one answer for all examples would score as well, and None
    where this cannot be determined.
    """

    run: Repetition
    state: State
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
        return finite(self.scores[self.split][self.metric])


def state_of(run: Repetition) -> State:
    """Returns the state of a run; it is finished once its export exists."""
    if (run.directory / "failure.json").exists():
        return "failed"
    done = (run.directory / "scores.json").exists()
    return "finished" if done and is_folder(run.directory / "export") else "waiting"


def read_outcome(run: Repetition) -> Outcome:
    """Returns the outcome of a run.

    Raises:
      PlmjaxError: a file of the run is damaged.
    """
    state, workdir = state_of(run), run.workdir
    if state != "finished":
        failure = workdir.read("failure.json", message=str) or {"message": ""}
        progress = run.progress(None)
        return Outcome(run, state, message=failure["message"], **progress)
    result = workdir.read("scores.json", metric=str, step=int, held_out=dict)
    assert result is not None
    scores = scores_of(result)
    metric, step = result["metric"], result["step"]
    return Outcome(run, state, scores, metric, step, **run.progress(metric))


SPLITS = ("held_out", "test")


def scores_of(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Returns {split: scores} of a fine-tuning's scores.json."""
    return {split: with_nan(result[split]) for split in SPLITS if split in result}


def write_failure(run: Repetition, error: PlmjaxError) -> None:
    """Records why a run failed, because it would fail again."""
    failure = {"message": error.message, "hint": error.hint, "code": int(error.code)}
    write_json(run.directory / "failure.json", failure)


def check_study(plan: Plan) -> None:
    """Compares a study with the earlier one in its directory.

    A study may grow: by seeds, models, tasks and settings.

    Raises:
      PlmjaxError: the directory holds another study, or something else.
    """
    root = plan.root
    check_directory(root, "study.json")
    check_same_config(
        root,
        Workdir(root).read("study.json"),
        plan.stands_on,
        may_change=_grows,
        hint="Choose another --workdir; a study can only grow.",
    )
    for run in plan.runs:
        _check_run(run)


def _grows(key: str, old: Any, new: Any) -> bool:
    if key == "seeds":
        return old <= new
    return old is None and key.startswith(("models.", "tasks.", "settings."))


def _check_run(run: Repetition) -> None:
    """Raises PlmjaxError if a run that has started had another config."""
    saved = run.workdir.read("config.json")
    if saved is None or (state_of(run) == "waiting" and not run.workdir.begun):
        return
    check_same_config(
        run.directory,
        with_defaults(run.verb.config, saved),
        with_defaults(run.verb.config, run.config),
        "holds a run with another config",
        may_change=lambda key, old, new: key in HARMLESS,
        hint="Choose another --workdir, or give these keys the first value again.",
    )
