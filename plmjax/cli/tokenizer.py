"""`plmjax tokenizer` and its verbs."""


def add(verb) -> None:
    """Adds the parser of `plmjax tokenizer` and its verbs."""
    added = verb(
        "tokenizer",
        None,
        "train, compare, choose or adapt a vocabulary",
        "plmjax tokenizer train my.txt --size=16000 --to=my-vocabulary",
    )
    added.add_subparsers(dest="what", metavar="WHAT", required=True)
