"""`plmjax data` and its verbs."""

from plmjax.cli import stores


def add(verb) -> None:
    """Adds the parser of `plmjax data` and its verbs."""
    added = verb(
        "data",
        None,
        "look at text, clean it, split it; check and merge stores",
        "plmjax data inspect my.txt",
    )
    verbs = added.add_subparsers(dest="what", metavar="WHAT", required=True)
    stores.add_prepare(verb, verbs)
    stores.add_verify(verb, verbs)
    stores.add_merge(verb, verbs)
