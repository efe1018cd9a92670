"""Fine-tuning: a pretrained model and labelled data in, a model for the task out."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from plmjax import config as config_lib
from plmjax import processes
from plmjax.checkpoint.checkpoints import write_json
from plmjax.console import console
from plmjax.evaluate import predictions
from plmjax.evaluate.baselines import Baseline, gain_lines, run_baselines
from plmjax.finetune.added import NOTHING, Added
from plmjax.finetune.build import (
    Parts,
    check_origin,
    make_parts,
    score_split,
)
from plmjax.finetune.cached import with_states
from plmjax.finetune.config import FinetuneConfig
from plmjax.finetune.export import export_task
from plmjax.finetune.output import write_predictions
from plmjax.objectives import Altered
from plmjax.report.curves import plot_confusion, plot_curves, plot_scores
from plmjax.show import task_lines
from plmjax.train import sharding
from plmjax.train.config import MeshConfig
from plmjax.train.job import (
    Job,
    Watched,
    initialise,
    run_job,
)
from plmjax.train.step import State
from plmjax.workdir import Workdir

Log = Callable[[str], Any]


def finetune(
    config: ConfigDict, path: Path, log: Log | None = None, added: Added = NOTHING
) -> dict:
    """Fine-tunes a model in `path`, or goes on with what was begun there.

    `added` examples are trained on beside those of the config's files.
    Returns {"held_out": scores, "test": scores if there is a test, "step",
    "metric"}; one cut short by a signal returns {"stopped": name, "step": saved}.

    Raises:
      PlmjaxError: whatever the user can mend.
    """
    workdir, values = Workdir(path, FinetuneConfig), config.to_dict()
    built = config_lib.build(FinetuneConfig, values)
    mesh = processes.together(lambda: sharding.make_mesh(built.mesh))
    log = (log or _say) if processes.is_first() else _say_nothing
    processes.together(workdir.create)
    leads = processes.leader(workdir.path) == jax.process_index()
    with contextlib.ExitStack() as stack:

        def lock() -> None:
            if leads:
                stack.enter_context(workdir.locked())

        processes.together(lock)
        stack.enter_context(jax.set_mesh(mesh))
        changed, _ = processes.together(lambda: workdir.agree(values))
        for key, (old, new) in changed.items():
            log(f"{key} changes from {old} to {new}.")
        parts = processes.together(lambda: make_parts(built, mesh, log, added))

        def note() -> None:
            if leads:  # only now: data that cannot be read leaves no run behind
                write_json(workdir / "config.json", values)
                workdir.write_environment()

        processes.together(note)
        _run_baselines(parts, workdir, log)
        return _train(with_states(parts, log), workdir, log)


def _say(message: str) -> None:
    console().print(message, markup=False, soft_wrap=True)


def _say_nothing(message: str) -> None:
    pass


def _run_baselines(parts: Parts, workdir: Workdir, log: Log) -> None:
    """Fits simple models before any training, once; what they say is kept."""
    path = workdir / "baselines.json"
    if not parts.config.baselines or workdir.begun:
        return

    def first() -> None:
        if processes.is_first() and not path.exists():
            log("Simple models first:")
            with _alone():
                found = run_baselines(
                    parts.data,
                    parts.examples(parts.last),
                    parts.model,
                    parts.config.vectors,
                    log,
                )
            write_json(path, {"found": [dataclasses.asdict(one) for one in found]})

    processes.together(first)


def _gain(parts: Parts, workdir: Workdir, predicted: list) -> list[str]:
    """Returns lines: what the encoder gains over the simple models."""
    kept = workdir.read("baselines.json", found=list)
    if kept is None or not kept["found"]:
        return []
    metric, labels = parts.metric, parts.data.labels
    if metric == "loss":
        metric = predictions.usual_metric(parts.data.config, labels)
    truth = [example.label for example in parts.examples(parts.last)]
    found = [Baseline(**one) for one in kept["found"]]
    return gain_lines(parts.data.config.kind, metric, truth, predicted, found, labels)


def _train(parts: Parts, workdir: Workdir, log: Log) -> dict:
    mesh, zero1 = parts.mesh, parts.config.mesh.zero1
    predict = predictions.make_predict(parts.encoder, parts.task, mesh, parts.merge)
    frozen = jax.device_put(parts.frozen, sharding.shardings(mesh, parts.frozen))

    def fresh(abstract: State, frozen) -> State:
        del frozen
        places = sharding.shardings(mesh, abstract, zero1)
        params = jax.device_put(parts.params, places.params)

        # Nothing is drawn: one program for all seeds, and a small one.
        def make(params: dict) -> State:
            objective = Altered(parts.objective, lambda key, batch: params)
            return initialise(objective, parts.train)({})

        return jax.jit(make, out_shardings=places)(params)

    def score(weights: dict, frozen, watched: Watched) -> dict[str, float]:
        return score_split(parts, predict, weights, frozen, "held_out", watched)[1]

    def tell(scores: dict[str, float]) -> str:
        told = f"held-out loss {scores['loss']:.3f}"
        if parts.metric != "loss":
            told += f", {parts.metric.replace('_', ' ')} {scores[parts.metric]:.4f}"
        return told

    origin = parts.origin
    ended = run_job(
        Job(
            workdir.path,
            workdir.checkpoints,
            parts.train,
            parts.config.mesh,
            mesh,
            parts.encoder,
            parts.objective,
            frozen,
            parts.steps,
            lambda step, ahead: parts.batches.batch(step + ahead),
            lambda step, ahead: _real(parts.batches.rows(step + ahead)[1]),
            lambda step: (
                parts.objective.flops(parts.batches.rows(step)[0])
                * parts.config.train.batch
            ),
            fresh,
            score,
            lambda meta: check_origin(origin, meta, workdir.checkpoints),
            origin,
            lambda scores: predictions.rank(parts.metric, scores),
            tell,
            parts.config.select.keep == "best",
        ),
        log,
    )
    if ended.stopped:
        return {"stopped": ended.stopped, "step": ended.saved}
    return _finish(parts, workdir, ended.weights, frozen, ended.step, predict, log)


def _real(rows: np.ndarray) -> np.ndarray:
    return rows[rows >= 0]


def _finish(
    parts: Parts,
    workdir: Workdir,
    weights: dict,
    frozen,
    step: int,
    predict: Callable,
    log: Log,
) -> dict:
    """Scores all splits, by all processes; one writes, draws and exports."""
    said, scores = {}, {}
    for split in ("held_out", "test"):
        if split in parts.features:
            found = score_split(parts, predict, weights, frozen, split)
            said[split], scores[split] = found
    whole = processes.whole(parts.merge(weights, frozen))
    result = scores | {"step": step, "metric": parts.metric}

    def first() -> None:
        if processes.is_first():
            with _alone():
                _write(parts, workdir, whole, said, result, log)

    processes.together(first)
    return result


def _alone():
    """Returns the context in which one process works without the others."""
    return jax.set_mesh(sharding.make_mesh(MeshConfig(), jax.local_devices()[:1]))


def _write(
    parts: Parts, workdir: Workdir, whole: dict, said: dict, result: dict, log: Log
) -> None:
    config, labels = parts.data.config, parts.data.labels
    for split, own in said.items():
        examples = parts.examples(split)
        path = workdir / f"predictions-{split}.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            for line in write_predictions(config, labels, examples, own):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    for line in task_lines(result):
        log(line)
    for path in plot_curves(workdir.path, None):
        log(f"Curves: {path}")
    for path in plot_scores(workdir.path, parts.metric):
        log(f"Curves: {path}")
    last = parts.last
    examples = parts.examples(last)
    predicted = predictions.read(config, labels, examples, said[last])
    for line in _gain(parts, workdir, predicted):
        log(line)
    if config.kind in ("classes", "tags"):
        pairs = _flat(config.kind, [e.label for e in examples], predicted)
        path = workdir / "plots" / "confusion.png"
        plot_confusion(path, *pairs, labels)
        log(f"Confusion of the {last.replace('_', ' ')} part: {path}")
    model = dataclasses.replace(
        parts.model, encoder=parts.encoder, params=whole, task=parts.task
    )
    name = parts.config.name or workdir.path.resolve().name
    more = len(parts.added.examples)
    folder = workdir / "export"
    export_task(model, name, parts.config, parts.data, result, folder, more)
    # Last: it vouches for all the rest.
    write_json(workdir / "scores.json", result)
    log(f"Exported to {workdir / 'export'}.")
    use = "embed" if config.kind == "embeddings" else "predict"
    log(
        f"\nNext:\n  plmjax {use} --model={workdir.path} --input=FILE --output=FILE\n"
        f"  plmjax evaluate --workdir={workdir.path} --input=FILE"
    )


def _flat(kind: str, truth: list, predicted: list) -> tuple[list[str], list[str]]:
    if kind == "classes":
        return truth, predicted
    return [t for own in truth for t in own], [t for own in predicted for t in own]
