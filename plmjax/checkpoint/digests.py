"""SHA-256 of every file of a checkpoint, to detect damage.

DIGESTS.json holds {"files": {name: [bytes, SHA-256]}, "digest": SHA-256 of "files"}; a
change to any byte of it is detected. Format 1, of plmjax 0.1, is {name: SHA-256} only.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from plmjax.checkpoint.storage import Storage

FILE = "DIGESTS.json"
Digests = dict[str, tuple[int, str]]

# Hashing releases the GIL; more threads than this would wait for the disk.
_THREADS = min(4, os.cpu_count() or 1)


def compute(storage: Storage, folder: str, names: Iterable[str]) -> Digests:
    """Returns the digests of a folder's files.

    Raises:
      OSError: a file cannot be read.
    """
    names = list(names)
    with ThreadPoolExecutor(_THREADS, "digests") as threads:
        paths = [f"{folder}/{name}" for name in names]
        return dict(zip(names, threads.map(storage.digest, paths), strict=True))


def checkpoint_files(storage: Storage, folder: str) -> list[str]:
    """Returns the files that belong to a checkpoint.

    Names that begin with a dot belong to other programs (.nfs0001, .DS_Store).
    """
    return [
        name
        for name in storage.files(folder)
        if name != FILE and not any(part.startswith(".") for part in name.split("/"))
    ]


def render(digests: Mapping[str, Sequence]) -> bytes:
    """Returns the content of DIGESTS.json."""
    files = {name: list(digests[name]) for name in sorted(digests)}
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return json.dumps({"files": files, "digest": digest}, indent=1).encode()


def trouble(storage: Storage, folder: str) -> str | None:
    """Returns a description of the damage to a checkpoint's files, or None."""
    try:
        content = storage.read(f"{folder}/{FILE}")
        values = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        return f"{FILE} cannot be read ({error})"
    expected = _expected(values, content)
    if expected is None:
        return f"{FILE} is damaged"
    try:
        present = checkpoint_files(storage, folder)
        for name in expected:
            if name not in present:
                return f"{name} is missing"
        for name in present:
            if name not in expected:
                return f"{name} was not there when it was saved"
        digests = compute(storage, folder, present)
    except OSError as error:
        return f"it cannot be read ({error})"
    for name, (size, sha) in expected.items():
        if size is not None and digests[name][0] != size:
            return f"{name} has {digests[name][0]:,} bytes, not {size:,}"
        if digests[name][1] != sha:
            return f"{name} does not match its SHA-256"
    return None


def _expected(values, content: bytes) -> dict | None:
    """Returns {name: (bytes or None, SHA-256)}, or None if the file is damaged."""
    if not isinstance(values, dict):
        return None
    if "files" not in values:
        return {name: (None, sha) for name, sha in values.items()}
    try:
        intact = render(values["files"]) == content
    except (AttributeError, TypeError):
        return None
    return values["files"] if intact else None
