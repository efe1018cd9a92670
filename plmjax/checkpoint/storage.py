"""Storage of checkpoints: a directory, or a prefix in an object store (gs://, s3://).

Both are a tree of named files. tensorstore accesses the remote ones, with the same
credentials as Google's and Amazon's tools.
"""

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
from pathlib import Path
from typing import Any, Protocol

from plmjax import PlmjaxError, files

# What tensorstore adds to an error: [os_error_code='27'] [source locations='...
_SOURCES = re.compile(r" \[[a-z_ ]+='")
# Timeout of requests to a store.
ANSWER_SECONDS = 60.0


class Storage(Protocol):
    """A tree of files under one root; names are relative to it, joined by "/".

    Every method raises OSError if the disk or the store fails.
    """

    def entries(self) -> list[str]:
        """Returns the names directly under the root; none if the root is missing."""
        ...

    def files(self, folder: str) -> list[str]:
        """Returns the names of all files of a folder, relative to it, sorted."""
        ...

    def exists(self, name: str) -> bool:
        """Returns whether there is such a file or folder."""
        ...

    def read(self, name: str) -> bytes:
        """Returns the content of a file."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Writes a file atomically: a reader sees the old one or the new one."""
        ...

    def digest(self, name: str) -> tuple[int, str]:
        """Returns the size in bytes and the SHA-256 of a file."""
        ...

    def make(self, folder: str) -> None:
        """Makes a folder and its parents; does nothing in object stores."""
        ...

    def delete(self, name: str) -> None:
        """Removes a file, or a folder with its content, if it exists."""
        ...

    def move(self, folder: str, to: str) -> None:
        """Renames a folder, and replaces what has that name; object stores copy."""
        ...

    def fsync(self, folder: str) -> None:
        """Waits until the content of a folder would survive a loss of power."""
        ...

    def free(self) -> int | None:
        """Returns the free bytes, or None for object stores."""
        ...

    def spec(self, folder: str) -> dict[str, Any]:
        """Returns tensorstore's spec of the folder."""
        ...


class Local:
    """A local or mounted directory."""

    def __init__(self, root: str | Path):
        self.root = Path(root).absolute()

    def __str__(self) -> str:
        return str(self.root)

    def entries(self) -> list[str]:
        try:
            return sorted(os.listdir(self.root))
        except FileNotFoundError:
            return []

    def files(self, folder: str) -> list[str]:
        top = self.root / folder
        paths = [path for path in top.rglob("*") if path.is_file()]
        return sorted(path.relative_to(top).as_posix() for path in paths)

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        files.write_file(self.root / name, data)

    def digest(self, name: str) -> tuple[int, str]:
        return files.digest(self.root / name)

    def make(self, folder: str) -> None:
        (self.root / folder).mkdir(parents=True, exist_ok=True)

    def delete(self, name: str) -> None:
        path = self.root / name
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def move(self, folder: str, to: str) -> None:
        self.delete(to)
        (self.root / to).parent.mkdir(parents=True, exist_ok=True)
        (self.root / folder).rename(self.root / to)

    def fsync(self, folder: str) -> None:
        top = self.root / folder
        for path in [*top.rglob("*"), top, self.root]:
            files.sync(path)

    def free(self) -> int | None:
        made = (path for path in (self.root, *self.root.parents) if path.exists())
        return shutil.disk_usage(next(made)).free

    def spec(self, folder: str) -> dict[str, Any]:
        return {"driver": "file", "path": f"{self.root / folder}/"}


class Remote:
    """A prefix in an object store, which has names but no folders.

    Object stores cannot rename, so moving a folder copies it.
    """

    def __init__(self, root: dict[str, Any], where: str):
        import tensorstore as ts

        self._root, self._where = root, where
        # Shared by all uses, so that tensorstore knows that the stores are the same.
        self.context = ts.Context()
        self._store = _wait(ts.KvStore.open(root, context=self.context), where)

    def __str__(self) -> str:
        return self._where

    def entries(self) -> list[str]:
        return sorted({name.partition("/")[0] for name in self._list("")})

    def files(self, folder: str) -> list[str]:
        return sorted(self._list(f"{folder}/"))

    def _list(self, prefix: str) -> list[str]:
        names = self._store.list(_under(prefix), strip_prefix_length=len(prefix))
        return [name.decode() for name in _wait(names, self._where)]

    def exists(self, name: str) -> bool:
        return bool(_wait(self._store.list(_only(name)), self._where))

    def read(self, name: str) -> bytes:
        result = _wait(self._store.read(name), f"{self._where}/{name}")
        if result.state != "value":
            raise FileNotFoundError(f"{self._where}/{name} does not exist")
        return bytes(result.value)

    def write(self, name: str, data: bytes) -> None:
        _wait(self._store.write(name, data), f"{self._where}/{name}")

    def digest(self, name: str) -> tuple[int, str]:
        data = self.read(name)
        return len(data), hashlib.sha256(data).hexdigest()

    def make(self, folder: str) -> None:
        pass

    def delete(self, name: str) -> None:
        for names in (_only(name), _under(f"{name}/")):
            _wait(self._store.delete_range(names), self._where)

    def move(self, folder: str, to: str) -> None:
        self.delete(to)
        for name in self.files(folder):
            self.write(f"{to}/{name}", self.read(f"{folder}/{name}"))
        self.delete(folder)

    def fsync(self, folder: str) -> None:
        pass

    def free(self) -> int | None:
        return None

    def spec(self, folder: str) -> dict[str, Any]:
        return self._root | {"path": f"{self._root['path']}{folder}/"}


def _under(prefix: str):
    """Returns the range of the names that begin with a prefix."""
    import tensorstore as ts

    end = prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else ""
    return ts.KvStore.KeyRange(prefix, end)


def _only(name: str):
    import tensorstore as ts

    return ts.KvStore.KeyRange(name, f"{name}\0")


def _wait(future, where: str) -> Any:
    """Returns the result of a tensorstore future; raises its errors as OSError."""
    try:
        return future.result(timeout=ANSWER_SECONDS)
    except TimeoutError:
        future.cancel()
        message = f"{where} did not answer within {ANSWER_SECONDS:.0f} s"
        raise OSError(message) from None
    except (ValueError, RuntimeError) as error:
        raise OSError(f"{where}: {brief(error)}") from error


def brief(error: BaseException) -> str:
    """Returns the first line of an error, without tensorstore's lists of sources."""
    message = str(error).strip() or repr(error)
    return _SOURCES.split(message.splitlines()[0])[0]


def open_storage(where: str | Path) -> Local | Remote:
    """Returns the storage of a path, or of a gs:// or s3:// URL.

    Raises:
      PlmjaxError: the URL is of another kind, or incomplete; gcsfs is missing.
      OSError: the store cannot be opened.
    """
    scheme, separator, address = str(where).partition("://")
    if not separator:
        return Local(where)
    bucket, _, path = address.partition("/")
    if scheme not in ("gs", "s3") or not bucket or not path.strip("/"):
        raise PlmjaxError(
            f"files cannot be saved to {where}.",
            hint="Give a directory, gs://BUCKET/PATH or s3://BUCKET/PATH.",
        )
    root: dict[str, Any] = {"bucket": bucket, "path": f"{path.strip('/')}/"}
    if scheme == "gs":
        if importlib.util.find_spec("gcsfs") is None:  # Orbax needs gcsfs for gs://.
            message = f"{where} needs gcsfs, which is not installed."
            raise PlmjaxError(message, hint="pip install 'plmjax[gs]'")
        return Remote(root | {"driver": "gcs"}, str(where).rstrip("/"))
    return Remote(root | {"driver": "s3"} | _s3_endpoint(), str(where).rstrip("/"))


def _s3_endpoint() -> dict[str, str]:
    """Returns S3's endpoint and region from the environment of Amazon's tools."""
    environment = os.environ
    endpoint = environment.get(
        "AWS_ENDPOINT_URL_S3", environment.get("AWS_ENDPOINT_URL")
    )
    region = environment.get("AWS_REGION", environment.get("AWS_DEFAULT_REGION"))
    if endpoint is None:
        return {} if region is None else {"aws_region": region}
    return {"endpoint": endpoint, "aws_region": region or "us-east-1"}
