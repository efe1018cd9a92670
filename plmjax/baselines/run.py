"""Simple models, fitted before an encoder is trained, to compare it with.

Each is fitted only on train and predicts other examples deterministically: the same
data give the same predictions.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import DataError
from plmjax.baselines.linear import Featurise, Log, fit_linear
from plmjax.baselines.probe import probe_features
from plmjax.baselines.static_vectors import (
    StaticVectors,
    from_file,
    from_model,
    static_features,
)
from plmjax.baselines.text_features import (
    tfidf,
    tfidf_vectors,
    usual_tags,
    word_features,
)
from plmjax.baselines.watch import OutOfTime, Watch
from plmjax.data.examples import Example
from plmjax.evaluate.latency import measure
from plmjax.evaluate.model import Model
from plmjax.metrics.comparison import SAME, Comparison
from plmjax.metrics.retrieval import Vectors, rank_pairs
from plmjax.tasks import KINDS
from plmjax.tasks.base import Predict
from plmjax.tasks.config import TaskConfig
from plmjax.tasks.labelled import Labelled
from plmjax.tasks.scores import cost, defined, gain

_TIMED = 50  # examples whose latency is measured


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A simple model's predictions, one an example, their scores, and its speed.

    Predictions have the form of `read` of the kind of task. `milliseconds` is the
    median time of one example alone, read and predicted.
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
    *,
    watch: Watch | None = None,
) -> list[Baseline]:
    """Fits the simple models of the task on train, and scores them on `examples`.

    Some need a model (its token table, its states), or `vectors`, a word2vec file.
    `log` gets a line for each, and for those that are left out. `watch` limits the
    time, and keeps the names of those that would take longer.

    Raises:
      PlmjaxError: no examples; vectors that cannot be read or are of other words; rows
        longer than the model's positions.
    """
    if not examples:
        raise DataError(
            "there are no examples to score baselines on.",
            hint="Give task.held_out or task.test.",
        )
    kind, labels = KINDS[labelled.config.kind], labelled.labels
    truth = [example.label for example in examples]
    baselines, watch = [], watch or Watch()
    for name, fit in _baselines(labelled, examples, model, vectors, log, watch=watch):
        begin = time.perf_counter()
        watch.begin(name)
        try:
            watch.need()
            predict = fit()
            predictions = predict(examples)
        except OutOfTime:
            watch.left_out.append(name)
            log(f"  {name}: left out, as it would end after {watch.seconds:g} s")
            continue
        watch.begin(None)
        scores = kind.scores(truth, predictions, labels, labelled.config)
        seconds = time.perf_counter() - begin
        log(f"  {name}: fitted and scored in {seconds:.1f} s")
        milliseconds = _latency(predict, examples)
        baselines.append(Baseline(name, predictions, scores, milliseconds))
    return baselines


def _latency(predict: Predict, examples: Sequence[Example]) -> float:
    """Returns the median milliseconds of one example, the second time it is read."""
    indices = np.linspace(0, len(examples) - 1, min(_TIMED, len(examples)))
    some = [[examples[round(index)]] for index in indices]
    calls = [functools.partial(predict, one) for one in some]
    return measure(calls, rounds=1).median_ms


Fit = Callable[[], Predict]


def _baselines(
    labelled: Labelled, examples, model, vectors, log: Log, *, watch: Watch
) -> Iterator[tuple[str, Fit]]:
    """Yields the name of each simple model of the task, and what fits it."""
    kind = KINDS[labelled.config.kind]
    labels, train = labelled.labels, labelled.train

    def linear(featurise: Callable[[], Featurise]) -> Fit:
        return lambda: fit_linear(kind, labels, train, featurise(), log, watch=watch)

    def static(vectors: StaticVectors) -> Fit:
        return linear(lambda: static_features(kind, vectors))

    if kind.baselines == "vectors":
        yield from _vectors(labelled, examples, model, vectors, log, watch=watch)
        return
    yield "majority", lambda: kind.majority(labels, train)
    if kind.baselines == "none":
        log(f"  {kind.name} have no other baseline: words and vectors mark no stretch")
        return
    model_of = "ridge" if kind.linear == "ridge" else "logistic regression"
    if kind.baselines == "words":
        yield "usual tag of a word", lambda: usual_tags(labels, train)
        yield f"word features + {model_of}", linear(lambda: word_features(train))
    else:
        yield f"TF-IDF + {model_of}", linear(lambda: tfidf(kind, train))
    if vectors is not None:
        table, share = from_file(vectors, kind, [*train, *examples])
        log(f"  {share:.1%} of the words have a vector in {vectors}")
        yield f"{table.name} + {model_of}", static(table)
    if model is None:
        log("  no model is given, so its token table and a probe of it are left out")
        return
    yield f"token table + {model_of}", static(from_model(model))
    yield "linear probe", linear(lambda: probe_features(labelled.config, model, watch))


def _vectors(
    labelled: Labelled, examples, model, vectors, log: Log, *, watch: Watch
) -> Iterator[tuple[str, Fit]]:
    """Yields the models that rank a text's pair by the cosines of their vectors."""

    def ranks(vectors: Vectors) -> Predict:
        return lambda examples: rank_pairs([e.texts for e in examples], vectors)

    yield "TF-IDF", lambda: ranks(tfidf_vectors(labelled.train))
    if vectors is not None:
        kind = KINDS[labelled.config.kind]
        table, share = from_file(vectors, kind, [*labelled.train, *examples])
        log(f"  {share:.1%} of the words have a vector in {vectors}")
        yield f"mean of {table.name}", lambda: ranks(table.texts)
    if model is None:
        log("  no model is given, so its token table and its states are left out")
        return
    yield "mean of the token table", lambda: ranks(from_model(model).texts)
    featurise = probe_features(labelled.config, model, watch)

    def states(texts: Sequence[str]) -> np.ndarray:
        return featurise([Example("", "", (text,), None, text) for text in texts])

    yield "mean of its states, untrained", lambda: ranks(states)


# --- the comparison


def best_of(baselines: Sequence[Baseline], metric: str) -> Baseline:
    """Returns the best by a metric, the first of equal ones."""
    return min(
        baselines, key=lambda one: cost(metric, defined(metric, one.scores[metric]))
    )


def table(baselines: Sequence[Baseline], metric: str) -> list[str]:
    """Returns lines of a table: each model, its score, the milliseconds an example."""
    wide = max(len(one.name) for one in baselines)
    title = metric.replace("_", " ")
    width = max(len(title), 8)
    return [f"{'baseline':{wide}}  {title:>{width}}  ms an example"] + [
        f"{one.name:{wide}}  {one.scores[metric]:{width}.4f}  {one.milliseconds:13.3f}"
        for one in baselines
    ]


def gain_lines(
    kind: str,
    metric: str,
    truth: Sequence[Any],
    ours: Sequence[Any],
    baselines: Sequence[Baseline],
    labels: Sequence[str],
    config: TaskConfig | None = None,
) -> list[str]:
    """Returns the table, and a line on a model's gain over the best of the baselines.

    `config` has the options of the scores, if they are not the defaults.

    Raises:
      PlmjaxError: as `gain`.
    """
    best = best_of(baselines, metric)
    gained = gain(
        kind, metric, truth, ours, best.predictions, labels=labels, config=config
    )
    score = KINDS[kind].scores(truth, ours, labels, config)[metric]
    return [*table(baselines, metric), _verdict(gained, metric, score, best)]


def _verdict(gained: Comparison, metric: str, score: float, best: Baseline) -> str:
    interval = f"95 % interval {gained.low:.4f} to {gained.high:.4f}"
    theirs = f"{best.name}, {best.scores[metric]:.4f}"
    metric = metric.replace("_", " ")
    ours = f"The model ({metric} {score:.4f}) is"
    if gained.verdict == SAME:
        why = "which holds 0" if gained.low <= 0 <= gained.high else "of too few texts"
        text = f"{ours} NOT distinguishable from the best of them ({theirs})"
        interval = f"{interval}, {why}"
    elif gained.difference < 0:
        text = f"{ours} WORSE than the best of them ({theirs})"
    else:
        text = f"The model's gain over the best of them ({theirs}; its own {metric} is "
        text += f"{score:.4f})"
    return f"{text}: {gained.difference:+.4f} ({interval})"
