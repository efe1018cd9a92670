"""`plmjax serve`."""

from pathlib import Path

from plmjax import Exit, PlmjaxError
from plmjax.cli.options import at_least_one, log, not_empty

_LIMITS = {
    "batch": (int, 32, "requests that run at once"),
    "wait_ms": (float, 3.0, "milliseconds that a request waits for others"),
    "queue": (int, 256, "requests that may wait; further ones get 503"),
    "max_bytes": (int, 1 << 20, "bytes of a request; larger ones get 413"),
    "timeout": (
        float,
        10.0,
        "seconds in which a request must arrive (else 408), and its answer (504)",
    ),
}


def add(verb) -> None:
    """Adds the parser of `plmjax serve`."""
    added = verb(
        "serve",
        _serve,
        "answer over HTTP with a folder that `plmjax compress` wrote, without JAX",
        "plmjax compress --model=runs/sentiment --format=onnx --to=served\n"
        "  plmjax serve --model=served",
    )
    add = added.add_argument
    add("--model", required=True, type=not_empty("--model"), metavar="FOLDER")
    add("--file", metavar="NAME", help="the model in onnx/ (default: model.onnx)")
    host, port = "127.0.0.1", 8000
    add("--host", default=host, help=f"address (default: {host}, this machine alone)")
    add("--port", type=int, default=port, help=f"default: {port}; 0: one that is free")
    add("--threads", type=int, help="threads of the model (default: one a core)")
    for name, (kind, default, what) in _LIMITS.items():
        text = f"{what} (default: {default:g})"
        add(f"--{name}", type=kind, default=default, help=text)


def _serve(args) -> int:
    at_least_one(args, "threads", "batch", "queue", "max_bytes")
    if not (0 <= args.wait_ms <= 1000 and 0 < args.timeout <= 3600):
        raise PlmjaxError(
            f"--wait_ms={args.wait_ms:g} and --timeout={args.timeout:g} must be from 0 "
            "to 1000 milliseconds, and at most 3600 seconds.",
            hint="Leave them out for 3 and 10.",
        )
    try:
        from plmjax.serve.run import bind, open_server, serve
        from plmjax.serve.worker import Limits
    except ModuleNotFoundError as error:
        raise PlmjaxError(
            f"plmjax serve needs {error.name}.", hint="pip install 'plmjax[serve]'"
        ) from error
    limits = Limits(**{name: getattr(args, name) for name in _LIMITS})
    with bind(args.host, args.port) as bound:
        server = open_server(Path(args.model), limits, args.file, args.threads)
        host, port = bound.getsockname()[:2]
        if not host.startswith("127.") and host != "::1":
            log(
                f"WARNING: other machines reach {host}, and nobody is asked who they "
                "are. Put a proxy before it that does."
            )
        host = f"[{host}]" if ":" in host else host
        print(f"{args.model} answers at http://{host}:{port}{server.path}", flush=True)
        print(serve(server, bound, limits))
    return Exit.OK
