"""`plmjax compress`."""

import argparse
from pathlib import Path

from plmjax import Exit
from plmjax.cli.options import (
    at_least_one,
    json_option,
    log,
    model_option,
    print_result,
    start_jax,
)


def add(verb) -> None:
    """Adds the parser of `plmjax compress`."""
    added = verb(
        "compress",
        _compress,
        "make a model smaller and faster, and measure what it costs: score, size and "
        "latency",
        "plmjax compress --model=runs/labels --format=onnx,int8 --to=small\n"
        "  plmjax compress --model=runs/labels --target_ms=5 --max_drop=1 --to=small",
    )
    model_option(added)
    added.add_argument("--to", required=True, metavar="DIR", help="the new folder")
    for option, metavar, kind, what in (
        (
            "--format",
            "NAMES",
            str,
            "onnx, float16, int8, int8-static, hf-bfloat16, hf-"
            "float16, prune; several joined by commas; A+B: B of what A writes",
        ),
        (
            "--data",
            "FILE",
            str,
            "labelled examples of the model's task, or text, to "
            "score on (default: the run's held-out part)",
        ),
        ("--calibrate", "TEXTS", str, "text like that to be read, for int8-static"),
        ("--target_ms", "MS", float, "write the first format as fast as this"),
        ("--length", "TOKENS", int, "of the text that is timed (default: the median)"),
    ):
        added.add_argument(option, metavar=metavar, type=kind, help=what)
    added.add_argument(
        "--max_drop",
        metavar="POINTS",
        type=float,
        default=1.0,
        help="that the score may lose to meet the target (default: 1)",
    )
    _add_prune_options(added)
    json_option(added)


def _add_prune_options(added: argparse.ArgumentParser) -> None:
    """Adds what --format=prune cuts."""
    pruning = added.add_argument_group("what --format=prune cuts")
    pruning.add_argument("--layers", type=int, metavar="N", help="so many layers")
    pruning.add_argument(
        "--layers_by",
        choices=("loss", "top"),
        default="loss",
        help="those whose absence costs the least loss (default), or the last",
    )
    for name, what in (
        ("heads", "of the attention heads, by importance"),
        ("neurons", "of the inner neurons of each layer, by importance"),
    ):
        pruning.add_argument(
            f"--{name}", type=float, metavar="SHARE", help=f"a share {what}"
        )
    pruning.add_argument(
        "--sparsity",
        type=lambda text: text if text == "2:4" else float(text),
        metavar="SHARE",
        help="a share of each kernel's weights becomes 0; or 2:4, two of four",
    )
    pruning.add_argument(
        "--curve",
        action="store_true",
        help="score the model by what is left of each, as a table and a plot",
    )


def _compress(args) -> int:
    at_least_one(args, "length")
    start_jax()
    from plmjax.compress.run import as_text, compress

    compress(
        args.model,
        Path(args.to),
        vars(args),
        show=lambda result: print_result(args, result, as_text),
        log=log,
    )
    return Exit.OK
