"""`plmjax sweep`."""


def add(verb) -> None:
    pass
