"""Labelled examples: all are read and checked before they are used."""

import collections
import dataclasses
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from plmjax import Exit, PlmjaxError
from plmjax.config import nearest
from plmjax.data.annotated import read_conll, read_conllu, read_squad
from plmjax.data.corpus import find_inputs
from plmjax.data.labels import FIELDS, LABELS, column_names
from plmjax.data.records import (
    Record,
    bad_data,
    no_column,
    open_datasets,
    open_tfds,
    read_csv,
    read_datasets,
    read_jsonl,
    read_parquet,
    read_tfds,
    read_tsv,
    split_of,
)
from plmjax.data.tasks import KINDS, TaskConfig

FILES = {
    "csv": lambda path, config: read_csv(path, config.header),
    "tsv": lambda path, config: read_tsv(path, config.header),
    "jsonl": lambda path, _: read_jsonl(path),
    "parquet": lambda path, _: read_parquet(path),
    "conll": read_conll,
    "conllu": read_conllu,
    "squad": read_squad,
}
FOLDERS = ("datasets", "tfds")
_ALIASES = {"json": "jsonl", "ndjson": "jsonl", "tab": "tsv"}


@dataclasses.dataclass(frozen=True)
class Example:
    """One labelled text, or several that belong together; `where` is file:line.

    texts are (text,), (text, pair) or (question, context); for choices (text, choice,
    choice, ...); for embeddings (text, pair) or (text, pair, negative); for tags the
    words. The label is None for unlabelled examples;
    classes: a name; multilabel: names; regression: a float; tags: a name per word;
    answers: a tuple of (text, index of its first character), the index -1 if it is
    wrong, empty without an answer; choices: the index of the right one; embeddings: 1,
    the rank that the pair should have.
    """

    id: str
    where: str
    texts: tuple[str, ...]
    label: Any
    unit: str  # examples of one unit stay on one side of any split


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The three splits of a task (test may be empty) and its ordered labels."""

    config: TaskConfig
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    test: tuple[Example, ...]


def load_labelled(config: TaskConfig) -> Labelled:
    """Reads all splits of a task, and checks them.

    Raises:
      PlmjaxError: no file (code 3), or an error in a file, by file and line.
    """
    if config.train is None:
        raise PlmjaxError("task.train is empty.", hint="Name the training file.")
    train = read_examples(config, "train")
    others = {
        role: read_examples(config, role) if getattr(config, role) is not None else ()
        for role in ("held_out", "test")
    }
    labels = find_labels(config, train)
    _check_varied(config, train)
    for role, examples in {"train": train, **others}.items():
        check_labels(examples, labels, f"task.{role}")
    if config.held_out is None:
        train, others["held_out"] = hold_out(train, config.held_out_percent)
    if config.kind == "embeddings":
        for role, examples in others.items():
            _check_candidates(examples, role)
    return Labelled(config, labels, train, others["held_out"], others["test"])


def read_examples(
    config: TaskConfig, role: str, *, labelled: bool = True, option: str = ""
) -> tuple[Example, ...]:
    """Reads the files of train, held_out or test; without labels if not `labelled`.

    `option` is the name of the files in error messages: task.ROLE, unless given.
    """
    option = option or f"task.{role}"
    examples = []
    kind = KINDS[config.kind]
    fields = FIELDS[config.kind]
    for record in _records(config, role, option):
        where = f"{record.file}:{record.line}"
        _check_columns(
            record, where, config, kind.fields if labelled else kind.fields[:-1]
        )
        texts, unit = fields(record.values, where, config)
        label = LABELS[config.kind](record.values, where, config) if labelled else None
        if config.columns.group is not None:
            unit = str(record.values[config.columns.group])
        name = record.values.get(config.columns.id or "id")
        name = len(examples) if name is None else name
        examples.append(Example(str(name), where, texts, label, unit))
    if not examples:
        raise PlmjaxError(
            f"{option} ({getattr(config, role)}) holds no examples.",
            hint="Give files with at least one.",
            code=Exit.DATA,
        )
    if config.columns.id is not None or config.kind == "answers":
        _check_ids(examples)
    return tuple(examples)


def _records(config: TaskConfig, role: str, option: str) -> Iterator[Record]:
    paths = getattr(config, role)
    folder = config.format == "auto" and Path(_folder_name(paths)).expanduser().is_dir()
    if folder or config.format in FOLDERS:
        place, split = split_of(paths, role)
        if config.format == "tfds":
            found = open_tfds(place, config.dataset, split, "task.dataset")
            yield from read_tfds(found, f"{config.dataset}:{split}")
        else:
            rows = open_datasets(place, split, 'Write "folder:split".')
            yield from read_datasets(rows, f"{place}:{split}")
        return
    for path in find_inputs(paths, option):
        yield from FILES[_format(path, config, option)](path, config)


def _folder_name(paths: str) -> str:
    """Returns the folder of "folder:split", and other paths unchanged."""
    head, colon, _ = paths.rpartition(":")
    return head if colon and not Path(paths).expanduser().exists() else paths


def _format(path: Path, config: TaskConfig, option: str) -> str:
    if config.format != "auto":
        return config.format
    kind = KINDS[config.kind]
    suffix = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    found = kind.suffixes.get(suffix, _ALIASES.get(suffix, suffix))
    if found not in kind.formats:
        raise PlmjaxError(
            f"{option}: {path.name} has an ending that says no format of "
            f"task.kind={config.kind}.",
            hint=f"Set task.format: {', '.join(kind.formats)}.",
        )
    return found


def _check_columns(
    record: Record, where: str, config: TaskConfig, fields: Sequence[str]
) -> None:
    chosen = {field: config.column(field) for field in fields}
    optional = {
        field: name
        for field in ("pair", "negative", "entities", "id", "group")
        if (name := getattr(config.columns, field)) is not None
    }
    for field, names in {**chosen, **optional}.items():
        for name in column_names(names, field):
            if name not in record.values:
                found = [*record.values]
                raise no_column(where, name, f"task.columns.{field}", found)


def _check_ids(examples: Sequence[Example]) -> None:
    seen: dict[str, str] = {}
    for example in examples:
        if example.id in seen:
            raise bad_data(
                example.where,
                f"the id {example.id!r} stands at {seen[example.id]} already.",
                "Give each example its own id.",
            )
        seen[example.id] = example.where


# --- labels


def names_of(label: Any) -> tuple[str, ...]:
    """The names in a label: one for classes, several for multilabel and tags."""
    return (label,) if isinstance(label, str) else label


def find_labels(config: TaskConfig, train: Sequence[Example]) -> tuple[str, ...]:
    """Returns a task's ordered labels: the config's, or the sorted labels of train."""
    if not KINDS[config.kind].label_names:
        return ()
    if config.labels is not None:
        return tuple(map(str, config.labels))
    columns = column_names(config.columns.label, "label")
    if config.kind == "multilabel" and len(columns) > 1:
        return tuple(columns)
    found = {name for example in train for name in names_of(example.label)}
    numbers = all(re.fullmatch("-?[0-9]+", name) for name in found)
    return tuple(sorted(found, key=int if numbers else str))  # pyright: ignore


def check_labels(examples: Sequence[Example], labels: Sequence[str], key: str) -> None:
    """Raises PlmjaxError for a label that is not the task's; `key` names the data."""
    if not labels:
        return
    known = set(labels)
    for example in examples:
        for name in names_of(example.label):
            if name not in known:
                raise bad_data(
                    example.where,
                    f"the label {name!r} in {key} is not one of the task's "
                    f"{len(labels)} labels, which train or task.labels gives.",
                    nearest(name, labels[:20]),
                )


def _check_varied(config: TaskConfig, train: Sequence[Example]) -> None:
    """Raises PlmjaxError if all labels are equal: nothing can be learned from them."""
    if config.kind == "answers":
        return
    field = {"tags": "tags", "embeddings": "pair"}.get(config.kind, "label")
    if config.kind == "tags":
        found = {name for example in train for name in example.label}
    elif config.kind == "embeddings":
        found = {example.texts[1] for example in train}
    else:
        found = {example.label for example in train}
    if len(found) < 2:
        (one,) = found
        what = "column" if field == "pair" else "label column"
        raise PlmjaxError(
            f"task.train ({config.train}): the {what} {config.column(field)!r} is "
            f"{one!r} in all {len(train):,} examples.",
            hint=f"Is task.columns.{field} right?",
            code=Exit.DATA,
        )


def _check_candidates(examples: Sequence[Example], role: str) -> None:
    """Raises PlmjaxError for a single pair: retrieval needs other candidates."""
    if examples and len({example.texts[1] for example in examples}) < 2:
        raise PlmjaxError(
            f"the {role.replace('_', '-')} part has a single pair, and so nothing to "
            "find it among.",
            hint=f"Give more pairs as task.{role}, or more training data.",
            code=Exit.DATA,
        )


# --- the held-out share


def hold_out(
    examples: Sequence[Example], percent: float
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Returns (kept, held out): complete units, chosen by a hash of their content.

    The choice depends neither on the order nor on a seed. The share is exact to within
    one unit; each side gets at least one.
    """
    sizes = collections.Counter(example.unit for example in examples)
    if len(sizes) < 2:
        raise PlmjaxError(
            "nothing can be held out: task.train is all of one text or group.",
            hint="Give more data, or a file as task.held_out.",
            code=Exit.DATA,
        )
    wanted = len(examples) * percent / 100
    held: set[str] = set()
    count = 0
    for unit in sorted(sizes, key=_rank)[:-1]:
        if held and count + sizes[unit] / 2 > wanted:
            break
        held.add(unit)
        count += sizes[unit]
    kept = tuple(example for example in examples if example.unit not in held)
    return kept, tuple(example for example in examples if example.unit in held)


def _rank(unit: str) -> bytes:
    return hashlib.blake2b(unit.encode(errors="surrogatepass"), digest_size=16).digest()
