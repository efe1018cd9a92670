"""Ranges that a search draws from, for get_space(space).

A sweep file gets this module as `space`; its get_space returns {key: range}.
"""

import dataclasses
import math
from collections.abc import Iterable

from plmjax import PlmjaxError

Choice = None | bool | int | float | str


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Numbers from low to high, both included; integers if `whole`."""

    low: float
    high: float
    log: bool = False
    whole: bool = False
    # Distance of two neighbours, counted from low; None: 1 for integers, else any.
    step: float | None = None

    def __post_init__(self):
        limits = f"{self.low} to {self.high}"
        if not math.isfinite(self.low) or not self.low < self.high < math.inf:
            raise PlmjaxError(f"a range of {limits} holds nothing to choose from.")
        if self.log and self.low <= 0:
            raise PlmjaxError(f"a logarithmic range must be above 0, not {limits}.")
        if self.log and self.step is not None:
            raise PlmjaxError(f"a logarithmic range ({limits}) cannot have steps.")
        if self.whole and not all(isinstance(n, int) for n in (self.low, self.high)):
            raise PlmjaxError(f"a range of whole numbers cannot be {limits}.")

    def __str__(self) -> str:
        how = ", logarithmic" if self.log else ""
        how += f", in steps of {self.step:g}" if self.step is not None else ""
        how += ", whole" if self.whole else ""
        return f"{self.low:g} to {self.high:g}{how}"

    @property
    def ends(self) -> tuple[Choice, ...]:
        """The values to check: if they are valid, so are those between."""
        return (self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Choices:
    """One of several values without an order."""

    values: tuple[Choice, ...]

    def __post_init__(self):
        if len(set(map(repr, self.values))) != len(self.values) or not self.values:
            raise PlmjaxError(f"space.choice of {list(self.values)}: give each once.")
        for value in self.values:
            if not isinstance(value, Choice):
                raise PlmjaxError(
                    f"space.choice cannot hold {value!r}.",
                    hint="Give numbers, strings, True, False or None.",
                )

    def __str__(self) -> str:
        return " | ".join(map(str, self.values))

    @property
    def ends(self) -> tuple[Choice, ...]:
        """The values to check, which are all of them."""
        return self.values


Range = Numbers | Choices


def uniform(low: float, high: float, step: float | None = None) -> Numbers:
    """Returns a range of uniform density."""
    return Numbers(float(low), float(high), step=step)


def log(low: float, high: float) -> Numbers:
    """Returns a range uniform in the logarithm, for example of learning rates."""
    return Numbers(float(low), float(high), log=True)


def integers(low: int, high: int, step: int = 1, log: bool = False) -> Numbers:
    """Returns the integers from low to high, both included."""
    return Numbers(low, high, log=log, whole=True, step=None if step == 1 else step)


def choice(values: Iterable[Choice]) -> Choices:
    """Returns a choice of one of the values."""
    return Choices(tuple(values))
