"""A file of vectors that is written in steps and resumed after a stop or a kill.

Beside FILE are FILE.part, the vectors so far as an .npy file of float32, and
FILE.progress.json with the job and the number of finished batches. It is kept when FILE
is finished, as the record of how the vectors were computed.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import PlmjaxError
from plmjax.files import disk_errors, sync, write_file

ENDINGS = (".npy", ".parquet")


def check_output(path: Path, words: bool) -> None:
    """Raises PlmjaxError unless vectors can be written to such a path."""
    if path.suffix not in ENDINGS:
        raise PlmjaxError(
            f"--output={path} has an unknown ending.",
            hint=f"Give a name that ends in {' or '.join(ENDINGS)}.",
        )
    if words and path.suffix != ".parquet":
        raise PlmjaxError(
            f"--output={path} cannot hold the words themselves.",
            hint="With --words, give a name that ends in .parquet.",
        )
    if path.is_dir():
        raise PlmjaxError(f"--output={path} is a directory.", hint="Name a file.")
    if not path.parent.is_dir():
        raise PlmjaxError(
            f"--output={path}: there is no directory {path.parent} (in {Path.cwd()}).",
            hint="Create it first, or check the spelling.",
        )


class VectorFile:
    """The vectors [n, width] of a job, written in any order and finished once.

    `job` is JSON-able and holds all that determines them, `about` further facts for the
    user; `batches` is their total number, of which `done` are written. It is a context
    manager, which locks the file for this process.
    """

    def __init__(
        self,
        path: Path,
        job: dict[str, Any],
        about: dict[str, Any],
        shape: tuple[int, int],
        batches: int,
    ):
        self.path, self.job, self.about = path, job, about
        self.shape, self.batches = shape, batches
        self.part = path.with_name(path.name + ".part")
        self.note = path.with_name(path.name + ".progress.json")
        self.done = 0
        self.finished = False
        self._file: Any = None
        self._data = 0  # offset of the vectors in the part file

    def __enter__(self):
        note = self._read_note()
        # A kill between the last rename and its note also leaves a finished job.
        if self.path.exists() and not self.part.exists():
            self._write_note(True)
            self.finished = True
        if self.finished:
            self.part.unlink(missing_ok=True)
            return self
        try:
            with disk_errors(self.path):
                self._file = open(self.part, "r+b" if self.part.exists() else "w+b")
                self._lock()
                self._begin(note)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self._file is not None:
            self._file.close()

    def _read_note(self) -> dict[str, Any]:
        """Returns the note of an earlier start of this job; {} if this is the first.

        Raises:
          PlmjaxError: the files are of another job or of unknown origin.
        """
        here, part = self.path.exists(), self.part.exists()
        if not here and not part:
            return {}
        try:
            note = json.loads(self.note.read_text())
            job, done = note["job"], note["done"]
        except (OSError, ValueError, KeyError, TypeError):
            note, job, done = {}, None, 0
        what = self.path if here else self.part
        hint = f"give another --output, or remove {what} yourself."
        if job == self.job and here and done < self.batches:
            job = None  # an unfinished job cannot have written the file
        if job is None:
            if not here:
                return {}  # killed before its first note
            raise PlmjaxError(
                f"{what} exists without the {self.note.name} that names its job; it is "
                "not overwritten.",
                hint=hint.capitalize(),
            )
        if job != self.job:
            keys = {**self.job, **job}
            differs = [key for key in keys if job.get(key) != self.job.get(key)]
            step = " (--checkpoint names a step)" if "model" in differs else ""
            raise PlmjaxError(
                f"{what} is of another job: {', '.join(differs)} differ. {self.note} "
                "records how it was computed.",
                hint=f"Give the same as before{step}, or {hint}",
            )
        if note.get("finished"):
            size = self.path.stat().st_size if here else None
            if here and note.get("bytes") != size:
                raise PlmjaxError(
                    f"{what} is not as it was written: it has {size:,} bytes.",
                    hint=hint.capitalize(),
                )
            self.finished = here
        return note

    def _lock(self) -> None:
        """Locks the part file for this process; the system unlocks it when we die."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PlmjaxError(
                f"{self.part} is in use by another process.",
                hint="Wait for it, stop it, or give another --output.",
            ) from None

    def _begin(self, note: dict[str, Any]) -> None:
        """Resumes the part file, or allocates all its disk space at once."""
        file, (count, width) = self._file, self.shape
        old_size = os.fstat(file.fileno()).st_size
        header = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        self._data = file.tell()
        size = self._data + 4 * count * width
        if old_size == size:
            self.done = note.get("done", 0)
        # The note comes first: a part file of full size then always belongs to its job.
        self._write_note(False)
        if old_size == size:
            return
        file.truncate(self._data)
        if not hasattr(os, "posix_fallocate"):  # macOS
            file.truncate(size)
            return
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            self.part.unlink()
            raise

    def write(self, indices: np.ndarray, vectors: np.ndarray) -> None:
        """Writes vectors [m, width] to their ascending indices [m].

        With plain writes: with a memory map, a full disk would end the process by a
        signal.
        """
        rows = np.ascontiguousarray(vectors, "<f4")
        step = rows.shape[1] * 4
        ends = np.flatnonzero(np.diff(indices) != 1) + 1
        with disk_errors(self.part):
            for some in np.split(np.arange(len(indices)), ends):
                if len(some):
                    at = self._data + int(indices[some[0]]) * step
                    _write_all(self._file.fileno(), rows[some[0] : some[-1] + 1], at)

    def save(self, done: int) -> None:
        """Notes that `done` batches are finished, once they are on the disk."""
        with disk_errors(self.part):
            os.fsync(self._file.fileno())
        self.done = done
        self._write_note(False)

    def vectors(self) -> np.ndarray:
        """Returns the vectors so far, as a memory map."""
        return np.load(self.part, mmap_mode="r")

    def finish(self, write: Callable[[Path], Any] | None) -> None:
        """Moves the file to its final path: the output of `write`, or the part file.

        If it is interrupted, the next start resumes from the part file.
        """
        new = self.part
        with disk_errors(self.path):
            if write is not None:
                new = self.path.with_name(self.path.name + ".new")
                try:
                    write(new)
                    sync(new)
                except BaseException:
                    new.unlink(missing_ok=True)
                    raise
            new.replace(self.path)
            self._write_note(True)
            self.part.unlink(missing_ok=True)
        self.finished = True

    def _write_note(self, finished: bool) -> None:
        note = {"about": self.about, "job": self.job, "vectors": self.shape[0]}
        note |= {"batches": self.batches, "done": self.done}
        if finished:
            note |= {"finished": True, "done": self.batches}
            note["bytes"] = self.path.stat().st_size
        with disk_errors(self.note):
            write_file(self.note, (json.dumps(note, indent=2) + "\n").encode())


def _write_all(descriptor: int, rows: np.ndarray, at: int) -> None:
    data = rows.data.cast("B")
    while data:
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written


def write_npy(path: Path, blocks: Iterable[np.ndarray], shape: tuple[int, int]) -> None:
    """Writes blocks [m, width] as one array."""
    with open(path, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, "<f4").data)


def write_parquet(path: Path, blocks: Iterable[dict[str, Any]]) -> None:
    """Writes blocks of columns, a row group each; "vector" [m, width] becomes lists."""
    import pyarrow
    import pyarrow.parquet

    writer = None
    try:
        for columns in blocks:
            arrays = {
                name: pyarrow.array(values)
                for name, values in columns.items()
                if name != "vector"
            }
            rows = np.ascontiguousarray(columns["vector"], np.float32)
            ends = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
            values = pyarrow.array(rows.reshape(-1))
            arrays["vector"] = pyarrow.ListArray.from_arrays(ends, values)
            table = pyarrow.table(arrays)
            if writer is None:
                writer = pyarrow.parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
