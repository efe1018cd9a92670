"""plmjax against Hugging Face: one model, the same documents, interleaved in one run.

Each side is a process of its own; while one works the other sleeps.
"""

import contextlib
import dataclasses
import importlib.util
import itertools
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plmjax import Exit, PlmjaxError
from plmjax import config as config_lib
from plmjax.bench import machine, ours
from plmjax.bench.worker import Spec, Worker
from plmjax.data.loader import held_out_batches
from plmjax.data.prepare import prepare
from plmjax.data.rows import Plan, gather, load_plan
from plmjax.data.sources import Source, open_source
from plmjax.data.store import Split, Store
from plmjax.interop.huggingface import export_folder
from plmjax.pretrain import fresh_state
from plmjax.show import masked
from plmjax.tokenizers import Tokenizer, TokenizerConfig, get_tokenizer
from plmjax.train.checkpoint import write_json
from plmjax.train.workdir import RunConfig, Workdir

PADDINGS = ("group_texts", "line_by_line")
DTYPES = ("float32", "bfloat16")
BERT_VOCABULARY = 30522
# The loss of both sides on one batch, from the same weights, in float32.
SAME_LOSS = 1e-3
_HELD_OUT_BATCHES = 8
_WARM_UP_STEPS = 3
# Where no steps are asked for, the schedule's length does not matter.
_SCHEDULE_STEPS = 10_000


@dataclasses.dataclass(frozen=True)
class PeerConfig:
    """What is compared, and for how long."""

    # Files and globs; none: the docstrings of the installed packages.
    paths: str | None = None
    # A tokenizer to use; none: WordPiece of vocab_size pieces, from the text.
    vocab: str | None = None
    vocab_size: int | None = None
    preset: str = "bert-mini"
    length: int = 128
    batch: int = 16
    dtypes: tuple[str, ...] = DTYPES
    paddings: tuple[str, ...] = PADDINGS[:1]
    # Measures torch.compile besides eager mode.
    compile: bool = False
    rounds: int = 5
    # Steps in one window of one side.
    steps: int = 10
    # Steps of the race to a held-out loss; 0: no race.
    to_loss: int = 0

    def __post_init__(self):
        for name in ("rounds", "steps", "batch"):
            if getattr(self, name) < 1:
                raise PlmjaxError(f"--{name}={getattr(self, name)} must be at least 1.")
        if self.to_loss < 0:
            raise PlmjaxError(f"--to_loss={self.to_loss} must not be negative.")


def bench_peer(config: PeerConfig, log: Callable[[str], Any] = print) -> dict[str, Any]:
    """Trains the same model with both and returns what each reached, as JSON has it.

    Tokens are those of the documents: no padding, no [CLS], no [SEP]. Each window of
    the peer stands between two of ours; a ratio compares it with their mean.

    Raises:
      PlmjaxError: torch or transformers is missing; the sides start at other losses.
    """
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise PlmjaxError(
                f"`plmjax bench peer` needs {name}.",
                hint='Run `pip install -e ".[peer]"`.',
            )
    # The tokenizers library's threads must not outlive the preparation.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    before = machine.load_average()
    with tempfile.TemporaryDirectory() as folder:
        case = make_case(config, Path(folder), log)
        compared = [_compare(config, folder, dtype, log) for dtype in config.dtypes]
    return {
        "machine": machine.machine(),
        "load": [before, machine.load_average()],
        "threads": machine.cores(),
        "case": case,
        "results": list(itertools.chain.from_iterable(compared)),
    }


# --- what both sides read


def make_case(
    config: PeerConfig, folder: Path, log: Callable[[str], Any]
) -> dict[str, Any]:
    """Writes tokens, initial weights and masked held-out rows; returns their facts."""
    source = {"kind": "docstrings"}
    if config.paths is not None:
        source = {"kind": "text", "paths": config.paths}
    wanted = config.vocab_size or (None if config.vocab else BERT_VOCABULARY)
    values: dict[str, Any] = {
        "name": "bench",
        "data": {"source": source, "length": config.length},
        "model": {"preset": config.preset, "vocab_size": wanted},
        "train": {"batch": config.batch},
    }
    values = config_lib.load(RunConfig, base=values).to_dict()
    built, workdir = config_lib.build(RunConfig, values), Workdir(folder)
    opened = open_source(built.data.source)
    tokenizer = _vocabulary(config, opened, wanted, log)
    tokenizer.save(folder / "tokenizer")
    percent = built.data.held_out_percent
    store = prepare(opened, tokenizer, folder / "data", percent, log=log)
    write_json(folder / "run.json", {"store": store.key})
    write_json(folder / "config.json", values)
    run = ours.open_run(Spec(str(folder), "float32", config.batch, config.length, 1))
    with jax.set_mesh(run.mesh):
        params = jax.device_get(fresh_state(run)[0].params)
    card = "# Initial weights of a benchmark\n"
    export_folder(
        folder / "weights", run.encoder, params, tokenizer, card, config.length
    )
    # From here on, both sides read the weights of that folder.
    values["train"]["init_from"] = str(folder / "weights")
    write_json(workdir / "config.json", values)
    _write_held_out(run, config, folder)
    fill = {"plmjax": round(run.loader.phases[0].plan.fill, 4)}
    for padding in config.paddings:
        fill[padding] = round(_write_rows(store, tokenizer, config, padding, folder), 4)
    return {
        "source": "docstrings of the installed packages"
        if config.paths is None
        else config.paths,
        "documents": store.split("train").documents,
        "tokens": store.split("train").tokens,
        "pieces": tokenizer.vocab_size,
        "vocab_size": run.encoder.vocab_size,
        "preset": config.preset,
        "dropout": run.encoder.dropout,
        "activation": "GELU by erf on both sides (ours within 1.5e-7 of it)",
        "length": config.length,
        "batch": config.batch,
        "full": fill,
    }


def _vocabulary(
    config: PeerConfig, source: Source, wanted: int | None, log: Callable[[str], Any]
) -> Tokenizer:
    """Returns the vocabulary, of as many pieces as the text gives if it gives fewer.

    The model's table keeps the size that was asked for: its products set the speed.
    """
    if config.vocab is not None:
        return get_tokenizer(TokenizerConfig(path=config.vocab), ())
    texts, size = list(source.documents()), wanted or BERT_VOCABULARY
    while True:
        try:
            # Pieces seen once serve a benchmark as well.
            made = get_tokenizer(TokenizerConfig("wordpiece", size, 1), texts)
        except PlmjaxError as error:
            if error.code != Exit.DATA or size < 128:
                raise
            size //= 2
            continue
        if made.vocab_size != wanted:
            log(
                f"The text gives no {wanted:,} pieces; it is cut into "
                f"{made.vocab_size:,}. The model's table keeps {wanted:,} rows."
            )
        return made


def _write_held_out(run, config: PeerConfig, folder: Path) -> None:
    """Writes a few batches of one document a row, masked, for both sides."""
    split = run.store.split("held_out")
    plan = load_plan(split, config.length, False, run.store.directory)
    rows = min(plan.rows, _HELD_OUT_BATCHES * config.batch)
    batches = held_out_batches(split, plan, run.tokenizer, config.batch, rows)
    done = [masked(run.objective, batch) for batch in batches]
    stacked = {name: np.stack([batch[name] for batch in done]) for name in done[0]}
    np.savez(folder / "held_out.npz", **stacked)


def _write_rows(
    store: Store, tokenizer: Tokenizer, config: PeerConfig, padding: str, folder: Path
) -> float:
    """Writes the peer's rows as `datasets` keeps them; returns their fill rate.

    The columns are those of run_mlm.py. `bench prepare` proves that its pipeline and
    ours give the same ids; here only the result is needed.
    """
    import datasets

    make = {"group_texts": _group_texts, "line_by_line": _line_by_line}[padding]
    tokens, real = make(store.split("train"), tokenizer, config.length)
    special = ~real | np.isin(tokens, [tokenizer.cls_id, tokenizer.sep_id])
    columns = {
        "input_ids": tokens.astype(np.int32),
        "token_type_ids": np.zeros(tokens.shape, np.int8),
        "attention_mask": real.astype(np.int8),
        "special_tokens_mask": special.astype(np.int8),
    }
    kinds = {
        name: datasets.List(datasets.Value(array.dtype.name))
        for name, array in columns.items()
    }
    datasets.disable_progress_bars()
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    table.save_to_disk(str(folder / padding))
    np.save(folder / f"{padding}.npy", (~special).sum(axis=1))
    return float(real.mean())


def _group_texts(split: Split, tokenizer: Tokenizer, length: int):
    """All documents end to end, each in its [CLS] and [SEP], cut: no padding."""
    offsets = np.asarray(split.offsets)
    documents = np.arange(len(offsets) - 1)
    stream = np.empty(offsets[-1] + 2 * len(documents), np.int32)
    shift = np.repeat(2 * documents + 1, np.diff(offsets))
    index = np.arange(offsets[-1])
    stream[index + shift] = split.take(index)[0]
    stream[offsets[:-1] + 2 * documents] = tokenizer.cls_id
    stream[offsets[1:] + 2 * documents + 1] = tokenizer.sep_id
    rows = stream[: len(stream) // length * length].reshape(-1, length)
    return rows, np.ones(rows.shape, bool)


def _line_by_line(split: Split, tokenizer: Tokenizer, length: int):
    """A document a row, cut or padded to the length."""
    offsets = np.asarray(split.offsets)
    size = np.minimum(np.diff(offsets), length - 2).astype(np.int32)
    plan = Plan(length, np.arange(len(size) + 1), offsets[:-1], size)
    ids = (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id)
    arrays = gather(split, plan, np.arange(plan.rows), *ids)
    return arrays["tokens"], arrays["segments"] > 0


# --- the comparison


def _compare(
    config: PeerConfig, folder: str, dtype: str, log: Callable[[str], Any]
) -> list[dict[str, Any]]:
    """Measures one precision: our side against each of the peer's ways."""
    total = config.to_loss or _SCHEDULE_STEPS
    spec = Spec(folder, dtype, config.batch, config.length, total)
    modes = (False, True) if config.compile else (False,)
    ways = [
        dataclasses.replace(spec, padding=padding, compile=mode)
        for padding in config.paddings
        for mode in modes
    ]
    with contextlib.ExitStack() as stack:
        start = [("ours", spec), *(("theirs", way) for way in ways)]
        we, *they = [
            stack.enter_context(Worker(f"{__package__}.{module}", one))
            for module, one in start
        ]
        loss = we.call("loss")
        for peer in they:
            _check_loss(loss, peer.call("loss"))
        first = [side.call("train", _WARM_UP_STEPS)["seconds"] for side in (we, *they)]
        log(f"{dtype}: both sides start at loss {loss:.5f}. Measuring.")
        windows: list[list[tuple[dict, dict, dict]]] = [[] for _ in they]
        last = we.call("train", config.steps)
        for _ in range(config.rounds):
            for peer, taken in zip(they, windows, strict=True):
                between = peer.call("train", config.steps)
                last, earlier = we.call("train", config.steps), last
                taken.append((earlier, between, last))
        races: list[dict] = [{} for _ in they]
        if config.to_loss:
            log(f"{dtype}: training {config.to_loss} steps each to a held-out loss.")
            curves = _race([we, *they], config.to_loss)
            races = [_to_loss(curves[0], curve) for curve in curves[1:]]
        memory = [side.call("memory") for side in (we, *they)]
    return [
        {
            "dtype": dtype,
            "peer": "torch.compile" if way.compile else "eager",
            "padding": way.padding,
            "initial_loss": loss,
            **_figures(taken),
            "first_steps_s": {"plmjax": first[0], "peer": first[number]},
            "peak_memory_mb": {
                "plmjax": memory[0] / 1e6,
                "peer": memory[number] / 1e6,
            },
            **race,
        }
        for number, (way, taken, race) in enumerate(
            zip(ways, windows, races, strict=True), 1
        )
    ]


def _check_loss(here: float, there: float) -> None:
    if not abs(here - there) < SAME_LOSS:
        raise PlmjaxError(
            f"from the same weights on the same masked batch, plmjax's loss is "
            f"{here:.6f} and the peer's {there:.6f}: they are not the same model.",
            hint="Nothing was measured. Please report it.",
            code=Exit.NUMERIC,
        )


def _figures(taken: list[tuple[dict, dict, dict]]) -> dict[str, Any]:
    """Returns rates and ratios of windows (ours, the peer's, ours again)."""

    def ratios(seconds: str) -> dict[str, float]:
        found = []
        for window in taken:
            a, b, c = (w["tokens"] / w[seconds] for w in window)
            found.append((a + c) / 2 / b)
        return _spread(found)

    def rates(*places: int) -> dict[str, float]:
        found = [w[i]["tokens"] / w[i]["seconds"] for w in taken for i in places]
        return {"median": statistics.median(found), "best": max(found)}

    same = [a["seconds"] / c["seconds"] for a, _, c in taken]
    return {
        "plmjax_tokens_per_s": rates(0, 2),
        "peer_tokens_per_s": rates(1),
        "ratio": ratios("seconds"),
        "cpu_ratio": ratios("cpu_seconds"),
        "plmjax_against_itself": _spread(same),
    }


def _spread(found: list[float]) -> dict[str, float]:
    return {"median": statistics.median(found), "min": min(found), "max": max(found)}


def _race(sides: list[Worker], steps: int) -> list[list[tuple[float, float]]]:
    """Trains all sides from the start, in turns; returns (seconds, loss) of each."""
    every = max(1, steps // 20)
    curves: list[list[tuple[float, float]]] = []
    for side in sides:
        side.call("reset")
        # Also compiles the evaluation; its time never counts.
        curves.append([(0.0, side.call("evaluate"))])
    for done in range(0, steps, every):
        for side, curve in zip(sides, curves, strict=True):
            spent = side.call("train", min(every, steps - done))["seconds"]
            curve.append((curve[-1][0] + spent, side.call("evaluate")))
    return curves


def _to_loss(
    curve: list[tuple[float, float]], peer: list[tuple[float, float]]
) -> dict[str, Any]:
    """Returns the seconds each needs to the final loss of the one that ends worse."""
    target = max(curve[-1][1], peer[-1][1])
    reached = {"plmjax": _reached(curve, target), "peer": _reached(peer, target)}
    return {
        "to_loss": {
            "loss": target,
            "final": {"plmjax": curve[-1][1], "peer": peer[-1][1]},
            "seconds": reached,
            "ratio": reached["peer"] / reached["plmjax"],
        }
    }


def _reached(curve: list[tuple[float, float]], target: float) -> float:
    for (t0, l0), (t1, l1) in itertools.pairwise(curve):
        if l1 <= target:
            share = (l0 - target) / (l0 - l1) if l0 > l1 else 1.0
            return t0 + (t1 - t0) * share
    return curve[-1][0]


def as_text(result: dict[str, Any]) -> str:
    """Returns the result as lines for a person."""
    case, (before, after) = result["case"], result["load"]
    full = ", ".join(f"{name} {share:.1%}" for name, share in case["full"].items())
    lines = [
        machine.as_text(result["machine"]),
        f"{result['threads']} threads a side; load average {before} before, "
        f"{after} after",
        f"{case['preset']}, {case['vocab_size']:,} pieces, {case['batch']} rows x "
        f"{case['length']} tokens, dropout {case['dropout']}; {case['activation']}",
        f"{case['documents']:,} documents, {case['tokens']:,} tokens; rows full: {full}",
        "\nUseful tokens/s, median (best):",
    ]
    for row in result["results"]:
        we, they, ratio = (
            row[name] for name in ("plmjax_tokens_per_s", "peer_tokens_per_s", "ratio")
        )
        cpu, same, memory = (
            row[name]
            for name in ("cpu_ratio", "plmjax_against_itself", "peak_memory_mb")
        )
        lines += [
            f"\n{row['dtype']}, {row['padding']}, Hugging Face {row['peer']}:",
            f"  plmjax        {we['median']:8,.0f} ({we['best']:,.0f}), "
            f"{memory['plmjax']:,.0f} MB at most",
            f"  Hugging Face  {they['median']:8,.0f} ({they['best']:,.0f}), "
            f"{memory['peer']:,.0f} MB at most",
            f"  ratio         {_range(ratio)}; by CPU time {_range(cpu)}; "
            f"plmjax against itself {_range(same)}",
        ]
        if race := row.get("to_loss"):
            seconds = race["seconds"]
            lines.append(
                f"  to loss {race['loss']:.3f}: plmjax {seconds['plmjax']:,.1f} s, "
                f"Hugging Face {seconds['peer']:,.1f} s, ratio {race['ratio']:.2f}"
            )
    return "\n".join(lines)


def _range(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} ({found['min']:.2f} to {found['max']:.2f})"
