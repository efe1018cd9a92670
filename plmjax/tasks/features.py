"""Rows and labels of a task's examples."""

from collections.abc import Sequence

import numpy as np

from plmjax.data.examples import Example
from plmjax.data.features import Features
from plmjax.tasks import KINDS
from plmjax.tasks.config import TaskConfig
from plmjax.tokenizers import Tokenizer


def make_features(
    config: TaskConfig,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    labels: Sequence[str] = (),
) -> Features:
    """Returns rows of config.length tokens, with labels if the examples have any.

    All weights are 1.

    Raises:
      PlmjaxError: a word has no piece in a vocabulary without [UNK], or a marker none.
    """
    kind = KINDS[config.kind]
    features = kind.rows(config, examples, tokenizer)
    rows = features.rows
    features.arrays["row"] = np.arange(rows, dtype=np.int32)
    features.arrays["weight"] = np.ones(rows, np.float32)
    if examples[0].label is not None:
        features.arrays["label"] = kind.label_array(features, examples, labels)
    return features
