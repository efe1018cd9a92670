"""`plmjax data` and its verbs."""


def add(verb) -> None:
    """Adds the parser of `plmjax data` and its verbs."""
    added = verb(
        "data",
        None,
        "look at text, clean it, split it; check and merge stores",
        "plmjax data inspect my.txt",
    )
    added.add_subparsers(dest="what", metavar="WHAT", required=True)
