"""The main job: text in, a trained model in the Hugging Face format out."""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.table import Table

from plmjax import Exit, PlmjaxError, show, tree
from plmjax import config as config_lib
from plmjax.data.loader import Loader, Phase, held_out_batches
from plmjax.data.prepare import prepare
from plmjax.data.rows import load_plan
from plmjax.data.sources import open_source
from plmjax.data.store import Store
from plmjax.display import TrainingDisplay, console
from plmjax.evaluate.held_out import scores, unigram_loss
from plmjax.evaluate.model import Model
from plmjax.interop.huggingface import read_folder
from plmjax.models import EncoderConfig
from plmjax.models.config import resolve
from plmjax.objectives import Objective, masking
from plmjax.report import plot_curves
from plmjax.tokenizers import Tokenizer, get_tokenizer
from plmjax.train import sharding
from plmjax.train.checkpoint import Checkpoints, write_json
from plmjax.train.loop import Outlets, Progress, Stop, Work, evaluate, fit
from plmjax.train.metrics import MetricWriter, flops_per_token
from plmjax.train.optimizer import make_optimizer
from plmjax.train.schedule import make_schedule
from plmjax.train.step import State, init_state, make_evaluation, make_step
from plmjax.train.workdir import RunConfig, Workdir, encoder_config, make_objective
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


@dataclasses.dataclass(frozen=True)
class Run:
    """All the parts of a run, made from its config, before any parameter exists."""

    config: RunConfig
    workdir: Workdir
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    store: Store
    encoder: EncoderConfig
    objective: Objective
    loader: Loader

    @property
    def steps(self) -> int:
        return self.loader.steps

    def flops(self, step: int) -> float:
        """Returns the matrix FLOPs of a step."""
        return self.phase_flops(self.loader.phase(step))

    def phase_flops(self, phase: Phase) -> float:
        """Returns the matrix FLOPs of each step of a phase."""
        length = phase.plan.length
        share = masking.slots(self.config.objective.probability, length) / length
        return flops_per_token(self.encoder, length, share) * phase.batch * length


def check(config: RunConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises PlmjaxError for values that cannot work together, before any work."""
    given = [k for k in ("steps", "epochs") if getattr(config.train, k) is not None]
    if not given and not config.data.phases:
        raise PlmjaxError(
            "nothing says how long to train.",
            hint="Set --config.train.steps or --config.train.epochs.",
        )
    if given and config.data.phases:
        raise PlmjaxError(
            f"data.phases and train.{given[0]} both say how long to train.",
            hint=f"Set --config.train.{given[0]}=none, or --config.data.phases='()'.",
        )
    check_lengths(config, resolve(config.model, vocab_size=1, pad_id=1))
    phases = config.data.phases or ((1, config.data.length, config.train.batch),)
    for _, _, batch in phases:
        sharding.check_batch(mesh, batch, config.train.accumulation)
    if config.train.steps is not None and not config.data.phases:
        make_schedule(config.train.schedule, 1.0, config.train.steps)


def check_lengths(config: RunConfig, encoder: EncoderConfig) -> None:
    """Raises PlmjaxError for rows that are longer than the model's positions."""
    longest = max([length for _, length, _ in config.data.phases] or [0])
    longest = longest or config.data.length
    if longest > encoder.max_length:
        raise PlmjaxError(
            f"data.length={longest} is longer than the model's "
            f"{encoder.max_length} positions.",
            hint=f"Set --config.model.max_positions="
            f"{longest + encoder.position_offset}, or shorten the rows.",
        )


def prepare_data(
    config: RunConfig, workdir: Workdir, log: Callable[[str], Any]
) -> tuple[Tokenizer, Store]:
    """Returns the run's tokenizer and token store, made the first time.

    A run that has begun goes on with the store it began with, whatever became of the
    text since.
    """
    if workdir.begun:
        return workdir.tokenizer(), workdir.store(verify=True)
    run = workdir.read("run.json")
    source = open_source(config.data.source, config.data.errors)
    recipe = json.dumps([source.fingerprint, dataclasses.asdict(config.tokenizer)])
    if run is not None and run["recipe"] == recipe:
        tokenizer = workdir.tokenizer()
    else:
        # A relative path may be meant from the workdir: an import lives there.
        path = config.tokenizer.path and str(workdir.resolve(config.tokenizer.path))
        settings = dataclasses.replace(config.tokenizer, path=path)
        tokenizer = get_tokenizer(settings, source.documents())
        # Until the store is there, too, nothing vouches for this tokenizer.
        (workdir / "run.json").unlink(missing_ok=True)
        tokenizer.save(workdir / "tokenizer")
    log(
        f"Tokenizer: {tokenizer.kind}, {tokenizer.vocab_size:,} pieces "
        f"({workdir / 'tokenizer'})."
    )
    told = source.description
    why = f" ({told['why']})" if told.get("why") else ""
    log(f"Source: {told['kind']}; a document is {told.get('document')}{why}.")
    store = prepare(
        source,
        tokenizer,
        workdir / "data",
        config.data.held_out_percent,
        config.data.workers,
        log,
    )
    counts = store.manifest["source"]["counts"]
    for name in ("replaced_characters", "cut_documents", "empty_files"):
        if counts.get(name):
            log(f"{name.replace('_', ' ').capitalize()}: {counts[name]:,}.")
    write_json(workdir / "run.json", {"store": store.key, "recipe": recipe})
    return tokenizer, store


def make_run(
    config: RunConfig,
    workdir: Workdir,
    mesh: jax.sharding.Mesh,
    log: Callable[[str], Any],
) -> Run:
    """Builds everything but the parameters; reads or makes the data."""
    tokenizer, store = prepare_data(config, workdir, log)
    encoder = encoder_config(config, tokenizer)
    check_lengths(config, encoder)  # RoBERTa's first position follows the tokenizer
    objective = make_objective(config, encoder, tokenizer)
    split, packed = store.split("train"), config.data.rows == "packed"
    shapes = config.data.phases or ((None, config.data.length, config.train.batch),)
    phases = []
    for steps, length, batch in shapes:
        plan = load_plan(split, length, packed, store.directory)
        log(
            f"Rows of {length} tokens: {plan.rows:,}, {plan.fill:.1%} full; an epoch "
            f"is {math.ceil(plan.rows / batch):,} steps of {batch} rows."
        )
        if steps is None:
            epoch = plan.rows / batch
            steps = config.train.steps or math.ceil((config.train.epochs or 0) * epoch)
        phases.append(Phase(steps, batch, plan))
    loader = Loader(
        split,
        phases,
        tokenizer,
        config.train.seed,
        copies=config.objective.copies if config.objective.masks == "static" else 1,
    )
    return Run(config, workdir, mesh, tokenizer, store, encoder, objective, loader)


def abstract_state(run: Run) -> tuple[State, dict]:
    """Returns shapes and shardings of the state and the frozen arrays; no memory."""
    shapes = jax.eval_shape(_initialise(run), run.loader.batch(0))
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        sharding.shardings(run.mesh, shapes),
    )


def _initialise(run: Run) -> Callable:
    train = run.config.train
    return functools.partial(
        init_state,
        run.objective,
        make_optimizer(train.optimizer),
        train.seed,
        ema=train.ema_decay is not None,
    )


def fresh_state(run: Run) -> tuple[State, dict]:
    """Returns the state before the first step, on its devices; start weights read.

    Raises:
      PlmjaxError: the start weights are of another model.
    """
    batch = run.loader.batch(0)
    initialise = _initialise(run)
    places = sharding.shardings(run.mesh, jax.eval_shape(initialise, batch))
    state, frozen = jax.jit(initialise, out_shardings=places)(batch)
    if run.config.train.init_from is None:
        return state, frozen
    params = _start_weights(run, state.params)
    params = jax.device_put(params, places[0].params)
    average = None if state.average is None else jax.tree.map(jax.numpy.copy, params)
    return state._replace(params=params, average=average), frozen


def _start_weights(run: Run, fresh: dict) -> dict:
    found = read_folder(run.workdir.resolve(str(run.config.train.init_from)))
    params = dict(found.params)
    if params["head"] is None:
        params["head"] = jax.device_get(fresh["head"])
    if found.tokenizer.digest != run.tokenizer.digest:
        raise PlmjaxError(
            f"the weights of train.init_from={run.config.train.init_from} belong to "
            "another tokenizer than this run's.",
            hint="Set --config.tokenizer.path to that folder.",
            code=Exit.MODEL,
        )
    if differing := tree.differences(fresh, params):
        raise PlmjaxError(
            f"the weights of train.init_from={run.config.train.init_from} are of "
            f"another model: {len(differing)} parameters differ, first "
            f"{differing[0]}.",
            hint="Leave the model block's sizes to the import.",
            code=Exit.MODEL,
        )
    return params


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
        if again and {"train.steps", "train.epochs"} & changed.keys():
            log(
                "WARNING: the learning-rate schedule is stretched to the new length; "
                "this is not what one run of that length would have been."
            )
        run = make_run(built, workdir, mesh, log)
        # Only now: text that cannot be read leaves no run behind.
        write_json(workdir / "config.json", values)
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
        state, _ = abstract_state(run)
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
    slots = masking.slots(run.config.objective.probability, length)
    used = sharding.bytes_per_device(run.mesh, state)
    params = sharding.bytes_per_device(run.mesh, state.params)
    kept = show.activation_bytes(run.encoder, rows, length, slots)
    flops = sum(run.phase_flops(phase) * phase.steps for phase in run.loader.phases)
    table = Table(title="Training", title_style="", show_header=False)
    for name, value in {
        "steps": f"{run.steps:,}",
        "rows a step": f"{phase.batch:,} x {length} tokens"
        + (f" in {train.accumulation} parts" if train.accumulation > 1 else ""),
        "tokens a step": f"{phase.batch * length * phase.plan.fill:,.0f} without "
        f"padding ({phase.plan.fill:.1%} full)",
        "steps an epoch": f"{math.ceil(phase.plan.rows / phase.batch):,}",
        "masked a row": f"at most {slots} of {length}",
        "FLOPs in all": f"{flops:.2e}",
        "devices": f"{devices} x {jax.devices()[0].device_kind}, mesh "
        + " x ".join(f"{axis} {run.mesh.shape[axis]}" for axis in sharding.AXES),
        "memory a device": f"about {(used + params + kept) / 1e6:,.0f} MB: state "
        f"{used / 1e6:,.0f}, gradients {params / 1e6:,.0f}, activations "
        f"{kept / 1e6:,.0f} (estimated)",
    }.items():
        table.add_row(name, value)
    return table


def held_out(run: Run) -> Callable[[], Iterator[dict]]:
    """Returns what gives the held-out rows anew, in batches that fit where steps do."""
    split, phase = run.store.split("held_out"), run.loader.phases[-1]
    packed = run.config.data.rows == "packed"
    plan = load_plan(split, phase.plan.length, packed, run.store.directory)
    batch = phase.batch // run.config.train.accumulation
    return functools.partial(held_out_batches, split, plan, run.tokenizer, batch)


def check_origin(run: Run, meta: dict) -> None:
    """Raises PlmjaxError if a checkpoint saw other text or another tokenizer."""
    for what, ours in origin(run).items():
        if meta.get(what) != ours:
            raise PlmjaxError(
                f"the checkpoint in {run.workdir.checkpoints} was trained with another "
                f"{what} than {run.workdir.path} holds now.",
                hint="Restore it, or start again in another --workdir.",
                code=Exit.MODEL,
            )


def origin(run: Run) -> dict[str, str]:
    """Returns what a checkpoint is bound to: digests of text and tokenizer."""
    return {"store": run.store.key, "tokenizer": run.tokenizer.digest}


def _train(run: Run, log: Callable[[str], Any]) -> dict:
    workdir, train, batches = run.workdir, run.config.train, held_out(run)
    checkpoints = Checkpoints(workdir.checkpoints, train.keep_checkpoints, log)
    checkpoints.remove_unfinished()
    abstract, _ = abstract_state(run)
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
        return scores(evaluate(evaluation, weights, frozen, run.mesh, rows))

    resumed = checkpoints.good_step(set_aside=True)
    if resumed is None:
        state, frozen = fresh_state(run)
        save_examples(run, next(batches()), state.params)
    else:
        meta = checkpoints.meta(resumed)
        check_origin(run, meta)
        state, frozen = checkpoints.load(resumed, abstract), frozen_arrays(run)
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
    work = Work(step, run.loader.batch, scored, run.flops, run.steps, run.mesh)
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


def frozen_arrays(run: Run) -> dict:
    """Returns what the objective keeps beside the parameters."""
    return jax.jit(lambda batch: _initialise(run)(batch)[1])(run.loader.batch(0))


def _examples(run: Run, batch: dict, params) -> show.Examples:
    parts = (
        run.encoder,
        params,
        run.tokenizer,
        run.objective,
        run.workdir.path.name,
        None,
    )
    return show.Examples(Model(*parts), batch)


def save_examples(run: Run, batch: dict, params) -> None:
    """Keeps what the untrained model guesses, to show it beside the trained one's."""
    before = _examples(run, batch, params).guess(params)
    write_json(run.workdir / "examples.json", {"before": before})


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
    if saved is not None:
        examples = _examples(run, next(batches()), weights)
        out.print(examples.table(saved["before"], examples.guess(weights)))
    gain = baseline - values["loss"]
    log(
        f"Held-out loss {values['loss']:.3f} nats a masked token; unigram baseline "
        f"{baseline:.3f} ({gain:.2f} nats {'better' if gain > 0 else 'WORSE'}).\n"
        f"Accuracy {values['accuracy']:.1%}, perplexity {values['perplexity']:.1f}, "
        f"{values['bits_per_byte']:.3f} bits per byte of masked text."
    )
    for path in plot_curves(workdir.path, baseline):
        log(f"Curves: {path}")
    figures = values | {"unigram_loss": baseline}
    write_json(workdir / "scores.json", figures | {"step": int(state.step)})
    export(workdir, workdir / "export", log)
    log(
        "\nNext:\n"
        f'  plmjax fill "The [MASK] of the array" --model={workdir.path}\n'
        f"  plmjax evaluate --workdir={workdir.path}\n"
        f"  plmjax export --workdir={workdir.path} --to=DIR"
    )
    return figures
