"""Tags: a label for each word of a text, such as its part of speech or its entity."""

import collections
import itertools

import numpy as np

from plmjax import counted
from plmjax.data.features import NONE
from plmjax.data.layout import encode_words, lay_out, plan_rows
from plmjax.data.records import bad_data, text_of
from plmjax.metrics.entities import (
    ENTITY_SCORES,
    STRICT,
    broken_tags,
    entity_counts,
    find_scheme,
)
from plmjax.metrics.label_counts import LABEL_SCORES, label_counts
from plmjax.metrics.scores import tag_scores
from plmjax.tasks.base import (
    TABLES,
    TaskKind,
    features_of,
    most_frequent,
    rounded,
    shortened,
    softmax,
)
from plmjax.tasks.classes import Classes
from plmjax.tasks.fields import list_of, name_of


class Tags(TaskKind):
    """The texts are words, a label is a tag for each; a prediction is [words, C].

    Probabilities of a word are nan if the word was cut.
    """

    name = "tags"
    fields = ("tokens", "tags")
    formats = ("conll", "conllu", *TABLES)
    suffixes = {
        **dict.fromkeys(("tsv", "txt", "bio", "iob", "iob2"), "conll"),
        **dict.fromkeys(("conllup", "cupt"), "conllu"),
    }
    per_word = True
    head = "tags"
    smoothing = True
    metric = "tag_accuracy"
    baselines = "words"
    row_noun = "words"
    confusion = True
    label_key = "tags"
    card = Classes.card._replace(
        pipeline="token-classification", use="It predicts a tag for each word."
    )

    def texts(self, values, where, config):
        name = config.columns.name("tokens")
        words = list_of(values[name], where, name)
        if not words:
            raise bad_data(where, "there are no tokens.", "Remove the record.")
        return tuple(text_of(word, where, name) for word in words), "\0".join(words)

    def label(self, values, where, config):
        name = config.columns.name("tags")
        tags = list_of(values[name], where, name)
        words = len(values[config.columns.name("tokens")])
        if len(tags) != words:
            raise bad_data(
                where,
                f"{words} tokens and {len(tags)} tags.",
                "Give each token one tag.",
            )
        return tuple(name_of(tag, where, config.labels) for tag in tags)

    def names(self, label):
        return label

    def targets_of(self, train):
        return {tag for example in train for tag in example.label}

    def rows(self, config, examples, tokenizer):
        stream, first = encode_words(tokenizer, [example.texts for example in examples])
        plan = plan_rows([stream.sizes], tokenizer, config.length, config.window_stride)
        layout = lay_out([stream], plan, config.length, tokenizer)
        row, column = np.nonzero(layout.source >= 0)
        token = layout.source[row, column]
        word = np.full(layout.source.shape, NONE, np.int32)
        # If several windows have a word, use the one with the most context around it.
        edge = np.minimum(column, plan.size[row, 0] + 1 - column)
        begins = np.flatnonzero(first[token] >= 0)
        order = begins[np.lexsort((-edge[begins], token[begins]))]
        _, once = np.unique(token[order], return_index=True)
        best = order[once]
        word[row[best], column[best]] = first[token[best]]
        plan.report["lost_words"] = int((first >= 0).sum() - len(best))
        return features_of(layout, tokenizer, word=word)

    def label_array(self, features, examples, labels):
        """[N, L] int32: the tag at the first piece of each word, -1 elsewhere."""
        assert features.word is not None
        number = {name: index for index, name in enumerate(labels)}
        tags = np.array([number[tag] for e in examples for tag in e.label], np.int32)
        begin = np.cumsum([0, *(len(example.label) for example in examples)])[:-1]
        index = begin[features.example][:, None] + features.word
        return np.where(features.word >= 0, tags[np.maximum(index, 0)], NONE)

    def decode(self, config, features, examples, scored):
        """[words, C] probabilities of each word from its row; nan for words cut off."""
        assert features.word is not None
        predictions: list[np.ndarray] | None = None
        for rows, scores in scored:
            if predictions is None:
                classes = scores.shape[-1]
                predictions = [
                    np.full((len(e.texts), classes), np.nan) for e in examples
                ]
            word = features.word[rows, : scores.shape[1]]
            row, column = np.nonzero(word >= 0)
            values = softmax(scores[row, column].astype(np.float64))
            owners = features.example[rows[row]]
            for owner, index, value in zip(
                owners, word[row, column], values, strict=True
            ):
                predictions[owner][index] = value
        return predictions or []

    def read(self, labels, example, prediction):
        """A word that was cut has the tag O, or the first tag if there is no O."""
        default = labels.index("O") if "O" in labels else 0
        cut = np.isnan(prediction[:, 0])
        best = np.where(cut[:, None], 0, prediction).argmax(-1)
        return tuple(labels[index] for index in np.where(cut, default, best))

    def record(self, labels, example, label, prediction):
        """Probabilities are those of the tags given, None where a word was cut."""
        number = {name: index for index, name in enumerate(labels)}
        values = [
            None if np.isnan(word[0]) else rounded(word[number[tag]])
            for tag, word in zip(label, prediction, strict=True)
        ]
        tags = list(label)
        return {"tokens": list(example.texts), "tags": tags, "probabilities": values}

    def from_record(self, record):
        return None

    def scores(self, truth, predicted, labels, config=None):
        return tag_scores(truth, predicted, labels)

    def usual_metric(self, labels):
        return "entity_f1" if find_scheme(labels) else self.metric

    def counts(self, metric, truth, labels):
        if metric in ENTITY_SCORES and (scheme := find_scheme(labels)):
            strict, true = metric == STRICT, scheme.conll(truth)
            return (
                lambda predicted: entity_counts(
                    true, scheme.conll(predicted), strict=strict
                ),
                ENTITY_SCORES[metric],
            )
        return (
            lambda predicted: label_counts(truth, predicted, labels, per_word=True),
            LABEL_SCORES[metric.removeprefix("tag_")],
        )

    def majority(self, labels, train):
        counts = collections.Counter(tag for example in train for tag in example.label)
        best = max(labels, key=lambda tag: counts[tag])
        return lambda examples: [(best,) * len(e.texts) for e in examples]

    def constants(self, truth):
        every = most_frequent([*itertools.chain(*truth)])
        return [[(tag,) * len(tags) for tags in truth] for tag in every]

    def row_texts(self, example):
        return [(word,) for word in example.texts]

    def row_targets(self, labels, examples):
        number = {name: index for index, name in enumerate(labels)}
        return np.array([number[tag] for example in examples for tag in example.label])

    def from_rows(self, labels, examples, scores):
        tags = np.asarray(labels, object)[scores.argmax(1)]
        ends = np.cumsum([len(example.texts) for example in examples])[:-1]
        return [tuple(words.tolist()) for words in np.split(tags, ends)]

    def tuning_metric(self, scores):
        return "entity_f1" if "entity_f1" in scores else self.metric

    def notes(self, labels, splits):
        """Yields the scheme of the tags, its score, and tags that break the scheme."""
        tags = {
            split: [e.label for e in some] for split, some in splits.items() if some
        }
        if (scheme := find_scheme(labels)) is None:
            why = "none has the form B-kind, I-kind or O"
            odd = [tag for tag in labels if find_scheme((tag, "B-x", "I-x")) is None]
            if len(odd) < len(labels) / 2:
                why = f"not all have the form of the others: {shortened(odd)}"
            elif all(map(str.isdecimal, labels)):
                why = "they are numbers; write their names if they mark entities"
            yield f"The tags mark no entities ({why}): the score is their accuracy."
            return
        old = all(
            before[1:] == tag[1:]
            for sentence in scheme.conll(tags["train"])
            for before, tag in itertools.pairwise(["O", *sentence])
            if tag[0] == "B"
        )
        broken = {split: broken_tags(some, scheme) for split, some in tags.items()}
        name = scheme.name
        if name == "IOB":  # the first version has B only between entities
            name = "IOB1" if broken["train"] and old else "IOB2"
        kinds = f" ({shortened(scheme.kinds)})" if any(scheme.kinds) else ""
        count = counted(len(scheme.kinds), "kind")
        yield (
            f"The tags are {name}, of {count} of entities{kinds}: the score is the F1 "
            "of entities."
        )
        for split, some in tags.items():
            if broken[split] and name not in ("IO", "IOE", "IOB1"):
                yield (
                    f"Tags of {split} that break {name}, as I- after O does: "
                    f"{broken[split]:,} of {sum(map(len, some)):,}; they are scored as "
                    "by CoNLL's script."
                )
            if not entity_counts(scheme.conll(some), scheme.conll(some)).any():
                yield f"There are no entities in {split}: all scores of entities are 0."

    def confidence(self, prediction):
        """Returns the highest probability, for the word where it is lowest.

        Without words that were cut; 0 if all were.
        """
        highest = np.asarray(prediction).max(-1)
        return 0.0 if np.isnan(highest).all() else float(np.nanmin(highest))
