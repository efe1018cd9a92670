"""Labelled examples, and the share of them that is held out."""

import collections
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

from plmjax import DataError


@dataclasses.dataclass(frozen=True)
class Example:
    """One labelled text, or several that belong together; `where` is file:line.

    Texts and label have the form of the kind of task (plmjax/tasks/). The label is None
    for unlabelled examples.
    """

    id: str
    where: str
    texts: tuple[str, ...]
    label: Any
    unit: str  # examples of one unit stay on one side of any split


def hold_out(
    examples: Sequence[Example], percent: float
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Returns (kept, held out): complete units, chosen by a hash of their content.

    The choice depends neither on the order nor on a seed. The share is exact to within
    one unit; each side gets at least one.

    Raises:
      PlmjaxError: all examples are of one unit.
    """
    sizes = collections.Counter(example.unit for example in examples)
    if len(sizes) < 2:
        raise DataError(
            "nothing can be held out: task.train is all of one text or group.",
            hint="Give more data, or a file as task.held_out.",
        )
    wanted = len(examples) * percent / 100
    held: set[str] = set()
    count = 0
    for unit in sorted(sizes, key=_digest)[:-1]:
        if held and count + sizes[unit] / 2 > wanted:
            break
        held.add(unit)
        count += sizes[unit]
    kept = tuple(example for example in examples if example.unit not in held)
    return kept, tuple(example for example in examples if example.unit in held)


def _digest(unit: str) -> bytes:
    return hashlib.blake2b(unit.encode(errors="surrogatepass"), digest_size=16).digest()
