"""Builds the setup of a run from its config: tokenizer, data, model and objective."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from plmjax import PlmjaxError, counted, machine
from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.console import ignore_line
from plmjax.data.coherence import check_pairs
from plmjax.data.corpus import describe_counts, describe_source
from plmjax.data.loader import Loader, Phase, held_out_batches, ramped
from plmjax.data.mixture import JoinedStore
from plmjax.data.parts import Tasks, divide
from plmjax.data.prepare import prepare, sizes, store_key
from plmjax.data.sources import Source
from plmjax.data.store import Split, Store
from plmjax.evaluate.model import Model
from plmjax.files import write_json
from plmjax.interop import config_json
from plmjax.models import EncoderConfig, Platform
from plmjax.models.blocks import short_rows
from plmjax.models.config import resolve
from plmjax.models.flops import activation_bytes
from plmjax.models.platform import training_platform
from plmjax.objectives import OBJECTIVES, ElectraConfig, Objective, Pieces
from plmjax.pretrain import mixtures, stores, teachers
from plmjax.pretrain.checks import check_global_tokens, check_one_document, check_text
from plmjax.pretrain.weights import check_start_weights
from plmjax.tokenizers import (
    Tokenizer,
    TokenizerConfig,
    check_segmenter,
    describe,
    get_tokenizer,
)
from plmjax.train import sharding, trackers
from plmjax.train.config import TrainConfig
from plmjax.train.schedule import make_schedule
from plmjax.workdir import RunConfig, Workdir, encoder_config, make_objective, row_plan

# Makes a user's own objective (plmjax.fit); None: the config names one.
Make = Callable[..., Objective] | None


@dataclasses.dataclass(frozen=True)
class PretrainSetup:
    """All that a run needs, built from its config, before any parameter exists."""

    config: RunConfig
    workdir: Workdir
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    store: Store
    encoder: EncoderConfig
    objective: Objective
    loader: Loader
    teacher: Model | None = None
    # The objectives by the phases' rope_theta, if it is not the same in all.
    by_theta: Mapping[float | None, Objective] = dataclasses.field(default_factory=dict)
    # Facts of the sources of a mixture (pretrain/mixtures.py).
    mixture: Sequence[dict[str, Any]] = ()

    def objective_at(self, step: int) -> Objective:
        """Returns the objective of a step, counted from 0."""
        theta = self.config.data.phase_at(step).rope_theta
        return self.by_theta.get(theta, self.objective)

    @property
    def steps(self) -> int:
        """The number of training steps, in all phases."""
        return self.loader.steps

    def flops(self, step: int) -> float:
        """Returns the matrix FLOPs of a step."""
        return self.phase_flops(self.loader.phase(step))

    def activation_bytes(self, phase: Phase) -> int:
        """Estimates the bytes of activations of a phase's step on a device."""
        shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        rows = phase.batch // self.config.train.accumulation // shards
        length = phase.plan.length
        given = rows, length, self.objective.slots(length)
        device = {
            "kind": self.mesh.devices.flat[0].platform,
            "attention": self.config.train.attention,
        }
        return sum(
            activation_bytes(view.encoder, *given, **device)
            for view in self.objective.models.values()
        )

    def phase_flops(self, phase: Phase) -> float:
        """Returns the matrix FLOPs of each step of a phase."""
        return self.objective.flops(phase.plan.length) * phase.batch

    @property
    def origin(self) -> dict[str, str]:
        """Digests of what a checkpoint is bound to: text, tokenizer, and so on."""
        digests = {"store": self.store.key, "tokenizer": self.tokenizer.digest}
        digests |= mixtures.digest(self.loader.phases)
        noted = self.workdir.read("teacher.json", digest=str)
        return digests if noted is None else digests | {"teacher": noted["digest"]}

    def held_out(self, alone: bool = False) -> Callable[..., Iterator[dict]]:
        """Returns a function that iterates over the held-out rows, in micro-batches.

        Each process gets its share of them; with `alone`, it gets all. The function's
        argument `source` is the number of a source of a mixture, to read its rows.
        """
        split, phase = self.store.split("held_out"), self.loader.phases[-1]
        plan = row_plan(self.config, split, phase.plan.length, self.store)
        batch = phase.batch // self.config.train.accumulation
        mine = np.arange if alone else functools.partial(sharding.local_rows, self.mesh)
        return functools.partial(
            held_out_batches, split, plan, self.tokenizer, batch, mine=mine
        )


def check(config: RunConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises PlmjaxError for values that cannot work together, before any work."""
    given = [k for k in ("steps", "epochs") if getattr(config.train, k) is not None]
    if not given and not config.data.phases:
        raise PlmjaxError(
            "the config does not set how long to train.",
            hint="Set --config.train.steps or --config.train.epochs.",
        )
    if given and config.data.phases:
        raise PlmjaxError(
            f"data.phases and train.{given[0]} both set how long to train.",
            hint=f"Set --config.train.{given[0]}=none, or --config.data.phases='()'.",
        )
    trackers.check(config.train)
    if config.train.checkpoints is not None:
        Checkpoints(config.train.checkpoints)  # refuses a URL of another kind
    if config.data.mixture and config.objective.pairs_config is not None:
        raise PlmjaxError(
            "objective.pairs needs one source, but data.mixture has several: a false "
            "next sentence of another source would be easy to tell.",
            hint="Set --config.objective.pairs=none, or give all text as data.source.",
        )
    encoder = resolve(config.model, vocab_size=1, pad_id=1)
    if encoder.dtype != "float16" and config.train.loss_scale != TrainConfig.loss_scale:
        raise PlmjaxError(
            f"train.loss_scale={config.train.loss_scale:g} has no effect with "
            f"model.dtype={encoder.dtype}.",
            hint="Leave it out, or set --config.model.dtype=float16.",
        )
    if isinstance(mesh, jax.sharding.Mesh):  # of a plan, the devices are not known
        platform_of(config, mesh)
    check_lengths(config, encoder)
    check_objective(config, encoder)
    if config.tokenizer.user_dictionary is None:  # may be in the workdir
        check_segmenter(config.tokenizer)
    batches = [shape.batch or config.train.batch for shape in config.data.shapes]
    for batch in batches:
        sharding.check_batch(mesh, batch, config.train.accumulation)
    _check_phases(config, encoder, batches[0], mesh)
    if config.train.steps is not None and not config.data.phases:
        make_schedule(config.train.schedule, 1.0, config.train.steps)


def _check_phases(
    config: RunConfig, encoder: EncoderConfig, batch: int, mesh: jax.sharding.Mesh
) -> None:
    thetas = [shape.rope_theta for shape in config.data.shapes if shape.rope_theta]
    if thetas and encoder.positions != "rope":
        raise PlmjaxError(
            f"data.phases sets model.rope_theta={thetas[0]}, which has no effect with "
            f"model.positions={encoder.positions!r}.",
            hint="Leave it out: (steps, length, batch).",
        )
    for first in config.data.batch_ramp[1:]:
        accumulation = config.train.accumulation
        sharding.check_batch(mesh, first, accumulation, "data.batch_ramp's rows")
        if batch % first or batch == first:
            raise PlmjaxError(
                f"data.batch_ramp begins with {first} rows, but the batch of {batch} "
                "is no multiple of it, or the same.",
                hint=f"Give a divisor of {batch} that is smaller.",
            )


def check_objective(config: RunConfig, encoder: EncoderConfig) -> None:
    """Raises PlmjaxError for an objective that cannot train the model."""
    if config.objective.kind != "distill":  # its teacher is not open yet
        make = OBJECTIVES[config.objective.kind]
        make(config.objective, encoder, Pieces(0, (0,), (1,)))


def platform_of(
    config: RunConfig,
    mesh: jax.sharding.Mesh,
    teacher: EncoderConfig | None = None,
    log: Callable[[str], Any] = ignore_line,
) -> Platform:
    """Returns the platform of a run, whose kernels all of its models can have."""
    encoder = resolve(config.model, vocab_size=1, pad_id=1)
    encoders = [encoder] if teacher is None else [encoder, teacher]
    if isinstance(config.objective, ElectraConfig):
        encoders += filter(None, [config.objective.generator_encoder(encoder)])
    return training_platform(mesh.devices.flat, config.train.attention, encoders, log)


def check_lengths(config: RunConfig, encoder: EncoderConfig) -> None:
    """Raises PlmjaxError for rows that are longer than the model's positions."""
    longest = config.data.longest
    if longest > encoder.max_length:
        raise PlmjaxError(
            f"data.length={longest} is longer than the model's "
            f"{encoder.max_length} positions.",
            hint=f"Set --config.model.max_positions="
            f"{longest + encoder.position_offset}, or shorten the rows to "
            f"{encoder.max_length}.",
        )
    shortest = min(shape.length for shape in config.data.shapes)
    exact = encoder.landmarks == encoder.max_length
    if encoder.attention == "nystrom" and shortest < encoder.landmarks and not exact:
        raise PlmjaxError(
            f"model.landmarks={encoder.landmarks} is more than the {shortest} tokens "
            "of a row (data.length), which would have full attention.",
            hint=f"Set --config.model.landmarks to {shortest // 2} or less, or "
            "lengthen the rows.",
        )
    check_one_document(config, encoder, f"model.attention={encoder.attention!r}")
    local = "local" in map(encoder.layer_kind, range(encoder.layers))
    if local and encoder.window > longest:
        raise PlmjaxError(
            f"model.window={encoder.window} is larger than a row of {longest} tokens "
            "(data.length), so that a local layer would see all of it.",
            hint="Set --config.model.window to a smaller even number, or "
            "--config.model.layer_kinds='()'.",
        )


def prepare_data(
    config: RunConfig,
    workdir: Workdir,
    log: Callable[[str], Any],
    check: Callable[[Tokenizer], Any],
    tasks: Tasks | None = None,
    keep: bool = False,
) -> tuple[Tokenizer, Store]:
    """Returns the run's tokenizer and token store; creates them the first time.

    A resumed run uses its first store, even if the text has changed since. `check`
    receives the tokenizer before all of the text is read. `tasks` prepares it on other
    machines. `keep` makes a ready store, which no later call replaces by another.
    """
    if workdir.begun:
        tokenizer = workdir.tokenizer()
        check(tokenizer)
        return tokenizer, workdir.store()
    known = workdir.read("run.json", store=str, recipe=str)
    keep = keep or (known or {}).get("ready") is True
    if config.data.store is not None:
        if keep and known is not None:
            _check_same(workdir, known["recipe"] == stores.recipe_of(config.data.store))
        given = {"log": log, "check": check, "keep": keep}
        return _ready_data(config, config.data.store, workdir, **given)
    sources = mixtures.open_sources(config.data)
    for source in sources.values() if tasks is not None else ():
        divide(source, 1)  # refuses what it cannot divide
    settings = _tokenizer_settings(config, workdir)
    segmenter = check_segmenter(settings)
    recipe = json.dumps(
        [
            mixtures.fingerprint(config.data, sources),
            dataclasses.asdict(config.tokenizer),
            # An edited dictionary changes the words.
            segmenter and dataclasses.asdict(segmenter),
        ]
    )
    if keep and known is not None:
        _check_same(workdir, known["recipe"] == recipe)
    if known is not None and known["recipe"] == recipe:
        tokenizer = workdir.tokenizer()
        if keep:
            shape = tokenizer, config.data.held_out_percent, _sentences(config)
            keys = {name: store_key(each, *shape) for name, each in sources.items()}
            _check_same(workdir, keys == (known.get("parts") or {"": known["store"]}))
    else:
        texts = mixtures.documents(config.data, sources)
        tokenizer = get_tokenizer(settings, texts)
        machine.return_memory()
        # run.json exists only for a complete pair of tokenizer and store.
        (workdir / "run.json").unlink(missing_ok=True)
        tokenizer.save(workdir / "tokenizer")
    log(
        f"Tokenizer: {tokenizer.kind}, {tokenizer.vocab_size:,} pieces "
        f"({workdir / 'tokenizer'})."
    )
    for line in describe(tokenizer):
        log(line)
    check(tokenizer)
    if rule := _sentences(config):
        log(f"Sentences end at {rule} (data.sentences).")
    made = {}
    for name, source in sources.items():
        with mixtures.naming(name):
            said = mixtures.prefixed(name, log)
            made[name] = _prepare(
                config, source, tokenizer, workdir=workdir, log=said, tasks=tasks
            )
    machine.return_memory()
    store = JoinedStore(made) if config.data.mixture else made[""]
    if config.objective.pairs_config is not None:
        check_pairs(store, log)
    record = stores.record(store.key, recipe, keep)
    if store.parts:
        record["parts"] = {name: part.key for name, part in store.parts.items()}
    if known != record:  # else another process of the run has written it
        write_json(workdir / "run.json", record)
    return tokenizer, store


def _check_same(workdir: Workdir, same: bool) -> None:
    """Raises PlmjaxError if the finished store of a folder is not the `same`."""
    if not same:
        raise PlmjaxError(
            f"{workdir.path} holds a finished store of other text, or of another "
            "config; nothing is written.",
            hint="Choose another folder, or remove this one.",
        )


def _prepare(
    config: RunConfig,
    source: Source,
    tokenizer: Tokenizer,
    *,
    workdir: Workdir,
    log: Callable[[str], Any],
    tasks: Tasks | None,
) -> Store:
    """Returns the token store of a source; logs what is read, and what is odd in it."""
    for line in describe_source(source.description):
        log(line)
    store = prepare(
        source,
        tokenizer,
        workdir / "data",
        config.data.held_out_percent,
        workers=config.data.workers,
        log=log,
        sentences=_sentences(config),
        tasks=tasks,
    )
    for line in describe_counts(store.manifest["source"]["counts"]):
        log(line)
    return store


def _ready_data(
    config: RunConfig,
    where: str,
    workdir: Workdir,
    *,
    log: Callable[[str], Any],
    check: Callable[[Tokenizer], Any],
    keep: bool,
) -> tuple[Tokenizer, Store]:
    """Returns the tokenizer and the store of data.store, as those of the run."""
    data, rule = config.data, _sentences(config)
    if data.source.paths or data.source.dataset:
        raise PlmjaxError(
            f"data.store={where} and data.source both name the text.",
            hint="Give one of them.",
        )
    needed = {"held_out_percent": data.held_out_percent}
    needed |= {"sentences": rule} if rule else {}
    settings = _tokenizer_settings(config, workdir)
    tokenizer, store = stores.take(where, workdir, settings, needed, keep)
    log(f"Prepared data: {where} ({sizes(store.manifest['splits'])}).")
    check(tokenizer)
    if config.objective.pairs_config is not None:
        check_pairs(store, log)
    return tokenizer, store


def _sentences(config: RunConfig) -> Any:
    """Returns the rule that ends sentences; pairs always need one."""
    if config.objective.pairs_config is None:
        return config.data.sentences
    return config.data.sentences or "punctuation"


def _tokenizer_settings(config: RunConfig, workdir: Workdir) -> TokenizerConfig:
    """Returns the tokenizer's block with its file paths resolved.

    A relative path may start at the workdir, which holds imported files.
    """
    block = config.tokenizer
    files = {name: getattr(block, name) for name in ("path", "user_dictionary")}
    paths = {name: path and str(workdir.resolve(path)) for name, path in files.items()}
    return dataclasses.replace(block, **paths)


def build(
    config: RunConfig,
    workdir: Workdir,
    mesh: jax.sharding.Mesh,
    log: Callable[[str], Any],
    make: Make = None,
) -> PretrainSetup:
    """Builds everything but the parameters; reads or creates the data.

    `make` is the user's own objective, if any.
    """
    teacher = teachers.load(config, workdir)
    taught_by = None if teacher is None else teacher.encoder
    platform = platform_of(config, mesh, taught_by, log)

    def model(
        tokenizer: Tokenizer, done: int | None = None
    ) -> tuple[EncoderConfig, Objective]:
        encoder = encoder_config(config, tokenizer, done)
        # Checked again, because RoBERTa's first position depends on the tokenizer.
        check_lengths(config, encoder)
        given = config, encoder, tokenizer, taught_by, platform, make
        return encoder, make_objective(*given)

    def check_tokenizer(tokenizer: Tokenizer) -> None:
        if teacher is not None:
            for line in teachers.check_vocabulary(config, tokenizer, teacher):
                log(line)
        _, objective = model(tokenizer)
        if not workdir.begun:
            check_start_weights(config, workdir, objective, tokenizer, log)
        for name, problem in inexpressible(objective, tokenizer).items():
            log(f"WARNING: only plmjax will read this {name}: {problem}")

    tokenizer, store = prepare_data(config, workdir, log, check_tokenizer)
    encoder, objective = model(tokenizer)
    split = store.split("train")
    by_theta, done = {}, 0
    for shape in config.data.shapes[:-1]:
        done += shape.steps or 0
        if shape.rope_theta != config.data.shapes[-1].rope_theta:
            by_theta.setdefault(shape.rope_theta, model(tokenizer, done)[1])
    phases, mixture = _phases(config, encoder, split, store, log=log), []
    if isinstance(store, JoinedStore):
        phases, mixture = mixtures.mix(config.data, store, phases)
        for line in mixtures.lines(mixture):
            log(line)
    loader = Loader(
        split,
        phases,
        tokenizer,
        config.train.seed,
        copies=config.objective.static_copies,
        mine=functools.partial(sharding.local_rows, mesh),
    )
    if not workdir.begun:
        encoders = [encoder, *([] if teacher is None else [teacher.encoder])]
        check_global_tokens(
            config, tokenizer, store, encoders=encoders, phases=phases, log=log
        )
        check_text(
            config, tokenizer, store, objective=objective, loader=loader, log=log
        )
    return PretrainSetup(
        config=config,
        workdir=workdir,
        mesh=mesh,
        tokenizer=tokenizer,
        store=store,
        encoder=encoder,
        objective=objective,
        loader=loader,
        teacher=teacher,
        by_theta=by_theta,
        mixture=mixture,
    )


def _phases(
    config: RunConfig,
    encoder: EncoderConfig,
    split: Split,
    store: Store,
    *,
    log: Callable[[str], Any],
) -> list[Phase]:
    """Returns the phases of training, the growth of the batch among them."""
    phases, plans = [], {}
    for steps, length, batch, _ in config.data.shapes:
        batch = batch or config.train.batch
        if length not in plans:
            plans[length] = row_plan(config, split, length, store)
        plan = plans[length]
        log(
            f"Rows of {length} tokens: {plan.rows:,}, {plan.fill:.1%} full; an epoch "
            f"is {counted(math.ceil(plan.rows / batch), 'step')} of "
            f"{counted(batch, 'row')}."
        )
        if short := short_rows(encoder, [length]):
            log(short)
        if plan.rows < batch:
            log(
                f"WARNING: a step of {batch:,} rows reads each of the {plan.rows:,} "
                f"rows {batch / plan.rows:,.1f} times; lower train.batch, or give more "
                "text."
            )
        if steps is None:
            epoch = plan.rows / batch
            steps = config.train.steps or math.ceil((config.train.epochs or 0) * epoch)
        phases.append(Phase(steps, batch, plan))
    if config.data.batch_ramp:
        by_rows = config.train.epochs is not None
        phases = ramped(phases, *config.data.batch_ramp, whole=by_rows)
        first, *others = (p for n, p in enumerate(phases) if p.before or not n)
        text = "".join(f", {p.steps:,} of {p.batch:,}" for p in others)
        log(f"The batch grows: {first.steps:,} steps of {first.batch:,} rows{text}.")
    return phases


def inexpressible(objective: Objective, tokenizer: Tokenizer) -> dict[str, str]:
    """Returns {model: reason} of the models that transformers cannot express."""
    ids, problems = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id), {}
    for name, view in objective.models.items():
        try:
            config_json.to_json(view.encoder, view.heads, *ids)
        except PlmjaxError as error:
            problems[name] = str(error)
    return problems
