"""`plmjax export`, `plmjax import` and `plmjax extend`."""

from pathlib import Path

from plmjax import Exit
from plmjax.cli.options import checkpoint_option, start_jax


def add(verb) -> None:
    """Adds the parsers of `plmjax export`, `import` and `extend`."""
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
    _source(added, "a folder, such as one from `hf download NAME --local-dir=DIR`")
    _add_extend(verb)


def _source(added, what: str) -> None:
    added.add_argument("--from", dest="source", required=True, metavar="DIR", help=what)
    added.add_argument("--workdir", required=True, help="directory of the new run")


def _add_extend(verb) -> None:
    added = verb(
        "extend",
        _extend,
        "make a trained model read longer texts, as the start of a run",
        "plmjax extend --from=runs/mine --length=4096 --attention=window "
        "--workdir=runs/long",
    )
    _source(added, "the workdir of a run, or a Hugging Face folder")
    added.add_argument(
        "--length", type=int, required=True, metavar="N", help="tokens of a row"
    )
    added.add_argument(
        "--attention",
        choices=("full", "window"),
        default="full",
        help="full (default): the layers stay as they are; window: each token sees a "
        "window around it",
    )
    added.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="tokens that a token sees, half of them on each side (default: 512, or "
        "the length that the model was trained on)",
    )
    added.add_argument(
        "--positions",
        choices=("repeat", "interpolate"),
        help="how a table of positions grows (default: repeat)",
    )
    added.add_argument(
        "--global_tokens",
        choices=("none", "first"),
        help="which tokens see all of their document and are seen by it, with "
        "--attention=window (default for RoBERTa, which becomes a Longformer: first)",
    )
    added.add_argument(
        "--rope",
        metavar="HOW",
        help="how rotations are rescaled: ntk (default), yarn, or their new base",
    )
    checkpoint_option(added)


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


def _extend(args) -> int:
    names = "length attention window positions rope global_tokens".split()
    start_jax()
    from plmjax.pretrain.extend import Extension, extend
    from plmjax.workdir import Workdir

    asked = Extension(**{name: getattr(args, name) for name in names})
    extend(args.source, Workdir(args.workdir), asked, print, args.checkpoint)
    return Exit.OK
