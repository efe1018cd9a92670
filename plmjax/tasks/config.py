"""The config of a fine-tuning task."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from plmjax import Exit, PlmjaxError
from plmjax.config import Block, build, number
from plmjax.data.columns import ColumnsConfig
from plmjax.tasks import KINDS

if TYPE_CHECKING:
    KindName = str
else:
    KindName = Literal[tuple(KINDS)]

TASK = "plmjax_task.json"  # in a folder: how a fine-tuned model reads its input
# Heads that can read several examples a row.
_PACKED_HEADS = ("sequence", "tags")


@dataclasses.dataclass(frozen=True)
class TaskConfig(Block, prefix="task."):
    """Labelled data and how they become rows."""

    kind: KindName = next(iter(KINDS))
    # auto: by the ending of the file's name; a folder is read by datasets.
    format: Literal[
        "auto",
        "csv",
        "tsv",
        "jsonl",
        "parquet",
        "conll",
        "conllu",
        "squad",
        "datasets",
        "tfds",
    ] = "auto"
    # Comma-separated files and globs. datasets, tfds: the folder, or "folder:split".
    train: str | None = None
    held_out: str | None = None
    test: str | None = None
    dataset: str | None = None  # tfds: its name
    header: bool = True  # csv, tsv: the first line names the columns
    # csv, tsv: a character, or tab; None: by the first rows.
    separator: str | None = None
    columns: ColumnsConfig = dataclasses.field(default_factory=ColumnsConfig)
    labels: tuple | None = None  # in order; None: the sorted labels of train
    # The markers around the first and the second entity (Zhou and Chen 2022,
    # arXiv:2102.01373: signs of the vocabulary work as well as new tokens).
    markers: tuple = ("@", "#")
    label_separator: str = ","  # multilabel: separates labels written as one text
    # Share of train that is held out if no held_out file is given.
    held_out_percent: float = number(10.0, above=0, below=100, hint="10 is usual.")
    # Tokens in a row, with special tokens.
    length: int = number(128, at_least=8, hint="128 and 384 tokens are usual.")
    # A text longer than a row: several windows, or only its beginning.
    long: Literal["window", "truncate"] = "window"
    # Tokens between the beginnings of two successive windows; None: half of length.
    stride: int | None = number(None, at_least=1, hint="Half of task.length is usual.")
    # The prediction from all windows of a text: the mean of their probabilities, the
    # maximum of each, or those of the first window. embeddings (one row per text): the
    # mean of its tokens' vectors, or cls: that of the first token.
    pooling: Literal["mean", "max", "first", "cls"] = "mean"
    # embeddings: divides the cosines before the softmax over candidates.
    temperature: float = number(0.05, above=0, hint="0.05 is usual.")
    # single: one example a row; packed: several, without attention between them.
    rows: Literal["single", "packed"] = "single"
    # Shorter batch lengths, for rows that fit: less padding, but one more program to
    # compile for each.
    buckets: tuple = ()
    # What answer_start and positions of entities count: characters, UTF-16 units (Java,
    # JavaScript, C#), or bytes of UTF-8.
    offsets: Literal["characters", "utf16", "bytes"] = "characters"
    # answers: those that are not in the context at answer_start. nearest: the nearest
    # occurrence is meant. keep: scores use one, but training only a question that also
    # has a correctly placed answer; also where nearest finds no occurrence.
    misplaced_answers: Literal["error", "nearest", "keep"] = "error"
    max_answer_tokens: int = number(30, at_least=1, hint="30 is usual.")
    # answers: whether "no answer" may be predicted; None: if train has such questions.
    unanswerable: bool | None = None
    # answers: the unit of comparison, words as in SQuAD, or characters as in CMRC.
    compare_answers: Literal["words", "characters"] = "words"

    def __post_init__(self):
        super().__post_init__()
        kind = KINDS[self.kind]
        if self.format not in ("auto", *kind.formats):
            raise PlmjaxError(
                f"task.format={self.format} does not hold task.kind={self.kind}.",
                hint=f"Formats for it: {', '.join(kind.formats)}.",
            )
        if self.labels is not None:
            self._check_labels(self.labels)
        for bucket in self.buckets:
            if not isinstance(bucket, int) or not 8 <= bucket <= self.length:
                raise PlmjaxError(
                    f"task.buckets has {bucket!r}; each must be a length from 8 to "
                    f"task.length={self.length}.",
                    hint="For example (32, 64).",
                )
        self._check_packing()
        self._check_pooling()
        self._check_entities()
        if self.separator in ("", '"', "\n") or len(self.delimiter or ",") > 1:
            raise PlmjaxError(
                f"task.separator is {self.separator!r}; it must be one character.",
                hint="For example ';', or tab.",
            )
        if not self.label_separator:
            raise PlmjaxError(
                "task.label_separator is empty; it must be at least one character.",
                hint="For example a comma.",
            )

    def _check_packing(self) -> None:
        if self.rows == "single":
            return
        if KINDS[self.kind].head not in _PACKED_HEADS:
            raise PlmjaxError(
                f"task.rows=packed is not for task.kind={self.kind}: its examples are "
                "compared within a row or with other rows.",
                hint="Leave it out; task.buckets=(32, 64) makes rows of short examples "
                "short.",
            )
        if self.buckets:
            raise PlmjaxError(
                f"task.buckets={self.buckets} has no effect with task.rows=packed: all "
                f"rows have {self.length} tokens.",
                hint="Leave one of them out.",
            )

    def _check_pooling(self) -> None:
        kind = KINDS[self.kind]
        if self.pooling not in kind.poolings:
            raise PlmjaxError(
                f"task.pooling={self.pooling} is not for task.kind={self.kind}.",
                hint=f"Set one of {', '.join(kind.poolings)}.",
            )
        if self.columns.negative is not None and not kind.negatives:
            raise PlmjaxError(
                f"task.columns.negative={self.columns.negative}, but "
                f"task.kind={self.kind} has no negatives.",
                hint=f"It is for task.kind={_kinds('negatives')}; leave it out.",
            )

    def _check_entities(self) -> None:
        marks = self.markers
        if len(set(marks)) != 2 or not all(isinstance(m, str) and m for m in marks):
            raise PlmjaxError(
                f"task.markers is {marks!r}; it must be two signs that differ.",
                hint="('@', '#') is usual.",
            )
        columns = self.columns.entities
        if columns is None:
            return
        if not KINDS[self.kind].entities:
            raise PlmjaxError(
                f"task.columns.entities is for {_kinds('entities')}, and task.kind is "
                f"{self.kind}."
            )
        if len(columns.split(",")) != 4:
            raise PlmjaxError(
                f"task.columns.entities is {columns!r}; it must name four columns.",
                hint="For example 'head_start,head_end,tail_start,tail_end'.",
            )

    def _check_labels(self, labels: tuple) -> None:
        if not KINDS[self.kind].label_names:
            raise PlmjaxError(
                f"task.labels names labels, but task.kind={self.kind} has none.",
                hint="Leave task.labels out.",
            )
        names = [str(label) for label in labels]
        least = KINDS[self.kind].least_labels
        if len(set(names)) < max(least, len(names)):
            raise PlmjaxError(
                f"task.labels is {labels!r}; it must be {least} or more names, each "
                "once.",
                hint="Leave it out to use the labels of train.",
            )

    @property
    def delimiter(self) -> str | None:
        """The separator as a character; None: by the first rows."""
        return "\t" if self.separator in ("tab", r"\t") else self.separator

    @property
    def window_stride(self) -> int | None:
        """The stride of windows; None: a long text is cut."""
        return self.stride or self.length // 2 if self.long == "window" else None


def _kinds(option: str) -> str:
    """Returns the kinds with an option: "a", or "a, b and c"."""
    *names, last = (name for name, kind in KINDS.items() if getattr(kind, option))
    return f"{', '.join(names)} and {last}" if names else last


def read_task(folder: Path, kind: str, labels: tuple[str, ...]) -> TaskConfig:
    """Returns the input settings of a fine-tuned folder.

    A folder that plmjax did not write has the defaults.

    Raises:
      PlmjaxError: the file contradicts the model.
    """
    path = folder / TASK
    if not path.exists():
        return TaskConfig(kind=kind, labels=labels or None)  # type: ignore[arg-type]
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        config = build(TaskConfig, values, "task.")
    except (ValueError, TypeError, RecursionError, OSError) as error:
        raise PlmjaxError(
            f"{path} cannot be read: {error}.",
            hint="Export the model again, or remove the file.",
            code=Exit.MODEL,
        ) from error
    if (config.kind, config.labels or ()) != (kind, labels):
        raise PlmjaxError(
            f"{path} is of another task than the model beside it.",
            hint="Export the model again, or remove the file.",
            code=Exit.MODEL,
        )
    return config
