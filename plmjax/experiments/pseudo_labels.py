"""Pseudo-labels: confident predictions for unlabelled texts, used as labels.

Nothing here trains: pools of texts, confidence, sampling, and their file.
"""

import collections
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plmjax import Exit, PlmjaxError
from plmjax.config import Block, number
from plmjax.data.examples import Example
from plmjax.evaluate import predictions
from plmjax.files import write_file
from plmjax.finetune.added import Added
from plmjax.tasks import KINDS
from plmjax.tasks.base import Prediction
from plmjax.tasks.labelled import Labelled, check_labels

_DIGITS = 6  # of a probability: float32 has no more


@dataclasses.dataclass(frozen=True)
class PseudoConfig(Block, prefix="--"):
    """Which pseudo-labels are trained on, and how."""

    # The minimum confidence.
    threshold: float = number(0.9, at_least=0, at_most=1, hint=".9 is usual.")
    # Trains on the probabilities instead of the likeliest labels.
    soft: bool = False
    # Weight of a pseudo-label in the loss, where a labelled example has 1.
    weight: float = number(1.0, above=0)
    # classes. labelled: a label's share of all that are kept is at most its share of
    # the labelled examples; kept: no limit.
    proportions: Literal["labelled", "kept"] = "labelled"


def check_kind(kind: str) -> None:
    """Raises PlmjaxError for a kind of task without pseudo-labels."""
    if (reason := KINDS[kind].no_pseudo_labels) is not None:
        others = [name for name, kind in KINDS.items() if not kind.no_pseudo_labels]
        raise PlmjaxError(
            f"there are no pseudo-labels for task.kind={kind}: {reason}.",
            hint=f"They are for {', '.join(others)}.",
        )


# --- selection of unlabelled texts


@dataclasses.dataclass(frozen=True)
class Pool:
    """Unlabelled examples that may be labelled, and counts of those left out.

    `left_out` counts by the text they equal: of test, held_out, train, or an earlier
    unlabelled one (repeated).
    """

    examples: tuple[Example, ...]
    left_out: dict[str, int]


def _same(example: Example) -> str:
    """Returns an example's texts without differences of case and blanks."""
    return "\0".join(" ".join(text.casefold().split()) for text in example.texts)


def make_pool(unlabelled: Sequence[Example], data: Labelled, grouped: bool) -> Pool:
    """Leaves out texts that are labelled already, or that are used for scores.

    With `grouped`, a group with a held-out or test example is left out completely.
    """
    seen, units = {}, {}
    for split in ("train", "held_out", "test"):  # the last split overrides
        examples = getattr(data, split)
        seen |= dict.fromkeys(map(_same, examples), split)
        if grouped and split != "train":
            units |= dict.fromkeys((example.unit for example in examples), split)
    left_out: dict[str, int] = {"test": 0, "held_out": 0, "train": 0, "repeated": 0}
    kept = []
    for example in unlabelled:
        text = _same(example)
        why = seen.get(text) or units.get(example.unit)
        if why:
            left_out[why] += 1
            continue
        seen[text] = "repeated"
        kept.append(example)
    return Pool(tuple(kept), left_out)


# --- selection of labels


def draw(
    strata: Sequence[str],
    names: Sequence[str],
    rate: float,
    seed: int,
    shares: Mapping[str, float] | None = None,
) -> list[int]:
    """Returns the indices of a sample: a share `rate` of each stratum, in order.

    A candidate's rank in its stratum hashes the seed and its name, so that the sample
    of a lower rate is part of that of a higher one. With `shares`, a stratum is limited
    to its share of all candidates first.
    """
    groups = collections.defaultdict(list)
    for index, stratum in enumerate(strata):
        groups[stratum].append(index)
    drawn: list[int] = []
    for stratum, indices in groups.items():
        most: float = len(indices)
        if shares is not None:
            most = min(most, shares.get(stratum, 0.0) * len(strata))
        indices.sort(key=lambda index: _rank(str(names[index]), seed))
        drawn += indices[: math.floor(rate * most + 0.5)]
    return sorted(drawn)


def _rank(name: str, seed: int) -> bytes:
    text = f"{seed}\0{name}".encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The result of one labelling: the number of confident labels, and the sample."""

    kept: int
    records: list[dict[str, Any]]


def choose(
    settings: PseudoConfig,
    data: Labelled,
    pool: Pool,
    predicted: Sequence[Prediction],
    rate: float,
    seed: int,
) -> Drawn:
    """Returns a sample of pseudo-label records, from the pool's predictions."""
    kind = data.config.kind
    labels = predictions.read(data.config, data.labels, pool.examples, predicted)
    sure = [KINDS[kind].confidence(prediction) for prediction in predicted]
    kept = [n for n, value in enumerate(sure) if value >= settings.threshold]
    strata, shares = ["" for _ in kept], None
    if all(isinstance(label, str) for label in labels):
        strata = [labels[n] for n in kept]
        if settings.proportions == "labelled":
            counts = collections.Counter(example.label for example in data.train)
            shares = {name: n / len(data.train) for name, n in counts.items()}
    names = [_same(pool.examples[n]) for n in kept]
    drawn = [kept[n] for n in draw(strata, names, rate, seed, shares)]
    records = [
        _record(
            kind,
            pool.examples[n],
            labels[n],
            sure=sure[n],
            said=predicted[n],
            settings=settings,
        )
        for n in drawn
    ]
    return Drawn(len(kept), records)


# --- the file of records


def _record(
    kind: str, example: Example, label: Any, sure: float, said: Prediction, settings
) -> dict[str, Any]:
    record: dict[str, Any] = {"id": example.id, "where": example.where}
    if KINDS[kind].per_word:
        record["tokens"] = list(example.texts)
    else:
        record |= zip(("text", "pair"), example.texts, strict=False)
    record[KINDS[kind].label_key] = label if isinstance(label, str) else list(label)
    record["confidence"] = round(sure, _DIGITS)
    if settings.soft:
        # A word that was cut is not trained on, so its value does not matter.
        values = np.nan_to_num(np.asarray(said, np.float64)).round(_DIGITS)
        record["probabilities"] = values.tolist()
    return record


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes a record a line, atomically."""
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_file(path, "".join(lines).encode())


def read_added(path: Path, data: Labelled, settings: PseudoConfig) -> Added:
    """Returns the examples of a file that write_records wrote.

    Raises:
      PlmjaxError: the file was changed and is invalid.
    """
    kind, classes = data.config.kind, len(data.labels)
    words = KINDS[kind].per_word
    examples, soft = [], []
    try:
        # Not splitlines, as JSON strings may hold other line separators.
        for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n"):
            record = json.loads(line)
            label = record[KINDS[kind].label_key]
            names = [record[n] for n in ("text", "pair") if n in record]
            texts = tuple(record["tokens"] if words else names)
            label = label if isinstance(label, str) else tuple(label)
            unit = "\0".join(texts)
            examples.append(Example(record["id"], record["where"], texts, label, unit))
            if settings.soft:
                shape = (len(texts), classes) if words else (classes,)
                values = np.array(record["probabilities"], np.float64)
                soft.append(values.reshape(shape))
    except (ValueError, KeyError, TypeError) as error:
        raise PlmjaxError(
            f"{path} is no file of pseudo-labels: {error!r}.",
            hint="Remove it, and run the same command again.",
            code=Exit.DATA,
        ) from error
    check_labels(kind, examples, data.labels, str(path))
    probabilities = tuple(soft) if settings.soft else None
    return Added(tuple(examples), probabilities, settings.weight)
