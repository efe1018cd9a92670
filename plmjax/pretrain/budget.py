"""A budget of time: looks at text and machine, and chooses what learns most in it.

What the user gives, by a recipe or by --config.KEY=VALUE, is kept; the choices lie
below it. The clock (train/clock.py) then moves the end of training to when the time is
up.
"""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from plmjax import PlmjaxError, machine
from plmjax import config as config_lib
from plmjax.console import as_table, console, duration, ignore_line, print_line
from plmjax.data.loader import read_ahead
from plmjax.models import EncoderConfig
from plmjax.models.flops import attention_flops, encoder_flops
from plmjax.pretrain import mixtures
from plmjax.pretrain.build import Make, PretrainSetup, build, check
from plmjax.pretrain.start import fresh_state, frozen_arrays, step_of
from plmjax.train import sharding
from plmjax.train.clock import Clock
from plmjax.train.schedule import warmup_steps
from plmjax.train.timing import run_steps
from plmjax.workdir import RunConfig, Workdir, training_session

# Layers and width of the models that are tried, smallest first.
LADDER = (
    *((2, 128), (2, 256), (4, 256), (4, 384), (6, 512), (8, 512)),
    *((12, 512), (12, 768), (22, 768), (28, 1024)),
)
# Tokens of training that a weight of the layers wants; see docs/training.md.
TOKENS_A_WEIGHT = 5
# Share of the budget for timing models, and for preparing text, of which a core is
# assumed to prepare so many bytes a second.
_TIMING, _PREPARING, _BYTES_A_SECOND = 0.15, 0.1, 1.5e6
_LEAST_BYTES = 5e6
_TIMED_STEPS = 6
# Fewer steps teach nothing, and so do not make sense.
LEAST_STEPS = 50
# With a smaller budget a model is timed only if the estimate says that it is chosen.
_SHORT = 300.0
# Processor seconds for plots, examples and export, and their largest share of the time.
_AFTER_SECONDS, _AFTER_SHARE = 3.0, 0.1

# Keys that need to know the number of steps.
_OF_STEPS = (
    *("data.phases", "train.average_from_percent"),
    *("objective.final_probability", "objective.probabilities"),
    "train.prune.sparsity",
)

# Keys that a budget sets, unless the command does; and a value that no config has.
INTERVALS = ("evaluate_every_steps", "checkpoint_every_steps", "log_every_steps")
_UNSET = 2**31

Load = Callable[[dict], RunConfig]


class Corpus(NamedTuple):
    """What the text has: bytes, documents, kinds of characters; `cut`: and more."""

    size: int
    documents: int
    characters: int
    cut: bool


class Rung(NamedTuple):
    """A model of the ladder: weights of its layers, FLOPs a token, tokens a second.

    `row`, `text` and `tokens` are tokens without padding: of a row, of the text, and
    those that the time left has room for. `start` are the seconds of the first step,
    which compiles.
    """

    shape: tuple[int, int]
    config: RunConfig
    weights: int
    flops: float
    speed: float = 0.0
    tokens: float = 0.0
    row: float = 0.0
    start: float = 0.0
    text: int = 1

    @property
    def wanted(self) -> float:
        """The tokens of training that the model wants."""
        return TOKENS_A_WEIGHT * self.weights


def look(documents: Iterable[str], most: float) -> Corpus:
    """Reads a corpus until it ends or `most` bytes are read."""
    size = count = 0
    characters: set[str] = set()
    for text in documents:
        size, count = size + len(text.encode()), count + 1
        characters.update(text)
        if size > most:
            return Corpus(size, count, len(characters), True)
    return Corpus(size, count, len(characters), False)


def vocabulary(corpus: Corpus) -> int:
    """Returns the number of pieces: 8,192 for 10 MB, doubled with each factor of 10.

    There are at least one and a half times as many as kinds of characters.
    """
    wanted = 8192 * (corpus.size / 1e7) ** math.log10(2)
    power = 2 ** round(math.log2(max(wanted, 1)))
    while power < 1.5 * corpus.characters:
        power *= 2
    return min(max(power, 1024), 65_536)


def held_out_percent(size: int) -> float:
    """Returns the percentage of the text to keep apart: of 100 kB, .1 to 5 %."""
    return round(min(max(1e7 / size, 0.1), 5.0), 2)


def model_of(layers: int, width: int) -> dict[str, Any]:
    """Returns the model block of a rung: ModernBERT's layers, without windows."""
    return {
        "preset": "modernbert-tiny",
        "layers": layers,
        "width": width,
        "heads": max(width // 64, 1),
        "ffn_width": width * 3 // 2,
        "layer_kinds": (),
        "dtype": "bfloat16",
    }


def rows_for(tokens: float, row: float, least: int) -> int:
    """Returns the batch for a training on so many tokens, a multiple of `least`.

    1,024 tokens a step for two million, and more by the square root: what a model
    learns first depends on the number of updates. A row has `row` tokens.
    """
    wanted = max(1024 * math.sqrt(tokens / 2e6) / row, 8)
    return least * 2 ** max(round(math.log2(wanted / least)), 0)


def rate_for(width: int) -> float:
    """Returns the peak rate: 2e-3 to width 256, then falling with the root."""
    return float(f"{2e-3 * math.sqrt(256 / max(width, 256)):.1e}")


def chosen(rungs: Sequence[Rung]) -> Rung:
    """Returns the largest model that sees as many tokens as it wants, or the first."""
    return [rungs[0], *(rung for rung in rungs if rung.tokens >= rung.wanted)][-1]


def weights_of(encoder: EncoderConfig) -> int:
    """Returns the number of weights that each token is multiplied with, in all."""
    products = encoder_flops(encoder, 128) - attention_flops(
        encoder, 128, range(encoder.layers)
    )
    return round(products / (6 * 128))


def time_steps(setup: PretrainSetup) -> tuple[float, float]:
    """Times real steps of a training: the first, which compiles, and a usual one."""
    step = functools.partial(step_of(setup, setup.steps), rate=np.float32(0))
    run = functools.partial(
        run_steps, step, frozen=frozen_arrays(setup), mesh=setup.mesh
    )
    batches = read_ahead(setup.loader.batch, 0, _TIMED_STEPS + 2)
    state, first = run(state=fresh_state(setup, ignore_line), batches=batches, steps=2)
    _, timed = run(state=state, batches=batches, steps=_TIMED_STEPS)
    return first.steps_s[0], statistics.median(timed.steps_s)


def plan(
    load: Load,
    workdir: Workdir,
    clock: Clock,
    own: Sequence[str] = (),
    make: Make = None,
) -> RunConfig:
    """Returns the config of a training that fits into the clock's time; prints it.

    `load` makes the config of choices, which the user's keys override; `own` are those
    of the command. `make` makes the user's own objective, if any.

    Raises:
      PlmjaxError: the time is too short, or a key of the config has its own length.
    """
    print_line(f"Chooses what fits into {duration(clock.seconds)}: reads the text.")
    base = load({"train": dict.fromkeys(INTERVALS, _UNSET)})
    _check_keys(base)
    corpus, choices = None, {}
    if base.data.store is None:
        most = _PREPARING * clock.seconds * _BYTES_A_SECOND * machine.cores()
        most = max(most, _LEAST_BYTES)
        sources = mixtures.open_sources(base.data)
        corpus = look(mixtures.documents(base.data, sources), most)
        choices = _text_choices(corpus)
    mesh = sharding.make_mesh(base.mesh)
    # On a busy machine they take longer, as the start did.
    busy = clock.spent() / max(time.process_time(), 0.1)
    after = _AFTER_SECONDS * max(busy, 1.0)
    clock.after = min(after, _AFTER_SHARE * clock.seconds)
    rungs = _climb(load, choices, workdir, mesh=mesh, clock=clock, make=make)
    least = mesh.size * base.train.accumulation
    more = {"least": least, "clock": clock, "own": own}
    config = _finished(load, choices, chosen(rungs), **more)
    clock.planned = float(config.train.steps or 0)
    for part in _explained(config, corpus, rungs, clock):
        console().print(part)
    if replaced := _replaced(base, config):
        print_line(f"The budget replaces keys of the config: {replaced}.")
    if clock.spent() > clock.seconds / 2:
        console().print(
            f"WARNING: {duration(clock.spent())} of {duration(clock.seconds)} are gone "
            "before training, as each model that is timed compiles. Give more minutes."
        )
    return config


def _check_keys(config: RunConfig) -> None:
    """Raises PlmjaxError for keys that need to know the number of steps."""
    for key, value in config_lib.flatten(config_lib.to_dict(config)).items():
        if key in _OF_STEPS and value not in (None, (), 0):
            raise PlmjaxError(
                f"{key} divides a number of steps that is known before training; with "
                "--minutes or --hours it is not.",
                hint=f"Give --steps, or remove {key}.",
            )


def _text_choices(corpus: Corpus) -> dict:
    source = {"max_documents": corpus.documents} if corpus.cut else {}
    percent = held_out_percent(corpus.size)
    return {
        "data": {"held_out_percent": percent, "source": source},
        "tokenizer": {"vocab_size": vocabulary(corpus)},
    }


def _of_shape(load: Load, choices: dict, shape: tuple[int, int], **train) -> RunConfig:
    """Returns the config with a model of the ladder; of a width that the user gives."""
    layers, width = shape
    layer = choices | {"train": {"steps": 1000, **train}}
    config = load(layer | {"model": model_of(layers, width)})
    if config.model.width in (None, width):
        return config
    return load(layer | {"model": model_of(layers, config.model.width)})


def _climb(
    load: Load,
    choices: dict,
    workdir: Workdir,
    *,
    mesh: jax.sharding.Mesh,
    clock: Clock,
    make: Make,
) -> list[Rung]:
    """Times models of the ladder until one would see too few tokens."""
    rungs: list[Rung] = []
    end = 0.0
    rows = mesh.size * (8 if mesh.devices.flat[0].platform == "cpu" else 64)
    rows *= load({}).train.accumulation
    # Larger models make more FLOPs a second, by how much is not known before.
    doubt = 1 if clock.seconds < _SHORT else 2
    for shape in LADDER:
        config = _of_shape(load, choices, shape, batch=rows)
        check(config, mesh)
        # A model that the user gives is the same on all rungs.
        if rungs and (config.model == rungs[-1].config.model or clock.spent() > end):
            break
        with training_session(workdir, config, mesh, ignore_line):
            setup = build(config, workdir, mesh, ignore_line, make)
            phase, encoder = setup.loader.phases[0], setup.encoder
            row = phase.plan.length * phase.plan.fill
            flops = setup.flops(0) / (phase.batch * row)
            real = encoder.layers, encoder.width
            rung = Rung(real, config, weights_of(encoder), flops, row=row)
            if rungs:  # at as many FLOPs a second as the last one
                last = rungs[-1]
                guess = last.speed * last.flops / flops * clock.left()
                if guess < rung.wanted / doubt:
                    break
            print_line(f"Times a model of {encoder.layers} x {encoder.width}.")
            end = end or clock.spent() + _TIMING * clock.seconds
            start, step = time_steps(setup)
        speed = phase.batch * row / step
        splits = setup.store.manifest["splits"]
        clock.pause = splits["held_out"]["tokens"] / speed / 3  # the forward pass alone
        tokens = speed * max(clock.left() - start, 0.0)
        done = {"start": start, "speed": speed, "text": splits["train"]["tokens"]}
        rungs.append(rung._replace(tokens=tokens, **done))
        if tokens < rung.wanted:
            break
    return rungs


def _finished(
    load: Load,
    choices: dict,
    rung: Rung,
    *,
    least: int,
    clock: Clock,
    own: Sequence[str],
) -> RunConfig:
    """Returns the config of the training of a rung, with its number of steps.

    Its batch is a multiple of `least`.

    Raises:
      PlmjaxError: there are too few of them.
    """
    more = {
        "batch": rows_for(rung.tokens, rung.row, least),
        "optimizer": {"learning_rate": rate_for(rung.shape[1])},
    }
    config = _of_shape(load, choices, rung.shape, **more)
    each = clock.step = config.train.batch * rung.row / rung.speed
    left, evaluations = clock.left() - rung.start, 1
    if "train.evaluate_every_steps" in own:
        each += clock.pause / config.train.evaluate_every_steps
    else:
        evaluations = max(min(int(left / 10 / clock.pause), 6), 1)
    steps = int((left - evaluations * clock.pause) / each)
    if steps < LEAST_STEPS:
        needed = clock.seconds - left + clock.pause + 2 * LEAST_STEPS * each
        raise PlmjaxError(
            f"a budget of {duration(clock.seconds)} has room for {max(steps, 0)} "
            f"training steps here, after {duration(clock.spent())} for the start.",
            hint=f"At least {math.ceil(needed / 6) / 10:g} minutes make sense.",
        )
    intervals = (
        steps // evaluations + 1,
        max(min(steps // 3, int(300 / each)), 1),
        max(min(steps // 50, 10), 1),
    )
    return with_steps(config, steps, intervals, own)


def with_steps(
    config: RunConfig, steps: int, intervals: Sequence[int], own: Sequence[str] = ()
) -> RunConfig:
    """Returns the config of so many steps, with INTERVALS that are not `own` keys."""
    kept = dataclasses.replace(config.train.schedule, kind="linear", ends=())
    if config.train.schedule.ends and "train.schedule.warmup_steps" not in own:
        kept = dataclasses.replace(kept, warmup_steps=None)  # of another budget
    warm = max(warmup_steps(kept, steps), 1)
    schedule = dataclasses.replace(kept, warmup_steps=warm, ends=((warm, steps),))
    every: dict[str, Any] = {
        name: interval
        for name, interval in zip(INTERVALS, intervals, strict=True)
        if f"train.{name}" not in own
    }
    train = dataclasses.replace(
        config.train, steps=steps, epochs=None, schedule=schedule, **every
    )
    return dataclasses.replace(config, train=train)


def resumed(load: Load, saved: RunConfig, own: Sequence[str]) -> RunConfig:
    """Returns the config that resumes a run, with its choices, steps and intervals."""
    layer = config_lib.to_dict(saved)
    layer["train"]["schedule"]["ends"] = ()  # a recipe may have another kind
    config = load(layer)
    names = [name for name in INTERVALS if f"train.{name}" not in own]
    names += ["steps", "epochs", "schedule"]
    length: dict[str, Any] = {name: getattr(saved.train, name) for name in names}
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, **length)
    )


def _replaced(base: RunConfig, config: RunConfig) -> str:
    """Returns the keys of a recipe that the budget replaces, as KEY=VALUE."""
    old, new = (config_lib.flatten(config_lib.to_dict(c)) for c in (base, config))
    keys = ["steps", "epochs", "schedule.kind", "schedule.ends", *INTERVALS]
    return ", ".join(
        f"{key}={old[key]}"
        for key in (f"train.{name}" for name in keys)
        if old[key] not in (None, (), _UNSET, new[key])
    )


def _explained(
    config: RunConfig, corpus: Corpus | None, rungs: Sequence[Rung], clock: Clock
) -> list:
    """Returns tables of the models that were timed, and of each choice and why."""
    train, data, rung = config.train, config.data, chosen(rungs)
    timed = [
        [
            "{} x {}".format(*r.shape),
            f"{r.weights:,}",
            f"{r.speed:,.0f}",
            f"{r.tokens / 1e6:,.1f}M of {r.wanted / 1e6:,.1f}M",
        ]
        for r in rungs
    ]
    columns = ("layers x width", "weights", "tokens/s", "tokens in time, of wanted")
    text, why = "prepared before", ""
    if corpus is not None:
        text = f"{corpus.size / 1e6:,.1f} MB, {corpus.documents:,} documents"
        why = f"its first; more takes over {_PREPARING:.0%} of the time" * corpus.cut
    pieces = f"{config.tokenizer.vocab_size:,} {config.tokenizer.kind}"
    epochs = (train.steps or 0) * train.batch * rung.row / rung.text
    tokens = f"{train.batch} rows, {train.batch * rung.row:,.0f} tokens"
    rows = [
        ("text", text, why),
        ("held out", f"{data.held_out_percent:g} %", "100 kB, .1 to 5 %"),
        ("vocabulary", pieces, "8,192 for 10 MB, twice as many for 100"),
        (
            "model",
            "{} x {}".format(*rung.shape),
            "the largest with enough tokens, or 1st",
        ),
        ("length", f"{data.length}", "short rows learn most in a given time"),
        ("batch", tokens, "many small updates first; more with the tokens"),
        ("rate", f"{train.optimizer.learning_rate:g}", "2e-3 to width 256, then less"),
        ("steps", f"about {train.steps:,}", "linear to 0, which moves with the time"),
        ("text read", f"{epochs:,.1f} times", "after 4, new text teaches more"),
        ("evaluated", f"every {train.evaluate_every_steps:,}", "a tenth of the time"),
    ]
    spent = f"{duration(clock.spent())} spent, {duration(clock.after)} for the export"
    return [
        as_table(f"Models timed on {jax.devices()[0].device_kind}", columns, timed),
        as_table(
            f"A budget of {duration(clock.seconds)}: {spent}",
            ("choice", "", "why, unless the config sets it"),
            rows,
        ),
    ]
