"""The main job: trains a model on text and exports it in the Hugging Face format."""

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plmjax import LESS_MEMORY, Exit, PlmjaxError, processes
from plmjax import config as config_lib
from plmjax.console import console, ignore_line, print_line
from plmjax.data.loader import held_out_batches
from plmjax.evaluate.examples import (
    Examples,
    as_text,
    first_sentence,
    held_out_words,
    table,
    word_to_hide,
)
from plmjax.evaluate.held_out import source_scores, unigram_loss, without_baseline
from plmjax.evaluate.model import Trained, with_head
from plmjax.files import write_json
from plmjax.pretrain import students, teachers
from plmjax.pretrain.build import Make, PretrainSetup, build, check
from plmjax.pretrain.export import check_target, export_trained, folders_for
from plmjax.pretrain.start import compare_with_teacher, fresh_state, frozen_arrays
from plmjax.report.curves import plot_curves
from plmjax.report.dry_run import masked_row_as_seen
from plmjax.report.scores import score_lines
from plmjax.train import sharding
from plmjax.train.clock import Clock
from plmjax.train.job import Training, Watched
from plmjax.train.loop import Result, evaluate, fit
from plmjax.train.metrics import Sums
from plmjax.train.step import State, make_evaluation
from plmjax.workdir import RunConfig, Workdir, row_plan, training_session

# The config of `plmjax pretrain` without options.
DEFAULT_CONFIG = {
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


def pretrain(
    config: RunConfig,
    path: Path,
    clock: Clock | None = None,
    make: Make = None,
    log: Callable[[str], Any] = print_line,
) -> dict:
    """Trains a model in `path`, or resumes the training begun there.

    With a clock, the training ends when its time is up; the config needs
    train.schedule.ends. `make` makes the user's own objective (plmjax.fit in api.py).

    Returns the final scores. A run stopped by a signal returns {"stopped": name,
    "step": saved}. Several processes each read their rows; one of them writes, draws
    and exports.

    Raises:
      PlmjaxError: an error that the user can fix.
    """
    workdir = Workdir(path)
    log = log if processes.is_first() else ignore_line

    def make_mesh() -> jax.sharding.Mesh:
        mesh = sharding.make_mesh(config.mesh)
        check(config, mesh)
        workdir.check_objective(_name(make))
        return mesh

    mesh = processes.run_on_all(make_mesh)
    with training_session(workdir, config, mesh, log) as (leads, changed):
        longer = {"train.steps", "train.epochs"} & changed
        if longer and config.train.schedule.kind != "constant":
            log(
                "WARNING: the learning-rate schedule is stretched to the new length; "
                "this is not what one run of that length would have been."
            )
        setup = _build(config, workdir, mesh, log if leads else None, make)
        if clock is not None:
            setup = dataclasses.replace(setup, loader=setup.loader.endless())
        training = training_of(setup, frozen_arrays(setup), log)
        if clock is not None:
            ends = config.train.schedule.ends

            def write(ends: tuple) -> None:
                if ends:
                    workdir.write_config(_ending(config, ends))
                with contextlib.suppress(OSError):  # no reason to stop the run
                    write_json(workdir / "budget.json", clock.record())

            clock.write = write
            write(())  # a run may be killed before its first checkpoint
            training = dataclasses.replace(training, steps=ends[-1][1], clock=clock)
        try:
            result = fit(training, log)
        finally:
            if clock is not None:
                clock.write(())
        if result.stopped:
            return {"stopped": result.stopped, "step": result.saved}
        if clock is not None:
            setup = dataclasses.replace(setup, config=workdir.config())
        with result.exporting(workdir / "export"):
            return finish(setup, result, log)


def _ending(config: RunConfig, ends: tuple) -> RunConfig:
    """Returns the config with which a run without a clock repeats these ends."""
    schedule = dataclasses.replace(config.train.schedule, ends=ends)
    train = dataclasses.replace(config.train, steps=ends[-1][1], schedule=schedule)
    return dataclasses.replace(config, train=train)


def _name(make: Make) -> str | None:
    if make is None:
        return None
    named = make if hasattr(make, "__qualname__") else type(make)
    return named.__qualname__


def _build(
    config: RunConfig,
    workdir: Workdir,
    mesh: jax.sharding.Mesh,
    log: Callable[[str], Any] | None,
    own: Make,
) -> PretrainSetup:
    """Builds the run, and writes its config and environment.

    Of the processes that share a directory, the one with a `log` comes first: it writes
    the files that the others read.
    """

    def make(log: Callable[[str], Any]) -> PretrainSetup:
        setup = build(config, workdir, mesh, log, own)
        setup.held_out()  # writes its plan file, too
        workdir.check_length(setup.steps)
        return setup

    def lead() -> PretrainSetup | None:
        if log is None:
            return None
        setup = make(log)
        to = workdir / "export"
        check_target(to, folders_for(to, setup.objective.models).values())
        # Written after the data, so that unreadable text leaves no run behind.
        workdir.write_config(config)
        teachers.record(config, workdir, setup.teacher)
        if own is None:
            (workdir / "objective.json").unlink(missing_ok=True)
        else:
            write_json(workdir / "objective.json", {"objective": _name(own)})
        if setup.mixture:
            write_json(workdir / "mixture.json", {"sources": setup.mixture})
        workdir.write_environment()
        return setup

    led = processes.run_on_all(lead)
    setup = processes.run_on_all(lambda: make(ignore_line) if led is None else led)
    first = processes.run_on_first(lambda: setup.origin)
    processes.run_on_all(lambda: _check_same(setup, first))
    return setup


def _check_same(setup: PretrainSetup, first: dict) -> None:
    """Raises PlmjaxError unless this process has the first one's text and tokenizer."""
    ours = setup.origin
    if ours != first:
        what = next(name for name in first if ours.get(name) != first[name])
        raise PlmjaxError(
            f"process {jax.process_index()} has another {what} in {setup.workdir.path} "
            "than process 0.",
            hint="Give all hosts the same text, or one --workdir that they share.",
            code=Exit.DATA,
        )


def training_of(
    setup: PretrainSetup, frozen: dict, log: Callable[[str], Any]
) -> Training:
    """Returns the training of a run; `frozen` is the result of frozen_arrays."""
    batches, evaluations = setup.held_out(), {}

    def first_state(shapes: State) -> State:
        del shapes
        state = fresh_state(setup, log)
        keep(state.params, 0)
        return state

    def score(weights: dict, watched: Watched, done: int) -> dict[str, float]:
        objective = setup.objective_at(max(done - 1, 0))
        if objective not in evaluations:
            evaluations[objective] = make_evaluation(objective)

        def sums(batches: Iterator) -> Sums:
            some = evaluations[objective], weights, frozen, setup.mesh
            return evaluate(*some, watched(batches))

        scores = source_scores(setup.objective, sums, batches, [*setup.store.parts])
        if scores:
            keep(weights, done)
        return scores

    keep = _keep_guesses(setup)
    return Training(
        directory=setup.workdir.path,
        checkpoints=setup.workdir.checkpoints_of(setup.config.train),
        config=setup.config.train,
        mesh=setup.mesh,
        zero1=setup.config.mesh.zero1,
        encoder=setup.encoder,
        objective=setup.objective,
        objective_at=setup.objective_at,
        frozen=frozen,
        steps=setup.steps,
        batch=setup.loader.batch,
        rows=lambda step, skipped: setup.loader.rows(step, skipped)[1],
        flops=setup.flops,
        first_state=first_state,
        score=score,
        origin=setup.origin | {"config": config_lib.to_dict(setup.config)},
        check_meta=lambda meta: _check_meta(setup, meta),
        activations=lambda: max(map(setup.activation_bytes, setup.loader.phases)),
        less_memory=f"{LESS_MEMORY} --config.model.remat=True keeps fewer activations.",
    )


def _check_meta(setup: PretrainSetup, meta: dict) -> None:
    """Raises PlmjaxError if a checkpoint is of another text, tokenizer or config."""
    setup.workdir.check_origin(setup.origin, meta)
    if "config" in meta:
        # The checkpoints may have moved, for example to another disk.
        saved, ours = meta["config"], config_lib.to_dict(setup.config)
        saved["train"]["checkpoints"] = ours["train"]["checkpoints"]
        setup.workdir.compare(saved, ours)


def _trained(setup: PretrainSetup, params: dict, step: int = 0) -> Trained:
    name = setup.config.name or setup.workdir.path.resolve().name
    return Trained(
        config=setup.config,
        objective=setup.objective_at(max(step - 1, 0)),
        params=params,
        tokenizer=setup.tokenizer,
        name=name,
        step=step,
    )


def _examples(setup: PretrainSetup, params) -> Examples | None:
    """Returns examples for the first model with a vocabulary head; None without one."""
    model = with_head(_trained(setup, params).models(), "head")
    examples = model and Examples(setup.objective, model, _random_rows(setup))
    return examples if examples and examples.slots else None


def _random_rows(setup: PretrainSetup, count: int = 64) -> dict:
    """Returns `count` random held-out rows, the same whatever the processes' number."""
    split, length = setup.store.split("held_out"), setup.loader.phases[-1].plan.length
    plan = row_plan(setup.config, split, length, setup.store)
    rows = np.random.default_rng(0).permutation(plan.rows)[:count]
    return next(
        held_out_batches(
            split, plan, setup.tokenizer, plan.rows, mine=lambda batch: rows
        )
    )


def _keep_guesses(setup: PretrainSetup) -> Callable[[dict, int], None]:
    """Returns a function (params, step) that adds guesses to examples.json.

    They are of the same masked rows at each step.
    """
    path, made = setup.workdir / "examples.json", []

    def keep(params: dict, step: int) -> None:
        view = with_head(_trained(setup, params, step).models(), "head")
        made.extend([] if made else [_examples(setup, params)])
        if view is None or (one := made[0]) is None:
            return
        try:
            before = json.loads(path.read_text())["guesses"]
            kept = {old["step"]: old for old in before}
        except (OSError, ValueError, KeyError, TypeError):
            kept = {}  # there is none, or of an earlier version
        one.model = view
        lines, right = one.guess()
        kept[step] = {"step": step, "lines": lines, "right": right}
        seen = masked_row_as_seen(setup.objective, setup.tokenizer, one.batch)
        texts = {"texts": one.texts(), "seen": seen, "causal": bool(one.shift)}
        with contextlib.suppress(OSError):  # no reason to stop the run
            write_json(path, texts | {"guesses": [kept[at] for at in sorted(kept)]})
        one.model = dataclasses.replace(view, params={})  # the host's memory

    def on_first(params: dict, step: int) -> None:
        if processes.is_first():
            with sharding.alone():
                keep(params, step)

    def gather(params: dict, step: int) -> None:
        params = processes.gather_to_host(params)
        processes.run_on_all(lambda: on_first(params, step))

    return gather


def finish(setup: PretrainSetup, result: Result, log: Callable[[str], Any]) -> dict:
    """Shows, plots and exports a trained model; returns its scores.

    The first process does so, with the gathered weights; the others wait for it.
    """
    weights = processes.gather_to_host(result.weights)

    def first() -> dict:
        with sharding.alone():
            return _finish(setup, result._replace(weights=weights), log)

    return processes.run_on_all(lambda: first() if processes.is_first() else {})


def _finish(setup: PretrainSetup, result: Result, log: Callable[[str], Any]) -> dict:
    workdir, weights, values = setup.workdir, result.weights, result.scores
    baseline = unigram_loss(setup.store, setup.tokenizer)
    saved = workdir.read("examples.json") or {}
    steps = {one["step"]: one for one in saved.get("guesses", ())}
    if {0, result.step} <= steps.keys():
        console().print(table(saved, steps[0], steps[result.step]))
    for line in score_lines(setup.objective, values, baseline):
        log(line)
    for path in plot_curves(workdir.path, setup.objective.token_loss, baseline):
        log(f"Curves: {path}")
    figures = without_baseline(values | {"unigram_loss": baseline})
    if setup.teacher is not None:
        comparison = compare_with_teacher(setup, weights, setup.held_out(alone=True)())
        for line in students.lines(comparison):
            log(line)
        names = ("teacher_loss", "teacher_accuracy", "kept", "smaller", "faster")
        figures |= {name: comparison[name] for name in names}
    scores = figures | {"step": result.step}
    trained = _trained(setup, weights, result.step)
    manifest, to = setup.store.manifest, workdir / "export"
    export_trained(trained, workdir, manifest, to, log, scores=scores)
    # Written last, because it marks the run as complete.
    write_json(workdir / "scores.json", scores)
    best = result.step != result.saved
    log("\nNext:\n" + "\n".join(suggested_commands(setup, best)))
    return figures


def suggested_commands(setup: PretrainSetup, best: bool = False) -> list[str]:
    """Returns the commands that use the trained model, ready to paste into a shell.

    Their texts are of the held-out text. `best`: the model is not the newest step.
    """
    tokenizer, split = setup.tokenizer, setup.store.split("held_out")
    views = setup.objective.models.values()
    model = shlex.quote(str(setup.workdir.path))
    text, odd, pair = "[MASK]", "TEXT", ["FIRST", "SECOND"]
    if words := held_out_words(split, tokenizer):
        sentence = first_sentence(words, tokenizer)
        at = word_to_hide(sentence, tokenizer)
        before, after = (
            as_text(some, tokenizer) for some in (sentence[:at], sentence[at + 1 :])
        )
        text = f"{before} [MASK] {after}".strip()
        other = held_out_words(split, tokenizer, seed=1)
        other = other[word_to_hide(other, tokenizer)]
        odd = as_text([*sentence[:at], other, *sentence[at + 1 :]], tokenizer)
        half = len(sentence) if len(words) - len(sentence) > 3 else len(words) // 2
        pair = [as_text(some, tokenizer) for some in (words[:half], words[half:])]
        if any(view.encoder.causal for view in views):
            text = before or as_text(sentence[:1], tokenizer)
    commands = {
        "head": f"plmjax fill {shlex.quote(text)} --model={model}",
        "pair": f"plmjax next {shlex.join(pair)} --model={model}",
        "detector": f"plmjax detect {shlex.quote(odd)} --model={model}",
    }
    trained = {head for view in views for head in view.heads}
    tuned = shlex.quote(f"{setup.workdir.path}-finetuned")
    lines = [commands[head] for head in commands if head in trained]
    lines += [
        f"plmjax finetune --config.model={model} --config.task.train=TRAIN.csv "
        f"--workdir={tuned}" + " --config.checkpoint=best" * best,
        f"plmjax embed --model={model} --input=TEXTS.txt --output=VECTORS.npy",
        f"plmjax evaluate --workdir={model}",
        f"plmjax export --workdir={model} --to=DIR",
    ]
    if setup.workdir.own_objective is not None:
        lines = lines[:-2]  # only its export can be opened
    ending = " --checkpoint=best" * best
    return [f"  {line}{ending * ('checkpoint' not in line)}" for line in lines]
