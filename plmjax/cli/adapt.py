"""`plmjax tokenizer adapt`."""

from pathlib import Path

from plmjax import PlmjaxError
from plmjax.cli.options import (
    checkpoint_option,
    json_option,
    log,
    model_option,
    print_result,
    renamed,
    start_jax,
)
from plmjax.files import check_new


def add_adapt(verb, of) -> None:
    """Adds the parser of `plmjax tokenizer adapt`."""
    added = verb(
        "adapt",
        _adapt,
        "give a trained model another vocabulary, and carry its rows over",
        "plmjax tokenizer adapt --model=runs/mine --text='papers/*.txt' --add=2000 "
        "--workdir=runs/papers",
        of=of,
    )
    add = added.add_argument
    model_option(added)
    add(
        "--text",
        action="append",
        required=True,
        metavar="FILES",
        help="text that the model is to read",
    )
    add("--to", metavar="DIR", help="the new folder, for transformers and plmjax")
    add(
        "--workdir", help="directory of a new run that starts with it, in place of --to"
    )
    add("--add", type=int, metavar="N", help="add N pieces, the commonest of the text")
    add(
        "--min_frequency",
        type=int,
        metavar="N",
        help="keep the pieces that the text has N times; 1: all that it uses",
    )
    add("--keep", type=int, metavar="N", help="keep at most N pieces, the commonest")
    add(
        "--vocabulary",
        metavar="PATH",
        help="replace the vocabulary by this: a folder, tokenizer.json or vocab.txt",
    )
    add(
        "--new",
        choices=("mean", "focus", "draw"),
        default="mean",
        help="rows of new pieces: mean of those of the pieces that spelt them "
        "(default); focus: of similar pieces, by their neighbours in the text; draw: "
        "untrained",
    )
    checkpoint_option(added)
    json_option(added)


def _adapt(args) -> int:
    if (args.to is None) == (args.workdir is None):
        raise PlmjaxError(
            "it is not clear where the model should go.",
            hint="Give --to=DIR for a folder, or --workdir=RUN to train it further.",
        )
    check_new(Path(args.to or args.workdir), "--to" if args.to else "--workdir")
    start_jax()
    from plmjax.pretrain import adapt
    from plmjax.workdir import Workdir

    names = "vocabulary add keep min_frequency new".split()
    change = adapt.Change(**{name: getattr(args, name) for name in names})
    to = Workdir(args.workdir) if args.to is None else Path(args.to)
    vocabulary = renamed("tokenizer.path", "--vocabulary")
    with renamed("data.source.paths", "--text"), vocabulary:
        report = adapt.adapt(
            args.model, args.text, change, to, log=log, checkpoint=args.checkpoint
        )
    run = args.workdir or "runs/adapted"
    steps = [f"  plmjax pretrain {' '.join(args.text)} --workdir={run}"]
    if not args.workdir:
        steps.insert(0, f"  plmjax import --from={args.to} --workdir={run}")

    def as_text(report):
        return "\n".join([*adapt.lines(report), "\nNext:", *steps])

    return print_result(args, report, as_text)
