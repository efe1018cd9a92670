"""Training examples from outside the task's files, such as pseudo-labelled ones."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from plmjax.data.examples import Example
from plmjax.data.features import Features
from plmjax.tasks import KINDS
from plmjax.tasks.config import TaskConfig
from plmjax.tasks.features import make_features
from plmjax.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Added:
    """Labelled examples to train on, in addition to those of train.

    `soft` are probabilities instead of the labels, [C] an example, [words, C] if each
    word has a label; labels of train then become 0 and 1. `weight` is the weight of
    such an example in the loss, where one of train has 1.
    """

    examples: tuple[Example, ...] = ()
    soft: tuple[np.ndarray, ...] | None = None
    weight: float = 1.0

    def bytes(self) -> list[bytes]:
        """Returns all that training depends on as bytes; [] without examples."""
        if not self.examples:
            return []
        pieces = [repr((e.texts, e.label)).encode() for e in self.examples]
        pieces += [np.float64(values).tobytes() for values in self.soft or ()]
        return [*pieces, repr(self.weight).encode()]


NOTHING = Added()


def added_features(
    config: TaskConfig,
    examples: Sequence[Example],
    added: Added,
    tokenizer: Tokenizer,
    labels: Sequence[str],
) -> Features:
    """Returns the rows of the examples, followed by those of the added ones."""
    every = (*examples, *added.examples)
    features = make_features(config, every, tokenizer, labels)
    if not added.examples:
        return features
    first = len(examples)
    rows = np.flatnonzero(features.example >= first)
    features.arrays["weight"][rows] = added.weight
    if added.soft is not None:
        index = features.example[rows] - first
        soften = _soften_words if KINDS[config.kind].per_word else _soften
        label = soften(features, rows, index, added.soft, len(labels))
        features.arrays["label"] = label
    return features


def _soften(features: Features, rows, index, soft, classes: int) -> np.ndarray:
    """Returns labels as probabilities [N, C] float32; `index` is that in `soft`."""
    label = features.arrays["label"]
    if label.ndim == 1:
        label = np.eye(classes, dtype=np.float32)[label]
    label[rows] = np.stack(soft)[index]
    return label


def _soften_words(features: Features, rows, index, soft, classes: int) -> np.ndarray:
    """Returns labels as probabilities [N, L, C] float32, 0 where there is no label."""
    assert features.word is not None
    label, word = features.arrays["label"], features.word[rows]
    targets = np.eye(classes, dtype=np.float32)[np.maximum(label, 0)]
    targets[label < 0] = 0
    begin = np.cumsum([0, *map(len, soft)])[:-1]
    row, column = np.nonzero(word >= 0)
    # A word that was cut has no token here, so its nan is never read.
    targets[rows[row], column] = np.concatenate(soft)[
        begin[index[row]] + word[row, column]
    ]
    return targets
