"""The main job: text in, a trained model in the Hugging Face format out."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.table import Table

from plmjax import PlmjaxError, show, tree
from plmjax import config as config_lib
from plmjax.compress import students, teachers
from plmjax.display import TrainingDisplay, console
from plmjax.evaluate.held_out import unigram_loss
from plmjax.evaluate.model import Trained, with_head
from plmjax.report import plot_curves
from plmjax.run import (
    Run,
    check,
    check_origin,
    held_out,
    make_run,
    not_exportable,
    origin,
)
from plmjax.start import (
    abstract_state,
    beside_teacher,
    fresh_state,
    frozen_arrays,
)
from plmjax.train import sharding
from plmjax.train.checkpoint import Checkpoints, write_json
from plmjax.train.loop import Outlets, Progress, Stop, Work, evaluate, fit
from plmjax.train.metrics import MetricWriter
from plmjax.train.optimizer import make_optimizer
from plmjax.train.schedule import make_schedule
from plmjax.train.step import State, make_evaluation, make_step
from plmjax.train.workdir import RunConfig, Workdir
from plmjax.transfer import export

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

    Raises:
      PlmjaxError: whatever the user can mend.
    """
    out = console()
    workdir = Workdir(path)
    values = config.to_dict()
    built = config_lib.build(RunConfig, values)
    if jax.process_count() > 1:
        raise PlmjaxError(
            "pretraining over several processes is not there yet.",
            hint="One process uses all the devices of its machine.",
        )
    mesh = sharding.make_mesh(built.mesh)
    check(built, mesh)
    workdir.create()
    with workdir.locked(), jax.set_mesh(mesh):
        log = functools.partial(out.print, markup=False, soft_wrap=True)
        changed, again = workdir.agree(values)
        for key, (old, new) in changed.items():
            log(f"{key} changes from {old} to {new}.")
        longer = {"train.steps", "train.epochs"} & changed.keys()
        if again and longer and built.train.schedule.kind != "constant":
            log(
                "WARNING: the learning-rate schedule is stretched to the new length; "
                "this is not what one run of that length would have been."
            )
        run = make_run(built, workdir, mesh, log)
        # Only now: text that cannot be read leaves no run behind.
        write_json(workdir / "config.json", values)
        teachers.remember(built, workdir, run.teacher)
        workdir.write_environment()
        return _train(run, log)


def dry_run(config: ConfigDict, path: Path) -> None:
    """Builds everything but the parameters and prints what a run would be.

    The tokenizer and the token store it makes in `path` serve the run itself later.
    """
    out = console()
    workdir = Workdir(path)
    values = config.to_dict()
    built = config_lib.build(RunConfig, values)
    mesh = sharding.make_mesh(built.mesh)
    check(built, mesh)
    workdir.create()
    with workdir.locked(), jax.set_mesh(mesh):
        workdir.agree(values)
        run = make_run(
            built,
            workdir,
            mesh,
            functools.partial(out.print, markup=False, soft_wrap=True),
        )
        state = abstract_state(run)
        out.print(show.parameter_table(state.params))
        out.print(_plan_table(run, state))
        batch = run.loader.batch(0)
        seen = show.row_as_seen(run.objective, run.tokenizer, batch)
        out.print("\nThe first row, as the model sees it:", markup=False)
        out.print(seen, markup=False)
        out.print("\nDry run: nothing was trained.", markup=False)


def _plan_table(run: Run, state: State) -> Table:
    train, devices = run.config.train, run.mesh.size
    phase = run.loader.phases[0]
    length, shards = phase.plan.length, run.mesh.shape["data"] * run.mesh.shape["fsdp"]
    rows = phase.batch // train.accumulation // shards
    slots = run.objective.slots(length)
    used = sharding.bytes_per_device(run.mesh, state)
    params = sharding.bytes_per_device(run.mesh, state.params)
    kept = sum(
        show.activation_bytes(part.encoder, rows, length, slots)
        for part in run.objective.parts.values()
    )
    flops = sum(run.phase_flops(phase) * phase.steps for phase in run.loader.phases)
    table = Table(title="Training", title_style="", show_header=False)
    for name, value in {
        "steps": f"{run.steps:,}",
        "rows a step": f"{phase.batch:,} x {length} tokens"
        + (f" in {train.accumulation} parts" if train.accumulation > 1 else ""),
        "tokens a step": f"{phase.batch * length * phase.plan.fill:,.0f} without "
        f"padding ({phase.plan.fill:.1%} full)",
        "steps an epoch": f"{math.ceil(phase.plan.rows / phase.batch):,}",
        "predicted a row": f"at most {slots} of {length}",
        "FLOPs in all": f"{flops:.2e}",
        "devices": f"{devices} x {jax.devices()[0].device_kind}, mesh "
        + " x ".join(f"{axis} {run.mesh.shape[axis]}" for axis in sharding.AXES),
        "memory a device": f"about {(used + params + kept) / 1e6:,.0f} MB: state "
        f"{used / 1e6:,.0f}, gradients {params / 1e6:,.0f}, activations "
        f"{kept / 1e6:,.0f} (estimated)",
    }.items():
        table.add_row(name, value)
    return table


def _train(run: Run, log: Callable[[str], Any]) -> dict:
    workdir, train, batches = run.workdir, run.config.train, held_out(run)
    checkpoints = Checkpoints(workdir.checkpoints, train.keep_checkpoints, log)
    checkpoints.remove_unfinished()
    abstract, frozen = abstract_state(run), frozen_arrays(run)
    log(
        f"Model: {run.encoder.layers} layers x {run.encoder.width}, "
        f"{tree.count(abstract.params):,} parameters, {run.encoder.dtype}; "
        f"{run.steps:,} steps on {run.mesh.size} {jax.devices()[0].device_kind}."
    )
    evaluation, stop, progress = make_evaluation(run.objective), Stop(), Progress()

    def scored(state: State) -> dict[str, float]:
        weights = state.params if state.average is None else state.average
        # A signal ends it at once; what it gave until then is thrown away.
        rows = itertools.takewhile(lambda _: not stop.received, batches())
        found = evaluate(evaluation, weights, frozen, run.mesh, rows)
        # Empty where the signal came before the first batch.
        return run.objective.scores(found) if found else {}

    resumed = checkpoints.good_step(set_aside=True)
    if resumed is None:
        state = fresh_state(run, log)
        save_examples(run, next(batches()), state.params)
    else:
        meta = checkpoints.meta(resumed)
        check_origin(run, meta)
        state = checkpoints.load(resumed, abstract)
        names = [field.name for field in dataclasses.fields(Progress)]
        progress = Progress(**{name: meta[name] for name in names})
        if resumed >= run.steps:
            log(f"{workdir.path} is finished: {resumed:,} of {run.steps:,} steps done.")
        else:
            log(f"Going on from step {resumed:,}.")
    step = make_step(
        run.objective,
        make_optimizer(train.optimizer),
        make_schedule(train.schedule, train.optimizer.learning_rate, run.steps),
        run.mesh,
        seed=train.seed,
        steps=run.steps,
        accumulation=train.accumulation,
        ema_decay=train.ema_decay,
    )
    done = int(state.step)
    writer = MetricWriter(workdir.path, train.tensorboard, done)
    display = TrainingDisplay(run.steps, done)
    work = Work(
        step,
        run.loader.batch,
        scored,
        run.objective.scores,
        run.flops,
        run.steps,
        run.mesh,
    )
    outlets = Outlets(checkpoints, writer, display, stop)
    with checkpoints, display, stop:
        result = fit(state, frozen, train, work, outlets, progress, origin(run))
    writer.close()
    if checkpoints.failure is not None:
        raise checkpoints.failure
    if result.stopped:
        return {"stopped": result.stopped, "step": int(result.state.step)}
    if skipped := int(result.state.skipped):
        log(f"WARNING: {skipped:,} updates were skipped; they were not finite.")
    return finish(run, result.state, result.scores or scored(state), batches, log)


def _examples(run: Run, batch: dict, params) -> show.Examples | None:
    """Returns examples for the first model that guesses words, if there is one."""
    name = run.workdir.path.name
    trained = Trained(run.config, run.objective, params, run.tokenizer, name, 0)
    model = with_head(trained.models(), "head")
    examples = model and show.Examples(run.objective, model, batch)
    return examples if examples and examples.places else None


def save_examples(run: Run, batch: dict, params) -> None:
    """Keeps what the untrained model guesses, to show it beside the trained one's."""
    examples = _examples(run, batch, params)
    if examples is not None:
        write_json(run.workdir / "examples.json", {"before": examples.guess()})


def finish(
    run: Run,
    state: State,
    values: dict,
    batches: Callable[[], Iterator[dict]],
    log: Callable[[str], Any],
) -> dict:
    """Shows, draws and exports a trained model; returns its scores."""
    workdir, out = run.workdir, console()
    baseline = unigram_loss(run.store, run.tokenizer)
    weights = state.params if state.average is None else state.average
    saved = workdir.read("examples.json")
    examples = _examples(run, next(batches()), weights)
    if saved is not None and examples is not None:
        out.print(examples.table(saved["before"], examples.guess()))
    for line in show.score_lines(run.objective, values, baseline):
        log(line)
    for path in plot_curves(workdir.path, run.objective.token_loss, baseline):
        log(f"Curves: {path}")
    figures = values | {"unigram_loss": baseline}
    if run.teacher is not None:
        beside = beside_teacher(run, weights, batches())
        for line in students.lines(beside):
            log(line)
        names = ("teacher_loss", "teacher_accuracy", "kept", "smaller", "faster")
        figures |= {name: beside[name] for name in names}
    write_json(workdir / "scores.json", figures | {"step": int(state.step)})
    if problem := not_exportable(run.objective, run.tokenizer):
        log(f"Not exported: {problem}")
    else:
        export(workdir, workdir / "export", log)
    lines = f"\nNext:\n{show.try_it(run.objective, workdir.path)}"
    lines += f"  plmjax evaluate --workdir={workdir.path}"
    if not problem:
        lines += f"\n  plmjax export --workdir={workdir.path} --to=DIR"
    log(lines)
    return figures
