"""Fine-tuning for sentence embeddings: from pairs to a folder of good vectors."""

import json

import numpy as np
import pytest
from finetune_common import make_folder, records, run, write

from plmjax import Exit, PlmjaxError
from plmjax.baselines.run import run_baselines
from plmjax.baselines.text_features import tfidf_vectors
from plmjax.cli import main
from plmjax.data.columns import ColumnsConfig
from plmjax.data.examples import Example
from plmjax.embed.run import EmbedConfig, embed_texts, open_encoder
from plmjax.finetune.predict import evaluate
from plmjax.interop.huggingface import export_folder, read_folder
from plmjax.interop.sentence_files import read_pooling, to_files
from plmjax.metrics.retrieval import candidates_of, find_pairs, number_texts, rank_pairs
from plmjax.metrics.scores import rank_scores
from plmjax.tasks.config import TaskConfig
from plmjax.tasks.labelled import Labelled, load_labelled, read_examples
from plmjax.tasks.scores import gain
from plmjax.tasks.task import Task

KIND = ("task.kind=embeddings", "start.dropout=0.0")
HELD_OUT = 40


pytestmark = pytest.mark.usefixtures("module_on_one_device")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("start") / "bert")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    write(place / "train.jsonl", records("embeddings", 300))
    write(place / "held_out.jsonl", records("embeddings", HELD_OUT, seed=1))
    return place


@pytest.fixture(scope="module")
def done(tmp_path_factory, folder, data):
    """A run of two evaluations, and what it said."""
    place, said = tmp_path_factory.mktemp("runs") / "plain", []
    steps = ("train.steps=40", "train.batch=32", "train.evaluate_every_steps=20")
    more = (*steps, "train.checkpoint_every_steps=20")
    return place, run(place, folder, data, *KIND, *more, said=said), said


def vectors_of(path, examples, **values):
    """[N, 2, H] of the texts and pairs, by `plmjax embed`."""
    model, longest = open_encoder(str(path))
    config = EmbedConfig(**values)
    texts = [text for example in examples for text in example.texts]
    return embed_texts(model, texts, config, longest).reshape(len(examples), 2, -1)


def held_out(data):
    config = TaskConfig("embeddings", train=str(data / "held_out.jsonl"))
    return read_examples(config, "train")


def ranks_of(vectors, examples):
    return [
        found.rank
        for found in find_pairs(vectors, number_texts([e.texts for e in examples]))
    ]


# --- from end to end


@pytest.mark.slow
def test_training_brings_pairs_together(done, folder, data):
    place, result, said = done
    examples = held_out(data)
    before = rank_scores(ranks_of(vectors_of(folder, examples), examples))
    after = result["held_out"]
    assert result["metric"] == "mrr"
    assert before["mrr"] < 0.3 < 0.6 < after["mrr"], (before, after)
    assert after["accuracy_at_1"] > before["accuracy_at_1"] + 0.3
    assert np.isfinite(after["loss"])
    (among,) = [line for line in said if "looks for its pair among" in line]
    assert f"among {len({e.texts[1] for e in examples})};" in among
    assert any("new: nothing" in line for line in said)
    lines = (place / "predictions-held_out.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    ranks = [line["rank"] for line in found]
    assert rank_scores(ranks)["mrr"] == pytest.approx(after["mrr"])
    assert all(-1 <= line["cosine"] <= 1 and line["truth"] == 1 for line in found)


def test_embed_gives_the_vectors_of_the_score(done, data):
    place, result, _ = done
    examples = held_out(data)
    for path in (place, place / "export"):
        vectors = vectors_of(path, examples)
        ranks = ranks_of(vectors, examples)
        for name, value in rank_scores(ranks).items():
            assert value == pytest.approx(result["held_out"][name], abs=1e-6)
    cosines = find_pairs(vectors, number_texts([e.texts for e in examples]))
    said = {}
    for line in (place / "predictions-held_out.jsonl").read_text().splitlines():
        record = json.loads(line)
        said[record["id"]] = record["cosine"]
    for example, own in zip(examples, cosines, strict=True):
        assert own.cosine == pytest.approx(said[example.id], abs=2e-6)
    found = evaluate(str(place), str(data / "held_out.jsonl"), batch=8)
    assert found["mrr"] == pytest.approx(result["held_out"]["mrr"], abs=1e-6)
    assert found["candidates"] == len({e.texts[1] for e in examples})


def test_the_export_is_an_encoder_with_its_pooling(done, tmp_path):
    place, _, _ = done
    to = tmp_path / "folder"
    for _ in range(2):  # the second takes the place of the first
        assert main(["export", f"--workdir={place}", f"--to={to}"]) == Exit.OK
    found = read_folder(to)
    assert found.task == Task("embeddings") and set(found.params) == {"encoder"}
    body = json.loads((to / "config.json").read_text())
    assert body["architectures"] == ["BertModel"]
    modules = json.loads((to / "modules.json").read_text())
    kinds = [one["type"].rpartition(".")[2] for one in modules]
    assert kinds == ["Transformer", "Pooling"] and modules[1]["path"] == "1_Pooling"
    length = json.loads((to / "sentence_bert_config.json").read_text())
    assert length["max_seq_length"] == 16
    pooling = json.loads((to / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == found.config.width
    card = (to / "README.md").read_text()
    assert "sentence-similarity" in card and "among which a pair is looked for" in card
    (to / "1_Pooling" / "mine.txt").write_text("x")
    assert main(["export", f"--workdir={place}", f"--to={to}"]) == Exit.USAGE


def test_predict_points_to_embed(done, data, tmp_path, capsys):
    to = f"--output={tmp_path / 'x.jsonl'}"
    given = f"--input={data / 'held_out.jsonl'}"
    assert main(["predict", f"--model={done[0]}", given, to]) == Exit.USAGE
    assert "`plmjax embed --model=" in capsys.readouterr().err
    out = tmp_path / "x.npy"
    assert main(["embed", f"--model={done[0]}", given, f"--output={out}"]) == Exit.OK
    assert np.load(out).shape == (HELD_OUT, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("task.pooling=cls", "task.columns.negative=wrong", "mixout=0.5")
        + ("train.optimizer.layer_decay=0.5", "start.reinit_layers=1"),
        ("lora.rank=2", "train.accumulation=2", "task.buckets=(8,)")
        + ("folds.count=3", "baselines=True"),
    ],
    ids=lambda more: more[0].partition("=")[0],
)
def test_its_neighbours_go_along(more, tmp_path, folder):
    for name, count in (("train", 60), ("held_out", 12)):
        lines = records("embeddings", count, seed=count)
        wrong = [line["pair"] for line in lines[1:]] + [lines[0]["pair"]]
        lines = [a | {"wrong": b} for a, b in zip(lines, wrong, strict=True)]
        write(tmp_path / f"{name}.jsonl", lines)
    result = run(tmp_path / "run", folder, tmp_path, *KIND, *more, "train.steps=2")
    assert 0 < result["held_out"]["mrr"] <= 1
    model, _ = open_encoder(str(tmp_path / "run"))
    assert model.task is not None
    assert model.task.pooling == ("cls" if "task.pooling=cls" in more else "mean")
    examples = held_out(tmp_path)
    if "folds.count=3" not in more:
        ranks = ranks_of(vectors_of(tmp_path / "run", examples), examples)
        assert rank_scores(ranks)["mrr"] == pytest.approx(result["held_out"]["mrr"])


# --- ranks


def test_ranks_are_counted_by_hand():
    """Three directions; the fourth text is the first one again, with another pair."""
    a, b, c = np.eye(3, dtype=np.float32)
    pairs = [a, b + 0.1 * c, b, b]
    vectors = np.stack([[a, a, a, a], pairs], 1)
    number = np.array([[0, 10], [1, 11], [2, 12], [0, 12]])
    found = find_pairs(vectors, number, temperature=0.5)
    # 11 is behind 10, 12 behind both but equal to 11; of text 0 neither 10 nor 12
    # stands in the other's way.
    assert [own.rank for own in found] == [1, 3, 3, 2]
    assert candidates_of(number).pairs == 3
    logits = np.array([1.0, 0.0]) / 0.5
    wanted = np.log(np.exp(logits).sum()) - logits[0]
    assert found[0].loss == pytest.approx(wanted, rel=1e-6)
    # A text that stands among the pairs is not held against itself.
    turned = find_pairs(np.stack([[a, b], [b, a]], 1), np.array([[0, 1], [1, 0]]))
    assert [own.rank for own in turned] == [1, 1]
    # What is the same of all texts, or is not finite, finds nothing.
    same = np.ones((5, 2, 3), np.float32)
    number = np.arange(10).reshape(5, 2)
    for vectors in (same, same * np.nan):
        assert [own.rank for own in find_pairs(vectors, number)] == [5] * 5


def test_simple_vectors_are_compared_with():
    """TF-IDF finds pairs that share words, and a gain over chance is told."""
    words = [f"word{n}" for n in range(30)]
    texts = [(f"{one} here", f"there is {one}") for one in words]
    examples = [Example(str(n), "", t, 1, t[0]) for n, t in enumerate(texts)]
    ranks = rank_pairs([e.texts for e in examples], tfidf_vectors(examples))
    assert rank_scores(ranks) == {"accuracy_at_1": 1.0, "mrr": 1.0}
    chance = [*range(1, 31)]
    truth = [1] * 30
    found = gain("embeddings", "mrr", truth, ranks, chance, ())
    assert found.difference == pytest.approx(1 - np.mean(1 / np.arange(1, 31)))
    assert found.low > 0
    config = TaskConfig("embeddings", length=16)
    half = tuple(examples[:15])
    said = []
    data = Labelled(config, (), half, tuple(examples[15:]), ())
    (only,) = run_baselines(data, data.held_out, log=said.append)
    assert only.name == "TF-IDF" and only.scores["mrr"] > 0.2
    assert any("no model is given" in line for line in said)


# --- what is refused


@pytest.mark.parametrize(
    "line, more, says",
    [
        ({"text": "a", "b": "c"}, {}, "there is no column 'pair'"),
        ({"text": "a", "pair": "c"}, {"negative": "no"}, "there is no column 'no'"),
        ({"text": " ", "pair": "c"}, {}, "the column 'text' is empty"),
        ({"text": "a", "pair": ""}, {}, "the column 'pair' is empty"),
        ({"text": "a", "pair": None}, {}, "the column 'pair' is empty"),
        ({"text": "a", "pair": "one and all"}, {}, "'one and all' in all 3 examples"),
    ],
)
def test_records_that_are_refused(line, more, says, tmp_path):
    path = write(tmp_path / "train.jsonl", [line] * 3)
    config = TaskConfig("embeddings", train=str(path), columns=ColumnsConfig(**more))
    with pytest.raises(PlmjaxError) as told:
        load_labelled(config)
    assert says in str(told.value) and told.value.code == Exit.DATA
    assert "train.jsonl" in str(told.value)


@pytest.mark.parametrize(
    "more, says",
    [
        (("train.batch=1",), "is one row at once"),
        (("train.batch=8", "train.accumulation=8"), "is one row at once"),
        (("objective.label_smoothing=0.1",), "objective.label_smoothing"),
        (("start.classifier_dropout=0.1",), "start.classifier_dropout"),
        (("task.pooling=max",), "task.pooling=max is not for"),
        (("task.temperature=0.0",), "task.temperature"),
        (("task.labels=('a', 'b')",), "task.labels"),
        (("select.metric=f1",), "Its scores: accuracy_at_1, mrr, loss"),
    ],
)
def test_mistakes_are_told_before_training(more, says, tmp_path, folder, data):
    with pytest.raises(PlmjaxError) as told:
        run(tmp_path / "run", folder, data, *KIND, *more)
    assert says in f"{told.value} {told.value.hint}"


def test_a_single_candidate_is_refused(tmp_path, data):
    one = write(tmp_path / "one.jsonl", records("embeddings", 1))
    train = str(data / "train.jsonl")
    with pytest.raises(PlmjaxError, match="single pair"):
        load_labelled(TaskConfig("embeddings", train=train, held_out=str(one)))


# --- the files of sentence-transformers


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_the_pooling_comes_back(pooling, tmp_path):
    for name, text in to_files(pooling, 8, 16).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    notes = []
    assert read_pooling(tmp_path, notes) == pooling and not notes
    config = tmp_path / "1_Pooling" / "config.json"
    config.write_text(json.dumps({"pooling_mode": pooling}))
    assert read_pooling(tmp_path, notes) == pooling and not notes
    config.write_text(json.dumps({"pooling_mode_lasttoken": True}))
    assert read_pooling(tmp_path, notes) is None
    assert "pooling_mode_lasttoken" in notes.pop()
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules.append({"type": "sentence_transformers.models.Dense"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert read_pooling(tmp_path, notes) is None and "Dense" in notes.pop()
    (tmp_path / "modules.json").write_text("[1]")
    with pytest.raises(PlmjaxError, match="not a list of modules"):
        read_pooling(tmp_path, notes)


@pytest.mark.peer
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_transformers_gives_the_same_vectors(pooling, folder, tmp_path):
    import torch
    import transformers

    model, to = read_folder(folder), tmp_path / "folder"
    params = {"encoder": model.params["encoder"]}
    task = Task("embeddings", pooling=pooling)
    export_folder(to, model.config, params, model.tokenizer, "A card.", 16, task)
    examples = [
        Example("", "", (line["text"], line["pair"]), 1, "")
        for line in records("embeddings", 20)
    ]
    ours = vectors_of(to, examples)
    tokenizer = transformers.AutoTokenizer.from_pretrained(to, local_files_only=True)
    theirs = transformers.AutoModel.from_pretrained(to, local_files_only=True).eval()
    texts = [text for example in examples for text in example.texts]
    rows = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = theirs(**rows).last_hidden_state
    real = rows["attention_mask"][:, :, None]
    means = (states * real).sum(1) / real.sum(1)
    wanted = states[:, 0] if pooling == "cls" else means
    np.testing.assert_allclose(ours.reshape(len(texts), -1), wanted.numpy(), atol=1e-5)
