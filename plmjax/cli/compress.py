"""`plmjax compress`."""

import argparse
from pathlib import Path

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
    added.add_argument(
        "--format",
        metavar="NAMES",
        help="onnx, float16, int8, int8-static, hf-bfloat16, hf-float16 or prune; "
        "several joined by commas; A+B: B of what A writes",
    )
    added.add_argument(
        "--data",
        metavar="FILE",
        help="labelled examples of the model's task, or text, to score on (default: "
        "the held-out part of the run)",
    )
    added.add_argument(
        "--calibrate",
        metavar="TEXTS",
        help="text like that which the model will read, for int8-static",
    )
    added.add_argument(
        "--target_ms",
        type=float,
        metavar="MS",
        help="write the first format whose median latency is at most so long",
    )
    added.add_argument(
        "--max_drop",
        type=float,
        default=1.0,
        metavar="POINTS",
        help="of the score that a format may lose to meet the target (default: 1)",
    )
    added.add_argument(
        "--length",
        type=int,
        metavar="TOKENS",
        help="of the text whose latency is measured (default: the median of the data)",
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
    from plmjax.compress.run import Unreached, as_text, compress

    try:
        result = compress(args.model, Path(args.to), vars(args), log)
    except Unreached as error:
        print_result(args, error.result, as_text)
        raise
    return print_result(args, result, as_text)
