"""Labelled data of a task: all examples are read and checked before they are used."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from plmjax import DataError, PlmjaxError
from plmjax.config import nearest
from plmjax.console import ignore_line
from plmjax.data.annotated import Notes, read_conll, read_conllu, read_json, read_squad
from plmjax.data.blocks import ending
from plmjax.data.corpus import find_inputs
from plmjax.data.corpus_files import KINDS as KINDS_OF_FILES
from plmjax.data.examples import Example, hold_out
from plmjax.data.records import (
    Record,
    bad_data,
    no_column,
    open_datasets,
    open_tfds,
    read_csv,
    read_datasets,
    read_parquet,
    read_tfds,
    read_tsv,
    split_of,
)
from plmjax.tasks import KINDS
from plmjax.tasks.config import TaskConfig

FILES = {
    "csv": lambda path, config, _: read_csv(path, config.header, config.delimiter),
    "tsv": lambda path, config, _: read_tsv(path, config.header, config.delimiter),
    "jsonl": lambda path, *_: read_json(path),
    "parquet": lambda path, *_: read_parquet(path),
    "conll": lambda path, config, notes: read_conll(path, config.columns, notes),
    "conllu": lambda path, config, notes: read_conllu(path, config.columns, notes),
    "squad": lambda path, config, _: read_squad(path, config.columns),
}
FOLDERS = ("datasets", "tfds")


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The three splits of a task (test may be empty) and its ordered labels.

    `notes` are lines on what the readers left out or changed.
    """

    config: TaskConfig
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    test: tuple[Example, ...]
    notes: tuple[str, ...] = ()


def load_labelled(config: TaskConfig) -> Labelled:
    """Reads all splits of a task, and checks them.

    Raises:
      PlmjaxError: no file (code 3), or an error in a file, by file and line.
    """
    if config.train is None:
        raise PlmjaxError("task.train is empty.", hint="Name the training file.")
    notes: list[str] = []
    splits: dict[str, tuple[Example, ...]] = {
        role: read_examples(config, role, log=notes.append)
        if getattr(config, role) is not None
        else ()
        for role in ("train", "held_out", "test")
    }
    kind, train = KINDS[config.kind], splits["train"]
    labels = kind.find_labels(config, train)
    _check_varied(config, train)
    for role, examples in splits.items():
        check_labels(config.kind, examples, labels, f"task.{role}")
    if config.held_out is None:
        splits["train"], splits["held_out"] = hold_out(train, config.held_out_percent)
    for role in ("held_out", "test"):
        kind.check_split(splits[role], role)
    return Labelled(config, labels, **splits, notes=tuple(notes))


def read_examples(
    config: TaskConfig,
    role: str,
    *,
    labelled: bool = True,
    option: str = "",
    log: Callable[[str], Any] = ignore_line,
) -> tuple[Example, ...]:
    """Reads the files of train, held_out or test; without labels if not `labelled`.

    `option` is the name of the files in error messages: task.ROLE, unless given. `log`
    gets a line on each kind of thing that was left out or changed.
    """
    option = option or f"task.{role}"
    examples = []
    notes = Notes(list)
    kind = KINDS[config.kind]
    fields = kind.fields if labelled else kind.fields[:-1]
    for record in _records(config, role, option, notes):
        where = f"{record.file}:{record.line}"
        _check_columns(record, where, config, fields)
        texts, unit = kind.texts(record.values, where, config)
        label = kind.label(record.values, where, config) if labelled else None
        if config.columns.group is not None:
            unit = str(record.values[config.columns.group])
        name = record.values.get(config.columns.id or "id")
        name = len(examples) if name is None else name
        examples.append(Example(str(name), where, texts, label, unit))
    if not examples:
        raise DataError(
            f"{option} ({getattr(config, role)}) holds no examples.",
            hint="Give files with at least one.",
        )
    if config.columns.id is not None or kind.unique_ids:
        _check_ids(examples)
    if labelled:
        examples = kind.check_examples(examples, config, notes)
    for what, positions in notes.items():
        if positions:
            log(f"{option}: {what}: {len(positions):,}, first {positions[0]}.")
    return tuple(examples)


def _records(
    config: TaskConfig, role: str, option: str, notes: Notes
) -> Iterator[Record]:
    paths = getattr(config, role)
    folder = config.format == "auto" and Path(_folder_name(paths)).expanduser().is_dir()
    if folder or config.format in FOLDERS:
        path, split = split_of(paths, role)
        if config.format == "tfds":
            prepared = open_tfds(path, config.dataset, split, "task.dataset")
            yield from read_tfds(prepared, f"{config.dataset}:{split}")
        else:
            rows = open_datasets(path, split, 'Write "folder:split".')
            yield from read_datasets(rows, f"{path}:{split}")
        return
    for path in find_inputs(paths, option):
        yield from FILES[_format(path, config, option)](path, config, notes)


def _folder_name(paths: str) -> str:
    """Returns the folder of "folder:split", and other paths unchanged."""
    head, colon, _ = paths.rpartition(":")
    return head if colon and not Path(paths).expanduser().exists() else paths


def _format(path: Path, config: TaskConfig, option: str) -> str:
    if config.format != "auto":
        return config.format
    kind = KINDS[config.kind]
    suffix = ending(path)
    format = kind.suffixes.get(suffix, KINDS_OF_FILES.get(suffix, suffix))
    if format not in kind.formats:
        raise PlmjaxError(
            f"{option}: {path.name} has an ending that names no format of "
            f"task.kind={config.kind}.",
            hint=f"Set --config.task.format: {', '.join(kind.formats)}.",
        )
    return format


def _check_columns(
    record: Record, where: str, config: TaskConfig, fields: Sequence[str]
) -> None:
    optional = ("pair", "negative", "entities", "id", "group")
    given = [field for field in optional if getattr(config.columns, field) is not None]
    for field in (*fields, *given):
        for name in config.columns.names(field):
            if name not in record.values:
                raise no_column(
                    where,
                    name,
                    f"--config.task.columns.{field}{_reason(record, name, config)}",
                    [*record.values],
                )


def _reason(record: Record, name: str, config: TaskConfig) -> str:
    """Returns further ways to correct a missing column, for the end of a hint."""
    inside = [k for k, v in record.values.items() if isinstance(v, dict) and name in v]
    if inside:
        return f"; {name!r} is inside {inside[0]!r}, and only the top level is read"
    format = KINDS_OF_FILES.get(ending(Path(record.file)))
    if not {format, config.format} & {"csv", "tsv"}:
        return ""
    names, values = [*record.values], [*record.values.values()]
    seen = names if config.header else values if len(values) == 1 else []
    for mark in ";|\t,":
        if mark in "".join(seen):
            mark = "tab" if mark == "\t" else mark
            key = f"--config.task.separator={mark!r}"
            return f", or {key} if that separates the columns"
    if config.header:
        key = "--config.task.header=False"
        return f", or {key} if the first line does not name the columns"
    return ""


def _check_ids(examples: Sequence[Example]) -> None:
    seen: dict[str, str] = {}
    for example in examples:
        if example.id in seen:
            raise bad_data(
                example.where,
                f"the id {example.id!r} is already that of {seen[example.id]}.",
                "Give each example its own id.",
            )
        seen[example.id] = example.where


# --- labels


def check_labels(
    kind: str, examples: Sequence[Example], labels: Sequence[str], key: str
) -> None:
    """Raises PlmjaxError for a label that is not the task's; `key` names the data."""
    if not labels:
        return
    known = set(labels)
    unknown = [
        (example.where, name)
        for example in examples
        for name in KINDS[kind].names(example.label)
        if name not in known
    ]
    if unknown:
        where, name = unknown[0]
        others = {name for _, name in unknown}
        raise bad_data(
            where,
            f"the label {name!r} in {key} is not one of the task's {len(labels)} "
            "labels, which train or task.labels gives; it has "
            f"{len(unknown):,} such labels, {len(others):,} different.",
            f"{nearest(name, labels[:20])} Correct them, or name all labels in "
            "task.labels.",
        )


def _check_varied(config: TaskConfig, train: Sequence[Example]) -> None:
    """Raises PlmjaxError if all labels are equal: nothing can be learned from them."""
    kind = KINDS[config.kind]
    targets = kind.targets_of(train)
    if targets is not None and len(targets) < 2:
        (only,) = targets
        field = kind.fields[-1]
        what = "column" if kind.head is None else "label column"
        raise DataError(
            f"task.train ({config.train}): the {what} {config.columns.name(field)!r} "
            f"is {only!r} in all {len(train):,} examples.",
            hint=f"Is task.columns.{field} right?",
        )
