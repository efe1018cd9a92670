"""Predictions of a fine-tuned model: scores of rows, joined and read by example.

Legend: B rows, L tokens a row, n examples, C labels or choices.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from plmjax import PlmjaxError
from plmjax.data.features import Features
from plmjax.data.labelled import Example
from plmjax.data.task_batches import batches_in_order
from plmjax.data.tasks import TaskConfig
from plmjax.metrics.entities import has_entities
from plmjax.metrics.gain import LOWER_IS_BETTER, task_scores
from plmjax.metrics.retrieval import find_pairs
from plmjax.models import EncoderConfig, Platform
from plmjax.models.task_heads import Task, task_logits
from plmjax.train import sharding

# The prediction for an example: [C] probabilities; for tags [words, C]; for regression
# the number [1]; for answers {(first character, end): probability}; for embeddings
# retrieval.Found.
Said = Any
NO_ANSWER = (-1, -1)
_BEST = 20  # candidate answers, as usual for SQuAD


def make_predict(
    encoder: EncoderConfig,
    task: Task,
    mesh: jax.sharding.Mesh,
    merge: Callable[[dict, Any], dict] = lambda params, frozen: params,
) -> Callable:
    """Returns the jitted (params, frozen, batch) -> scores of all rows, replicated.

    `merge` converts trained parameters (LoRA) to those of the plain model.
    """

    platform = Platform.of(mesh.devices.flat)

    def predict(params, frozen, batch):
        whole = merge(params, frozen)
        return task_logits(encoder, task, whole, batch, None, platform=platform)

    return jax.jit(predict, out_shardings=sharding.replicated(mesh))


def score_rows(
    predict: Callable,
    mesh: jax.sharding.Mesh,
    features: Features,
    batch: int,
    buckets: Sequence[int] = (),
    watched: Callable[[Iterator], Iterator] = iter,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (rows, their scores), each row once, in any order.

    predict(batch) is a jitted function; `watched` may stop before the last batch.
    """

    def mine(size: int) -> np.ndarray:
        return sharding.local_rows(mesh, size)

    waiting = None
    ordered = batches_in_order(features, batch, lengths=buckets, mine=mine)
    for rows, values in watched(ordered):
        found = rows, predict(sharding.put_rows(mesh, values))
        if waiting is not None:  # read while the device computes the next batch
            yield _real(*waiting)
        waiting = found
    if waiting is not None:
        yield _real(*waiting)


def _real(rows: np.ndarray, scores) -> tuple[np.ndarray, np.ndarray]:
    return rows[rows >= 0], np.asarray(jax.device_get(scores))[rows >= 0]


def put_together(
    config: TaskConfig,
    features: Features,
    examples: Sequence[Example],
    scored: Iterable[tuple[np.ndarray, np.ndarray]],
) -> list[Said]:
    """Returns the prediction for each example, from all its windows."""
    own = {"tags": _tags, "answers": _answers, "embeddings": _pairs}
    together = own.get(config.kind, _whole)
    return together(config, features, examples, scored)


def _softmax(scores: np.ndarray) -> np.ndarray:
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def _whole(config: TaskConfig, features: Features, examples, scored) -> list[Said]:
    """Returns predictions of the kinds with one output an example."""
    windows = np.bincount(features.example, minlength=len(examples))
    found: np.ndarray | None = None
    for rows, scores in scored:
        values = _PROBABILITIES.get(config.kind, _softmax)(scores.astype(np.float64))
        if found is None:
            start = -np.inf if config.pooling == "max" else 0.0
            found = np.full((len(examples), values.shape[1]), start)
        owner = features.example[rows]
        if config.pooling == "mean":
            np.add.at(found, owner, values / windows[owner, None])
        elif config.pooling == "max":
            np.maximum.at(found, owner, values)
        else:
            first = np.searchsorted(features.example, owner) == rows
            found[owner[first]] = values[first]
    return [] if found is None else list(found)


_PROBABILITIES = {
    "multilabel": lambda scores: 1 / (1 + np.exp(-scores)),
    "regression": lambda scores: scores,
}


def _tags(config: TaskConfig, features: Features, examples, scored) -> list[Said]:
    """Returns probabilities of each word from its row; nan for words that were cut."""
    assert features.word is not None
    found: list[np.ndarray] | None = None
    for rows, scores in scored:
        if found is None:
            classes = scores.shape[-1]
            found = [np.full((len(e.texts), classes), np.nan) for e in examples]
        word = features.word[rows, : scores.shape[1]]
        place, column = np.nonzero(word >= 0)
        values = _softmax(scores[place, column].astype(np.float64))
        owners = features.example[rows[place]]
        for owner, at, value in zip(owners, word[place, column], values, strict=True):
            found[owner][at] = value
    return found or []


def _pairs(config: TaskConfig, features: Features, examples, scored) -> list[Said]:
    """Returns each text's retrieval result: its pair's rank among all examples."""
    found: np.ndarray | None = None
    seen = 0
    for rows, vectors in scored:
        if found is None:
            found = np.empty((len(examples), *vectors.shape[1:]), np.float32)
        found[features.example[rows]] = vectors
        seen += len(rows)
    if found is None or seen < features.rows:
        return []  # stopped early
    return find_pairs(found, features.arrays["label"], config.temperature)


def _answers(config: TaskConfig, features: Features, examples, scored) -> list[Said]:
    """Returns the best spans of all windows; "no answer" has its lowest score."""
    assert features.spans is not None
    heard: list[dict] = [{} for _ in examples]
    none = np.full(len(examples), np.inf)
    for rows, scores in scored:
        for row, ends in zip(rows, scores.astype(np.float64), strict=True):
            owner = features.example[row]
            none[owner] = min(none[owner], ends[0].sum())
            spans = features.spans[row, : len(ends)]
            for value, begin, end in _stretches(ends, spans, config.max_answer_tokens):
                held = heard[owner].get((begin, end), -np.inf)
                heard[owner][begin, end] = max(held, value)
    found = []
    for own, nothing in zip(heard, none, strict=True):
        if not np.isfinite(nothing):
            continue  # stopped before the windows of this example
        best = sorted(own, key=own.__getitem__, reverse=True)[:_BEST]
        # Without any span, as in an empty context, "no answer" is the only candidate.
        places = [*best, NO_ANSWER] if config.unanswerable or not best else best
        values = np.array([own.get(place, nothing) for place in places])
        found.append(dict(zip(places, _softmax(values).tolist(), strict=True)))
    return found


def _stretches(ends: np.ndarray, spans: np.ndarray, most: int) -> Iterator[tuple]:
    """Yields (score, first character, end) of the best answer spans."""
    context = np.flatnonzero(spans[:, 0] >= 0)
    if not len(context):
        return
    sums = ends[context, 0][:, None] + ends[context, 1][None, :]
    place = np.arange(len(context))
    apart = place[None, :] - place[:, None]
    sums = np.where((apart >= 0) & (apart < most), sums, -np.inf)
    flat = sums.ravel()
    count = min(_BEST, len(flat))
    for index in np.argpartition(-flat, count - 1)[:count]:
        first, last = divmod(int(index), len(context))
        begin, end = spans[context[first], 0], spans[context[last], 1]
        if np.isfinite(flat[index]) and end > begin:
            yield flat[index], int(begin), int(end)


def mean_of(several: Sequence[Sequence[Said]]) -> list[Said]:
    """Returns the mean of several models' predictions for the same examples."""
    return [_mean(own) for own in zip(*several, strict=True)]


def _mean(own: Sequence[Said]) -> Said:
    if not isinstance(own[0], Mapping):
        return np.mean(own, axis=0)
    total: dict = collections.defaultdict(float)
    for said in own:
        for place, value in said.items():
            total[place] += value / len(own)
    return dict(total)


def read(
    config: TaskConfig,
    labels: Sequence[str],
    examples: Sequence[Example],
    said: Sequence[Said],
) -> list[Any]:
    """Returns each example's label: a name, names, number, tags, text, choice or rank.

    A word that was cut has the tag O, or the first tag if there is no O.
    """
    own = _READ[config.kind]
    return [
        own(labels, example, one) for example, one in zip(examples, said, strict=True)
    ]


def _read_tags(labels, example, said) -> tuple[str, ...]:
    default = labels.index("O") if "O" in labels else 0
    cut = np.isnan(said[:, 0])
    best = np.where(cut, default, np.where(cut[:, None], 0, said).argmax(-1))
    return tuple(labels[place] for place in best)


def best_answer(example: Example, said: Mapping) -> tuple[str, float, int]:
    """Returns the likeliest answer, its probability and start; "" and -1 for none."""
    (begin, end), value = max(said.items(), key=lambda item: item[1])
    if (begin, end) == NO_ANSWER:
        return "", value, -1
    return example.texts[1][begin:end], value, begin


_READ: dict[str, Callable[[Sequence[str], Example, Said], Any]] = {
    "classes": lambda labels, example, said: labels[int(said.argmax())],
    "multilabel": lambda labels, example, said: tuple(
        label for label, value in zip(labels, said, strict=True) if value > 0.5
    ),
    "regression": lambda labels, example, said: float(said[0]),
    "tags": _read_tags,
    "answers": lambda labels, example, said: best_answer(example, said)[0],
    "choices": lambda labels, example, said: int(said.argmax()),
    "embeddings": lambda labels, example, said: said.rank,
}


def scores_of(
    config: TaskConfig,
    labels: Sequence[str],
    truth: Sequence[Any],
    predicted: Sequence[Any],
) -> dict[str, float]:
    """Returns all scores of predictions.

    Both have the form of Example.label, but predicted answers are texts.
    """
    by_characters = config.compare_answers == "characters"
    return task_scores(
        config.kind, truth, predicted, labels, by_characters=by_characters
    )


def usual_metric(config: TaskConfig, labels: Sequence[str]) -> str:
    """Returns the usual metric of a kind of task."""
    if config.kind == "tags":
        return "entity_f1" if has_entities(labels) else "tag_accuracy"
    return {
        "multilabel": "f1_micro",
        "regression": "pearson",
        "answers": "f1",
        "embeddings": "mrr",
    }.get(config.kind, "accuracy")


def metrics_of(
    config: TaskConfig, labels: Sequence[str], truth: Sequence[Any]
) -> list[str]:
    """Returns the names of the scores that a task has, loss among them."""
    # The names are those of scoring the truth as a prediction.
    said = list(truth)
    if config.kind == "answers":
        said = [own[0][0] if own else "" for own in truth]
    return [*scores_of(config, labels, truth, said), "loss"]


def check_metric(
    config: TaskConfig, labels: Sequence[str], truth: Sequence[Any], metric: str
) -> None:
    """Raises PlmjaxError for a score that the task does not have."""
    known = metrics_of(config, labels, truth)
    if metric not in known:
        raise PlmjaxError(
            f"select.metric={metric} is no score of this task.",
            hint=f"It has {', '.join(known)}.",
        )


def rank(metric: str, scores: Mapping[str, float]) -> float:
    """Returns a number that is lower for better scores; nan for an undefined score."""
    value = scores[metric]
    return value if metric in ("loss", *LOWER_IS_BETTER) else -value
