"""The config of a fine-tuning task, and the fields and formats of each kind."""

import dataclasses
from typing import Literal

from plmjax import PlmjaxError
from plmjax.config import Block, number

TaskKind = Literal[
    "classes", "multilabel", "regression", "tags", "answers", "choices", "embeddings"
]
_TABLES = ("jsonl", "parquet", "datasets", "tfds")
_ALL_TABLES = ("csv", "tsv", *_TABLES)


@dataclasses.dataclass(frozen=True)
class Kind:
    """The input of a kind of task.

    `fields` are the keys of ColumnsConfig that every example needs, the label last.
    `suffixes` are file endings that mean another format for this kind.
    """

    fields: tuple[str, ...]
    formats: tuple[str, ...]
    suffixes: dict[str, str] = dataclasses.field(default_factory=dict)
    label_names: bool = True  # whether a label is one of a fixed set of names


# data/labelled.py makes Examples of their records, data/features.py makes rows.
KINDS = {
    "classes": Kind(("text", "label"), _ALL_TABLES),
    "multilabel": Kind(("text", "label"), _ALL_TABLES),
    "regression": Kind(("text", "label"), _ALL_TABLES, label_names=False),
    "tags": Kind(
        ("tokens", "tags"),
        ("conll", "conllu", *_TABLES),
        {name: "conll" for name in ("tsv", "txt", "bio", "iob", "iob2")},
    ),
    "answers": Kind(
        ("question", "context", "answers"),
        ("squad", *_TABLES),
        {"json": "squad"},
        label_names=False,
    ),
    "choices": Kind(("text", "choices", "label"), _ALL_TABLES, label_names=False),
    "embeddings": Kind(("text", "pair"), _ALL_TABLES, label_names=False),
}


@dataclasses.dataclass(frozen=True)
class ColumnsConfig:
    """The columns, or fields of a record, by role; without a header "1", "2", ..."""

    text: str = "text"
    # The second text, if any. choices: text put before each choice. embeddings: the
    # text that belongs to the first; None: "pair".
    pair: str | None = None
    negative: str | None = None  # embeddings: a hard negative
    # Relations: "start,end,start,end", the columns of the character positions of two
    # entities in the text, counted from 0, the end excluded.
    entities: str | None = None
    # multilabel: "a,b,c" are columns of 0 and 1.
    label: str = "label"
    # None: "tokens" and "tags"; CoNLL's first and last column; CoNLL-U's FORM, UPOS.
    tokens: str | None = None
    tags: str | None = None
    question: str = "question"
    context: str = "context"
    answers: str = "answers"
    choices: str = "choices"  # one column of lists, or "a,b,c", one per choice
    id: str | None = None  # None: "id" if there is one, else counted from 0
    group: str | None = None  # examples of one group stay on one side of a split


@dataclasses.dataclass(frozen=True)
class TaskConfig(Block, prefix="task."):
    """Labelled data and how they become rows."""

    kind: TaskKind = "classes"
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
    # Tokens between the beginnings of two successive windows.
    stride: int = number(64, at_least=1, hint="Half of task.length is usual.")
    # The prediction from all windows of a text: the mean of their probabilities, the
    # maximum of each, or those of the first window. embeddings (one row per text): the
    # mean of its tokens' vectors, or cls: that of the first token.
    pooling: Literal["mean", "max", "first", "cls"] = "mean"
    # embeddings: divides the cosines before the softmax over candidates.
    temperature: float = number(0.05, above=0, hint="0.05 is usual.")
    # Shorter batch lengths, for rows that fit: less padding, but one more program to
    # compile for each.
    buckets: tuple = ()
    # answers: those that are not in the context at answer_start. keep: scores use one,
    # but training only a question that also has a correctly placed answer.
    misplaced_answers: Literal["error", "keep"] = "error"
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
        self._check_embeddings()
        self._check_entities()
        if not self.label_separator:
            raise PlmjaxError(
                "task.label_separator is empty; it must be at least one character.",
                hint="For example a comma.",
            )

    def _check_embeddings(self) -> None:
        embeds = self.kind == "embeddings"
        poolings = ("mean", "cls") if embeds else ("mean", "max", "first")
        if self.pooling not in poolings:
            raise PlmjaxError(
                f"task.pooling={self.pooling} is not for task.kind={self.kind}.",
                hint=f"Set one of {', '.join(poolings)}.",
            )
        if self.columns.negative is not None and not embeds:
            raise PlmjaxError(
                f"task.columns.negative={self.columns.negative}, but "
                f"task.kind={self.kind} has no negatives.",
                hint="It is for task.kind=embeddings; leave it out.",
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
        if self.kind not in ("classes", "multilabel", "regression"):
            raise PlmjaxError(
                f"task.columns.entities is for classes, multilabel and regression, and "
                f"task.kind is {self.kind}."
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
        least = 1 if self.kind == "multilabel" else 2
        if len(set(names)) < max(least, len(names)):
            raise PlmjaxError(
                f"task.labels is {labels!r}; it must be {least} or more names, each "
                "once.",
                hint="Leave it out to take the labels of train.",
            )

    def column(self, field: str) -> str:
        """Returns the column of an example's field in records."""
        own = getattr(self.columns, field)
        return own if own is not None else field
