"""Labelled examples as rows of tokens: a row is an example or a window of one."""

import dataclasses

import numpy as np

NONE = -1  # the label where there is none
TEACHER = "teacher"  # the name of a teacher's scores in a batch


@dataclasses.dataclass(frozen=True)
class Features:
    """Rows of a task: the first axis of all `arrays` is the row.

    [N, L] int32 ([N, C, L] for kinds of task with C texts side by side in a row):
    tokens, segments (1 real, 0 padding), positions, types; word_start bool. [N]: row
    int32, its number; weight float32. label: see `label_array` of the kind of task.
    states: a frozen encoder's output (added by plmjax/finetune/cached.py); teacher:
    another model's scores of the rows (finetune/teacher.py).

    `example` [N] int32 is the example of each row. `spans` [N, L, 2] int32, if answers
    are looked for, are each token's characters in the context, -1 elsewhere. `word`
    [N, L] int32, if each word has a label, is the index of the word that a token
    represents, else -1: each word of an example has one token in one of its rows.
    `report` has counts.
    """

    arrays: dict[str, np.ndarray]
    example: np.ndarray
    report: dict[str, int]
    pad_id: int
    spans: np.ndarray | None = None
    word: np.ndarray | None = None

    @property
    def rows(self) -> int:
        """The number N of rows."""
        return len(self.example)

    @property
    def length(self) -> int:
        """The number L of tokens in a row, with padding."""
        return self.arrays["tokens"].shape[-1]

    def sizes(self) -> np.ndarray:
        """Returns [N] tokens of each row without padding, or of its longest text."""
        sizes = (self.arrays["segments"] > 0).sum(-1)
        return sizes if sizes.ndim == 1 else sizes.max(1)
