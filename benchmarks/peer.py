"""plmjax against Hugging Face: same model and documents, interleaved in one run.

    python benchmarks/peer.py --preset=bert-mini --dtype=both --compile --padding=both

Each side is a separate process; while one works the other sleeps.
"""

import argparse
import contextlib
import dataclasses
import itertools
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plmjax import Exit, PlmjaxError, machine
from plmjax.cli import run_program
from plmjax.cli.options import json_option, log, print_result, start_jax
from plmjax.cli.parser import program_parser
from sides import ATTENTIONS, DEFAULTS, DTYPES, PADDINGS, PeerConfig, Spec, Worker

# Largest relative difference of the sides at the start, in each loss of one batch in
# float32 and in the number of trained parameters.
SAME = 1e-4
# Length of the schedule without a race, when it does not matter.
_SCHEDULE_STEPS = 10_000


def make_parser() -> argparse.ArgumentParser:
    parser = program_parser(
        _run,
        "train the same model on the same text with plmjax and with Hugging Face",
        "python benchmarks/peer.py --preset=bert-mini --dtype=both --compile "
        "--padding=both",
    )
    add = parser.add_argument
    add("--objective", choices=DEFAULTS, default="mlm", help="what is trained")
    add(
        "--preset",
        help="model; electra's discriminator, distill's teacher (default: bert-mini, "
        "electra-small)",
    )
    add("--length", type=int, default=128, help="tokens a row")
    add("--batch", type=int, default=16, help="rows a step")
    add("--dtype", choices=(*DTYPES, "both"), default="both")
    add(
        "--padding",
        choices=(*PADDINGS, "both"),
        default="group_texts",
        help="the peer's rows",
    )
    add("--compile", action="store_true", help="measure torch.compile, too")
    add("--rounds", type=int, default=5, help="how often the sides take turns")
    add("--steps", type=int, default=10, help="steps a turn")
    add("--warm_up", type=int, default=5, help="steps before the first turn")
    add("--to_loss", type=int, default=0, metavar="STEPS", help="race so many steps")
    add("--device", choices=("cpu", "gpu"), default="cpu", help="where both train")
    add("--attention", choices=ATTENTIONS, help="the peer's (default: its choice)")
    add("--paths", help="text files (default: docstrings of installed packages)")
    add("--vocab", metavar="PATH", help="a tokenizer (default: trained on the text)")
    add("--vocab_size", type=int, help="rows of the model's table (default: 30522)")
    json_option(parser)
    return parser


def _run(args) -> int:
    # This process only prepares, on the CPU: the sides use the device.
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    start_jax()
    names = {field.name for field in dataclasses.fields(PeerConfig)}
    config = PeerConfig(
        **{name: value for name, value in vars(args).items() if name in names},
        dtypes=DTYPES if args.dtype == "both" else (args.dtype,),
        paddings=PADDINGS if args.padding == "both" else (args.padding,),
    )
    return print_result(args, bench_peer(config, log), as_text)


def bench_peer(config: PeerConfig, log: Callable[[str], Any] = print) -> dict[str, Any]:
    """Trains the same model with both sides and returns their figures, ready for JSON.

    Tokens are those of the documents: no padding, no [CLS], no [SEP]. Each window of
    the peer lies between two of plmjax; a ratio compares it with their mean.

    Raises:
      PlmjaxError: torch or transformers is missing; the losses at the start differ.
    """
    from case import make_case  # Imports jax, which --help does not need.

    for name in ("torch", "transformers"):
        if find_spec(name) is None:
            raise PlmjaxError(
                f"`python benchmarks/peer.py` needs {name}.",
                hint='Run `pip install -e ".[peer]"`.',
            )
    if config.device == "gpu" and not _torch_has_gpu():
        raise PlmjaxError(
            "--device=gpu: PyTorch detects no GPU on this machine.",
            hint="Install PyTorch with CUDA, or leave --device out.",
        )
    if config.attention == "flash_attention_2" and not find_spec("flash_attn"):
        raise PlmjaxError(
            "--attention=flash_attention_2 needs the package flash-attn.",
            hint="Install it, or leave --attention out: transformers then takes sdpa.",
        )
    # The tokenizers library's threads must not outlive the preparation.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    before = machine.load_average()
    with tempfile.TemporaryDirectory() as folder:
        case = make_case(config, Path(folder), log)
        compared = [_compare(config, folder, dtype, log) for dtype in config.dtypes]
    return {
        "machine": machine.facts(),
        "device": compared[0][0]["device"],
        "load": [before, machine.load_average()],
        "threads": machine.cores(),
        "case": case,
        "results": list(itertools.chain.from_iterable(compared)),
    }


def _compare(
    config: PeerConfig, folder: str, dtype: str, log: Callable[[str], Any]
) -> list[dict[str, Any]]:
    """Measures one precision: plmjax against each variant of the peer."""
    total = config.to_loss or _SCHEDULE_STEPS
    spec = Spec(
        folder,
        dtype,
        config.batch,
        config.length,
        total,
        device=config.device,
        attention=config.attention,
    )
    modes = (False, True) if config.compile else (False,)
    specs = [
        dataclasses.replace(spec, padding=padding, compile=mode)
        for padding in config.paddings
        for mode in modes
    ]
    with contextlib.ExitStack() as stack:
        start = [("ours", spec), *(("theirs", peer_spec) for peer_spec in specs)]
        ours, *peers = [stack.enter_context(Worker(side, one)) for side, one in start]
        losses, parameters = ours.call("loss"), ours.call("parameters")
        for peer in peers:
            _check_same(losses, peer.call("loss"))
            _check_same(parameters, peer.call("parameters"))
        first = [
            side.call("train", config.warm_up)["seconds"] for side in (ours, *peers)
        ]
        initial = ", ".join(f"{n.replace('_', ' ')} {x:.5f}" for n, x in losses.items())
        log(f"{dtype}: both sides start at {initial}. Measuring.")
        windows: list[list[tuple[dict, dict, dict]]] = [[] for _ in peers]
        last = ours.call("train", config.steps)
        for _ in range(config.rounds):
            for peer, triples in zip(peers, windows, strict=True):
                between = peer.call("train", config.steps)
                last, earlier = ours.call("train", config.steps), last
                triples.append((earlier, between, last))
        races: list[dict] = [{} for _ in peers]
        if config.to_loss:
            log(f"{dtype}: training {config.to_loss} steps each to a held-out loss.")
            curves = _race([ours, *peers], config.to_loss)
            races = [_to_loss(curves[0], curve) for curve in curves[1:]]
        memory = [side.call("memory") for side in (ours, *peers)]
        attention = [peer.call("attention") for peer in peers]
        device = ours.call("device")
    rows = [
        {
            "dtype": dtype,
            "device": device,
            "peer": "torch.compile" if peer_spec.compile else "eager",
            "padding": peer_spec.padding,
            "attention": attention[number - 1],
            "initial_losses": losses,
            **_figures(triples),
            "first_steps_s": {"plmjax": first[0], "peer": first[number]},
            "peak_memory_mb": {
                "plmjax": memory[0] / 1e6,
                "peer": memory[number] / 1e6,
            },
            **race,
        }
        for number, (peer_spec, triples, race) in enumerate(
            zip(specs, windows, races, strict=True), 1
        )
    ]
    for row in rows:
        log(f"{_title(row)}: ratio {_range(row['ratio'])}.")
    return rows


def _torch_has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _check_same(here: dict[str, float], there: dict[str, float]) -> None:
    """Raises PlmjaxError if the sides do not start from the same model."""
    assert here.keys() == there.keys(), (here, there)
    for name, ours in here.items():
        if not abs(ours - there[name]) < SAME * ours:
            raise PlmjaxError(
                "from the same weights on the same masked batch, plmjax's "
                f"{name.replace('_', ' ')} is {ours:,.6f} and the peer's "
                f"{there[name]:,.6f}: the models differ.",
                hint="Nothing was measured. Please report it.",
                code=Exit.NUMERIC,
            )


def _figures(windows: list[tuple[dict, dict, dict]]) -> dict[str, Any]:
    """Returns rates and ratios of windows (plmjax, the peer, plmjax again)."""

    def ratios(seconds: str) -> dict[str, float]:
        values = []
        for window in windows:
            a, b, c = (w["tokens"] / w[seconds] for w in window)
            values.append((a + c) / 2 / b)
        return _spread(values)

    def rates(*sides: int) -> dict[str, float]:
        values = [w[i]["tokens"] / w[i]["seconds"] for w in windows for i in sides]
        return {"median": statistics.median(values), "best": max(values)}

    same = [a["seconds"] / c["seconds"] for a, _, c in windows]
    return {
        "plmjax_tokens_per_s": rates(0, 2),
        "peer_tokens_per_s": rates(1),
        "ratio": ratios("seconds"),
        "cpu_ratio": ratios("cpu_seconds"),
        "plmjax_against_itself": _spread(same),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _race(sides: list[Worker], steps: int) -> list[list[tuple[float, float]]]:
    """Trains all sides from the start, in turns; returns (seconds, loss) of each."""
    every = max(1, steps // 20)
    curves: list[list[tuple[float, float]]] = []
    for side in sides:
        side.call("reset")
        # This also compiles the evaluation; evaluation time is never counted.
        curves.append([(0.0, side.call("evaluate"))])
    for done in range(0, steps, every):
        for side, curve in zip(sides, curves, strict=True):
            spent = side.call("train", min(every, steps - done))["seconds"]
            curve.append((curve[-1][0] + spent, side.call("evaluate")))
    return curves


def _to_loss(
    curve: list[tuple[float, float]], peer: list[tuple[float, float]]
) -> dict[str, Any]:
    """Returns the seconds that each needs to reach the worse of the final losses."""
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
    """Returns the result as readable lines."""
    case, (before, after) = result["case"], result["load"]
    full = ", ".join(f"{name} {share:.1%}" for name, share in case["full"].items())
    models = "; ".join(f"{name} {size}" for name, size in case["models"].items())
    lines = [
        machine.as_text(result["machine"]),
        f"on {result['device']}, {result['threads']} threads a side; "
        f"load average {before} before, {after} after",
        f"{case['objective']}, {case['preset']} ({models}), "
        f"{case['vocab_size']:,} pieces, {case['batch']} rows x "
        f"{case['length']} tokens, dropout {case['dropout']}; {case['activation']}",
        f"{case['documents']:,} documents, {case['tokens']:,} tokens; full: {full}",
        "\nUseful tokens/s, median (best):",
    ]
    for row in result["results"]:
        ours, theirs, ratio = (
            row[name] for name in ("plmjax_tokens_per_s", "peer_tokens_per_s", "ratio")
        )
        cpu, same, memory = (
            row[name]
            for name in ("cpu_ratio", "plmjax_against_itself", "peak_memory_mb")
        )
        lines += [
            f"\n{_title(row)}:",
            f"  plmjax        {ours['median']:8,.0f} ({ours['best']:,.0f}), "
            f"{memory['plmjax']:,.0f} MB at most",
            f"  Hugging Face  {theirs['median']:8,.0f} ({theirs['best']:,.0f}), "
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


def _title(row: dict[str, Any]) -> str:
    peer = f"{row['peer']} with {row['attention']} attention"
    return f"{row['dtype']}, {row['padding']}, Hugging Face {peer}"


def _range(spread: dict[str, float]) -> str:
    return f"{spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f})"


if __name__ == "__main__":
    sys.exit(run_program(make_parser(), __file__))
