"""Writer and reader of a run's metrics: metrics.jsonl, and trackers beside it."""

import contextlib
import errno
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from plmjax import Exit, PlmjaxError
from plmjax.files import without_nan, write_file, write_json
from plmjax.train.trackers import Outlet, open_outlets, scalars

# Dense bf16 peak of one device in FLOP/s, by jax's device kind (vendor data sheets).
PEAK_FLOPS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "Tesla V100": 125e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(device: Any = None) -> float | None:
    """Returns the peak FLOP/s of a device, None if unknown; by default, of ours."""
    return peak_of_kind((device or jax.devices()[0]).device_kind)


def peak_of_kind(kind: str) -> float | None:
    """Returns the peak FLOP/s of a device of jax's kind, None if unknown."""
    matches = [peak for name, peak in PEAK_FLOPS.items() if kind.startswith(name)]
    return matches[0] if matches else None


Sums = dict[str, tuple[float, float]]


def fetch(metrics) -> Sums:
    """Returns (sum, count) pairs from the device as Python floats."""
    # Sums are float64: float32 sums over many batches lose digits.
    return {
        name: (float(total), float(count))
        for name, (total, count) in jax.device_get(metrics).items()
    }


def added(total: Sums | None, more: Sums) -> Sums:
    """Returns the pairwise sum; `more` if `total` is None."""
    if total is None:
        return more
    return {k: (s + more[k][0], n + more[k][1]) for k, (s, n) in total.items()}


def means(sums: Sums) -> dict[str, float]:
    """Returns {name: sum / count}; nan where nothing was counted."""
    return {
        name: total / count if count else math.nan
        for name, (total, count) in sums.items()
    }


class MetricWriter:
    """Appends one JSON line per record to metrics.jsonl; only process 0 writes.

    A record is {"kind": "train" | "evaluation" | "rollback", "step", ...}; the first
    two hold non-padding tokens and seconds of training since the first step, over all
    restarts. A figure over nothing, nan here, is null in the file.
    """

    def __init__(
        self,
        directory: Path,
        trackers: tuple[str, ...],
        step: int,
        log: Callable[[str], Any] = print,
    ):
        """Opens the records of a run that resumes from `step`."""
        self._log, self._warned = log, False
        # Records not yet on disk; with `_rewrite`, all records: the file is rewritten.
        self._unwritten: list[str] = []
        self._rewrite = False
        self.path = Path(directory) / "metrics.jsonl"
        self._active = jax.process_index() == 0
        self._outlets: list[Outlet] = []
        self._reached = step
        self.evaluated: set[int] = set()
        self.skips: list[list[int]] = []
        if self._active:
            self._note_start(step)
        self.rewind(step)
        if self._active:
            self._outlets = open_outlets(trackers, Path(directory), step, log)

    def rewind(self, step: int) -> None:
        """Drops the records after a step, which will be run again.

        Also drops an incomplete last line. Afterwards `evaluated` holds the evaluated
        steps, and `skips` the batches left out since the last rollback.
        """
        waiting = [json.loads(record) for record in self._unwritten]
        records = [*read_metrics(self.path), *waiting]
        kept = [record for record in records if record["step"] <= step]
        if self._active:
            self._unwritten = [json.dumps(record) + "\n" for record in kept]
        self.evaluated = {r["step"] for r in kept if r["kind"] == "evaluation"}
        left_out = [r["skips"] for r in kept if r["kind"] == "rollback"]
        self.skips = left_out[-1] if left_out else []
        if self._active and records:
            # If this fails, all records stay in memory until a later write succeeds.
            self._flush(rewrite=True)
        for outlet in self._outlets:
            outlet.call("rewind", step)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Writes one record, and its numbers to the trackers.

        A failing disk does not stop the run: the record is written with the next one.
        """
        self._reached = step
        if kind == "evaluation":
            self.evaluated.add(step)
        if not self._active:
            return
        record = {"kind": kind, "step": step} | without_nan(values)
        self._unwritten.append(json.dumps(record) + "\n")
        self._flush()
        for outlet in self._outlets:
            outlet.call("write", step, scalars(kind, values))

    def _flush(self, rewrite: bool = False) -> None:
        """Appends the waiting records, or rewrites the file with them."""
        data = "".join(self._unwritten).encode()
        try:
            if rewrite or self._rewrite:
                self._rewrite = True
                write_file(self.path, data)
            else:
                self._append(data)
        except OSError as error:
            if not self._warned:  # warn once, not at every step
                self._log(
                    f"WARNING: {self.path} cannot be written ({error.strerror}); "
                    "its records are kept in memory until it can."
                )
            self._warned = True
            return
        self._unwritten.clear()
        self._rewrite = self._warned = False

    def _append(self, data: bytes) -> None:
        with open(self.path, "ab", buffering=0) as file:
            start = file.tell()
            try:
                if file.write(data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                # A partial record would corrupt the next one.
                file.truncate(start)
                raise

    def close(self, how: str = "finished") -> None:
        """Writes the waiting records and closes the trackers: "stopped", "failed"."""
        if self._unwritten:
            self._flush()
        for outlet in self._outlets:
            outlet.close(how)
        if self._active:
            end = {"ended": time.time(), "reached": self._reached, "how": how}
            self._starts[-1] |= end
            self._save_starts()

    def _note_start(self, step: int) -> None:
        """Notes in starts.json that this process goes on after `step`.

        If the one before was killed, its last record says until when that ran. Times
        are seconds since 1970.
        """
        self._starts = read_starts(self.path.parent)
        if self._starts and (last := self._starts[-1])["ended"] is None:
            records, _ = scan_metrics(self.path)
            ended = self.path.stat().st_mtime if records else 0.0
            reached = records[-1]["step"] if records else 0
            last |= {"ended": max(ended, last["began"]), "reached": reached}
        # The lock was written before the text was read and the step compiled.
        lock = self.path.with_name(".lock")
        began = lock.stat().st_mtime if lock.exists() else time.time()
        new = {"step": step, "began": began, "ended": None, "reached": None}
        self._starts.append(new)
        self._save_starts()

    def _save_starts(self) -> None:
        with contextlib.suppress(OSError):  # no reason to stop a run
            starts = {"starts": self._starts}
            write_json(self.path.with_name("starts.json"), starts)

    def check(self) -> None:
        """Checks after close() that everything was written.

        Raises:
          PlmjaxError: some records could not be written (exit code 5).
        """
        if self._unwritten:
            raise PlmjaxError(
                f"{len(self._unwritten):,} records of {self.path} could not be "
                "written; the curves will lack them.",
                hint="Free some space or repair the disk, and run again to finish.",
                code=Exit.DISK,
            )


def read_starts(directory: Path) -> list[dict]:
    """Returns the starts that starts.json has noted; [] if it is damaged.

    "how" a start ended is None if it was killed.
    """
    names = ("step", "began", "ended", "reached")
    try:
        starts = json.loads((directory / "starts.json").read_text())["starts"]
        return [
            {name: start[name] for name in names} | {"how": start.get("how")}
            for start in starts
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def read_metrics(path: Path) -> list[dict]:
    """Returns the records of a metrics.jsonl, without an incomplete last line.

    Raises:
      PlmjaxError: another line is not a record; the message names it.
    """
    records, damaged = scan_metrics(path)
    for number, (trouble, last) in damaged.items():
        if not last:
            raise PlmjaxError(
                f"{path}:{number} is not a record of a run: {trouble}.",
                hint="Restore the file from a copy, or remove that line.",
                code=Exit.DATA,
            )
    return records


def scan_metrics(path: Path) -> tuple[list[dict], dict[int, tuple[str, bool]]]:
    """Returns the records of a metrics.jsonl, and the lines that are none.

    These are {line number: (what is wrong, whether it is the last line)}.
    """
    if not path.exists():
        return [], {}
    records, damaged = [], {}
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if _is_record(record):
                records.append(record)
                continue
            trouble = "its kind, its step or a figure is missing"
        except (ValueError, RecursionError) as error:
            trouble = str(error)
        damaged[number] = trouble, number == len(lines)
    return records, damaged


def _is_record(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return False
    if type(value.get("step")) is not int:
        return False
    if value["kind"] not in ("train", "evaluation"):  # others have no required keys
        return True
    figures = [x for name, x in value.items() if name != "kind"]
    return all(x is None or type(x) in (int, float) for x in figures)
