"""`plmjax compress`."""

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
        help="onnx, float16, int8, int8-static, hf-bfloat16 or hf-float16; several "
        "joined by commas; A+B: B of what A writes",
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
    json_option(added)


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
