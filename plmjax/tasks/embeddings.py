"""Embeddings: vectors of texts, near to those of the texts that belong to them."""

import numpy as np

from plmjax import DataError
from plmjax.data.features import Features
from plmjax.data.layout import encode_texts, lay_out, plan_rows
from plmjax.data.records import bad_data, text_of
from plmjax.metrics.retrieval import candidates_of, find_pairs, number_texts
from plmjax.metrics.scores import hits, rank_scores
from plmjax.tasks.base import CardText, TaskKind, rounded


class Embeddings(TaskKind):
    """The texts are (text, pair) or (text, pair, negative), a label is 1.

    The label is the rank that the pair should have among the pairs of all texts. A
    prediction is a metrics.retrieval.PairRank. There is no head.
    """

    name = "embeddings"
    fields = ("text", "pair")
    least_labels = 0
    labels_allowed = False
    negatives = True
    poolings = ("mean", "cls")
    head = None
    averages = False  # the vectors of two models have nothing in common
    metric = "mrr"
    baselines = "vectors"
    no_pseudo_labels = (
        "there are no labels, and a rank among candidates is no probability"
    )
    card = CardText(
        pipeline="sentence-similarity",
        objective="pairs of texts that belong together",
        use="It computes vectors of texts, similar ones of texts that belong together.",
        limit="Texts with similar vectors need not mean the same; the figures show how "
        "often they belong together.",
        code="""\
texts = ["The rows of a matrix", "Lines of numbers"]
rows = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
states = model(**rows).last_hidden_state
$pool
vectors = vectors / vectors.norm(dim=1, keepdim=True)
print(vectors @ vectors.T)  # cosines""",
    )

    def texts(self, values, where, config):
        """A text, its pair, and optionally a negative; none may be empty."""
        columns = config.columns
        names = [columns.text, columns.name("pair")]
        names += [] if columns.negative is None else [columns.negative]
        texts = tuple(text_of(values[name], where, name) for name in names)
        for name, text in zip(names, texts, strict=True):
            if not text.strip():
                what = f"the column {name!r} is empty."
                raise bad_data(where, what, "Correct or remove the record.")
        return texts, texts[0]  # all pairs of a text stay on one side of a split

    def label(self, values, where, config):
        return 1

    def targets_of(self, train):
        return {example.texts[1] for example in train}

    def check_split(self, examples, role):
        """Raises PlmjaxError for a single pair: retrieval needs other candidates."""
        if examples and len({example.texts[1] for example in examples}) < 2:
            raise DataError(
                f"the {role.replace('_', '-')} part has a single pair, and so nothing "
                "to find it among.",
                hint=f"Give more pairs as task.{role}, or more training data.",
            )

    def rows(self, config, examples, tokenizer):
        """Rows [N, C, L] of an example's C texts, each with its [CLS] and [SEP]."""
        stream = encode_texts(tokenizer, [text for e in examples for text in e.texts])
        # Each text must have one vector: windows would give it several.
        plan = plan_rows([stream.sizes], tokenizer, config.length)
        layout = lay_out([stream], plan, config.length, tokenizer)
        shape = (len(examples), len(examples[0].texts), config.length)
        arrays = {name: flat.reshape(shape) for name, flat in layout.arrays.items()}
        example = np.arange(len(examples), dtype=np.int32)
        report = plan.report | {"examples": len(examples)}
        return Features(arrays, example, report, tokenizer.pad_id)

    def label_array(self, features, examples, labels):
        """[N, C] int32: texts have the same number if they have the same tokens.

        The loss uses it to exclude equal texts of a batch from the negatives.
        """
        tokens = features.arrays["tokens"]
        number: dict[bytes, int] = {}
        flat = tokens.reshape(-1, tokens.shape[-1])
        numbers = [number.setdefault(row.tobytes(), len(number)) for row in flat]
        return np.array(numbers, np.int32).reshape(tokens.shape[:-1])

    def decode(self, config, features, examples, scored):
        """The rank of each text's pair among the pairs of all examples."""
        every: np.ndarray | None = None
        seen = 0
        for rows, vectors in scored:
            if every is None:
                every = np.empty((len(examples), *vectors.shape[1:]), np.float32)
            every[features.example[rows]] = vectors
            seen += len(rows)
        if every is None or seen < features.rows:
            return []  # stopped early
        return find_pairs(every, features.arrays["label"], config.temperature)

    def read(self, labels, example, prediction):
        return prediction.rank

    def record(self, labels, example, label, prediction):
        return {"rank": label, "cosine": rounded(prediction.cosine)}

    def scores(self, truth, predicted, labels, config=None):
        return rank_scores(predicted)

    def each(self, metric, labels, config=None):
        if metric == "mrr":
            return lambda truth, ranks: 1 / np.asarray(ranks, float)
        return hits if metric == "accuracy_at_1" else None

    def constants(self, truth):
        # Any order of the candidates has each rank as often as the others.
        return [[*range(1, len(truth) + 1)]]

    def row_texts(self, example):
        return [(text,) for text in example.texts]

    def describe_labels(self, labels):
        return "none: pairs"

    def score_context(self, examples):
        return {"candidates": _candidates(examples)}

    def describe_split(self, examples):
        """A line with the number of candidates for a pair, and the mrr of chance."""
        pairs = _candidates(examples)
        chance = float(np.mean(1 / np.arange(1, pairs + 1)))
        return (
            f"  Each text looks for its pair among {pairs:,}; by chance mrr would be "
            f"{chance:.4f}."
        )

    def card_data(self, config, splits):
        """The pooling and the numbers of candidates, needed to interpret the scores."""
        counts = {
            f"{split.replace('_', '-')} candidates, among which a pair is looked for": (
                _candidates(examples)
            )
            for split, examples in splits.items()
            if examples
        }
        return {"pooling": config.pooling, **counts}


def _candidates(examples) -> int:
    return candidates_of(number_texts([e.texts for e in examples])).pairs
