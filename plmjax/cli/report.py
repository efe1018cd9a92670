"""`plmjax report` and `plmjax repro`."""


def add(verb) -> None:
    """Adds the parsers of `plmjax report` and `plmjax repro`."""
