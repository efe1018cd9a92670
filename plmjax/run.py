"""The parts of a run, made from its config: data, model, objective, first state."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from plmjax import Exit, PlmjaxError, tree
from plmjax.data.loader import Loader, Phase, held_out_batches
from plmjax.data.prepare import prepare
from plmjax.data.rows import load_plan
from plmjax.data.sources import open_source
from plmjax.data.store import Store
from plmjax.interop.huggingface import read_folder
from plmjax.models import EncoderConfig
from plmjax.models.config import resolve
from plmjax.objectives import Objective, masking
from plmjax.tokenizers import Tokenizer, get_tokenizer
from plmjax.train import sharding
from plmjax.train.checkpoint import write_json
from plmjax.train.metrics import flops_per_token
from plmjax.train.optimizer import make_optimizer
from plmjax.train.schedule import make_schedule
from plmjax.train.step import State, init_state
from plmjax.train.workdir import RunConfig, Workdir, encoder_config, make_objective


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


def frozen_arrays(run: Run) -> dict:
    """Returns what the objective keeps beside the parameters."""
    return jax.jit(lambda batch: _initialise(run)(batch)[1])(run.loader.batch(0))
