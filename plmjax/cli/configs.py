"""`plmjax config` and its verbs."""


def add(verb) -> None:
    """Adds the parser of `plmjax config`."""
