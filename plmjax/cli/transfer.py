"""`plmjax export` and `plmjax import`."""

from pathlib import Path

from plmjax import Exit
from plmjax.cli.options import checkpoint_option, start_jax


def add(verb) -> None:
    """Adds the parser of `plmjax export` and `import`."""
    added = verb(
        "export",
        _export,
        "export the model of a run as a Hugging Face folder, for transformers",
        "plmjax export --workdir=runs/docstrings --to=my-bert",
    )
    added.add_argument("--workdir", required=True, help="directory of the run")
    added.add_argument("--to", required=True, metavar="DIR", help="the new folder")
    added.add_argument(
        "--part",
        help="export one model of several: generator or discriminator (default: each "
        "into a subfolder)",
    )
    checkpoint_option(added)

    added = verb(
        "import",
        _import,
        "import a Hugging Face folder as the start weights of a run",
        "plmjax import --from=bert-base-uncased --workdir=runs/continued",
    )
    added.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="DIR",
        help="a folder on disk, such as one from `hf download NAME --local-dir=DIR`",
    )
    added.add_argument("--workdir", required=True, help="directory of the new run")


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
