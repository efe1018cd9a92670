"""`plmjax data` and its verbs."""

from plmjax.cli.domains import add_domains


def add(verb) -> None:
    """Adds the parser of `plmjax data` and its verbs."""
    added = verb(
        "data",
        None,
        "look at text, clean it, split it; check and merge stores",
        "plmjax data inspect my.txt",
    )
    verbs = added.add_subparsers(dest="what", metavar="WHAT", required=True)
    add_domains(verb, verbs)
