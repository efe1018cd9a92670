"""`plmjax tokenizer` and its verbs."""

from plmjax.cli.adapt import add_adapt


def add(verb) -> None:
    """Adds the parser of `plmjax tokenizer` and its verbs."""
    added = verb(
        "tokenizer",
        None,
        "train, compare, choose or adapt a vocabulary",
        "plmjax tokenizer train my.txt --size=16000 --to=my-vocabulary",
    )
    verbs = added.add_subparsers(dest="what", metavar="WHAT", required=True)
    add_adapt(verb, verbs)
