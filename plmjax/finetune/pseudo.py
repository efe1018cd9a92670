"""Pseudo-labels: what a model says of unlabelled texts, where it is sure, as labels.

Nothing here trains: pools of texts, confidence, which are drawn, and their file.
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

# The kinds with labels that a model can be sure of, and where a record has them.
KINDS = {"classes": "label", "multilabel": "labels", "tags": "tags"}
_DIGITS = 6  # of a probability: float32 has no more


@dataclasses.dataclass(frozen=True)
class PseudoConfig(Block, prefix="--"):
    """Which pseudo-labels are trained on, and how."""

    # The least confidence.
    threshold: float = number(0.9, at_least=0, at_most=1, hint=".9 is usual.")
    # Probabilities are learned in place of the labels that they make likeliest.
    soft: bool = False
    # Of one in the loss, where a labelled example counts 1.
    weight: float = number(1.0, above=0)
    # classes. labelled: no label has a larger share of all that are kept than it has of
    # the labelled examples; kept: as they come.
    proportions: Literal["labelled", "kept"] = "labelled"


def check_kind(kind: str) -> None:
    """Raises PlmjaxError for a kind of task that has no pseudo-labels here."""
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


# --- which unlabelled texts may be used


@dataclasses.dataclass(frozen=True)
class Pool:
    """Unlabelled examples that may be labelled, and why others were left out.

    `left_out` counts by what they are the same as: test, held_out, train, or one
    before (repeated).
    """

    examples: tuple[Example, ...]
    left_out: dict[str, int]


def _same(example: Example) -> str:
    """Returns what two examples share that say the same, but for case and blanks."""
    return "\0".join(" ".join(text.casefold().split()) for text in example.texts)


def make_pool(unlabelled: Sequence[Example], data: Labelled, grouped: bool) -> Pool:
    """Leaves out texts that are labelled already, or that scores are taken on.

    With `grouped`, all of a group is left out of which there is one held out.
    """
    seen, units = {}, {}
    for split in ("train", "held_out", "test"):  # the last one has the say
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


# --- which labels are taken


def confidence(kind: str, said: Said) -> float:
    """Returns how sure the least sure part of a label is, in [0, 1].

    classes: the highest probability; multilabel: that of yes or no, of the label where
    it is lowest; tags: the highest, of the word where it is lowest (words that were cut
    apart; 0 if all were).
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
    """Returns which candidates are drawn: a share `rate` of each stratum, in order.

    A candidate's rank in its stratum hashes the seed and its name, so that those drawn
    at a lower rate are drawn at each higher one. With `shares`, a stratum enters with
    no more than its share of all candidates.
    """
    groups = collections.defaultdict(list)
    for place, stratum in enumerate(strata):
        groups[stratum].append(place)
    drawn: list[int] = []
    for stratum, places in groups.items():
        most: float = len(places)
        if shares is not None:
            most = min(most, shares.get(stratum, 0.0) * len(strata))
        places.sort(key=lambda place: _rank(str(names[place]), seed))
        drawn += places[: math.floor(rate * most + 0.5)]
    return sorted(drawn)


def _rank(name: str, seed: int) -> bytes:
    text = f"{seed}\0{name}".encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What came of one labelling: how many were sure enough, and the records drawn."""

    kept: int
    records: list[dict[str, Any]]


def choose(
    settings: PseudoConfig,
    data: Labelled,
    pool: Pool,
    said: Sequence[Said],
    rate: float,
    seed: int,
) -> Drawn:
    """Returns records of the pseudo-labels to train on; `said` is of the pool."""
    kind = data.config.kind
    found = predictions.read(data.config, data.labels, pool.examples, said)
    sure = [confidence(kind, own) for own in said]
    kept = [place for place, own in enumerate(sure) if own >= settings.threshold]
    strata, shares = ["" for _ in kept], None
    if kind == "classes":
        strata = [found[place] for place in kept]
        if settings.proportions == "labelled":
            counts = collections.Counter(example.label for example in data.train)
            shares = {name: n / len(data.train) for name, n in counts.items()}
    names = [_same(pool.examples[place]) for place in kept]
    drawn = [kept[n] for n in draw(strata, names, rate, seed, shares)]
    records = [
        _record(
            kind,
            pool.examples[n],
            found[n],
            sure=sure[n],
            said=said[n],
            settings=settings,
        )
        for n in drawn
    ]
    return Drawn(len(kept), records)


# --- as a file that a person can read


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
        # A word that was cut is never learned, whatever stands here.
        values = np.nan_to_num(np.asarray(said, np.float64)).round(_DIGITS)
        record["probabilities"] = values.tolist()
    return record


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes a record a line; the file appears whole or not at all."""
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_file(path, "".join(lines).encode())


def read_added(path: Path, data: Labelled, settings: PseudoConfig) -> Added:
    """Returns the examples of a file that write_records wrote.

    Raises:
      PlmjaxError: it was changed into something else.
    """
    kind, classes = data.config.kind, len(data.labels)
    examples, soft = [], []
    try:
        # Not splitlines: JSON may hold other ends of lines as they are.
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
