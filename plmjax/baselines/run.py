"""Simple baselines, before any training of an encoder: is it worth its price?

Each is fitted on train alone and predicts other examples, without chance: the same
data give the same predictions. What a kind of task has no baseline for is said.
"""

import collections
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import Exit, PlmjaxError
from plmjax.baselines.linear import (
    Featurise,
    Log,
    Predict,
    fit_linear,
)
from plmjax.baselines.probe import probe_features
from plmjax.baselines.static_vectors import (
    StaticVectors,
    from_file,
    from_model,
    static_features,
)
from plmjax.baselines.text_features import (
    most_frequent,
    tfidf,
    tfidf_vectors,
    usual_tags,
    word_features,
)
from plmjax.data.labelled import Example, Labelled
from plmjax.evaluate.model import Model
from plmjax.metrics.comparison import SAME, Comparison
from plmjax.metrics.gain import gain, task_scores, worth
from plmjax.metrics.retrieval import rank_by

_TIMED = 50  # examples whose latency is measured


@dataclasses.dataclass(frozen=True)
class Baseline:
    """What a baseline predicts, a value an example, and how well and how fast.

    A prediction has the form of `Example.label`; of answers it is the text, "" for
    none. `milliseconds` is the median time of one example alone, read and predicted.
    """

    name: str
    predictions: list
    scores: dict[str, float]
    milliseconds: float


def run_baselines(
    labelled: Labelled,
    examples: Sequence[Example],
    model: Model | None = None,
    vectors: str | Path | None = None,
    log: Log = lambda line: None,
) -> list[Baseline]:
    """Fits all baselines that the task has on train, and scores them on `examples`.

    With a model its token table and a linear probe of its encoder are among them, with
    `vectors`, a word2vec file, its vectors. `log` gets a line of each, and what is left
    out.

    Raises:
      PlmjaxError: no examples; vectors that cannot be read or are of other words; a
        task whose rows are longer than the model's positions.
    """
    if not examples:
        raise PlmjaxError(
            "there are no examples to score baselines on.",
            hint="Give task.held_out or task.test.",
            code=Exit.DATA,
        )
    kind, labels = labelled.config.kind, labelled.labels
    truth = [example.label for example in examples]
    found = []
    for name, fit in _baselines(labelled, examples, model, vectors, log):
        begin = time.perf_counter()
        predict = fit()
        predictions = predict(examples)
        scores = task_scores(kind, truth, predictions, labels)
        seconds = time.perf_counter() - begin
        log(f"  {name}: fitted and scored in {seconds:.1f} s")
        found.append(Baseline(name, predictions, scores, _latency(predict, examples)))
    return found


def _latency(predict: Predict, examples: Sequence[Example]) -> float:
    """Returns the median milliseconds of one example, the second time it is seen."""
    places = np.linspace(0, len(examples) - 1, min(_TIMED, len(examples)))
    some = [[examples[round(place)]] for place in places]
    for one in some:  # compiles what has to be compiled
        predict(one)
    times = []
    for one in some:
        begin = time.perf_counter()
        predict(one)
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


Fit = Callable[[], Predict]


def _baselines(
    labelled: Labelled, examples: Sequence[Example], model, vectors, log: Log
) -> Iterator[tuple[str, Fit]]:
    """Yields the name of each baseline of the task, and what fits it."""
    kind, labels, train = labelled.config.kind, labelled.labels, labelled.train

    def linear(featurise: Callable[[], Featurise]) -> Fit:
        return lambda: fit_linear(kind, labels, train, featurise(), log)

    def static(vectors: StaticVectors) -> Fit:
        return linear(lambda: static_features(kind, vectors))

    if kind != "embeddings":
        yield "majority", lambda: majority(kind, labels, train)
    if kind == "answers":
        log("  answers have no other baseline: words and vectors mark no stretch")
        return
    if kind == "embeddings":
        yield from _vectors(labelled, examples, model, vectors, log)
        return
    model_of = "ridge" if kind == "regression" else "logistic regression"
    if kind == "tags":
        yield "usual tag of a word", lambda: usual_tags(labels, train)
        yield f"word features + {model_of}", linear(lambda: word_features(train))
    else:
        yield f"TF-IDF + {model_of}", linear(lambda: tfidf(kind, train))
    if vectors is not None:
        found, share = from_file(vectors, kind, [*train, *examples])
        log(f"  {share:.1%} of the words have a vector in {vectors}")
        yield f"{found.name} + {model_of}", static(found)
    if model is None:
        log("  no model is given, so its token table and a probe of it are left out")
        return
    yield f"token table + {model_of}", static(from_model(model))
    yield "linear probe", linear(lambda: probe_features(labelled.config, model))


def _vectors(
    labelled: Labelled, examples: Sequence[Example], model, vectors, log: Log
) -> Iterator[tuple[str, Fit]]:
    """Vectors of texts by which a text's pair is the nearest, or is not."""
    yield "TF-IDF", lambda: rank_by(tfidf_vectors(labelled.train))
    if vectors is not None:
        found, share = from_file(vectors, "embeddings", [*labelled.train, *examples])
        log(f"  {share:.1%} of the words have a vector in {vectors}")
        yield f"mean of {found.name}", lambda: rank_by(found.texts)
    if model is None:
        log("  no model is given, so its token table and its states are left out")
        return
    yield "mean of the token table", lambda: rank_by(from_model(model).texts)
    featurise = probe_features(labelled.config, model)

    def states(texts: Sequence[str]) -> np.ndarray:
        return featurise([Example("", "", (text,), None, text) for text in texts])

    yield "mean of its states, untrained", lambda: rank_by(states)


def majority(kind: str, labels: Sequence[str], train: Sequence[Example]) -> Predict:
    """Predicts the same whatever the text is.

    The most frequent class or tag (of equals the first), the labels that more than half
    have, the mean, no answer; the most frequent choice, or where an example does not
    have so many, the first.
    """
    if kind == "answers":
        return lambda examples: [""] * len(examples)
    if kind == "regression":
        mean = float(np.mean([example.label for example in train]))
        return lambda examples: [mean] * len(examples)
    several = kind in ("multilabel", "tags")
    names = [n for e in train for n in (e.label if several else [e.label])]
    counts = collections.Counter(names)
    if kind == "multilabel":
        often = tuple(n for n in labels if counts[n] > len(train) / 2)
        return lambda examples: [often] * len(examples)
    best = most_frequent(counts, labels if kind != "choices" else sorted(counts))
    if kind == "classes":
        return lambda examples: [best] * len(examples)
    if kind == "tags":
        return lambda examples: [(best,) * len(e.texts) for e in examples]
    return lambda examples: [best if best < len(e.texts) - 1 else 0 for e in examples]


# --- what is printed


def best_of(baselines: Sequence[Baseline], metric: str) -> Baseline:
    """Returns the best by a metric, of equals the first."""
    return max(baselines, key=lambda one: worth(metric, one.scores[metric]))


def table(baselines: Sequence[Baseline], metric: str) -> list[str]:
    """Returns lines: each baseline, its score, the milliseconds of one example."""
    wide = max(len(one.name) for one in baselines)
    lines = [f"{'baseline':{wide}}  {metric:>{max(len(metric), 8)}}  ms an example"]
    for one in baselines:
        score = f"{one.scores[metric]:.4f}"
        lines.append(
            f"{one.name:{wide}}  {score:>{max(len(metric), 8)}}"
            f"  {one.milliseconds:13.3f}"
        )
    return lines


def gain_lines(
    kind: str,
    metric: str,
    truth: Sequence[Any],
    ours: Sequence[Any],
    baselines: Sequence[Baseline],
    labels: Sequence[str],
) -> list[str]:
    """Returns the table, and what a model gains over the best of the baselines.

    Raises:
      PlmjaxError: what `gain` raises.
    """
    best = best_of(baselines, metric)
    found = gain(kind, metric, truth, ours=ours, theirs=best.predictions, labels=labels)
    score = task_scores(kind, truth, ours, labels)[metric]
    return [*table(baselines, metric), _verdict(found, metric, score, best)]


def _verdict(found: Comparison, metric: str, score: float, best: Baseline) -> str:
    what = f"{found.difference:+.4f}"
    interval = f"95 % interval {found.low:.4f} to {found.high:.4f}"
    theirs = f"{best.name}, {best.scores[metric]:.4f}"
    if found.verdict == SAME:
        why = "which holds 0" if found.low <= 0 <= found.high else "of too few texts"
        return (
            f"the model ({metric} {score:.4f}) is NOT distinguishable from the best of "
            f"them ({theirs}): {what} ({interval}, {why})"
        )
    if found.difference < 0:
        return (
            f"the model ({metric} {score:.4f}) is WORSE than the best of them "
            f"({theirs}): {what} ({interval})"
        )
    return (
        f"the model's gain over the best of them ({theirs}; its own {metric} is "
        f"{score:.4f}): {what} ({interval})"
    )
