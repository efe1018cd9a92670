"""Compares pretraining settings: each is trained by its seeds, then fine-tuned.

DIR/pretrained/    the sweep that trains them (trials.py)
DIR/...            the study that fine-tunes them (compare_plan.py)
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plmjax import RESUME, Exit, PlmjaxError
from plmjax import config as config_lib
from plmjax.experiments import sweep as drive
from plmjax.experiments import sweep_plan
from plmjax.experiments.budget import Budget, budget_of, encoder_of
from plmjax.experiments.compare_plan import Model, Plan, Repeats, Setting, compare_plan
from plmjax.experiments.trials import Trial, listed_trials
from plmjax.models import EncoderConfig
from plmjax.tasks.labelled import load_labelled
from plmjax.workdir import RunConfig


def pretrained_plan(
    root: Path,
    sweep: sweep_plan.Plan,
    tasks: Sequence[str],
    settings: Sequence[Setting],
    folds: int | None,
    overrides: Sequence[str],
) -> Plan:
    """Returns the study of models that need not exist yet.

    Raises:
      PlmjaxError: the file lists no settings; a file, key or name is wrong.
    """
    if not sweep.settings:
        raise PlmjaxError(
            "this sweep file has no get_settings, which names what is compared.",
            hint="The recipe electra_ablation has one (`plmjax sweep --list`).",
        )
    configs = _configs(sweep)
    models = [
        Model(
            name,
            tuple(str(trial.directory) for trial in seeds),
            ", ".join(sweep_plan.overrides_of(sweep.settings[name])),
        )
        for name, seeds in _trials(root, sweep).items()
    ]
    encoders = {model.path(0): configs[model.name] for model in models}

    def encoder(path: str, checkpoint: str) -> EncoderConfig:
        del checkpoint
        return encoder_of(encoders[path])

    repeats = Repeats(sweep.study.seeds, folds)
    plan = compare_plan(
        root,
        models,
        tasks,
        settings=settings,
        repeats=repeats,
        overrides=overrides,
        encoders=encoder,
    )
    budgets = tuple(budget_of(name, config) for name, config in configs.items())
    return dataclasses.replace(plan, budgets=budgets)


def check_data(plan: Plan) -> None:
    """Reads the labelled data of each task, before hours of pretraining.

    Raises:
      PlmjaxError: the data of a task has an error.
    """
    for run in {run.task: run for run in plan.runs}.values():
        load_labelled(run.build().task)


def pretrain(
    plan: Plan, sweep: sweep_plan.Plan, parallel: int, log: Callable[[str], Any]
) -> tuple[int, Plan]:
    """Trains the models that are not trained yet; returns the exit code and the study.

    The budgets of the returned study count the vocabularies as trained, which a small
    text can make smaller. Failed trials are tried again.
    """
    options = drive.Options(parallel=parallel, retry_failed=True)
    code = drive.sweep(sweep, plan.root / "pretrained", options, log)
    if code not in (Exit.OK, Exit.RESUMABLE):
        log(f"Fine-tuning starts once all models are trained. {RESUME}")
    if code != Exit.OK:
        return code, plan
    return code, dataclasses.replace(plan, budgets=_measured(plan.root, sweep))


def _configs(sweep: sweep_plan.Plan) -> dict[str, RunConfig]:
    """Returns {setting: the config of its first seed}."""
    first = sweep.configs[:: sweep.study.seeds]
    built = (config_lib.build(RunConfig, values) for values in first)
    return dict(zip(sweep.settings, built, strict=True))


def _trials(root: Path, sweep: sweep_plan.Plan) -> dict[str, list[Trial]]:
    """Returns {setting: its trials by seed}."""
    known, seeds = listed_trials(root / "pretrained", sweep), sweep.study.seeds
    return {
        name: known[number * seeds : (number + 1) * seeds]
        for number, name in enumerate(sweep.settings)
    }


def _measured(root: Path, sweep: sweep_plan.Plan) -> tuple[Budget, ...]:
    configs = _configs(sweep)
    vocabularies = {
        name: seeds[0].workdir.tokenizer().vocab_size
        for name, seeds in _trials(root, sweep).items()
    }
    return tuple(budget_of(n, configs[n], size) for n, size in vocabularies.items())
