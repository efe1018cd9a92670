"""The command of a trial: a pretraining, or, with a block `task`, a fine-tuning."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from plmjax import PlmjaxError
from plmjax import config as config_lib
from plmjax.evaluate import predictions
from plmjax.finetune.build import check, read_data
from plmjax.finetune.config import FinetuneConfig
from plmjax.interop.folder import check_is_folder
from plmjax.pretrain.build import check as check_run
from plmjax.tasks.scores import cost
from plmjax.train import sharding
from plmjax.workdir import RunConfig

# The number of devices is known only where a trial runs.
ONE = typing.cast(
    jax.sharding.Mesh, jax.sharding.AbstractMesh((1, 1, 1), sharding.AXES)
)


@dataclasses.dataclass(frozen=True)
class Verb:
    """A verb of plmjax: its config type, its check, and its figures in scores.json.

    `figures` returns {name: number} of that file; `shares_text` is True if trials can
    share tokenised text.
    """

    name: str
    config: type
    check: Callable[[Any], None]
    figures: Callable[[dict[str, Any]], dict[str, float]]
    shares_text: bool


def verb_of(config: Mapping[str, Any]) -> Verb:
    """Returns the verb of a config, or of the part of one that a file sets."""
    return FINETUNE if "task" in config else PRETRAIN


def choose_objective(
    config: dict[str, Any], study: Mapping[str, Any]
) -> tuple[str, bool]:
    """Returns the score that fine-tunings are compared by, and whether more is better.

    `study` has objective, maximise, both or neither, from get_study. The default is
    the score that selects the step.

    Raises:
      PlmjaxError: the data cannot be read, or has no such held-out score.
    """
    usual, known = _read(config_lib.build(FinetuneConfig, config))
    objective = study.get("objective", usual)
    if objective not in known:
        test = str(objective).startswith("test ")
        raise PlmjaxError(
            f"the objective {objective!r} is no held-out score of this task.",
            hint="What is chosen by its score on the test part looks better there than "
            "it is."
            if test
            else f"It has {', '.join(known)}.",
        )
    better = cost(objective, 1.0) < 0
    return objective, study.get("maximise", better)


def _check_finetune(config: FinetuneConfig) -> None:
    check(config, ONE)
    path = str(config.model)
    check_is_folder(Path(path), path, f"the model {path}")
    _read(config)


def _read(config: FinetuneConfig) -> tuple[str, list[str]]:
    """Reads the labelled data, once for all trials with the same data.

    Returns the score that selects the step, and the names of all scores.
    """
    return _read_once(config.task, config.folds, config.select.metric)


@functools.cache
def _read_once(task, folds, metric) -> tuple[str, list[str]]:
    select = dataclasses.replace(FinetuneConfig().select, metric=metric)
    config = dataclasses.replace(
        FinetuneConfig(), task=task, folds=folds, select=select
    )
    data, usual = read_data(config)
    truth = [example.label for example in data.held_out]
    return usual, predictions.metrics_of(data.config, data.labels, truth)


def _figures(scores: dict[str, Any]) -> dict[str, float]:
    """Returns the held-out scores, and those on the test part, prefixed "test "."""
    test = {f"test {name}": value for name, value in scores.get("test", {}).items()}
    return scores["held_out"] | test


PRETRAIN = Verb("pretrain", RunConfig, lambda c: check_run(c, ONE), dict, True)
FINETUNE = Verb("finetune", FinetuneConfig, _check_finetune, _figures, False)
