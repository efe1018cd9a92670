"""Writes a folder atomically and overwrites only earlier exports of plmjax."""

import contextlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from safetensors import SafetensorError

from plmjax import Exit, PlmjaxError, files
from plmjax.interop import sentence_files
from plmjax.interop.safetensors_file import DETECTOR, WEIGHTS, load_json
from plmjax.tasks.config import TASK

CONFIG, CARD = "config.json", "README.md"
# All files that an export may write, for any kind of tokenizer.
_OURS = frozenset(
    f"""
    {CONFIG} {CARD} {TASK} {WEIGHTS} {DETECTOR} tokenizer.json tokenizer_config.json
    special_tokens_map.json vocab.txt vocab.json merges.txt
    {sentence_files.POOLING} {" ".join(sentence_files.FILES)}
    """.split()
)


_OCCUPIED = "Choose another folder, or remove this one yourself."
# A name of the hub, with or without its owner.
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def check_is_folder(folder: Path, given: object, name: str = "") -> None:
    """Raises PlmjaxError unless a model's folder, `given` so, is on this machine.

    The message has `name`, such as a key and its value, or the folder itself.
    """
    if folder.is_dir():
        return
    repository = given if _HUB_NAME.fullmatch(str(given)) else "NAME"
    raise PlmjaxError(
        f"{name or given} is not a folder.",
        hint=f"{files.did_you_mean(folder)}Give a run's workdir or a Hugging Face "
        "folder. plmjax downloads nothing: a model of the hub needs `hf download "
        f"{repository} --local-dir={given}` first.",
    )


def hub_name(path: str | Path) -> str | None:
    """Returns the hub's name of the model in a folder; None if it is not known.

    It is known if `path` is a single name, and the folder no export of plmjax. Of a
    longer path it is not known which of its names are the hub's.
    """
    path = Path(path)
    try:
        body = load_json(path / CONFIG, (path / CONFIG).read_bytes())
    except (OSError, PlmjaxError):
        return None
    if len(path.parts) > 1 or "model_type" not in body or "plmjax_version" in body:
        return None
    return path.name


def check_replaceable(directory: Path) -> None:
    """Raises unless `directory` is absent, empty or an earlier export of plmjax."""
    if not directory.exists() and not directory.is_symlink():
        return
    if directory.is_symlink() or not directory.is_dir():
        raise PlmjaxError(
            f"{directory} is not a folder, or is a link to one.", hint=_OCCUPIED
        )
    if not check_only(directory, _OURS):
        return
    config = directory / CONFIG
    try:
        ours = "plmjax_version" in load_json(config, config.read_bytes())
    except (OSError, PlmjaxError):
        ours = False
    if not ours:
        raise PlmjaxError(
            f"{directory} holds files, but no {CONFIG} with plmjax_version, which "
            "marks an export of plmjax; it is not overwritten.",
            hint=_OCCUPIED,
        )


def check_only(directory: Path, known: Collection[str]) -> bool:
    """Returns True if `directory` holds anything.

    Raises:
      PlmjaxError: it holds something that `known` does not name.
    """
    paths = [*directory.iterdir()] if directory.is_dir() else []
    if (inner := directory / sentence_files.POOLING).is_dir():
        paths += inner.iterdir()
    names = [str(path.relative_to(directory)) for path in paths]
    # What an export that was killed has left is removed by the next one.
    names = [
        name for name in names if not name.endswith((".plmjax-new", ".plmjax-old"))
    ]
    if foreign := sorted(set(names) - set(known)):
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise PlmjaxError(
            f"{directory} holds {', '.join(foreign[:3])}{more}, which plmjax did not "
            "export; nothing is written there.",
            hint=_OCCUPIED,
        )
    return bool(names)


@contextlib.contextmanager
def replacing_export(directory: Path) -> Iterator[Path]:
    """Yields a temporary folder that replaces `directory` when all is written."""
    try:
        with files.replacing_folder(directory) as folder:
            yield folder
    except (OSError, SafetensorError) as error:
        raise PlmjaxError(
            f"{directory} cannot be written: {error}.",
            hint="Free some space, or choose a folder where you may write.",
            code=Exit.DISK,
        ) from error
