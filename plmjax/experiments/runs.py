"""The runs of an experiment on disk: is a directory the run that was begun?"""

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from plmjax import Exit, PlmjaxError
from plmjax import config as config_lib
from plmjax.experiments.verbs import Verb, verb_of
from plmjax.files import locked_by
from plmjax.train.metrics import read_metrics
from plmjax.workdir import Workdir


class Run:
    """A training of an experiment: its directory, and its full config as JSON.

    Each experiment derives a dataclass with the run's part in it.
    """

    directory: Path
    config: dict[str, Any]

    @property
    def verb(self) -> Verb:
        """The verb of plmjax that trains it."""
        return verb_of(self.config)

    @property
    def workdir(self) -> Workdir:
        """The directory with its files."""
        return Workdir(self.directory, self.verb.config)

    def build(self) -> Any:
        """Returns the config as the dataclass of the verb."""
        return config_lib.build(self.verb.config, self.config)

    def progress(self, metric: str | None) -> dict[str, Any]:
        """Returns "seconds" and "curve", (step, metric) pairs of the evaluations."""
        records = read_metrics(self.directory / "metrics.jsonl")
        curve = tuple(
            (record["step"], record[metric])
            for record in records
            if record["kind"] == "evaluation" and record.get(metric) is not None
        )
        return {
            "seconds": records[-1].get("seconds") if records else None,
            "curve": curve,
        }


def with_defaults(schema: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config as JSON, with defaults for the keys that are newer than it."""
    return as_json(config_lib.to_dict(config_lib.build(schema, config)))


def as_json(values: Any) -> Any:
    """Returns values as they would be read back from a JSON file."""
    return json.loads(json.dumps(values))


# What a directory holds, by the file that defines it.
_CONTENTS = {
    "config.json": "a single run or model",
    "study.json": "a study of several runs",
    "sweep.json": "a sweep",
    "pseudo.json": "rounds of pseudo-labels",
}


def check_directory(directory: Path, definition: str) -> None:
    """Checks that a directory holds nothing but what the file `definition` defines.

    Raises:
      PlmjaxError: it holds the work of another verb.
    """
    for name, content in _CONTENTS.items():
        if name != definition and (directory / name).exists():
            raise PlmjaxError(
                f"{directory} holds {content}, not {_CONTENTS[definition]}.",
                hint="Choose another --workdir, or repeat the command that wrote it.",
            )


def check_same_config(
    directory: Path,
    before: Mapping[str, Any] | None,
    now: Mapping[str, Any],
    problem: str = "holds another study",
    may_change: Callable[[str, Any, Any], bool] = lambda key, old, new: False,
    hint: str = "Choose another --workdir.",
) -> None:
    """Checks that what was begun in a directory is what is to be run there.

    `before` is None if nothing was begun. `may_change(key, old, new)` allows a change;
    `problem` follows the directory's name in the error.

    Raises:
      PlmjaxError: something else changed; the message has each such key.
    """
    now = as_json(now)
    changed = {} if before is None else config_lib.changes(before, now)
    lines = [
        f"  {key}: {old!r} -> {new!r}"
        for key, (old, new) in changed.items()
        if not may_change(key, old, new)
    ]
    if lines:
        message = f"{directory} {problem}:\n" + "\n".join(lines)
        raise PlmjaxError(message, hint=f"\n{hint}")


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Puts `name` before the message of a PlmjaxError that does not have it."""
    try:
        yield
    except PlmjaxError as error:
        if name in error.message:
            raise
        message = f"{name}: {error.message}"
        raise PlmjaxError(message, hint=error.hint, code=error.code) from error


def wait_until_free(
    directories: Iterable[Path], log: Callable[[str], Any], limit_seconds: float = 120.0
) -> None:
    """Waits for processes of a killed sweep, which save before they end.

    Raises:
      PlmjaxError: a process still runs after the limit.
    """
    end = time.monotonic() + limit_seconds
    for directory in directories:
        if holder := locked_by(directory):
            log(f"Waiting for {holder}, which has {directory}.")
        while holder := locked_by(directory):
            if time.monotonic() > end:
                raise PlmjaxError(
                    f"{directory} is in use by {holder}.",
                    hint="Stop it, or wait for it; then run the sweep again.",
                    code=Exit.RESUMABLE,
                )
            time.sleep(0.2)
