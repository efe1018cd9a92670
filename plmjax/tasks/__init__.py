"""Kinds of fine-tuning tasks, one file each; all other code asks `KINDS[kind]`."""

from plmjax.tasks.answers import Answers
from plmjax.tasks.base import TaskKind
from plmjax.tasks.choices import Choices
from plmjax.tasks.classes import Classes
from plmjax.tasks.embeddings import Embeddings
from plmjax.tasks.multilabel import Multilabel
from plmjax.tasks.regression import Regression
from plmjax.tasks.tags import Tags

KINDS: dict[str, TaskKind] = {
    kind.name: kind
    for kind in (
        Classes(),
        Multilabel(),
        Regression(),
        Tags(),
        Answers(),
        Choices(),
        Embeddings(),
    )
}
