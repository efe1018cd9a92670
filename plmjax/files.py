"""Atomic writing of files, their SHA-256, and locks."""

import contextlib
import csv
import difflib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from plmjax import Exit, PlmjaxError, disk_hint


@contextlib.contextmanager
def replacing(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Yields an open file that replaces `path` once it is on the disk.

    A reader sees the old file or the complete new one. After an error the old one
    stays.
    """
    # Not the process's number: hosts that share a disk may have equal ones.
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(new, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def write_file(path: Path, data: bytes) -> None:
    """Writes a file atomically: a reader sees the old one or the new one."""
    with replacing(path) as file:
        file.write(data)


def write_json(path: Path, value: Any, sort_keys: bool = False) -> None:
    """Writes JSON atomically: a reader sees the old file or the new one.

    NaN and infinities, which JSON lacks, become null.
    """
    text = json.dumps(without_nan(value), indent=1, sort_keys=sort_keys)
    write_file(path, text.encode())


def without_nan(value: Any) -> Any:
    """Returns a value for JSON with None in place of NaN and infinities."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Writes a table atomically; `rows` includes the header."""
    with replacing(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder that replaces `path` once the block has ended."""
    path = Path(os.path.abspath(path))
    # Beside `path`, so that a rename suffices; with fixed names, to find leftovers.
    new = path.with_name(f".{path.name}.plmjax-new")
    old = path.with_name(f".{path.name}.plmjax-old")
    try:
        if old.exists() and not path.exists():
            old.rename(path)  # an earlier process was killed between the two renames
        for left_over in (new, old):
            shutil.rmtree(left_over, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def with_nan(scores: Mapping[str, float | None]) -> dict[str, float]:
    """Returns scores as they were before `write_json`, with NaN in place of null."""
    return {k: math.nan if value is None else value for k, value in scores.items()}


def missing(path: Path) -> list[Path]:
    """Returns which of a directory and its parents do not exist, the deepest first."""
    return [each for each in (path, *path.parents) if not os.path.exists(each)]


def did_you_mean(path: str | Path) -> str:
    """Returns "Did you mean NEAR? " with what there is of a name like the missing one.

    If a folder of the path is what is missing, it is the folder that is compared.
    """
    *_, gone = (Path(path), *missing(Path(path)))
    with contextlib.suppress(OSError):
        names = sorted(os.listdir(gone.parent))
        near = difflib.get_close_matches(gone.name, names, n=2, cutoff=0.7)
        near = near or [name for name in names if Path(name).stem == gone.stem][:2]
        if near and not os.path.exists(gone):
            below = Path(path).relative_to(gone)
            found = [gone.with_name(name) for name in near]
            found = [f / below for f in found if (f / below).exists()] or found
            return f"Did you mean {' or '.join(map(str, found))}? "
    return ""


@contextlib.contextmanager
def no_empty_directory(new: Sequence[Path]) -> Iterator[None]:
    """Removes new directories, as of `missing`, if an error leaves no results there."""
    try:
        yield
    except BaseException:
        inside = new[0].rglob("*") if new else ()
        files = (p for p in inside if not p.is_dir() and ".xla" not in p.parts)
        if new and all(file.name == ".lock" for file in files):
            shutil.rmtree(new[0], ignore_errors=True)
            with contextlib.suppress(OSError):  # others may write there
                for parent in new[1:]:
                    parent.rmdir()
        raise


@contextlib.contextmanager
def removed_unless_done(path: Path) -> Iterator[None]:
    """Empties or removes a directory, new or empty before, if the block fails."""
    made = missing(path)
    try:
        yield
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # others may write there
            for above in made[1:]:
                above.rmdir()
            if not made:
                path.mkdir()
        raise


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns errors of the disk into a PlmjaxError (exit code 5) that names `path`."""
    try:
        yield
    except OSError as error:
        raise PlmjaxError(
            f"{path} cannot be written: {error.strerror or error}.",
            hint=disk_hint(error),
            code=Exit.DISK,
        ) from error


_ADDRESS = re.compile("((gs|s3):)/*", re.IGNORECASE)


def address(where: str | Path) -> str | None:
    """Returns what names an object store, in its right spelling; None: a path."""
    match = _ADDRESS.match(str(where))
    return match and f"{match[1].lower()}//{str(where)[match.end() :]}"


def check_new(path: Path, option: str = "--to") -> None:
    """Raises PlmjaxError unless `path` is a directory that is empty or can be made."""
    if (right := address(path)) is not None:
        raise PlmjaxError(
            f"{option}={right} must be a directory.",
            hint="Choose a directory, and copy it with the tools of the store.",
        )
    above = next((each for each in path.absolute().parents if each.exists()), path)
    if above != path and not above.is_dir():
        raise PlmjaxError(
            f"{option}={path} is below {above}, which is a file.",
            hint="Choose another folder.",
        )
    with disk_errors(path):
        place = path if path.exists() else above
        if place.is_dir() and not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise PlmjaxError(
                f"{option}={path} exists and is not empty.",
                hint="Choose a new folder, or remove it.",
            )


def check_outside(to: Path, paths: str | Sequence[str] | None) -> None:
    """Raises PlmjaxError if `to` is in a folder of texts: it would be read as text."""
    several = [paths, *paths.split(",")] if isinstance(paths, str) else paths or ()
    for folder in (Path(path.strip()).expanduser() for path in several):
        if folder.is_dir() and to.resolve().is_relative_to(folder.resolve()):
            raise PlmjaxError(
                f"--to={to} is inside {folder}, whose files are read as text.",
                hint="Choose a folder beside it.",
            )


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, would survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> tuple[int, str]:
    """Returns the size in bytes and the SHA-256 of a file."""
    with open(path, "rb") as file:
        sha = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), sha


def locked_by(directory: Path) -> str | None:
    """Returns the name of the process that locks a workdir; None if it is free."""
    lock = directory / ".lock"
    if not lock.exists():
        return None
    with open(lock) as file:
        if flocked(file, fcntl.LOCK_SH):
            return None
        return file.read().strip() or "another process"


def flocked(file: IO, kind: int) -> bool:
    """Locks a file, or returns False if another process has locked it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
