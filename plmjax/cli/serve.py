"""`plmjax serve`."""


def add(verb) -> None:
    """Adds the parser of `plmjax serve`."""
