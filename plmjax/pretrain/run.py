"""The main job: text in, a trained model in the Hugging Face format out."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from plmjax import Exit, PlmjaxError, processes, show
from plmjax import config as config_lib
from plmjax.console import console
from plmjax.evaluate.held_out import unigram_loss
from plmjax.evaluate.model import Trained, with_head
from plmjax.files import write_json
from plmjax.pretrain import students, teachers
from plmjax.pretrain.build import (
    Run,
    check,
    check_origin,
    held_out,
    make_run,
    not_exportable,
    origin,
)
from plmjax.pretrain.export import export_trained
from plmjax.pretrain.start import beside_teacher, fresh_state, frozen_arrays
from plmjax.report.curves import plot_curves
from plmjax.train import sharding
from plmjax.train.config import MeshConfig
from plmjax.train.job import Job, Watched, run_job
from plmjax.train.loop import evaluate
from plmjax.train.step import State, make_evaluation
from plmjax.workdir import RunConfig, Workdir

# What `plmjax pretrain` does when it is told nothing.
EMBEDDED = {
    "model": {
        "preset": "bert-tiny",
        "width": 256,
        "heads": 4,
        "ffn_width": 1024,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
    },
    "train": {
        # Small batches: what a small model learns first depends on updates, not tokens.
        "steps": 2400,
        "batch": 8,
        "evaluate_every_steps": 400,
        "checkpoint_every_steps": 400,
        "optimizer": {"learning_rate": 1e-3, "b2": 0.98},
    },
}


def pretrain(config: ConfigDict, path: Path) -> dict:
    """Trains a model in `path`, or goes on with the training begun there.

    Returns the final scores. A run cut short by a signal returns {"stopped": name}.
    Several processes each read their rows; one of them writes, draws and exports.

    Raises:
      PlmjaxError: whatever the user can mend.
    """
    workdir = Workdir(path)
    values = config.to_dict()
    built = config_lib.build(RunConfig, values)
    mesh = processes.together(lambda: sharding.make_mesh(built.mesh))
    processes.together(lambda: check(built, mesh))
    log = _say if processes.is_first() else _say_nothing
    processes.together(workdir.create)
    # Of the processes that share a directory, one makes what all of them read.
    leads = processes.leader(workdir.path) == jax.process_index()
    with contextlib.ExitStack() as stack:

        def lock():
            if leads:
                stack.enter_context(workdir.locked())

        processes.together(lock)
        stack.enter_context(jax.set_mesh(mesh))
        changed, again = processes.together(lambda: workdir.agree(values))
        for key, (old, new) in changed.items():
            log(f"{key} changes from {old} to {new}.")
        longer = {"train.steps", "train.epochs"} & changed.keys()
        if again and longer and built.train.schedule.kind != "constant":
            log(
                "WARNING: the learning-rate schedule is stretched to the new length; "
                "this is not what one run of that length would have been."
            )
        return _train(_make_run(built, workdir, mesh, log, values, leads), log)


def _say(message: str) -> None:
    console().print(message, markup=False, soft_wrap=True)


def _say_nothing(message: str) -> None:
    pass


def _make_run(
    config: RunConfig,
    workdir: Workdir,
    mesh: jax.sharding.Mesh,
    log: Callable[[str], Any],
    values: dict,
    leads: bool,
) -> Run:
    """Builds the run, its leader's files first, and notes what it is."""

    def make(log: Callable[[str], Any]) -> Run:
        run = make_run(config, workdir, mesh, log)
        held_out(run)  # whose plan is a file, too
        return run

    def lead() -> Run | None:
        if not leads:
            return None
        run = make(log)
        # Only now: text that cannot be read leaves no run behind.
        write_json(workdir / "config.json", values)
        teachers.remember(config, workdir, run.teacher)
        workdir.write_environment()
        return run

    led = processes.together(lead)
    run = processes.together(lambda: make(_say_nothing) if led is None else led)
    ours = processes.together(lambda: origin(run))
    first = processes.agreed(ours)
    processes.together(lambda: _check_same(run, ours, first))
    return run


def _check_same(run: Run, ours: dict, first: dict) -> None:
    """Raises PlmjaxError unless this process has the first one's text and tokenizer."""
    if ours != first:
        what = next(name for name in first if ours.get(name) != first[name])
        raise PlmjaxError(
            f"process {jax.process_index()} has another {what} in {run.workdir.path} "
            "than process 0.",
            hint="Give all hosts the same text, or one --workdir that they share.",
            code=Exit.DATA,
        )


def _train(run: Run, log: Callable[[str], Any]) -> dict:
    batches, evaluation = held_out(run), make_evaluation(run.objective)

    def fresh(abstract: State, frozen: dict) -> State:
        del abstract, frozen
        state = fresh_state(run, log)
        save_examples(run, state.params)
        return state

    def score(weights: dict, frozen: dict, watched: Watched) -> dict[str, float]:
        found = evaluate(evaluation, weights, frozen, run.mesh, watched(batches()))
        # Empty where a signal came before the first batch.
        return run.objective.scores(found) if found else {}

    ended = run_job(
        Job(
            run.workdir.path,
            run.workdir.checkpoints,
            run.config.train,
            run.config.mesh,
            run.mesh,
            run.encoder,
            run.objective,
            frozen_arrays(run),
            run.steps,
            run.loader.batch,
            lambda step, ahead: run.loader.rows(step, ahead)[1],
            run.flops,
            fresh,
            score,
            lambda meta: _check_meta(run, meta),
            origin(run) | {"config": config_lib.to_dict(run.config)},
        ),
        log,
    )
    if ended.stopped:
        return {"stopped": ended.stopped, "step": ended.saved}
    return finish(run, ended.weights, ended.step, ended.scores, log)


def _check_meta(run: Run, meta: dict) -> None:
    """Raises PlmjaxError if a checkpoint is of another text, tokenizer or config."""
    check_origin(run, meta)
    if "config" in meta:
        # The workdir may be new, on another disk; and they may have been moved.
        saved, ours = meta["config"], config_lib.to_dict(run.config)
        saved["train"]["checkpoints"] = ours["train"]["checkpoints"]
        run.workdir.compare(saved, ours)


def _trained(run: Run, params: dict, step: int = 0) -> Trained:
    name = run.config.name or run.workdir.path.resolve().name
    return Trained(run.config, run.objective, params, run.tokenizer, name, step)


def _examples(run: Run, params) -> show.Examples | None:
    """Returns examples for the first model that guesses words, if there is one."""
    model = with_head(_trained(run, params).models(), "head")
    # The first rows of all, however many processes there are.
    batch = next(held_out(run, alone=True)())
    examples = model and show.Examples(run.objective, model, batch)
    return examples if examples and examples.places else None


def save_examples(run: Run, params) -> None:
    """Keeps what the untrained model guesses, to show it beside the trained one's."""
    params = processes.whole(params)

    def save() -> None:
        with _alone():
            examples = _examples(run, params)
            if examples is not None:
                write_json(run.workdir / "examples.json", {"before": examples.guess()})

    processes.together(lambda: save() if processes.is_first() else None)


def _alone():
    """Returns the context in which one process works without the others."""
    return jax.set_mesh(sharding.make_mesh(MeshConfig(), jax.local_devices()[:1]))


def finish(
    run: Run, weights: dict, step: int, values: dict, log: Callable[[str], Any]
) -> dict:
    """Shows, draws and exports a trained model; returns its scores.

    One process does so, with the weights of all; the others wait for it.
    """
    weights = processes.whole(weights)

    def first() -> dict:
        with _alone():
            return _finish(run, weights, step, values, log)

    return processes.together(lambda: first() if processes.is_first() else {})


def _finish(
    run: Run,
    weights: dict,
    step: int,
    values: dict,
    log: Callable[[str], Any],
) -> dict:
    workdir, out = run.workdir, console()
    baseline = unigram_loss(run.store, run.tokenizer)
    saved = workdir.read("examples.json", before=list)
    examples = _examples(run, weights)
    if saved is not None and examples is not None:
        out.print(examples.table(saved["before"], examples.guess()))
    for line in show.score_lines(run.objective, values, baseline):
        log(line)
    for path in plot_curves(workdir.path, run.objective.token_loss, baseline):
        log(f"Curves: {path}")
    figures = values | {"unigram_loss": baseline}
    if run.teacher is not None:
        beside = beside_teacher(run, weights, held_out(run, alone=True)())
        for line in students.lines(beside):
            log(line)
        names = ("teacher_loss", "teacher_accuracy", "kept", "smaller", "faster")
        figures |= {name: beside[name] for name in names}
    write_json(workdir / "scores.json", figures | {"step": step})
    if problem := not_exportable(run.objective, run.tokenizer):
        log(f"Not exported: {problem}")
    else:
        trained = _trained(run, weights, step)
        export_trained(trained, workdir, run.store.manifest, workdir / "export", log)
    lines = f"\nNext:\n{show.try_it(run.objective, workdir.path)}"
    lines += f"  plmjax evaluate --workdir={workdir.path}"
    if not problem:
        lines += f"\n  plmjax export --workdir={workdir.path} --to=DIR"
    log(lines)
    return figures
