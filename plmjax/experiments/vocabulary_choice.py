"""Which kind and size of vocabulary for a text: `plmjax tokenizer choose`."""

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from plmjax import Exit, PlmjaxError
from plmjax import config as config_lib
from plmjax.console import as_lines, as_table
from plmjax.data.prepare import is_held_out
from plmjax.data.sources import Source
from plmjax.evaluate.texts import make_plan, open_contender, score_texts
from plmjax.experiments import sweep, sweep_plan
from plmjax.experiments.runs import as_json
from plmjax.experiments.trials import listed_trials
from plmjax.experiments.vocabularies import Log, Record, counted
from plmjax.files import write_file
from plmjax.report import figures
from plmjax.report.figures import COLOURS
from plmjax.tokenizers import Tokenizer, train_tokenizer
from plmjax.tokenizers.train import sample_documents
from plmjax.workdir import RunConfig

MOST_UNKNOWN = 0.001  # of the tokens, of a vocabulary that is suggested
CLOSE = 0.02  # costs and scores that differ by less decide for the smaller one
_WARMUP_PERCENT = 5.0  # of a probe, where the recipe's share is not known
_WINDOWS = 1000  # of held-out text, by which a probe compares


@dataclasses.dataclass(frozen=True)
class Sample:
    """A sample of a text: what vocabularies learn from, and what they are judged by."""

    train: list[str]
    held_out: list[str]


def draw_sample(config: RunConfig, source: Source, log: Log, limit: int) -> Sample:
    """Returns at most `limit` bytes of a text, held out as in its pretraining.

    Raises:
      PlmjaxError: no document is held out.
    """
    sample = sample_documents(counted(source, log), limit)
    percent = config.data.held_out_percent
    held_out = [text for text in sample if is_held_out(text, percent)]
    train = [text for text in sample if not is_held_out(text, percent)]
    if not held_out or not train:
        raise PlmjaxError(
            f"of {len(sample):,} documents, {len(held_out):,} are held out, by which "
            "vocabularies are judged.",
            hint="Give more text, or set --config.data.held_out_percent=10 or "
            "--config.data.source.document.",
            code=Exit.DATA,
        )
    return Sample(train, held_out)


def candidates(
    config: RunConfig,
    sample: Sample,
    kinds: Sequence[str],
    sizes: Sequence[int],
    log: Log,
) -> dict[str, Tokenizer]:
    """Returns each kind in each size that the text gives; the log has why not.

    Raises:
      PlmjaxError: it gives none of them.
    """
    named = {}
    for kind, size in itertools.product(kinds, sizes):
        block = dataclasses.replace(config.tokenizer, kind=kind, vocab_size=size)
        name = f"{kind}-{size}"
        try:
            named[name] = train_tokenizer(block, sample.train)
            log(f"{name}: {named[name].vocab_size:,} pieces.")
        except PlmjaxError as error:
            log(f"{name}: {error.message}")
    if not named:
        raise PlmjaxError("the text gives no vocabulary of these kinds and sizes.")
    return named


def suggest(records: Sequence[Record], model: str) -> tuple[str, str]:
    """Returns the name of the vocabulary to take, and why.

    By bits a byte if a probe has measured them, else by the FLOPs of an epoch: of those
    near the best, the smallest.
    """
    known = [r for r in records if r["unknown_share"] <= MOST_UNKNOWN]
    left_out = [r["name"] for r in records if r not in known]
    known = known or list(records)
    probed = all("bits_per_byte" in r for r in known)
    value = "bits_per_byte" if probed else "flops"
    best = min(known, key=lambda r: r[value])
    near = [r for r in known if r[value] <= (1 + CLOSE) * best[value]]
    chosen = min(near, key=lambda r: (r["vocab_size"], r[value]))
    what = (
        f"{chosen['bits_per_byte']:.3f} bits a byte after pretraining on the same bytes"
        if probed
        else f"to train {model} on a byte of this text costs "
        f"{chosen['flops'] / chosen['bytes']:.3g} FLOPs"
    )
    why = f"{what}, the least"
    if chosen is not best:
        why = f"{what}, within {CLOSE:.0%} of {best['name']}, with fewer pieces"
    for other in known:
        more = other["tokens_per_byte"] / chosen["tokens_per_byte"] - 1
        if other is not chosen and other["kind"] == chosen["kind"]:
            than = f"{more:.1%} longer" if more > 0 else f"{-more:.1%} shorter"
            why += f"; {other['vocab_size']:,} pieces make the text {than}"
    if (
        chosen["vocab_size"] == max(r["vocab_size"] for r in records)
        and len(records) > 1
    ):
        why += "; it is the largest that was tried: try larger --sizes, too"
    if left_out:
        why += f"; more than {MOST_UNKNOWN:.1%} unknown: {', '.join(left_out)}"
    return chosen["name"], f"{why}."


def choice_as_text(result: dict[str, Any]) -> str:
    """Returns the candidates and the suggestion for the screen."""
    suggestion = f"Suggestion: {result['suggestion']}: {result['reason']}"
    return as_lines(curve_table(result["vocabularies"]), suggestion)


def curve_table(records: Sequence[Record]) -> Table:
    """Returns the figures of the candidates as a table: a line for each."""
    columns = ["", "pieces", "tokens a byte", "a word", "unknown", "in use"]
    columns += ["Rényi", "FLOPs a byte"]
    probed = any("bits_per_byte" in r for r in records)
    rows = [
        [
            r["kind"],
            f"{r['vocab_size']:,}",
            f"{r['tokens_per_byte']:.4f}",
            f"{r['tokens_per_word']:.3f}",
            f"{r['unknown_share']:.2%}",
            f"{r['used_share']:.1%}",
            f"{r['renyi_efficiency']:.3f}",
            f"{r['flops'] / r['bytes']:.3g}",
            *([f"{r['bits_per_byte']:.4f}"] if "bits_per_byte" in r else []),
        ]
        for r in records
    ]
    return as_table("On held-out text", columns + ["bits a byte"] * probed, rows)


def draw_curve(records: Sequence[Record], path: Path) -> None:
    """Draws tokens a byte over the size of the vocabulary, and bits a byte if known."""
    shown = {"tokens_per_byte": "tokens a byte"}
    if any("bits_per_byte" in r for r in records):
        shown["bits_per_byte"] = "bits a byte of held-out text"
    with figures.png(path, (7, 3.6 * len(shown)), rows=len(shown)) as axes:
        for plot, (value, title) in zip(axes, shown.items(), strict=True):
            for number, kind in enumerate(dict.fromkeys(r["kind"] for r in records)):
                some = [r for r in records if r["kind"] == kind and value in r]
                some.sort(key=lambda r: r["vocab_size"])
                sizes = [r["vocab_size"] for r in some]
                line = {"marker": "o", "color": COLOURS[number], "label": kind}
                plot.plot(sizes, [r[value] for r in some], **line)
            plot.set_xscale("log")
            ticks = sorted({r["vocab_size"] for r in records})
            plot.set_xticks(ticks, [f"{size:,}" for size in ticks])
            plot.minorticks_off()
            plot.set_xlabel("pieces of the vocabulary")
            plot.set_ylabel(title)
            plot.legend(frameon=False)


# --- the probe


def probe(
    config: RunConfig,
    sample: Sample,
    records: Sequence[Record],
    root: Path,
    megabytes: float,
) -> None:
    """Pretrains a model with each vocabulary; adds bits_per_byte to the records.

    `root` has the vocabularies. Each model is trained on `megabytes` of the sample, in
    as many steps as its tokens need, and guesses the same hidden words of the held-out
    text. The length and batch of its rows are those of the recipe's first phase.

    Raises:
      PlmjaxError: a training fails or is stopped.
    """
    texts = root / "sample.jsonl"
    lines = (json.dumps({"text": t}) + "\n" for t in sample.train + sample.held_out)
    write_file(texts, "".join(lines).encode())
    source = {"kind": "jsonl", "paths": str(texts), "field": "text"}
    shape = config.data.shapes[0]
    batch = shape.batch or config.train.batch
    base = as_json(config_lib.to_dict(config))
    base["data"] |= {"source": source, "mixture": (), "mixture_temperature": None}
    base["data"] |= {"phases": (), "batch_ramp": (), "length": shape.length}
    # The recipe's warm-up, in proportion; what it says of steps is of its own length.
    warm, whole = config.train.schedule.warmup_steps, config.train.steps
    if warm is not None:
        whole = whole or sum(steps for steps, *_ in config.data.phases)
        share = min(100 * warm / whole, 50.0) if whole else _WARMUP_PERCENT
        base["train"]["schedule"] |= {"warmup_steps": None, "warmup_percent": share}
    base["train"] |= {"epochs": None, "batch": batch, "patience_evaluations": None}
    fixed = ("objective.unit=word",) if config.objective.kind == "mlm" else ()
    row = batch * shape.length
    values = []
    for record in records:
        steps = math.ceil(megabytes * 1e6 * record["tokens_per_byte"] / row)
        keys = ("steps", "evaluate_every_steps", "checkpoint_every_steps")
        path = {"tokenizer.path": str(root / record["name"])}
        values.append(path | {f"train.{key}": steps for key in keys})
    plan = sweep_plan.Plan(
        base, fixed, sweep_plan.StudyConfig("bits_per_byte"), tuple(values), space=None
    )
    plan = dataclasses.replace(plan, configs=tuple(map(plan.config, values)))
    code = sweep.sweep(plan, root / "probe", sweep.Options(), print)
    if code != Exit.OK:
        raise PlmjaxError(
            "the probe has not trained all of its models, so nothing is kept.",
            hint="See above; then give the command again.",
            code=Exit(code),
        )
    trials = listed_trials(root / "probe", plan)
    contenders = [open_contender(str(trial.directory)) for trial in trials]
    scores = score_texts(
        contenders, make_plan(contenders, sample.held_out, _WINDOWS), batch=16
    )
    for record, score, value in zip(records, scores, values, strict=True):
        record["bits_per_byte"] = score["bits_per_byte"]
        record["probe_steps"] = value["train.steps"]
