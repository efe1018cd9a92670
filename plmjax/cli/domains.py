"""`plmjax data domains`."""

from pathlib import Path

from plmjax.cli.options import (
    check_plot,
    checkpoint_option,
    json_option,
    log,
    not_empty,
    print_result,
    start_jax,
)


def add_domains(verb, of) -> None:
    """Adds the parser of `plmjax data domains`."""
    added = verb(
        "domains",
        _domains,
        "compare texts of several domains: is adapting a model likely to pay?",
        "plmjax data domains news.txt 'papers/*.txt' --model=runs/mine "
        "--plot=domains.png",
        of=of,
    )
    added.add_argument(
        "paths",
        nargs="*",
        metavar="FILES",
        help="a file, folder or pattern for each domain; the first is home",
    )
    added.add_argument(
        "--model",
        type=not_empty("--model"),
        help="a run's workdir or a Hugging Face folder",
    )
    added.add_argument("--plot", metavar="FILE.png", help="draw the passages")
    checkpoint_option(added)
    json_option(added)


def _domains(args) -> int:
    check_plot(args.plot)
    start_jax()
    from plmjax.embed.domains import compare_domains
    from plmjax.files import disk_errors
    from plmjax.report.domains import as_text, write_plot

    result = compare_domains(args.paths, args.model, args.checkpoint, log)
    if args.plot:
        with disk_errors(Path(args.plot)):
            write_plot(result, Path(args.plot))
    return print_result(args, result | {"plot": args.plot}, as_text)
