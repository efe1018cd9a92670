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
from plmjax.data.labelled import Example, Labelled, check_labels
from plmjax.evaluate import predictions
from plmjax.evaluate.predictions import Said
from plmjax.files import write_file
from plmjax.finetune.added import Added

# {kind with pseudo-labels: field of its labels in a record}.
KINDS = {"classes": "label", "multilabel": "labels", "tags": "tags"}
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
    if kind in KINDS:
        return
    why = {
        "regression": "a number comes without a probability, so that none could be "
        "left out as unsure",
        "answers": "an answer's probability is one among its own context's stretches, "
        "and is not comparable between contexts",
        "choices": "a choice's probability is one among its own example's choices, "
        "and is not comparable between examples",
        "embeddings": "there are no labels, and a place among candidates is no "
        "probability",
    }[kind]
    raise PlmjaxError(
        f"there are no pseudo-labels for task.kind={kind}: {why}.",
        hint=f"They are for {', '.join(KINDS)}.",
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


def confidence(kind: str, said: Said) -> float:
    """Returns the confidence of the least certain part of a label, in [0, 1].

    classes: the highest probability; multilabel: that of yes or no, for the label where
    it is lowest; tags: the highest, for the word where it is lowest (without words that
    were cut; 0 if all were).
    """
    said = np.asarray(said)
    if kind == "multilabel":
        return float(np.maximum(said, 1 - said).min())
    if kind == "tags":
        sure = said.max(-1)
        return 0.0 if np.isnan(sure).all() else float(np.nanmin(sure))
    return float(said.max())


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
    predicted: Sequence[Said],
    rate: float,
    seed: int,
) -> Drawn:
    """Returns a sample of pseudo-label records, from the pool's predictions."""
    kind = data.config.kind
    labels = predictions.read(data.config, data.labels, pool.examples, predicted)
    sure = [confidence(kind, prediction) for prediction in predicted]
    kept = [n for n, value in enumerate(sure) if value >= settings.threshold]
    strata, shares = ["" for _ in kept], None
    if kind == "classes":
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
    kind: str, example: Example, label: Any, sure: float, said: Said, settings
) -> dict[str, Any]:
    record: dict[str, Any] = {"id": example.id, "where": example.where}
    if kind == "tags":
        record["tokens"] = list(example.texts)
    else:
        record |= zip(("text", "pair"), example.texts, strict=False)
    record[KINDS[kind]] = label if kind == "classes" else list(label)
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
    examples, soft = [], []
    try:
        # Not splitlines, as JSON strings may hold other line separators.
        for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n"):
            record = json.loads(line)
            label = record[KINDS[kind]]
            names = [record[n] for n in ("text", "pair") if n in record]
            texts = tuple(record["tokens"] if kind == "tags" else names)
            label = label if kind == "classes" else tuple(label)
            unit = "\0".join(texts)
            examples.append(Example(record["id"], record["where"], texts, label, unit))
            if settings.soft:
                shape = (len(texts), classes) if kind == "tags" else (classes,)
                values = np.array(record["probabilities"], np.float64)
                soft.append(values.reshape(shape))
    except (ValueError, KeyError, TypeError) as error:
        raise PlmjaxError(
            f"{path} is no file of pseudo-labels: {error!r}.",
            hint="Remove it to have it made again.",
            code=Exit.DATA,
        ) from error
    check_labels(examples, data.labels, str(path))
    probabilities = tuple(soft) if settings.soft else None
    return Added(tuple(examples), probabilities, settings.weight)
