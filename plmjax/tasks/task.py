"""A task of fine-tuning, as a model knows it."""

import dataclasses
from typing import Literal

from plmjax import PlmjaxError
from plmjax.tasks import KINDS


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of fine-tuning.

    `labels` names the classes, labels or tags, or the choices of a row if they are the
    same everywhere; other kinds have none. `dropout` is that before the classifier;
    None: the default of the family's class. `pooling` combines the tokens' vectors into
    one of the text, in models without a head. `head_pooling` is what a head with one
    label per row reads: the first token, the mean of the tokens' states, or each token,
    with the mean of their scores (late).

    Raises:
      PlmjaxError: labels that do not suit the kind or are not distinct, a dropout
        outside [0, 1).
    """

    kind: str
    labels: tuple[str, ...] = ()
    dropout: float | None = None
    pooling: Literal["mean", "cls", "max"] = "mean"
    head_pooling: Literal["cls", "mean", "late"] = "cls"

    def __post_init__(self):
        count, kind = len(self.labels), KINDS[self.kind]
        if count < kind.least_labels or (count and not kind.labels_allowed):
            raise PlmjaxError(
                f"a task of kind {self.kind} has {count} labels; it needs "
                + (f"at least {kind.least_labels}." if kind.least_labels else "none."),
                hint="Check the labels in the data.",
            )
        if len(set(self.labels)) < len(self.labels):
            raise PlmjaxError(
                f"the labels of a task are not distinct: {', '.join(self.labels)}.",
                hint="Give each label one name.",
            )
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise PlmjaxError(
                f"the dropout of the classifier is {self.dropout}; it must be in "
                "[0, 1)."
            )

    @property
    def head(self) -> str | None:
        """The name of the head; None if the model is only an encoder."""
        return KINDS[self.kind].head

    @property
    def outputs(self) -> int:
        """The number of scores per row, token or choice."""
        return KINDS[self.kind].outputs(self.labels)
