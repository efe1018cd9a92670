"""`plmjax data domains`."""

from pathlib import Path

from plmjax import PlmjaxError
from plmjax.cli.options import (
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
    added.add_argument("--plot", metavar="PNG", help="draw the passages")
    checkpoint_option(added)
    json_option(added)


def _domains(args) -> int:
    start_jax()
    from plmjax.embed.domains import compare_domains
    from plmjax.report.domains import as_text, write_plot

    if args.plot and not Path(args.plot).parent.is_dir():
        raise PlmjaxError(
            f"--plot={args.plot}: there is no such folder.", hint="Create it first."
        )
    result = compare_domains(args.paths, args.model, args.checkpoint, log)
    if args.plot:
        write_plot(result, Path(args.plot))
    return print_result(args, result, as_text)
