"""Choices: which of several continuations or answers fits a text best."""

import collections

import numpy as np

from plmjax.data.features import Features
from plmjax.data.layout import encode_texts, lay_out, plan_rows
from plmjax.data.records import bad_data, text_of
from plmjax.metrics.scores import hits
from plmjax.tasks.base import TaskKind, rounded
from plmjax.tasks.classes import Classes
from plmjax.tasks.fields import list_of


class Choices(TaskKind):
    """The texts are (text, choice, choice, ...), a label is the index of a choice.

    A prediction is [C] probabilities, C the most choices of an example.
    """

    name = "choices"
    fields = ("text", "choices", "label")
    least_labels = 0
    line_lacks = "its choices"
    head = "choices"
    smoothing = True
    linear = "sigmoid"
    row_noun = "choices"
    no_pseudo_labels = (
        "a choice's probability is one among the choices of its example, and is not "
        "comparable between examples"
    )
    card = Classes.card._replace(
        pipeline=None,
        use="It chooses the best of several continuations or answers.",
        limit="It must choose one, even where none is right.",
        code="""\
first, choices = "It rains.", ["It is wet.", "It is dry."]
rows = tokenizer([first] * 2, choices, padding=True, return_tensors="pt")
rows = {name: values[None] for name, values in rows.items()}
print(model(**rows).logits.softmax(-1))""",
    )

    def texts(self, values, where, config):
        columns = config.columns
        names = columns.names("choices")
        if len(names) > 1:
            choices = [text_of(values[name], where, name) for name in names]
        else:
            (name,) = names
            choices = [
                text_of(v, where, name) for v in list_of(values[name], where, name)
            ]
        if len(choices) < 2:
            what = f"{len(choices)} choices; there must be two."
            raise bad_data(where, what, "Correct the record.")
        text = text_of(values[columns.text], where, columns.text)
        if columns.pair is not None:
            stem = text_of(values[columns.pair], where, columns.pair)
            choices = [f"{stem} {choice}" for choice in choices]
        return (text, *choices), text

    def label(self, values, where, config):
        """A number from 0, a letter from A, or the name of a column of choices."""
        columns = config.columns.names("choices")
        named = columns if len(columns) > 1 else []
        count = len(columns) if named else len(values[columns[0]])
        text = str(values[config.columns.label]).strip()
        letters = [chr(ord("A") + n) for n in range(min(count, 26))]
        for names in ([str(n) for n in range(count)], letters, named):
            if text in names:
                return names.index(text)
        raise bad_data(
            where,
            f"the label {text!r} names none of {count} choices.",
            f"Write 0 to {count - 1}, a letter from A, or the column's name.",
        )

    def rows(self, config, examples, tokenizer):
        """Rows [N, C, L] of an example's choices; padding where it has fewer than C."""
        counts = np.array([len(example.texts) - 1 for example in examples])
        streams = [
            encode_texts(
                tokenizer, [e.texts[0] for e in examples for _ in e.texts[1:]]
            ),
            encode_texts(tokenizer, [text for e in examples for text in e.texts[1:]]),
        ]
        # The choices of an example share a row: windows would separate them.
        plan = plan_rows([s.sizes for s in streams], tokenizer, config.length)
        layout = lay_out(streams, plan, config.length, tokenizer)
        number = np.concatenate([np.arange(count) for count in counts])
        owner = np.repeat(np.arange(len(examples)), counts)
        shape = (len(examples), int(counts.max()), config.length)
        arrays = {}
        for name, flat in layout.arrays.items():
            empty = tokenizer.pad_id if name == "tokens" else 0
            arrays[name] = np.full(shape, empty, flat.dtype)
            arrays[name][owner, number] = flat
        example = np.arange(len(examples), dtype=np.int32)
        # The plan has counted each choice as an example.
        report = plan.report | {"examples": len(examples)}
        return Features(arrays, example, report, tokenizer.pad_id)

    def label_array(self, features, examples, labels):
        """[N] int32."""
        return np.array([example.label for example in examples], np.int32)

    def outputs(self, labels):
        return 1

    def read(self, labels, example, prediction):
        return int(prediction.argmax())

    def record(self, labels, example, label, prediction):
        values = prediction[: len(example.texts) - 1]
        return {"choice": label, "probabilities": [rounded(value) for value in values]}

    def scores(self, truth, predicted, labels, config=None):
        return {"accuracy": float(hits(truth, predicted).mean())}

    def each(self, metric, labels, config=None):
        return hits if metric == "accuracy" else None

    def majority(self, labels, train):
        """Returns what predicts the most frequent choice, or the first of fewer."""
        counts = collections.Counter(example.label for example in train)
        best = max(sorted(counts), key=lambda label: counts[label])
        return lambda examples: [
            best if best < len(e.texts) - 1 else 0 for e in examples
        ]

    def row_texts(self, example):
        return [(example.texts[0], choice) for choice in example.texts[1:]]

    def row_targets(self, labels, examples):
        """Whether each choice is the right one."""
        return np.array(
            [n == e.label for e in examples for n in range(len(e.texts) - 1)]
        )

    def from_rows(self, labels, examples, scores):
        ends = np.cumsum([len(example.texts) - 1 for example in examples])[:-1]
        return [int(own.argmax()) for own in np.split(scores[:, 0], ends)]
