"""`plmjax export` and `plmjax import`."""

from pathlib import Path

from plmjax import Exit
from plmjax.cli.options import checkpoint_option, start_jax


def add(verb) -> None:
    added = verb(
        "export",
        _export,
        "write a run as a folder that Hugging Face transformers loads",
        "plmjax export --workdir=runs/docstrings --to=my-bert",
    )
    added.add_argument("--workdir", required=True)
    added.add_argument("--to", required=True, metavar="DIR")
    added.add_argument(
        "--part",
        help="of a run with several models, generator or discriminator alone "
        "(default: each in a folder of its name)",
    )
    checkpoint_option(added)

    added = verb(
        "import",
        _import,
        "take a Hugging Face folder as the start of a run",
        "plmjax import --from=bert-base-uncased --workdir=runs/continued",
    )
    added.add_argument("--from", dest="source", required=True, metavar="DIR")
    added.add_argument("--workdir", required=True)


def _export(args) -> int:
    start_jax()
    from plmjax.pretrain.export import export
    from plmjax.workdir import Workdir

    workdir = Workdir(args.workdir)
    export(workdir, Path(args.to), print, args.checkpoint, args.part)
    return Exit.OK


def _import(args) -> int:
    start_jax()
    from plmjax.pretrain.export import import_folder
    from plmjax.workdir import Workdir

    import_folder(Path(args.source), Workdir(args.workdir), print)
    return Exit.OK
