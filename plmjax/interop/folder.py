"""Writes a folder atomically and overwrites only earlier exports of plmjax."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from plmjax import Exit, PlmjaxError, files
from plmjax.interop import sentence_files
from plmjax.interop.safetensors_file import DETECTOR, WEIGHTS, load_json

CONFIG, CARD = "config.json", "README.md"
TASK = "plmjax_task.json"  # how a fine-tuned model reads its input
# All files that an export may write, for any kind of tokenizer.
_OURS = frozenset(
    f"""
    {CONFIG} {CARD} {TASK} {WEIGHTS} {DETECTOR} tokenizer.json tokenizer_config.json
    special_tokens_map.json vocab.txt vocab.json merges.txt
    {sentence_files.POOLING} {" ".join(sentence_files.FILES)}
    """.split()
)


# A name of the hub, with or without its owner.
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def missing_model_hint(path: str | Path) -> str:
    """Returns the hint for a model's folder that is not on this machine."""
    name = path if _HUB_NAME.fullmatch(str(path)) else "NAME"
    return (
        "Give a run's workdir or a Hugging Face folder on this machine. plmjax "
        f"downloads nothing; first run `hf download {name} --local-dir={path}`."
    )


def check_replaceable(directory: Path) -> None:
    """Raises unless `directory` is absent, empty or an earlier export of plmjax."""
    if not directory.exists() and not directory.is_symlink():
        return
    hint = "Choose another folder, or remove this one yourself."
    if directory.is_symlink() or not directory.is_dir():
        raise PlmjaxError(
            f"{directory} is not a folder, or is a link to one.", hint=hint
        )
    names = {path.name for path in directory.iterdir()}
    inner = directory / sentence_files.POOLING
    if inner.is_dir():
        names |= {f"{inner.name}/{path.name}" for path in inner.iterdir()}
    if not names:
        return
    if foreign := sorted(names - _OURS):
        raise PlmjaxError(
            f"{directory} holds {', '.join(foreign[:3])}, which plmjax did not write; "
            "it is not overwritten.",
            hint=hint,
        )
    config = directory / CONFIG
    try:
        ours = "plmjax_version" in load_json(config, config.read_bytes())
    except (OSError, PlmjaxError):
        ours = False
    if not ours:
        raise PlmjaxError(
            f"{directory} holds files, but no {CONFIG} with plmjax_version, which "
            "marks an export of plmjax; it is not overwritten.",
            hint=hint,
        )


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
