"""`plmjax launch`."""


def add(verb) -> None:
    pass
