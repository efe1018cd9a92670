"""Fine-tuning: trains a pretrained model for a task, on labelled data."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plmjax import LESS_MEMORY, processes
from plmjax.baselines.run import Baseline, gain_lines, run_baselines
from plmjax.baselines.watch import Watch
from plmjax.console import ignore_line, print_line
from plmjax.evaluate import predictions
from plmjax.files import replacing, with_nan, write_json
from plmjax.finetune.added import NOTHING, Added
from plmjax.finetune.build import FinetuneSetup, build, score_split
from plmjax.finetune.cached import with_states
from plmjax.finetune.config import FinetuneConfig
from plmjax.finetune.export import export_task
from plmjax.finetune.teacher import with_teacher
from plmjax.interop.folder import check_replaceable
from plmjax.objectives import altered
from plmjax.report.curves import plot_confusion, plot_curves, plot_scores
from plmjax.report.scores import task_lines
from plmjax.tasks import KINDS
from plmjax.tasks.scores import beats_constant, constant_score, cost, defined
from plmjax.train import sharding
from plmjax.train.job import Training, Watched, initialise
from plmjax.train.loop import Result, fit
from plmjax.train.step import State
from plmjax.workdir import Workdir, training_session

Log = Callable[[str], Any]


def finetune(
    config: FinetuneConfig, path: Path, log: Log | None = None, added: Added = NOTHING
) -> dict:
    """Fine-tunes a model in `path`, or resumes the fine-tuning begun there.

    `added` examples are trained on beside those of the config's files. Returns
    {"held_out": scores, "test": scores if there is a test, "step", "metric"}; if a
    signal stopped it, {"stopped": name, "step": saved}.

    Raises:
      PlmjaxError: an error that the user can fix.
    """
    workdir = Workdir(path, FinetuneConfig)
    log = (log or print_line) if processes.is_first() else ignore_line
    mesh = processes.run_on_all(lambda: sharding.make_mesh(config.mesh))
    with training_session(workdir, config, mesh, log) as (leads, _):

        def note() -> None:
            workdir.check_length(setup.steps)
            if leads:  # late, so that unreadable data leave no run
                check_replaceable(workdir / "export")
                workdir.write_config(config)
                workdir.write_environment()

        setup = processes.run_on_all(lambda: build(config, mesh, log, added))
        processes.run_on_all(note)
        _run_baselines(setup, workdir, log)
        setup = with_teacher(setup, log)
        setup = on_devices(with_states(setup, log))
        predict = predictions.make_predict(setup.encoder, setup.task, mesh, setup.merge)
        result = fit(training_of(setup, workdir, predict), log)
        if result.stopped:
            return {"stopped": result.stopped, "step": result.saved}
        with result.exporting(workdir / "export"):
            return finish(setup, workdir, result, predict, log)


def _run_baselines(setup: FinetuneSetup, workdir: Workdir, log: Log) -> None:
    """Fits simple models once, before any training, and saves their predictions."""
    path = workdir / "baselines.json"
    if not setup.config.baselines or workdir.begun:
        return

    def first() -> None:
        if processes.is_first() and not path.exists():
            seconds = setup.config.baselines_seconds
            limit = "" if seconds is None else f", for {seconds:g} s at most"
            log(f"Simple models first{limit}:")
            watch = Watch(seconds, log)
            with sharding.alone():
                baselines = run_baselines(
                    setup.data,
                    setup.examples(setup.last),
                    setup.model,
                    setup.config.vectors,
                    log,
                    watch=watch,
                )
            record = {"found": [dataclasses.asdict(one) for one in baselines]}
            write_json(path, record | {"left_out": watch.left_out})

    processes.run_on_all(first)


def _gain(setup: FinetuneSetup, workdir: Workdir, predicted: list) -> list[str]:
    """Returns lines on the encoder's gain over the simple models."""
    kept = workdir.read("baselines.json", found=list)
    if kept is None or not kept["found"]:
        return []
    metric, labels = setup.metric, setup.data.labels
    if metric == "loss":
        metric = KINDS[setup.task.kind].usual_metric(labels)
    truth = [example.label for example in setup.examples(setup.last)]
    baselines = [
        Baseline(**one | {"scores": with_nan(one["scores"])}) for one in kept["found"]
    ]
    config = setup.data.config
    lines = gain_lines(
        config.kind, metric, truth, predicted, baselines, labels=labels, config=config
    )
    if left_out := kept.get("left_out"):
        lines.append(
            f"Left out for want of time: {', '.join(left_out)}. To fit all of them, "
            "set --config.baselines_seconds=none."
        )
    return lines


def learning_line(setup: FinetuneSetup, readings: list) -> str | None:
    """Returns a sentence if one answer for all examples would score as well."""
    metric, labels, config = setup.metric, setup.data.labels, setup.data.config
    kind = KINDS[config.kind]
    if metric == "loss":
        metric = kind.usual_metric(labels)
    truth = [example.label for example in setup.examples(setup.last)]
    score = kind.scores(truth, readings, labels, config)[metric]
    constant = constant_score(config.kind, metric, truth, labels, config)
    if constant is None or math.isnan(constant) or len({*map(repr, truth)}) < 2:
        return None  # there is nothing to learn, or no way to see it
    if beats_constant(metric, defined(metric, score), constant):
        return None
    answers = {repr(reading) for reading in readings}
    name = metric.replace("_", " ")
    what = f"one answer for all examples would have {name} {constant:.4f}"
    if len(answers) == 1:
        what = f"it gives {answers.pop()} for every example"
    train = setup.config.train
    return (
        f"The model did NOT learn ({name} {score:.4f}): {what}. Try another "
        f"--config.train.optimizer.learning_rate (now {train.optimizer.learning_rate:g}"
        "), more epochs, a model that is pretrained for longer, or --safe."
    )


def on_devices(setup: FinetuneSetup) -> FinetuneSetup:
    """Returns the setup with the frozen arrays on the devices of its mesh."""
    shardings = sharding.shardings(setup.mesh, setup.frozen)
    return dataclasses.replace(setup, frozen=jax.device_put(setup.frozen, shardings))


def training_of(setup: FinetuneSetup, workdir: Workdir, predict: Callable) -> Training:
    """Returns the training of a task; `predict` is the result of make_predict."""
    zero1, batches, metric = setup.config.mesh.zero1, setup.batches, setup.metric

    def first_state(shapes: State) -> State:
        shardings = sharding.shardings(setup.mesh, shapes, zero1)
        params = jax.device_put(setup.params, shardings.params)

        # No random initialisation here: all seeds share one small program.
        def init(params: dict) -> State:
            objective = altered(setup.objective, init=lambda key, batch: params)
            return initialise(objective, setup.train)({})

        return jax.jit(init, out_shardings=shardings)(params)

    def score(weights: dict, watched: Watched, done: int) -> dict[str, float]:
        del done
        read = functools.partial(predict, weights, setup.frozen)
        return score_split(setup, read, "held_out", watched)[1]

    def describe(scores: dict[str, float]) -> str:
        text = f"held-out loss {scores['loss']:.3f}"
        if metric != "loss":
            text += f", {metric.replace('_', ' ')} {scores[metric]:.4f}"
        return text

    def rows(step: int, skipped: int) -> np.ndarray:
        indices = batches.rows(step + skipped)[1]
        return indices[indices >= 0]

    def flops(step: int) -> float:
        return setup.objective.flops(batches.rows(step)[0]) * batches.size

    origin = setup.origin
    return Training(
        directory=workdir.path,
        checkpoints=workdir.checkpoints_of(setup.train),
        config=setup.train,
        mesh=setup.mesh,
        zero1=zero1,
        encoder=setup.encoder,
        objective=setup.objective,
        frozen=setup.frozen,
        steps=setup.steps,
        batch=lambda step, skipped: batches.batch(step + skipped),
        rows=rows,
        flops=flops,
        first_state=first_state,
        score=score,
        origin=origin,
        check_meta=lambda meta: workdir.check_origin(origin, meta),
        rank=lambda scores: cost(metric, scores[metric]),
        describe=describe,
        keep_best=setup.config.select.keep == "best",
        activations=lambda: setup.activation_bytes(),
        less_memory=f"{LESS_MEMORY} A smaller --config.task.length helps, too.",
    )


def finish(
    setup: FinetuneSetup, workdir: Workdir, result: Result, predict: Callable, log: Log
) -> dict:
    """Scores all splits with all processes; one process writes, plots and exports."""
    read = functools.partial(predict, result.weights, setup.frozen)
    splits = [name for name in ("held_out", "test") if name in setup.features]
    results = {name: score_split(setup, read, name) for name in splits}
    predicted = {name: one for name, (one, _) in results.items()}
    scores = {name: one for name, (_, one) in results.items()}
    params = processes.gather_to_host(setup.merge(result.weights, setup.frozen))
    scores |= {"step": result.step, "metric": setup.metric}

    def first() -> None:
        if processes.is_first():
            with sharding.alone():
                _write_predictions(setup, workdir, predicted)
                _show(setup, workdir, predicted[setup.last], scores, log)
                _export(setup, workdir, params, scores, log)

    processes.run_on_all(first)
    return scores


def _write_predictions(setup: FinetuneSetup, workdir: Workdir, predicted: dict) -> None:
    for split, some in predicted.items():
        lines = predictions.records_of(
            setup.data.config, setup.data.labels, setup.examples(split), some
        )
        path = workdir / f"predictions-{split}.jsonl"
        with replacing(path, "w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _show(
    setup: FinetuneSetup, workdir: Workdir, predicted: list, scores: dict, log: Log
) -> None:
    """Shows scores, curves, the gain over simple models, and the confusion matrix."""
    config, labels, last = setup.data.config, setup.data.labels, setup.last
    for line in task_lines(scores):
        log(line)
    for path in plot_curves(workdir.path, None):
        log(f"Curves: {path}")
    for path in plot_scores(workdir.path, setup.metric):
        log(f"Curves: {path}")
    examples = setup.examples(last)
    kind = KINDS[config.kind]
    readings = predictions.read(config, labels, examples, predicted)
    if line := learning_line(setup, readings):
        log(line)
    for line in _gain(setup, workdir, readings):
        log(line)
    if kind.confusion:
        truth = [example.label for example in examples]
        true, ours = (
            [name for label in some for name in kind.names(label)]
            for some in (truth, readings)
        )
        path = workdir / "plots" / "confusion.png"
        plot_confusion(path, true, ours, labels)
        log(f"Confusion matrix of the {last.replace('_', '-')} part: {path}")


def _export(
    setup: FinetuneSetup, workdir: Workdir, params: dict, scores: dict, log: Log
) -> None:
    model = dataclasses.replace(
        setup.model, encoder=setup.encoder, params=params, task=setup.task
    )
    problem = export_task(
        model,
        setup.config.name or workdir.path.resolve().name,
        setup.config,
        setup.data,
        scores,
        folder=workdir / "export",
        added=len(setup.added.examples),
    )
    # Written last, because it marks the run as complete.
    write_json(workdir / "scores.json", scores)
    log(f"Exported to {workdir / 'export'}.")
    if problem is not None:
        log(f"Only plmjax can read it: {problem}")
    verb = "embed" if setup.task.head is None else "predict"
    log(
        f"\nNext:\n  plmjax {verb} --model={workdir.path} --input=FILE --output=FILE\n"
        f"  plmjax evaluate --workdir={workdir.path} --input=FILE"
    )
