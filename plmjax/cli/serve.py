"""`plmjax serve`."""

import argparse
from pathlib import Path

from plmjax import Exit, PlmjaxError
from plmjax.cli.options import at_least_one, log, not_empty


def add(verb) -> None:
    """Adds the parser of `plmjax serve`."""
    added = verb(
        "serve",
        _serve,
        "answer over HTTP with a model that `plmjax compress` wrote, without JAX",
        "plmjax compress --model=runs/sentiment --format=onnx --to=served\n"
        "  plmjax serve --model=served --port=8000",
    )
    add = added.add_argument
    add(
        "--model",
        required=True,
        type=not_empty("--model"),
        metavar="FOLDER",
        help="a folder with onnx/model.onnx, from `plmjax compress`",
    )
    add("--file", metavar="NAME", help="which file in onnx/ (default: model.onnx)")
    add(
        "--host",
        default="127.0.0.1",
        help="address (default: 127.0.0.1, which only this machine reaches)",
    )
    add(
        "--port",
        type=int,
        default=8000,
        help="port (default: 8000); 0 finds a free one",
    )
    add("--threads", type=int, help="threads of the model (default: one a core)")
    add("--batch", type=int, default=32, help="rows at once (default: 32)")
    add(
        "--wait_ms",
        type=_not_negative,
        default=3.0,
        help="milliseconds that a request waits for others (default: 3)",
    )
    add(
        "--queue",
        type=int,
        default=256,
        help="requests that may wait, others get 503 (default: 256)",
    )
    add(
        "--max_bytes",
        type=int,
        default=1 << 20,
        help="bytes of a request, larger ones get 413 (default: 1048576)",
    )
    add(
        "--timeout",
        type=_not_negative,
        default=10.0,
        help="seconds for a body to arrive (408), and for its answer (504); at the "
        "end, for what is in flight (default: 10)",
    )


def _not_negative(value: str) -> float:
    number = float(value)
    if not 0 <= number < 1e6:
        raise argparse.ArgumentTypeError(f"{value} is not from 0 to a million.")
    return number


def _serve(args) -> int:
    at_least_one(args, "threads", "batch", "queue", "max_bytes")
    try:
        from plmjax.serve.run import bind, is_loopback, open_server, serve
        from plmjax.serve.worker import Limits
    except ModuleNotFoundError as error:
        raise PlmjaxError(
            f"plmjax serve needs the package {error.name}.",
            hint="pip install 'plmjax[serve]'",
        ) from error
    names = ("batch", "wait_ms", "queue", "max_bytes", "timeout")
    limits = Limits(**{name: getattr(args, name) for name in names})
    bound = bind(args.host, args.port)
    server = open_server(Path(args.model), args.file, args.threads, limits)
    if not is_loopback(bound):
        log(
            f"WARNING: {args.host} can be reached from other machines, and nobody is "
            "asked who they are. Put a proxy that does before it."
        )
    host = f"[{args.host}]" if ":" in args.host else args.host
    name = f"{args.model} at http://{host}:{bound.getsockname()[1]}/"
    print(f"{name}{server.path}; Ctrl-C ends it.", flush=True)
    print(serve(server, bound, limits))
    return Exit.OK
