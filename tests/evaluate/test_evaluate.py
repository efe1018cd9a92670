"""What is written and printed of a model, against its outputs, counted one by one.

Fine-tuned models of every kind are stood in for by random scores, a function of the
tokens: rows, windows, batches, losses, files and the command line are as they are.
"""

import bz2
import copy
import dataclasses
import functools
import io
import json
import math
import re
import shlex
import types
from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest
from finetune_common import config_of, one_device, records, write
from interop.cases import draw
from tests_common import TINY, sentences

from plmjax import Exit, PlmjaxError, cli
from plmjax import config as config_lib
from plmjax.evaluate import examples, fill, model
from plmjax.evaluate.held_out import unigram_loss
from plmjax.files import with_nan, write_json
from plmjax.finetune import build as parts_lib
from plmjax.finetune import predict as predict_lib
from plmjax.finetune import run as finetuning
from plmjax.finetune.config import FinetuneConfig
from plmjax.models import EncoderConfig
from plmjax.models.task_heads import OUT_OF_REACH
from plmjax.objectives.masked import masked_logits
from plmjax.objectives.supervised import row_losses
from plmjax.pretrain import run as pretrain
from plmjax.pretrain.build import build
from plmjax.pretrain.export import _card_facts
from plmjax.tasks import KINDS
from plmjax.tasks.config import TaskConfig
from plmjax.tasks.features import make_features
from plmjax.tasks.task import Task
from plmjax.tokenizers import TokenizerConfig, train_tokenizer
from plmjax.train import sharding
from plmjax.train.config import MeshConfig
from plmjax.train.loop import Result
from plmjax.train.step import evaluation_key
from plmjax.workdir import RunConfig, Workdir

LENGTH, BATCH, EXAMPLES = 12, 4, 14
# Compiled as one: a dozen small programs of each shape take seconds.
QUICK_LOSSES = jax.jit(row_losses, static_argnums=0)


pytestmark = pytest.mark.usefixtures("on_one_device")


@functools.cache
def tokenizer():
    return train_tokenizer(TokenizerConfig(vocab_size=160), sentences(100))


# --- fine-tuned models

_OUTPUTS = {"classes": 2, "multilabel": 2, "regression": 1, "tags": 2, "answers": 2}


def scores_of_tokens(kind: str, tokens) -> np.ndarray:
    """Random scores of a row without its padding: [C], of each token [L, C]."""
    chance = np.random.default_rng([7, *(int(t) for t in tokens)])
    if kind in ("tags", "answers"):
        return chance.normal(0, 2, (len(tokens), _OUTPUTS[kind]))
    if kind == "embeddings":
        return chance.normal(size=3)
    return chance.normal(0, 2, _OUTPUTS.get(kind, 1))


def stand_in(kind: str):
    """A model: (weights, frozen, batch) -> float32 scores, as task_logits has them."""

    def predict(weights, frozen, batch):
        tokens, real = np.asarray(batch["tokens"]), np.asarray(batch["segments"]) > 0
        nested = kind in ("choices", "embeddings")
        flat = tokens.reshape(-1, tokens.shape[-1])
        found = []
        for row, there in zip(flat, real.reshape(flat.shape), strict=True):
            own = scores_of_tokens(kind, row[there])
            if kind == "choices" and not there.any():
                own = np.array([OUT_OF_REACH])
            if kind in ("tags", "answers"):
                fill = OUT_OF_REACH if kind == "answers" else 0.0
                whole = np.full((len(row), own.shape[1]), fill)
                whole[: len(own)] = own
                own = whole
            found.append(own)
        found = np.array(found, np.float32)
        if nested:
            found = found.reshape(*tokens.shape[:2], -1)
        return found[..., 0] if kind == "choices" else found

    return predict


def softmax(scores) -> list[float]:
    top = max(scores)
    raised = [math.exp(x - top) for x in scores]
    return [x / sum(raised) for x in raised]


def rows_of(features, example: int):
    """Yields the number and the tokens without padding of an example's rows."""
    for row in np.flatnonzero(features.example == example):
        real = features.arrays["segments"][row] > 0
        yield row, features.arrays["tokens"][row][real]


def whole_text(kind, features, example, record, pooling):
    """Of a text with one answer: what is said, how likely, and its rows' losses."""
    each, losses = [], []
    for _, tokens in rows_of(features, example):
        own = scores_of_tokens(kind, tokens)
        if kind == "classes":
            share = softmax(own)
            losses.append(-math.log(share[["with", "without"].index(record["label"])]))
            each.append(share)
        elif kind == "multilabel":
            yes = [1 / (1 + math.exp(-x)) for x in own]
            is_there = [name in record["label"] for name in ("of", "the")]
            parts = [y if t else 1 - y for y, t in zip(yes, is_there, strict=True)]
            losses.append(-sum(map(math.log, parts)) / 2)
            each.append(yes)
        else:
            losses.append((own[0] - record["label"]) ** 2)
            each.append(own.tolist())
    if pooling == "mean":
        pooled = [sum(values) / len(each) for values in zip(*each, strict=True)]
    elif pooling == "max":
        pooled = [max(values) for values in zip(*each, strict=True)]
    else:
        pooled = each[0]
    if kind == "classes":
        names = ["with", "without"]
        return (
            names[pooled.index(max(pooled))],
            dict(zip(names, pooled, strict=True)),
            losses,
        )
    if kind == "multilabel":
        both = dict(zip(("of", "the"), pooled, strict=True))
        return [name for name, yes in both.items() if yes > 0.5], both, losses
    return pooled[0], None, losses


def words_tagged(features, example, record, labels):
    """Each word by its first piece, in the one row that speaks for it."""
    said, losses = ["O"] * len(record["tokens"]), []
    likely = [None] * len(said)
    for row, tokens in rows_of(features, example):
        scores = scores_of_tokens("tags", tokens)
        for place, word in enumerate(features.word[row][: len(tokens)]):
            if word < 0:
                continue
            share = softmax(scores[place])
            said[word], likely[word] = labels[share.index(max(share))], max(share)
            losses.append(-math.log(share[labels.index(record["tags"][word])]))
    return said, likely, losses


def answered(features, example, record, most):
    """The best stretch of all windows, or none, if that is likelier in all of them."""
    known, none, losses = {}, math.inf, []
    for row, tokens in rows_of(features, example):
        scores = scores_of_tokens("answers", tokens).astype(np.float32).astype(float)
        none = min(none, scores[0, 0] + scores[0, 1])
        spans = features.spans[row]
        context = [n for n in range(len(tokens)) if spans[n, 0] >= 0]
        for first in context:
            for last in context:
                value = scores[first, 0] + scores[last, 1]
                place = spans[first, 0], spans[last, 1]
                if first <= last < first + most:
                    known[place] = max(value, known.get(place, -math.inf))
        begin = end = 0  # none, or not in this window
        if record["answers"]:
            start = record["answers"][0]["answer_start"]
            stop = start + len(record["answers"][0]["text"])
            firsts = [n for n in context if spans[n, 0] == start]
            lasts = [n for n in context if spans[n, 1] == stop]
            if firsts and lasts:
                begin, end = firsts[0], lasts[0]
        parts = (softmax(scores[:, 0])[begin], softmax(scores[:, 1])[end])
        losses.append(-sum(map(math.log, parts)) / 2)
    place, best = max(known.items(), key=lambda item: item[1])
    text = record["context"][place[0] : place[1]] if best > none else ""
    # Likely among the twenty best, and none.
    every = [*sorted(known.values())[-20:], none]
    return text, max(softmax(every)), losses


def chosen(features, example, record):
    tokens = features.arrays["tokens"][example]
    real = features.arrays["segments"][example] > 0
    scores = [
        float(scores_of_tokens("choices", tokens[n][real[n]])[0])
        for n in range(len(record["choices"]))
    ]
    share = softmax(scores)
    return share.index(max(share)), share, [-math.log(share[record["label"]])]


def pairs_found(features, lines):
    """The rank of each text's pair among all distinct pairs, by cosine; the losses."""
    texts = [(line["text"], line["pair"]) for line in lines]
    vector_of = {}
    for example, both in enumerate(texts):
        for place, text in enumerate(both):
            real = features.arrays["segments"][example, place] > 0
            tokens = features.arrays["tokens"][example, place][real]
            own = scores_of_tokens("embeddings", tokens)
            vector_of[text] = own / math.sqrt(float(own @ own))
    said, likely, losses = [], [], []
    for text, own in texts:
        also = {b for a, b in texts if a == text and b != own} | {text}
        near = {
            b: float(vector_of[text] @ vector_of[b]) for _, b in texts if b not in also
        }
        said.append(sum(value >= near[own] for value in near.values()))
        likely.append(near[own])
        total = sum(math.exp((value - near[own]) / 0.05) for value in near.values())
        losses.append(math.log(total))
    return said, likely, losses


def reference(config, features, lines, labels):
    """What is said of each line, how likely, and all losses of rows (tags: words)."""
    kind = config.kind
    if kind == "embeddings":
        return pairs_found(features, lines)
    said, likely, losses = [], [], []
    for example, record in enumerate(lines):
        if kind == "tags":
            own = words_tagged(features, example, record, labels)
        elif kind == "answers":
            own = answered(features, example, record, config.max_answer_tokens)
        elif kind == "choices":
            own = chosen(features, example, record)
        else:
            own = whole_text(kind, features, example, record, config.pooling)
        said.append(own[0])
        likely.append(own[1])
        losses += own[2]
    return said, likely, losses


def agree(a, b) -> float:
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)


def main_score(kind: str, said, lines) -> tuple[str, float]:
    """One score of each kind, from what is said alone."""
    if kind == "regression":
        squares = [(s - line["label"]) ** 2 for s, line in zip(said, lines)]  # noqa: B905
        return "mse", sum(squares) / len(squares)
    if kind == "tags":
        flat = [tag for line in lines for tag in line["tags"]]
        return "tag_accuracy", agree([tag for own in said for tag in own], flat)
    if kind == "answers":
        true = [line["answers"][0]["text"] if line["answers"] else "" for line in lines]
        # The words are small, without articles but "a" and "the".
        plain = [
            [" ".join(w for w in t.split() if w not in ("a", "an", "the")) for t in own]
            for own in (said, true)
        ]
        return "exact_match", agree(*plain)
    if kind == "embeddings":
        return "mrr", sum(1 / rank for rank in said) / len(said)
    truth = [line["label"] for line in lines]
    if kind == "multilabel":
        said, truth = ([set(own) for own in one] for one in (said, truth))
    return "accuracy", agree(said, truth)


# What chooses the best step where nobody says.
USUAL = {"classes": "accuracy", "multilabel": "f1_micro", "regression": "pearson"}
USUAL |= {"tags": "entity_f1", "answers": "f1", "choices": "accuracy"}
USUAL |= {"embeddings": "mrr"}
_SAID = {"classes": "label", "multilabel": "labels", "regression": "value"}
_SAID |= {"tags": "tags", "answers": "answer", "choices": "choice"}
_SAID |= {"embeddings": "rank"}


def uneven(kind: str, n: int, line: dict) -> dict:
    """One line of three is longer than a row, one short enough for a bucket.

    Answers are of two words.
    """
    if kind in ("choices", "embeddings") or (n % 3 == 2 and kind != "answers"):
        return line
    names = {"tags": ("tokens", "tags"), "answers": ("context",)}.get(kind, ("text",))
    for name in names:
        given = line[name]
        words = given.split() if isinstance(given, str) else given
        words = ([*words, *words[::-1]], words[:3], words)[n % 3]
        line[name] = " ".join(words) if isinstance(given, str) else words
    if kind == "answers":
        starts = [a["answer_start"] for a in line["answers"]]
        two = [" ".join(line["context"][at:].split()[:2]) for at in starts]
        both = [*zip(starts, two, strict=True)]
        line["answers"] = [{"text": t, "answer_start": at} for at, t in both if t]
    return line


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Returns (kind, overrides) -> what stands in for a fine-tuning, and its lines."""

    def make(kind: str, *overrides: str):
        lines = [
            uneven(kind, n, line) for n, line in enumerate(records(kind, EXAMPLES))
        ]
        if kind == "embeddings":  # a pair of two texts, and a text of two pairs
            lines[5] |= {"pair": lines[2]["pair"]}
            lines[7] |= {"text": lines[3]["text"]}
        write(tmp_path / "held_out.jsonl", lines)
        write(tmp_path / "train.jsonl", records(kind, 30, seed=4))
        told = ("task.stride=3", f"task.length={LENGTH}", "task.buckets=(9,)")
        told = (f"task.kind={kind}", f"train.batch={2 * BATCH}", *told)
        told = (*told, "train.accumulation=2", *overrides)
        values = config_lib.to_dict(config_of("none", tmp_path, *told))
        config = config_lib.build(FinetuneConfig, values)
        data, metric = parts_lib.read_data(config)
        features = make_features(data.config, data.held_out, tokenizer(), data.labels)
        mesh = sharding.make_mesh(MeshConfig())
        sizes = {"layers": 1, "width": 4, "heads": 1, "ffn_width": 4}
        encoder = EncoderConfig(
            vocab_size=tokenizer().vocab_size, max_positions=16, **sizes
        )
        task = Task(kind, data.labels)
        parts = types.SimpleNamespace(
            config=config,
            data=data,
            metric=metric,
            features={"held_out": features},
            examples=lambda split: data.held_out,
            batches=types.SimpleNamespace(size=config.train.batch),
            last="held_out",
            mesh=mesh,
            merge=lambda weights, frozen: {},
            frozen={},
            model=model.Model(encoder, {}, tokenizer(), "none"),
            encoder=encoder,
            task=task,
            added=types.SimpleNamespace(examples=()),
        )
        return parts, values, lines

    monkeypatch.setattr(parts_lib, "row_losses", QUICK_LOSSES)
    for name in ("plot_curves", "plot_scores", "plot_confusion"):
        monkeypatch.setattr(finetuning, name, lambda *_: [])
    monkeypatch.setattr(finetuning, "export_task", lambda *_, **more: None)
    return make


def printed(text: str) -> dict[str, str]:
    """The figures of lines "name   value"; the first line says of what they are."""
    rows = (line.rsplit(maxsplit=1) for line in text.splitlines()[1:])
    return {name.strip(): value for name, value in rows}


def stand_in_for(parts, kind: str, monkeypatch) -> None:
    """Makes every path of a model name what `made` returned."""
    opened = (
        types.SimpleNamespace(
            tokenizer=tokenizer(), encoder=parts.encoder, task=parts.task, name="none"
        ),
        config_lib.to_dict(parts.data.config) | {"labels": parts.data.labels or None},
    )
    monkeypatch.setattr(predict_lib, "_open", lambda path: opened)
    monkeypatch.setattr(
        predict_lib.Predictor,
        "_scorer",
        lambda self, _: lambda features: functools.partial(stand_in(kind), {}, {}),
    )


CASES = [
    ("classes", ()),
    ("classes", ("task.pooling=max",)),
    ("classes", ("task.pooling=first",)),
    ("multilabel", ()),
    ("regression", ()),
    ("tags", ()),
    ("answers", ("task.max_answer_tokens=3",)),
    ("choices", ()),
    ("embeddings", ()),
]


def test_the_cases_are_of_every_kind():
    assert {kind for kind, _ in CASES} == KINDS.keys()


@pytest.mark.parametrize("kind, overrides", CASES)
def test_every_figure_of_a_fine_tuning(
    kind, overrides, made, tmp_path, monkeypatch, capsys
):
    """scores.json, the predictions, the lines shown, and `evaluate` in both forms."""
    parts, values, lines = made(kind, *overrides)
    features, place = parts.features["held_out"], Workdir(tmp_path / "run")
    # Windows, a shorter bucket, and a last batch that is not full, of each length.
    short = int((features.sizes() <= 9).sum())
    assert 0 < short < features.rows or kind in ("choices", "embeddings")
    if kind in ("classes", "multilabel", "regression", "tags", "answers"):
        assert features.rows > EXAMPLES
    place.create()
    log: list[str] = []
    ended = Result(None, 5, {}, 5, {})
    result = finetuning.finish(parts, place, ended, stand_in(kind), log.append)
    said, likely, losses = reference(
        parts.data.config, features, lines, parts.data.labels
    )
    name, value = main_score(kind, said, lines)
    scores = result["held_out"]
    assert scores["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert scores[name] == pytest.approx(value, rel=1e-5)
    assert json.loads((place / "scores.json").read_text()) == result
    assert result["step"] == 5 and parts.metric == result["metric"] == USUAL[kind]
    assert log[0].startswith(f"Held-out: {USUAL[kind].replace('_', ' ')} ")
    shown = f"{name.replace('_', ' ')} {value:.4f}"
    assert any(shown in line for line in log), (shown, log)
    # The file of predictions says the same, line by line.
    text = (place / "predictions-held_out.jsonl").read_text()
    written = [json.loads(line) for line in text.splitlines()]
    found = [line[_SAID[kind]] for line in written]
    for line, record in zip(written, lines, strict=True):
        if kind != "answers":  # whose truth is pairs of text and place
            truth = record.get("label", record.get("tags", 1))
            assert line["truth"] == truth
        if kind == "tags":
            assert line["tokens"] == record["tokens"]
    if kind == "regression":
        assert found == pytest.approx(said, rel=1e-5)
    else:
        assert found == said
        names = {"answers": "probability", "embeddings": "cosine"}
        for line, wanted in zip(written, likely, strict=True):
            shown = line[names.get(kind, "probabilities")]
            assert shown == pytest.approx(wanted, abs=2e-6)
    # And so does the command line, of another batch.
    (tmp_path / "run" / "config.json").write_text(
        json.dumps(values | {"objective": {}})
    )
    stand_in_for(parts, kind, monkeypatch)
    given = ["evaluate", f"--workdir={tmp_path / 'run'}", "--batch=5"]
    given.append(f"--input={tmp_path / 'held_out.jsonl'}")
    capsys.readouterr()
    assert cli.main([*given, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.pop("examples") == EXAMPLES
    if kind == "embeddings":
        assert told.pop("candidates") == len({line["pair"] for line in lines})
    assert told == pytest.approx({n: scores[n] for n in scores if n != "loss"})
    assert cli.main(given) == 0
    out = capsys.readouterr().out
    assert f", {EXAMPLES} examples" in out
    wanted = {n.replace("_", " "): f"{told[n]:.4f}" for n in told}
    assert printed(out) == wanted


# --- pretraining


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run that has text and weights, but was never trained."""
    place = tmp_path_factory.mktemp("pretrained")
    # Words of more than 100 letters have no piece of their own.
    lines = [f"{line} {'e' * 120}" for line in sentences(60)]
    (place / "corpus.txt").write_text("\n".join(lines) + "\n")
    told = [option.removeprefix("--config.") for option in TINY]
    told += [f"data.source.paths={place / 'corpus.txt'}", "data.length=12"]
    told += ["tokenizer.vocab_size=60", "model.layers=1", "model.width=8"]
    told += ["model.ffn_width=8", "model.dtype=float32", "train.batch=4"]
    config = config_lib.load(RunConfig, None, told, pretrain.DEFAULT_CONFIG)
    workdir = Workdir(place / "run")
    workdir.create()
    (workdir / "config.json").write_text(json.dumps(config_lib.to_dict(config)))
    with one_device():
        mesh = sharding.make_mesh(MeshConfig())
        built = config
        run = build(built, workdir, mesh, lambda line: None)
    params = draw(run.encoder, ("head",))
    # It guesses what is frequent, and so is right now and then.
    often = np.log(run.store.unigram + 1.0).astype(np.float32)
    return run, jax.tree.map(
        lambda x: x + often if x.shape == often.shape else 4 * x, params
    )


def counted(run, params, most: int | None = None) -> dict[str, float]:
    """The figures of the first `most` held-out rows, mask by mask."""

    @jax.jit
    def outputs(batch):
        given = run.objective.tables(), batch, evaluation_key(), 1.0
        masked = run.objective.corrupt(*given)
        logits, _ = masked_logits(run.encoder, params, masked, None)
        return masked["mask_positions"], masked["weights"] > 0, logits

    nats, hits, sizes, seen = [], [], [], 0
    for batch in run.held_out()():
        places, used, logits = map(np.asarray, outputs(batch))
        logits = logits.reshape(*places.shape, -1).astype(float)
        for row, slot in np.ndindex(places.shape):
            if not used[row, slot] or (most is not None and seen + row >= most):
                continue
            own = logits[row, slot]
            truth = int(batch["tokens"][row, places[row, slot]])
            nats.append(math.log(np.exp(own - own.max()).sum()) + own.max())
            nats[-1] -= own[truth]
            hits.append(int(own.argmax()) == truth)
            piece = run.tokenizer.backend.id_to_token(truth)
            sizes.append(len(piece.removeprefix("##").encode()))
        seen += len(places)
    loss = sum(nats) / len(nats)
    return {
        "loss": loss,
        "accuracy": sum(hits) / len(hits),
        "perplexity": math.exp(loss),
        "bits_per_byte": sum(nats) / math.log(2) / sum(sizes),
    }


def unigram_nats(run) -> float:
    """What a held-out token costs by the counts of the training text, plus one each."""
    special = set(run.tokenizer.special_ids)
    train, seen = (
        [t for t in split.read(np.arange(split.tokens))[0].tolist() if t not in special]
        for split in map(run.store.split, ("train", "held_out"))
    )
    counts = Counter(train)
    total = len(train) + run.tokenizer.vocab_size - len(special)
    return -sum(math.log((counts[t] + 1) / total) for t in seen) / len(seen)


def test_every_figure_of_a_pretraining(pretrained, monkeypatch, capsys):
    """scores.json, the lines shown, and `evaluate`, whose last batches are not full."""
    run, params = pretrained
    path = run.workdir.path
    batches = [*run.held_out()()]
    real = [int((b["segments"] > 0).any(1).sum()) for b in batches]
    rows = sum(real)
    last = batches[-1]["segments"]
    assert real[-1] < 4 and rows % 7 and (last[: real[-1]] == 0).any()
    wanted = counted(run, params)
    assert 0 < wanted["accuracy"] < 1
    baseline = {"unigram_loss": unigram_nats(run)}

    monkeypatch.setattr(pretrain, "_examples", lambda *_: None)
    monkeypatch.setattr(pretrain, "plot_curves", lambda *_: [])
    exported: list[bool] = []

    def export(*_, scores, **__):
        assert scores["step"] == 3
        exported.append((path / "scores.json").exists())

    monkeypatch.setattr(pretrain, "export_trained", export)
    log: list[str] = []
    training = pretrain.training_of(run, pretrain.frozen_arrays(run), log.append)
    scores = training.score(params, iter, 1)
    log.append(training.describe(scores))
    ended = Result(None, 3, params, 3, scores)
    found = pretrain.finish(run, ended, log.append)
    assert found == pytest.approx(wanted | baseline, rel=1e-5)
    written = json.loads((path / "scores.json").read_text())
    assert written == found | {"step": 3}
    assert exported == [False]  # scores.json marks a run that is complete
    apart = baseline["unigram_loss"] - wanted["loss"]
    told = "\n".join(log)
    assert f"held-out loss {wanted['loss']:.3f}" in told
    assert f"unigram baseline {baseline['unigram_loss']:.3f} ({apart:.2f} nats" in told
    assert f"bits per byte {wanted['bits_per_byte']:.3f}" in told

    trained = pretrain._trained(run, params, 3)
    monkeypatch.setattr(model, "open_run", lambda *_: trained)
    given = ["evaluate", f"--workdir={path}", "--batch=7"]
    capsys.readouterr()
    assert cli.main([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    more = {"rows": rows, "step": 3}
    assert found == pytest.approx(wanted | baseline | more, rel=1e-5)
    assert cli.main([*given, "--rows=5"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{path}, step 3, 5 held-out rows\n")
    few = counted(run, params, 5)
    assert few["loss"] != pytest.approx(wanted["loss"], rel=1e-3)
    assert printed(out) == {
        "loss": f"{few['loss']:.4f}",
        "accuracy": f"{few['accuracy']:.2%}",
        "perplexity": f"{few['perplexity']:.2f}",
        "bits per byte": f"{few['bits_per_byte']:.4f}",
        "unigram loss": f"{baseline['unigram_loss']:.4f}",
    }


def test_no_figure_of_a_run_in_which_nothing_can_be_predicted(
    pretrained, monkeypatch, tmp_path
):
    """Text of special tokens alone has no baseline; no file holds NaN."""
    run, params = pretrained

    class Special:
        unigram = np.ones(run.tokenizer.vocab_size)
        tokens = 3

        def split(self, name):
            return self

        def read(self, index):
            return np.full((1, len(index)), run.tokenizer.unk_id)

    assert unigram_loss(Special(), run.tokenizer) is None  # type: ignore
    monkeypatch.setattr(pretrain, "unigram_loss", lambda *_: None)
    monkeypatch.setattr(pretrain, "_examples", lambda *_: None)
    monkeypatch.setattr(pretrain, "plot_curves", lambda *_: [])
    monkeypatch.setattr(pretrain, "export_trained", lambda *_, **__: None)
    log: list[str] = []
    scores = {"loss": 0.0, "accuracy": math.nan, "perplexity": 1.0}
    pretrain.finish(run, Result(None, 3, params, 3, scores), log.append)
    text = (run.workdir.path / "scores.json").read_text()
    names = [*scores, "unigram_loss"]
    assert json.loads(text) == dict.fromkeys(names) | {"step": 3}
    assert "was predicted" in log[0]
    (model,) = pretrain._trained(run, params).models().values()
    card = _card_facts(model, run.config, run.store.manifest, json.loads(text))
    assert card.figures == []
    assert math.isnan(with_nan({"a": None})["a"]) and with_nan({"b": 2}) == {"b": 2}
    write_json(tmp_path / "a.json", {"a": [math.nan, (math.inf, 1.5)], "b": True})
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "a": [None, [None, 1.5]],
        "b": True,
    }


# --- what a person sees at the end


def test_examples_are_drawn_like_what_the_accuracy_counts(pretrained, monkeypatch):
    run, params = pretrained
    batch = pretrain._random_rows(run)
    assert len(batch["row"]) == len({*batch["row"].tolist()}) > 3
    masked = examples.masked(run.objective, batch)
    logits, _ = jax.jit(masked_logits, static_argnums=(0, 3))(
        run.encoder, params, masked, None
    )
    right = np.asarray(logits).argmax(-1).reshape(masked["labels"].shape)
    right = (right == masked["labels"]) & (masked["weights"] > 0)
    slots = (masked["weights"] > 0).sum()
    monkeypatch.setattr(examples, "masked", lambda *_: masked)
    (one,) = pretrain._trained(run, params).models().values()
    drawn = [
        examples.Examples(run.objective, one, batch, 8, seed).slots
        for seed in range(300)
    ]
    flat = [slot for some in drawn for slot in some]
    share = sum(right[slot] for slot in flat) / len(flat)
    assert 0 < right.sum() < slots and len({*flat}) == slots
    assert share == pytest.approx(right.sum() / slots, rel=0.1)
    assert min(len({row for row, _ in some}) for some in drawn) > 1
    shown = examples.Examples(run.objective, one, batch, 40)
    lines, hits = shown.guess()
    assert hits == sum(right[slot] for slot in shown.slots) > 0
    guessed = {"lines": lines, "right": hits}
    table = examples.table({"texts": shown.texts(), "causal": False}, guessed, guessed)
    assert f"{hits} of {len(lines)} are guessed right" in str(table.caption)
    # Pieces are shown as their words, but for what the row has cut off.
    known = {word for line in sentences(60) for word in re.findall(r"\w+|\.", line)}
    inner = 0
    for slot, (_, truth) in zip(shown.slots, shown.texts(), strict=True):
        assert any(truth.removeprefix("##") in word for word in known)
        label = run.tokenizer.backend.id_to_token(int(masked["labels"][slot]))
        inner += label.startswith("##") and truth in known
    assert inner > 3
    for slot, (text, truth), line in zip(
        shown.slots, shown.texts(), lines, strict=True
    ):
        assert text.count("[ ? ]") + text.count(" ? ]") == 2 - ("[ ? ]" not in text)
        assert "?] ##" not in text and "? ]##" not in text
        assert line.startswith(f"{truth} ") == right[slot]


def test_the_next_commands_can_be_pasted_and_speak_of_the_held_out_text(pretrained):
    run, _ = pretrained
    heads = ("head", "pair", "detector")
    view = types.SimpleNamespace(encoder=run.encoder, heads=heads)
    objective = types.SimpleNamespace(models={"model": view})
    place = "my runs/it's"
    run = dataclasses.replace(run, workdir=Workdir(place), objective=objective)
    lines = [shlex.split(line) for line in pretrain.suggested_commands(run)]
    verbs = ["fill", "next", "detect", "finetune", "embed", "evaluate", "export"]
    assert [line[1] for line in lines] == verbs
    parser = cli.make_parser()
    for line in lines:
        line = [word for word in line[1:] if not word.startswith("--config.")]
        args = parser.parse_args(line)
        assert place in (getattr(args, "model", None) or args.workdir)
    assert lines[3][2] == f"--config.model={place}"
    corpus = sentences(60)
    fill, (a, b), odd = lines[0][2], lines[1][2:4], lines[2][2]
    before, after = (part.strip() for part in fill.split("[MASK]"))
    assert any(before in line and after in line for line in corpus) and before
    assert any(f"{a} {b}" in line for line in corpus)
    assert odd.startswith(before) and odd.endswith(after)
    view.encoder = dataclasses.replace(run.encoder, causal=True)
    for line in pretrain.suggested_commands(run, best=True):
        args = parser.read(shlex.split(line)[1:])
        checkpoint = getattr(args, "checkpoint", "in overrides")
        assert checkpoint == "best" or "checkpoint=best" in args.overrides
    assert shlex.split(pretrain.suggested_commands(run)[0])[2] == before


def test_the_sentence_to_fill_ends_and_hides_a_word_of_letters():
    words = "It was 1 ; Then a wonderful cat sat . And more words came".split()
    numbers = [[n] for n in range(len(words))]
    numbers[6] = [90, 6]  # two pieces

    class Tokenizer:
        def decode(self, ids):
            return "".join(words[i] if i < 90 else "" for i in ids)

    tokenizer: Any = Tokenizer()
    assert examples.first_sentence(numbers, tokenizer) == numbers[:10]
    assert words[examples.word_to_hide(numbers[:10], tokenizer)] == "Then"
    assert len(examples.first_sentence(numbers[4:9] * 4, tokenizer)) == 12
    assert examples.word_to_hide([[2]] * 3, tokenizer) == 1


def type_in(monkeypatch, text: str) -> None:
    raw = io.TextIOWrapper(io.BytesIO(text.encode()))
    monkeypatch.setattr("sys.stdin", raw)


@pytest.mark.parametrize("kind", ["classes", "tags"])
def test_predictions_of_options_and_pipes(kind, made, tmp_path, monkeypatch, capsys):
    """The same as of a file, as lines of JSON and nothing else."""
    parts, _, lines = made(kind)
    stand_in_for(parts, kind, monkeypatch)

    def predict(*options: str):
        capsys.readouterr()
        code = cli.main(["predict", "--model=a", *options])
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    texts = [line.get("text") or " ".join(line["tokens"]) for line in lines]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    _, wanted, err = predict(f"--input={tmp_path / 'a.txt'}")
    assert len(wanted) == EXAMPLES and err == ""
    given = [f"--text={text}" for text in texts]
    assert predict(*given, "--output=-") == (0, wanted, "")
    type_in(monkeypatch, "\ufeff" + "\r\n".join(texts) + "\r\n")
    code, found, err = predict("--input=-")
    assert (code, found) == (0, wanted) and "a text a line" in err
    labelled = (tmp_path / "held_out.jsonl").read_text()
    type_in(monkeypatch, labelled)
    code, found, err = predict("--input=-", "--output=-")
    assert (code, found) == (0, wanted) and "JSON lines" in err
    # To a file, the number is said instead.
    out = tmp_path / "out.jsonl"
    assert cli.main(["predict", "--model=a", *given, f"--output={out}"]) == 0
    assert "14 predictions" in capsys.readouterr().out
    assert [json.loads(line) for line in out.read_text().splitlines()] == wanted

    for typed, options, code, words in (
        ("", ["--input=-"], Exit.DATA, "standard input holds no text"),
        ("a\n\nb\n", ["--input=-"], Exit.DATA, "text 2 is empty"),
        ('{"tex": "a"}\n', ["--input=-"], Exit.DATA, "standard input:1: there is no"),
        ('{"a": 1}\n{"b', ["--input=-"], Exit.DATA, "standard input:"),
        ("", [], Exit.USAGE, "--text=TEXT"),
        ("", ["--text=a", "--input=b.csv"], Exit.USAGE, "given twice"),
        ("", ["--text=\udcff"], Exit.USAGE, "--text is not UTF-8"),
    ):
        type_in(monkeypatch, typed)
        found = predict(*options)
        assert found[:2] == (code, []) and words in found[2], options
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\n\xff\n")))
    assert "standard input:2: byte 0xff" in predict("--input=-")[2]


def test_a_line_of_a_file_is_a_text_whatever_its_characters(tmp_path):
    """Separators that Python takes for line ends stay inside of a text."""
    (tmp_path / "a.txt").write_bytes("a\u2028b\x0bc\r\nd\x85e\n".encode())
    config = TaskConfig()
    examples = predict_lib.read_input(config, str(tmp_path / "a.txt"))
    assert [example.texts for example in examples] == [("a\u2028b\x0bc",), ("d\x85e",)]
    (tmp_path / "b.TXT.bz2").write_bytes(bz2.compress(b"a\nb\n"))
    examples = predict_lib.read_input(config, str(tmp_path / "b.TXT.bz2"))
    assert [example.texts for example in examples] == [("a",), ("b",)]


def test_fill_reads_lines_and_says_which_mask(pretrained, monkeypatch, capsys):
    run, params = pretrained
    (one,) = pretrain._trained(run, params).models().values()
    monkeypatch.setattr(model, "open_model", lambda *_: one)
    type_in(monkeypatch, "the [MASK] of a\nthe <mask> of a\n")
    assert cli.main(["fill", "-", "--model=a", "--top=2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (first,) = fill.fill(one, "the [MASK] of a", 2)
    assert lines[0] == {
        "text": "the [MASK] of a",
        "masks": [[{**guess._asdict()} for guess in first]],
    }
    assert lines[1] == lines[0] | {"text": "the <mask> of a"}
    assert cli.main(["fill", "no", "--model=a"]) == Exit.USAGE
    assert "the text 'no' has no [MASK]." in capsys.readouterr().err
    specials = dataclasses.replace(one.tokenizer.specials, mask="<mask>")
    other = copy.copy(one.tokenizer)
    other.specials = specials
    with pytest.raises(PlmjaxError, match="no .MASK. or <mask>, which is this"):
        fill.fill(dataclasses.replace(one, tokenizer=other), "no")
