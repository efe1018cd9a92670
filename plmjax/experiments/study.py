"""The order of trials: that of a list here, that of a search in search.py."""

from collections.abc import Sequence
from typing import Protocol

from plmjax.experiments.trials import Result, Trial


class Study(Protocol):
    """Chooses the next trial, and receives the result of each."""

    def next(self) -> Trial | None: ...
    def ended(self, result: Result) -> None: ...


class Listed:
    """The trials of a list that have not ended, in their order."""

    def __init__(self, results: Sequence[Result], retry_failed: bool = False):
        self._left = left(results, retry_failed)

    def next(self) -> Trial | None:
        return self._left.pop(0) if self._left else None

    def ended(self, result: Result) -> None:
        """Does nothing: a list does not depend on results."""


def left(results: Sequence[Result], retry_failed: bool = False) -> list[Trial]:
    """Returns the trials that have not ended, and with `retry_failed` failed ones."""
    return [
        result.trial
        for result in results
        if not result.ended or (retry_failed and result.state == "failed")
    ]
