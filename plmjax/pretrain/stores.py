"""Ready stores: folders with tokenizer and tokens, here or in gs:// and s3://.

Each is laid out as a workdir: tokenizer/, data/KEY/, and run.json, which names KEY. A
store in gs:// or s3:// is copied before it is read, as its arrays are mapped.
"""

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from plmjax import DataError, Exit, PlmjaxError
from plmjax.checkpoint.storage import Storage, open_storage
from plmjax.data import merging
from plmjax.data.store import MANIFEST, Store
from plmjax.files import address, check_new, disk_errors, replacing_folder, write_json
from plmjax.tokenizers import Tokenizer, TokenizerConfig
from plmjax.workdir import Workdir

RUN = "run.json"
_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@contextlib.contextmanager
def opened(where: str) -> Iterator[tuple[Workdir, Store]]:
    """Yields the folder of a ready store, and the store, verified.

    `where` may be the store itself, DIR/data/KEY, or a URL.

    Raises:
      PlmjaxError: there is none, it is damaged, or another tokenizer's (code 3).
    """
    with contextlib.ExitStack() as stack:
        path = Path(where)
        if "://" in where:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            _fetch(where, path)
        elif (path / MANIFEST).is_file():
            path = path.absolute().parents[1]
        workdir = Workdir(path)
        if not path.is_dir() or not (path / RUN).is_file():
            raise DataError(
                f"{where} is no store: it has no {RUN}.",
                hint="Give the --to of `plmjax data prepare`, or a run's workdir.",
            )
        store = _one_of(workdir.store(), where)
        if workdir.tokenizer().digest != store.manifest["tokenizer"]:
            raise DataError(
                f"{store.directory} is a store of another tokenizer than "
                f"{path / 'tokenizer'}.",
                hint="Restore the tokenizer, or prepare the text again.",
            )
        yield workdir, store


def _one_of(store: Store, where: str) -> Store:
    """Returns the store of a folder that `where` names, of several of a mixture."""
    stores = {part.key: part for part in store.parts.values() or [store]}
    name = Path(where).name if Path(where, MANIFEST).is_file() else None
    if name is None and len(stores) == 1:
        return store
    if name not in stores:
        what = "holds several stores" if name is None else "is not one of the stores"
        raise DataError(
            f"{where} {what} that {RUN} names: {', '.join(stores)}.",
            hint="Give one of a mixture as DIR/data/KEY.",
        )
    return stores[name]


def merge(inputs: Sequence[str], to: str) -> dict[str, Any]:
    """Writes the stores of `inputs`, one behind the other, to a new folder or URL.

    Returns its sizes. A single store is copied.

    Raises:
      PlmjaxError: a store is damaged, or they do not fit together (code 3); something
        is at `to` (2); the disk or the object store fails (5).
    """
    if (right := address(to)) not in (None, to):
        raise PlmjaxError(
            f"--to={to} is no address of an object store.", hint=f"Write --to={right}."
        )
    if "://" not in to:
        check_new(Path(to))
    else:
        with _answers(to):
            if open_storage(to).entries():
                raise PlmjaxError(f"--to={to} is not empty.", hint="Choose another.")
    with contextlib.ExitStack() as stack:
        several = [stack.enter_context(opened(where)) for where in inputs]
        path = Path(to)
        if "://" in to:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "store"
        (workdir, store), *others = several
        with disk_errors(path), replacing_folder(path) as new:
            shutil.copytree(workdir / "tokenizer", new / "tokenizer")
            if others:
                key = merging.merge([store for _, store in several], new / "data")
            else:
                key = store.key
                _bring(store.directory, new / "data" / key, store.manifest)
            recipe = json.dumps(["stores", [store.key for _, store in several]])
            write_json(new / RUN, record(key, recipe, ready=True))
        result = Workdir(path).store()
        if "://" in to:
            _send(path, to, result)
        return merging.verify(result)


def record(key: str, recipe: str, ready: bool) -> dict[str, Any]:
    """Returns the content of run.json; a `ready` store is not replaced by another."""
    return {"store": key, "recipe": recipe} | ({"ready": True} if ready else {})


def recipe_of(where: str) -> str:
    """Returns the recipe of a run that takes the ready store `where`."""
    return json.dumps(["store", where])


def take(
    where: str,
    workdir: Workdir,
    settings: TokenizerConfig,
    needed: dict[str, Any],
    keep: bool = False,
) -> tuple[Tokenizer, Store]:
    """Makes a ready store that of a run: by links, or by a copy of what is remote.

    `needed` are values of the manifest, by name. With `keep` it is ready here, too.

    Raises:
      PlmjaxError: the store is of another tokenizer or otherwise not as needed (3), or
        that of the run's own folder (2).
    """
    recipe = recipe_of(where)
    known = workdir.read(RUN, store=str, recipe=str)
    if known is not None and known["recipe"] == recipe:
        return workdir.tokenizer(), workdir.store()
    with opened(where) as (ready, store):
        if ready.path.samefile(workdir.path):
            raise PlmjaxError(
                f"data.store={where} is the folder of the run itself.",
                hint="Choose another --workdir, to which the store is linked.",
            )
        for name, value in needed.items():
            if (has := store.manifest[name]) != value:
                raise DataError(
                    f"data.{name} is {value}, but the store {where} was prepared with "
                    f"{has}.",
                    hint=f"Set --config.data.{name}={has}, or prepare it again.",
                )
        if settings.path is not None:
            given = Tokenizer.load(settings.path, settings.lowercase)
            if given.digest != store.manifest["tokenizer"]:
                raise DataError(
                    f"{where} is a store of another tokenizer than {settings.path}.",
                    hint="Leave out --config.tokenizer.path, or prepare it again.",
                )
        with disk_errors(workdir.path):
            (workdir / RUN).unlink(missing_ok=True)
            shutil.rmtree(workdir / "tokenizer", ignore_errors=True)
            shutil.copytree(ready / "tokenizer", workdir / "tokenizer")
            to = workdir / "data" / store.key
            if not to.exists():
                _bring(store.directory, to, store.manifest, link="://" not in where)
            write_json(workdir / RUN, record(store.key, recipe, keep))
    return workdir.tokenizer(), workdir.store()


def _bring(
    folder: Path, to: Path, manifest: dict[str, Any], link: bool = False
) -> None:
    """Copies the files of a store, or links to them."""
    with replacing_folder(to) as new:
        for name in (*manifest["files"], MANIFEST):
            if link:
                (new / name).symlink_to((folder / name).resolve())
            else:
                shutil.copyfile(folder / name, new / name)


def _fetch(where: str, to: Path) -> None:
    """Copies a store of an object store; its digests are not compared yet."""
    with _answers(where):
        storage = open_storage(where)
        if not storage.exists(RUN):
            raise DataError(f"{where} is no store: it has no {RUN}.")
        names = [RUN, *(f"tokenizer/{name}" for name in storage.files("tokenizer"))]
        try:
            folder = f"data/{json.loads(storage.read(RUN))['store']}"
            manifest = json.loads(storage.read(f"{folder}/{MANIFEST}"))
            inside = [MANIFEST, *manifest["files"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{where}: {RUN} or {MANIFEST} is damaged ({error})."
            ) from None
        for name in (*names, *(f"{folder}/{name}" for name in inside)):
            if not _NAME.fullmatch(name.removeprefix("data/")):
                raise DataError(f"{where} names a file {name!r}, which is no name.")
            data = storage.read(name)
            with disk_errors(to):
                (to / name).parent.mkdir(parents=True, exist_ok=True)
                (to / name).write_bytes(data)


def _send(folder: Path, where: str, store: Store) -> None:
    """Copies a store to an object store; what makes it one, run.json, comes last.

    If that fails, what has been copied is deleted.
    """
    inside = [*store.manifest["files"], MANIFEST]
    paths = [*sorted((folder / "tokenizer").iterdir())]
    paths += [store.directory / name for name in inside]
    with _answers(where), contextlib.ExitStack() as stack:
        storage = open_storage(where)
        for path in (*paths, folder / RUN):
            name = path.relative_to(folder).as_posix()
            stack.callback(_delete, storage, name)
            storage.write(name, path.read_bytes())
        stack.pop_all()


def _delete(storage: Storage, name: str) -> None:
    """Deletes a file of a failed copy, if the store still answers."""
    with contextlib.suppress(OSError):
        storage.delete(name)


@contextlib.contextmanager
def _answers(where: str) -> Iterator[None]:
    """Turns errors of an object store into a PlmjaxError (exit code 5)."""
    try:
        yield
    except OSError as error:
        raise PlmjaxError(
            f"{where} fails: {error}.",
            hint="Check the name, the credentials and the network.",
            code=Exit.DISK,
        ) from None
