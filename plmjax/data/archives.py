"""Files inside zip and tar archives, by paths that go on into them: a.zip/b/c.txt.

Members are read in place, in the archive's order; nothing is unpacked to the disk.
"""

import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from plmjax import DataError, PlmjaxError

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".txz")
# Usual text has a ratio of 3 to 10; far above it is a decompression bomb.
UNPACK_RATIO = 200
TOTAL_BYTES = 1 << 40  # of all members
# What the two libraries raise for a damaged or encrypted archive.
ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError)
ERRORS += (zipfile.BadZipFile, NotImplementedError)
_LEAVES = re.compile(r"[/\\]|[A-Za-z]:|(.*[/\\])?\.\.([/\\]|$)", re.DOTALL)


class _Opened(NamedTuple):
    file: IO[bytes]
    archive: Any  # ZipFile or TarFile
    members: dict[str, Any]  # {name: ZipInfo or TarInfo}


def is_archive(path: Path) -> bool:
    """Whether a path is a file with an archive's ending."""
    return path.name.lower().endswith(ENDINGS) and path.is_file()


def container(path: Path) -> Path:
    """Returns the archive that holds a path, or the path itself if none does."""
    return next((parent for parent in path.parents if is_archive(parent)), path)


def members(archive: Path) -> list[Path]:
    """Returns the paths of an archive's files, in its order.

    Raises:
      PlmjaxError: it is damaged; a member's path leads out of it, is a link or a
        device; its members are too large (code 3).
    """
    return [archive / name for name in _opened(archive).members]


def size_of(path: Path) -> int:
    """Returns the bytes of a file or member, as it is stored there."""
    if (archive := container(path)) == path:
        return path.stat().st_size
    member = _member(archive, path)
    return member.size if isinstance(member, tarfile.TarInfo) else member.file_size


def open_member(path: Path) -> IO[bytes] | None:
    """Opens a member for reading bytes; returns None for a path in no archive."""
    if (archive := container(path)) == path:
        return None
    member, opened = _member(archive, path), _opened(archive)
    if isinstance(member, tarfile.TarInfo):
        return opened.archive.extractfile(member)
    return opened.archive.open(member)


def _member(archive: Path, path: Path) -> Any:
    return _opened(archive).members[path.relative_to(archive).as_posix()]


# The archive that was read last: to open a packed tar again is to unpack all of it.
_latest: dict[tuple, _Opened] = {}


def _opened(path: Path) -> _Opened:
    facts = path.stat()
    key = (path.absolute(), facts.st_size, facts.st_mtime_ns)
    if key not in _latest:
        for old in _latest.values():
            old.archive.close()
            old.file.close()
        _latest.clear()
        file = open(path, "rb")
        try:
            _latest[key] = _read_index(path, file)
        except BaseException as error:
            file.close()
            if isinstance(error, PlmjaxError) or not isinstance(error, ERRORS):
                raise
            raise DataError(
                f"{path} cannot be read: {str(error).rstrip('.')}.",
                hint="Fix the archive, or leave it out.",
            ) from None
    return _latest[key]


def _read_index(path: Path, file: IO[bytes]) -> _Opened:
    """Reads the names of all members, and checks them one after the other."""
    if path.name.lower().endswith(".zip"):
        archive: Any = zipfile.ZipFile(file)
        entries = _zip_entries(path, archive)
    else:
        archive = tarfile.open(fileobj=file, errorlevel=2)
        entries = _tar_entries(path, archive)
    found: dict[str, Any] = {}
    packed, total = max(path.stat().st_size, 1 << 20), 0
    for name, size, member in entries:
        if _LEAVES.match(name):
            raise DataError(
                f"{path}: the path of its member {name!r} leads out of the archive.",
                hint="Do not trust it; make it again from the files that you need.",
            )
        total += size
        if total > min(UNPACK_RATIO * packed, TOTAL_BYTES):
            raise DataError(
                f"{path} unpacks to more than {UNPACK_RATIO} times its size, or to "
                f"more than {TOTAL_BYTES:,} bytes.",
                hint="If that is right, unpack it by hand.",
            )
        found[Path(name).as_posix()] = member
    return _Opened(file, archive, found)


def _zip_entries(path: Path, archive: zipfile.ZipFile) -> Iterator[tuple]:
    for member in archive.infolist():
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _no_file(path, member.filename)
        if member.flag_bits & 1:
            raise DataError(f"{path} is encrypted.", hint="Unpack it by hand.")
        if not member.is_dir():
            yield member.filename, member.file_size, member


def _tar_entries(path: Path, archive: tarfile.TarFile) -> Iterator[tuple]:
    for member in archive:
        if member.isfile():
            yield member.name, member.size, member
        elif not member.isdir():
            raise _no_file(path, member.name)


def _no_file(path: Path, name: str) -> PlmjaxError:
    return DataError(
        f"{path}: its member {name!r} is a link or a device, not a file.",
        hint="Make it again with files only: tar --dereference, or zip without -y.",
    )
