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
    add = added.add_argument
    add("--to", required=True, metavar="DIR", help="the new folder")
    add(
        "--format",
        metavar="NAMES",
        help="onnx, float16, int8, int8-static, hf-bfloat16, hf-float16, prune; "
        "several joined by commas; A+B: B of what A writes",
    )
    add(
        "--data",
        metavar="FILE",
        help="labelled examples of the model's task, or text, to score on (default: "
        "the run's held-out part)",
    )
    add(
        "--calibrate",
        metavar="TEXTS",
        help="for int8-static: text like that to be read",
    )
    add(
        "--target_ms",
        type=float,
        metavar="MS",
        help="write only the first format in which a text takes at most so long",
    )
    add(
        "--max_drop",
        type=float,
        default=1.0,
        metavar="POINTS",
        help="and loses at most POINTS of its score (default: 1)",
    )
    add(
        "--length",
        type=int,
        metavar="TOKENS",
        help="of the text that is timed (default: the median of the data)",
    )
    _add_prune_options(added)
    json_option(added)


def _add_prune_options(added: argparse.ArgumentParser) -> None:
    """Adds what --format=prune cuts."""
    add = added.add_argument_group(
        "what --format=prune cuts; SHARE is .25 for a quarter"
    ).add_argument
    add("--layers", type=int, metavar="N", help="cut out N layers: a smaller model")
    add(
        "--layers_by",
        choices=("loss", "top"),
        default="loss",
        help="which: those without which the loss is lowest (default), or the last",
    )
    add(
        "--heads",
        type=float,
        metavar="SHARE",
        help="set the least important attention heads to 0: a model of the same size",
    )
    add(
        "--neurons",
        type=float,
        metavar="SHARE",
        help="cut out the least important inner neurons of each layer: a smaller model",
    )
    add(
        "--sparsity",
        type=share,
        metavar="SHARE",
        help="set the smallest weights of each kernel to 0, or (2:4) two of each four: "
        "a model of the same size",
    )
    add(
        "--curve",
        action="store_true",
        help="also score the model by how much is cut: a table and curve.png",
    )


def share(text: str) -> float | str:
    return text if text == "2:4" else float(text)


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
