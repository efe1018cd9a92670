"""`plmjax compress`."""


def add(verb) -> None:
    """Adds the parser of `plmjax compress`."""
