"""The base class of the kinds of fine-tuning tasks.

Legend: B rows of a batch, L tokens a row, N rows of all examples, n examples, C
classes, labels or choices, U labelled units: rows [B], or tokens [B, L] if each word
has a label.
"""

import abc
import collections
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np

from plmjax import PlmjaxError
from plmjax.data.annotated import Notes
from plmjax.data.examples import Example
from plmjax.data.features import Features
from plmjax.data.layout import Layout, encode_texts, lay_out, plan_rows
from plmjax.tasks import losses
from plmjax.tasks.fields import Values, mark_entities, texts_of
from plmjax.tokenizers import Tokenizer

# The config asks the kinds, so they know it by its type alone.
if TYPE_CHECKING:
    from plmjax.tasks.config import TaskConfig
else:
    TaskConfig = Any

Examples = Sequence[Example]
Labels = Sequence[str]  # of a task, in order
# What a model predicts for an example, in the form that `decode` of the kind returns.
Prediction = Any
# What a simple model does: examples -> predictions in the form of labels.
Predict = Callable[[Examples], list]
# Scores of rows, batch by batch: (rows, scores [rows, ...]), each row once.
Scored = Iterable[tuple[np.ndarray, np.ndarray]]
TABLES = ("jsonl", "parquet", "datasets", "tfds")
# The code of a model card that runs a pipeline; a card ends it with the argument.
RUN = """\
run = pipeline("$pipeline", model=model, tokenizer=tokenizer)
print(run("""
_SHOWN = 8  # labels, kinds of entities or the like
_CONSTANTS = 20  # frequent labels that are tried as one answer for all
_DIGITS = 6  # of a probability: float32 has no more


class CardText(NamedTuple):
    """The texts of a model card.

    `objective` is what a model is trained by, `use` and `limit` are sentences. `code`
    uses the loaded model; it and `imports` are templates. `pipeline` is the name in
    transformers, if there is one.
    """

    pipeline: str | None
    objective: str
    use: str
    limit: str
    code: str
    imports: str = "from transformers import $names"


class TaskKind(abc.ABC):
    """All that distinguishes one kind of task from the others.

    The defaults are those of a task of one text or two with labels from a fixed set,
    and one vector of scores an example.
    """

    name: ClassVar[str]

    # --- records

    # Keys of ColumnsConfig that every example needs, the label last.
    fields: tuple[str, ...] = ("text", "label")
    formats: tuple[str, ...] = ("csv", "tsv", *TABLES)
    # Endings of files that mean another format for this kind.
    suffixes: Mapping[str, str] = {}
    # How few labels there may be; 0: a label is not one of a fixed set of names.
    least_labels = 2
    labels_allowed = True  # whether a Task may have labels
    per_word = False  # whether each word has a label, instead of each example
    unique_ids = False  # whether two examples may not have one id
    entities = False  # whether columns.entities marks two entities in the text
    negatives = False  # whether columns.negative is read
    poolings: tuple[str, ...] = ("mean", "max", "first")  # values of task.pooling
    # What a text alone lacks, if a line of a text file is no input for this kind.
    line_lacks: str | None = None

    def texts(
        self, values: Values, where: str, config: TaskConfig
    ) -> tuple[tuple[str, ...], str]:
        """Returns the texts of a record and their unit.

        Examples of one unit stay together in every split; `where` is file:line.

        Raises:
          PlmjaxError: the record is invalid.
        """
        columns = config.columns
        texts = texts_of(values, where, columns)
        # The unit is without markers, so that all relations of a text are one.
        unit = "\0".join(texts)
        if columns.entities is not None:
            marked = mark_entities(texts[0], values, where, config)
            texts = (marked, *texts[1:])
        return texts, unit

    @abc.abstractmethod
    def label(self, values: Values, where: str, config: TaskConfig) -> Any:
        """Returns the label of a record; `where` is file:line.

        Raises:
          PlmjaxError: the record is invalid.
        """

    def check_examples(
        self, examples: list[Example], config: TaskConfig, notes: Notes
    ) -> list[Example]:
        """Returns the examples of a split, with labels that depend on all of them.

        `notes` gets the positions, file:line, of what was changed.

        Raises:
          PlmjaxError: labels that cannot be meant.
        """
        del config, notes
        return examples

    def names(self, label: Any) -> tuple:
        """Returns the names in a label, of which the set of labels consists."""
        return (label,)

    @property
    def label_names(self) -> bool:
        """Whether a label is one of a fixed set of names, or several of them."""
        return self.least_labels > 0

    def find_labels(self, config: TaskConfig, train: Examples) -> tuple[str, ...]:
        """Returns the ordered labels: the config's, or the sorted labels of train."""
        if not self.label_names:
            return ()
        if config.labels is not None:
            return tuple(map(str, config.labels))
        names = {name for example in train for name in self.names(example.label)}
        numbers = all(re.fullmatch("-?[0-9]+", name) for name in names)
        return tuple(sorted(names, key=int if numbers else str))  # pyright: ignore

    def targets_of(self, train: Examples) -> set | None:
        """Returns the different targets, of which learning needs two; None: any do."""
        return {example.label for example in train}

    def check_split(self, examples: Examples, role: str) -> None:
        """Raises PlmjaxError if nothing can be scored on the held_out or test part."""
        del examples, role

    def complete(self, config: TaskConfig, train: Examples) -> TaskConfig:
        """Returns the config with the defaults that depend on the data."""
        del train
        return config

    # --- rows

    def rows(
        self, config: TaskConfig, examples: Examples, tokenizer: Tokenizer
    ) -> Features:
        """Returns rows of config.length tokens of the examples, without labels.

        Raises:
          PlmjaxError: the vocabulary cannot write a word or a marker.
        """
        if config.columns.entities is not None:
            _check_markers(config, tokenizer)
        streams = [
            encode_texts(tokenizer, texts)
            for texts in zip(*(example.texts for example in examples), strict=True)
        ]
        sizes = [stream.sizes for stream in streams]
        plan = plan_rows(sizes, tokenizer, config.length, config.window_stride)
        return features_of(lay_out(streams, plan, config.length, tokenizer), tokenizer)

    @abc.abstractmethod
    def label_array(
        self, features: Features, examples: Examples, labels: Labels
    ) -> np.ndarray:
        """Returns the array "label" of a batch: the labels of all rows [N, ...]."""

    # --- the model and its loss

    # One of models.task_heads; None: the model's vectors are the result.
    head: str | None = "sequence"
    # The key of transformers' config.json that distinguishes tasks of one head.
    problem_type: str | None = None
    smoothing = False  # whether the loss can smooth labels
    score_name = "accuracy"  # of `score`

    def outputs(self, labels: Labels) -> int:
        """Returns the number of scores per row, token or choice."""
        return len(labels)

    def has(self, batch: dict) -> Any:
        """Returns [U] bool: True with a label, False for filler rows."""
        return losses.is_labelled(batch)

    def loss(self, scores: Any, labels: Any, smoothing: float) -> Any:
        """Returns [U] float32 of the head's scores and batch["label"]."""
        return losses.cross_entropy(scores, labels, smoothing)

    def score(self, scores: Any, labels: Any) -> Any:
        """Returns [U] float32, what training reports beside the loss."""
        return losses.is_best(scores, labels)

    def divergence(self, p: Any, q: Any) -> Any:
        """Returns [U] float32: a symmetric divergence of two passes' scores."""
        return losses.symmetric_divergence(p, q)

    def soft_loss(self, scores: Any, teacher: Any, temperature: float) -> Any:
        """Returns [U] float32: the cross-entropy to a teacher's softened scores.

        Times the square of the temperature, so that gradients keep their size.
        """
        return losses.softened_cross_entropy(scores, teacher, temperature)

    # --- predictions

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Returns the prediction of each row from its scores [..., C] float64."""
        return softmax(scores)

    def decode(
        self, config: TaskConfig, features: Features, examples: Examples, scored: Scored
    ) -> list[Prediction]:
        """Returns the prediction for each example, from all its rows.

        Here [C], the probabilities of an example's windows, pooled.
        """
        windows = np.bincount(features.example, minlength=len(examples))
        pooled: np.ndarray | None = None
        for rows, scores in scored:
            values = self.probabilities(scores.astype(np.float64))
            if pooled is None:
                start = -np.inf if config.pooling == "max" else 0.0
                pooled = np.full((len(examples), values.shape[1]), start)
            owner = features.example[rows]
            if config.pooling == "mean":
                np.add.at(pooled, owner, values / windows[owner, None])
            elif config.pooling == "max":
                np.maximum.at(pooled, owner, values)
            else:
                first = np.searchsorted(features.example, owner) == rows
                pooled[owner[first]] = values[first]
        return [] if pooled is None else list(pooled)

    # Whether predictions of several models can be averaged.
    averages = True

    def mean(self, predictions: Sequence[Prediction]) -> Prediction:
        """Returns the mean of several models' predictions for one example."""
        return np.mean(predictions, axis=0)

    @abc.abstractmethod
    def read(self, labels: Labels, example: Example, prediction: Prediction) -> Any:
        """Returns a prediction in the form that `scores` reads, as a rule a label."""

    @abc.abstractmethod
    def record(
        self, labels: Labels, example: Example, label: Any, prediction: Prediction
    ) -> dict[str, Any]:
        """Returns the fields of a line of predictions; `label` is that of `read`."""

    def from_record(self, record: Mapping[str, Any]) -> Prediction | None:
        """Returns the prediction in a `record`; None if it holds only a part of it."""
        values = record["probabilities"]
        return np.array([*(values.values() if isinstance(values, dict) else values)])

    # --- scores of lists, one entry an example: labels, and what `read` returns

    metric = "accuracy"  # the usual score
    lower_is_better: tuple[str, ...] = ()
    undefined: tuple[str, ...] = ()  # scores without a value for constant predictions

    @abc.abstractmethod
    def scores(
        self,
        truth: Sequence[Any],
        predicted: Sequence[Any],
        labels: Labels,
        config: TaskConfig | None = None,
    ) -> dict[str, float]:
        """Returns all scores by name; without a config, with its default options."""

    def usual_metric(self, labels: Labels) -> str:
        """Returns the name of the usual score for these labels."""
        del labels
        return self.metric

    def correct(self, label: Any) -> Any:
        """Returns the best prediction for an example with this label."""
        return label

    def each(
        self, metric: str, labels: Labels, config: TaskConfig | None = None
    ) -> Callable[[list, list], np.ndarray] | None:
        """Returns (truth, predicted) -> values [n] of which a score is the mean.

        More is better. None: the score is no mean over examples.
        """
        del metric, labels, config

    def counts(
        self, metric: str, truth: Sequence[Any], labels: Labels
    ) -> tuple[Callable[[list], np.ndarray], Callable[[np.ndarray], float]] | None:
        """Returns predicted -> counts [n, ...], and sum of counts -> score.

        None: the score is not a function of such sums.
        """
        del metric, truth, labels

    # --- simple models, for comparison

    # What they are fitted on: features of texts or of words, only the similarity of the
    # vectors of texts, or nothing.
    baselines: Literal["texts", "words", "vectors", "none"] = "texts"
    # Of a linear model: one score a class, scores of yes or no, or numbers.
    linear: Literal["softmax", "sigmoid", "ridge"] = "softmax"
    row_noun = "texts"  # what the rows of a linear model are

    def majority(self, labels: Labels, train: Examples) -> Predict:
        """Returns what predicts the same for all examples: the most frequent label."""
        counts = collections.Counter(example.label for example in train)
        best = max(labels, key=lambda label: counts[label])
        return lambda examples: [best] * len(examples)

    def constants(self, truth: Sequence[Any]) -> list[list[Any]]:
        """Returns lists of predictions, each the same for all examples."""
        return [[label] * len(truth) for label in most_frequent(truth)]

    def row_texts(self, example: Example) -> list[tuple[str, ...]]:
        """Returns the one or two texts of each row that a linear model scores."""
        return [example.texts]

    def row_targets(self, labels: Labels, examples: Examples) -> np.ndarray:
        """Returns the target of each row of a linear model."""
        number = {name: index for index, name in enumerate(labels)}
        return np.array([number[example.label] for example in examples])

    def from_rows(
        self, labels: Labels, examples: Examples, scores: np.ndarray
    ) -> list[Any]:
        """Returns predictions of all examples from a linear model's scores of rows."""
        return [labels[index] for index in scores.argmax(1)]

    def tuning_metric(self, scores: Mapping[str, float]) -> str:
        """Returns which of these scores chooses the strength of a linear model."""
        del scores
        return self.metric

    # --- pseudo-labels

    # Why there are none of this kind; None: there are.
    no_pseudo_labels: str | None = None
    label_key = "label"  # of a pseudo-label in a record

    def confidence(self, prediction: Prediction) -> float:
        """Returns the confidence of a prediction's least certain part, in [0, 1]."""
        return float(np.asarray(prediction).max())

    # --- what a person reads

    card: ClassVar[CardText]
    confusion = False  # whether a table shows which label is taken for which

    def notes(self, labels: Labels, splits: Mapping[str, Examples]) -> Iterable[str]:
        """Returns lines on how the labels of train, held_out and test are read."""
        del labels, splits
        return ()

    def describe_labels(self, labels: Sequence[Any]) -> str:
        """Returns a phrase on the labels of train: the share of each name."""
        names = [name for label in labels for name in self.names(label)]
        counts = collections.Counter(map(str, names)).most_common()
        return shortened([f"{name} {n / len(names):.1%}" for name, n in counts])

    def score_context(self, examples: Examples) -> dict[str, int]:
        """Returns numbers, by name, without which the scores cannot be compared."""
        del examples
        return {}

    def describe_split(self, examples: Examples) -> str | None:
        """Returns a line on the examples that are scored, if their scores need one."""
        del examples

    def card_data(self, config: TaskConfig, splits: Mapping[str, Sequence]) -> dict:
        """Returns properties of the data for the model card, by name.

        `splits` are the held_out and test examples.
        """
        del config, splits
        return {}


def features_of(layout: Layout, tokenizer: Tokenizer, **more: Any) -> Features:
    """Returns the rows of a layout; `more` are further fields of Features."""
    return Features(
        layout.arrays, layout.plan.example, layout.plan.report, tokenizer.pad_id, **more
    )


def softmax(scores: np.ndarray) -> np.ndarray:
    """Returns probabilities over the last axis."""
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def rounded(value: float) -> float:
    """Returns a probability with as many digits as files hold."""
    return round(float(value), _DIGITS)


def named(labels: Labels, values: np.ndarray) -> dict[str, float]:
    """Returns {label: its probability}, for a file."""
    return {label: rounded(value) for label, value in zip(labels, values, strict=True)}


def shortened(names: Sequence[str]) -> str:
    """Returns the first of a list of names, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join([*names[:_SHOWN], *[f"and {more:,} more"] * (more > 0)])


def most_frequent(values: Sequence[Any]) -> list[Any]:
    """Returns the most frequent values, the first one first."""
    return [value for value, _ in collections.Counter(values).most_common(_CONSTANTS)]


def _check_markers(config: TaskConfig, tokenizer: Tokenizer) -> None:
    """Raises PlmjaxError for a marker that the vocabulary has no piece for."""
    for mark in config.markers:
        tokens = tokenizer.encode_batch([mark]).tokens
        if not len(tokens) or tokenizer.unk_id in tokens:
            raise PlmjaxError(
                f"task.markers: the model's vocabulary has no piece for {mark!r}.",
                hint="Choose two signs that its texts have, for example ('*', '#').",
            )
