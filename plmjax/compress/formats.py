"""The formats of `plmjax compress`, by name."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plmjax import PlmjaxError


@dataclasses.dataclass(frozen=True)
class Given:
    """What a format may read beside the model's folder.

    `model` is what the user calls it, a run's workdir or a folder; `options` are those
    of the command by name: data, calibrate and those that belong to a format.
    """

    model: str
    options: Mapping[str, Any]


# (what is given, a Hugging Face folder in float32, a new folder) -> what runs: a file
# .onnx in the new folder, or the new folder itself, which holds a Hugging Face model.
Write = Callable[[Given, Path, Path], Path]

FORMATS: dict[str, Write] = {}


def check_formats(names: str) -> list[tuple[str, ...]]:
    """Returns the formats of --format, such as "onnx,prune+int8", each with its parts.

    Raises:
      PlmjaxError: one is not known.
    """
    several = [tuple(name.strip().split("+")) for name in names.split(",")]
    for part in (part for parts in several for part in parts):
        if part not in FORMATS:
            raise PlmjaxError(
                f"--format: there is no format {part!r}.",
                hint=f"The formats: {', '.join(FORMATS)}.",
            )
    return several
