"""`plmjax compress`."""

from plmjax.cli.options import json_option, model_option


def add(verb) -> None:
    """Adds the parser of `plmjax compress`."""
    added = verb(
        "compress",
        _compress,
        "make a model smaller and faster, and measure what it costs: score, size and "
        "latency",
        "plmjax compress --model=runs/sentiment --format=onnx,int8 --to=sentiment-onnx\n"
        "  plmjax compress --model=runs/sentiment --target_ms=5 --max_drop=1 --to=fast",
    )
    model_option(added)
    added.add_argument("--to", required=True, metavar="DIR", help="the new folder")
    added.add_argument(
        "--format",
        metavar="NAMES",
        help="formats, joined by commas; A+B: B of what A makes",
    )
    added.add_argument(
        "--data",
        metavar="FILE",
        help="what to score on: labelled examples of the task, or text (default: the "
        "run's own held-out part)",
    )
    added.add_argument(
        "--calibrate", metavar="TEXTS", help="texts for int8-static, a text a line"
    )
    json_option(added)


def _compress(args) -> int:
    from plmjax.compress.formats import check_formats

    check_formats(args.format)
    return 0
