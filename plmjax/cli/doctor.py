"""`plmjax doctor`."""


def add(verb) -> None:
    pass
