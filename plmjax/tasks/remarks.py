"""Lines on labelled data that a user should see before training: what may be wrong."""

import collections
import unicodedata
from collections.abc import Iterable, Iterator

from plmjax.tasks import KINDS
from plmjax.tasks.base import shortened
from plmjax.tasks.labelled import Labelled


def remarks(data: Labelled) -> Iterator[str]:
    """Yields the readers' notes, and lines on the labels and on repeated examples."""
    yield from data.notes
    kind = KINDS[data.config.kind]
    splits = {"train": data.train, "held_out": data.held_out, "test": data.test}
    yield from kind.notes(data.labels, splits)
    yield from _alike(data.labels)
    counts = collections.Counter(
        name for example in data.train for name in kind.names(example.label)
    )
    for count, what in ((0, "not in"), (1, "only once in")):
        rare = [label for label in data.labels if counts[label] == count]
        if rare:
            yield f"Labels that are {what} train: {len(rare):,} ({shortened(rare)})."
    texts = {example.texts for example in data.train}
    for split in ("held_out", "test"):
        same = sum(example.texts in texts for example in splits[split])
        if same:
            yield (
                f"Examples of {split} that are also in train: {same:,} of "
                f"{len(splits[split]):,}; their scores do not show what was learned."
            )


def _alike(labels: Iterable[str]) -> Iterator[str]:
    """Yields a line on labels that differ only in capitals, blanks or Unicode form."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        key = "".join(unicodedata.normalize("NFKC", label).casefold().split())
        groups.setdefault(key, []).append(label)
    alike = [" and ".join(map(repr, group)) for group in groups.values() if group[1:]]
    if alike:
        yield (
            f"Labels that differ only in spelling: {len(alike):,} "
            f"({shortened(alike)}); each spelling is learned as its own label."
        )
