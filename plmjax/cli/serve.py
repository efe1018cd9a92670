"""`plmjax serve`."""

from pathlib import Path

from plmjax import Exit, PlmjaxError
from plmjax.cli.options import at_least_one, log, not_empty

_LIMITS = {
    "batch": (32, "requests that run at once"),
    "wait_ms": (3, "milliseconds that a request waits for others"),
    "queue": (256, "requests that may wait; further ones get 503"),
    "max_bytes": (1 << 20, "bytes of a request; larger ones get 413"),
    "timeout": (10, "seconds for a request to arrive (else 408), and its answer (504)"),
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
    for name, (default, what) in _LIMITS.items():
        text = f"{what} (default: {default})"
        add(f"--{name}", type=int, default=default, help=text)


def _serve(args) -> int:
    at_least_one(args, "threads", *(_LIMITS.keys() - {"wait_ms"}))
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
