"""Baselines: each by hand, a planted signal found, chance that gains nothing."""

import gzip
import random
import re
import warnings

import jax
import numpy as np
import pytest
from tests_common import WORDS, sentences

from plmjax import Exit, PlmjaxError
from plmjax.baselines import linear, probe, watch
from plmjax.baselines import run as baselines
from plmjax.baselines.probe import probe_features
from plmjax.baselines.run import Baseline, best_of, gain_lines, run_baselines, table
from plmjax.baselines.static_vectors import (
    from_file,
    from_model,
    read_vectors,
    static_features,
)
from plmjax.baselines.text_features import shape, tfidf, usual_tags, word_features
from plmjax.data.examples import Example
from plmjax.evaluate.model import Model
from plmjax.metrics import label_counts
from plmjax.metrics.comparison import SAME, compare_by
from plmjax.models import EncoderConfig, heads
from plmjax.tasks import KINDS
from plmjax.tasks import scores as gains
from plmjax.tasks.config import TaskConfig
from plmjax.tasks.features import make_features
from plmjax.tasks.labelled import Labelled
from plmjax.tasks.scores import gain
from plmjax.tokenizers import TokenizerConfig, train_tokenizer


def example(label, *texts):
    return Example("0", "a:1", texts, label, "\0".join(texts))


@pytest.fixture(autouse=True)
def few_timed(monkeypatch):
    monkeypatch.setattr(baselines, "_TIMED", 3)


@pytest.fixture(scope="module")
def model():
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=120), sentences(100))
    encoder = EncoderConfig(
        vocab_size=tokenizer.vocab_size,
        layers=1,
        width=16,
        heads=2,
        ffn_width=32,
        max_positions=16,
        init_std=0.5,
    )
    names = ("tokens", "segments", "positions", "types")
    batch = {name: np.ones((1, 8), np.int32) for name in names}
    # Compiled as one: hundreds of small programs take ten times as long.
    init = jax.jit(lambda key: heads.init_model(encoder, key, batch, ()))
    params = init(jax.random.key(0))
    return Model(encoder, params, tokenizer, "tiny")


# --- made-up tasks, in which a word says the label


def draw_texts(count, seed):
    """Texts of 6 words, in half of them "matrix"; all distinct."""
    chance = random.Random(seed)
    plain = [word for word in WORDS if word not in ("matrix", "vector")]
    for place in range(count):
        words = chance.choices(plain, k=6)
        if place % 2:
            words[chance.randrange(6)] = "matrix"
        yield tuple(words), place % 2


def classes(count, seed):
    return [
        example("yes" if found else "no", " ".join(words))
        for words, found in draw_texts(count, seed)
    ]


def multilabel(count, seed):
    return [
        example(("long", "maths") if found else ("long",), " ".join(words))
        for words, found in draw_texts(count, seed)
    ]


def regression(count, seed):
    return [
        example(found + 0.1 * len(words[0]), " ".join(words))
        for words, found in draw_texts(count, seed)
    ]


def tags(count, seed):
    return [
        example(tuple("M" if w == "matrix" else "O" for w in words), *words)
        for words, _ in draw_texts(count, seed)
    ]


def answers(count, seed):
    return [
        example((("matrix", 0),) if found else (), "Which?", " ".join(words))
        for words, found in draw_texts(count, seed)
    ]


def choices(count, seed):
    chance = random.Random(seed)
    return [
        example(chance.randrange(2), f"{' '.join(words)} ?", "a", "b")
        for words, _ in draw_texts(count, seed)
    ]


def right_choices(count, seed):
    """The right one of two or three choices has the word."""
    found = []
    for place, one in enumerate(choices(count, seed)):
        texts = ["a vector", "the list", "a value"][: 2 + place % 2]
        texts[one.label] = "the matrix"
        found.append(example(one.label, one.texts[0], *texts))
    return found


TASKS = {
    "classes": (classes, ("no", "yes"), "accuracy"),
    "multilabel": (multilabel, ("long", "maths", "rude"), "f1_macro"),
    "regression": (regression, (), "pearson"),
    "tags": (tags, ("M", "O"), "tag_f1_macro"),
    "answers": (answers, (), "f1"),
    "choices": (right_choices, (), "accuracy"),
}


def make_task(kind, count=100):
    make, labels, metric = TASKS[kind]
    config = TaskConfig(kind=kind, length=16, stride=16)
    task = Labelled(config, labels, tuple(make(count, 1)), (), tuple(make(60, 2)))
    return task, metric


VECTORS = {"matrix": [1, 0, 0], "list": [0, 1, 0], "value": [0, 1, 1], "a": [0, 0, 1]}


def write_text(path, vectors=VECTORS, header=True):
    lines = [f"{len(vectors)} 3"] if header else []
    lines += [f"{word} {' '.join(map(str, row))}" for word, row in vectors.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", TASKS)
def test_every_kind_finds_what_was_planted(kind, model, tmp_path):
    task, metric = make_task(kind)
    log = []
    vectors = write_text(tmp_path / "small.vec")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run_baselines(task, task.test, model, vectors, log.append)
    truth = [one.label for one in task.test]
    scores = {one.name: one.scores[metric] for one in found}
    if kind == "answers":
        assert [*scores] == ["majority"] and scores["majority"] == 0.5
        assert "no other baseline" in " ".join(log)
        return
    expected = {"classes": "TF-IDF + logistic regression", "tags": "word features"}
    assert len(found) == (6 if kind == "tags" else 5)
    assert found[0].name == "majority"
    assert found[-1].name == "linear probe"
    assert any(expected.get(kind, "TF-IDF") in name for name in scores)
    majority_score = scores.pop("majority")
    highest = 2 / 3 if kind == "multilabel" else 1  # one label of three never occurs
    known = 0 if np.isnan(majority_score) else majority_score
    for name, score in scores.items():
        # A random model of 16 numbers a word tells words apart, but not cleanly.
        random_model = name.startswith(("token table", "linear probe"))
        least = 0.25 if random_model else 0.8
        assert score > known + least * (highest - known), name
    for one in found:
        assert len(one.predictions) == len(truth)
        assert {type(p) for p in one.predictions} == {type(t) for t in truth}
        assert one.scores == pytest.approx(
            KINDS[kind].scores(truth, one.predictions, task.labels), nan_ok=True
        )
        assert one.milliseconds > 0
    assert any("% of the words have a vector" in line for line in log)


def test_the_same_data_give_the_same_predictions(model):
    task, _ = make_task("classes", 40)
    first, second = (run_baselines(task, task.test, model) for _ in range(2))
    assert [one.predictions for one in first] == [one.predictions for one in second]


def test_labels_by_lot_gain_nothing(model):
    """Where texts say nothing of their label no baseline is told from the majority."""
    chance = random.Random(0)
    train, test = (
        [example(chance.choice("ab"), one.texts[0]) for one in classes(n, seed)]
        for n, seed in ((200, 1), (200, 2))
    )
    config = TaskConfig(length=16)
    task = Labelled(config, ("a", "b"), tuple(train), (), tuple(test))
    first, *others = run_baselines(task, test, model)
    truth = [one.label for one in test]
    for one in others:
        chosen = one.predictions, first.predictions
        assert gain("classes", "accuracy", truth, *chosen, [*"ab"]).verdict == SAME


# --- the simplest


def test_majority_by_hand():
    texts = [example(label, "x") for label in "bbaca"]
    # Of equals the first.
    assert KINDS["classes"].majority("abc", texts)(texts) == ["a"] * 5
    names = [("a",), ("a", "b"), ("b", "c"), ("a",)]
    sets = [example(label, "x") for label in names]
    # b: half, no more.
    assert KINDS["multilabel"].majority("abc", sets)(sets[:1]) == [("a",)]
    numbers = [example(value, "x") for value in (1.0, 2.0, 6.0)]
    assert KINDS["regression"].majority((), numbers)(numbers[:2]) == [3.0, 3.0]
    tagged = [example(("O", "X"), "p", "q"), example(("O",), "r")]
    assert KINDS["tags"].majority(("X", "O"), tagged)(tagged) == [("O", "O"), ("O",)]
    chosen = [example(2, "x", "p", "q", "r")] * 2 + [example(1, "x", "p", "q")]
    assert KINDS["choices"].majority((), chosen)(chosen) == [2, 2, 0]
    assert KINDS["answers"].majority((), [])(texts) == [""] * 5


def test_majority_scores_are_a_count():
    task, _ = make_task("classes")
    (found, *_) = run_baselines(task, task.test[:31])
    share = sum(one.label == "no" for one in task.test[:31]) / 31
    assert found.scores["accuracy"] == share == 16 / 31


def test_usual_tags():
    train = [
        example(("D", "N", "V"), "The", "run", "run"),
        example(("V", "D", "N"), "run", "the", "walking"),
        example(("N", "V", "V", "V"), "king", "sings", "rings", "x"),
    ]
    predict = usual_tags(("D", "N", "V"), train)
    asked = ("run", "The", "RUN", "parking", "flings", "zzz")
    # parking: -king; flings: -ings; zzz: V, the most frequent.
    assert predict([example(None, *asked)]) == [("V", "D", "V", "N", "V", "V")]


def test_shapes():
    words = ["McDonald", "3.14", "U.S.", "don't", "東京"]
    assert [*map(shape, words)] == ["XxXx", "9.9", "X.X.", "x'x", "x"]


def test_word_features_see_the_neighbour():
    """A word whose tag hangs on the word before it: no dictionary knows that."""
    chance = random.Random(0)
    data = []
    for _ in range(80):
        before = chance.choice(["the", "to"])
        tag = "N" if before == "the" else "V"
        data.append(example(("F", tag), before, "run"))
    labels, train, test = ("F", "N", "V"), data[:60], data[60:]
    featurise = word_features(train)
    predict = linear.fit_linear(KINDS["tags"], labels, train, featurise, print)
    truth = [one.label for one in test]
    assert predict(test) == truth
    assert usual_tags(labels, train)(test) != truth


def test_tfidf_keeps_the_texts_of_a_pair_apart():
    pairs = [example("a", "one cat", "two dogs"), example("b", "two dogs", "one cat")]
    same = example(None, "one cat", "one cat")
    featurise = tfidf(KINDS["classes"], pairs)
    x = featurise([*pairs, same]).toarray()
    half = (x.shape[1] - 2) // 2
    assert np.array_equal(x[0, :half], x[1, half:-2])
    assert not np.array_equal(x[0, :half], x[1, :half])
    assert x[:, -2:] == pytest.approx(np.array([x[0, -2:], x[1, -2:], [1, 1]]))
    assert x[0, -2] == 0 and x[0, -1] < 0.5  # no word, hardly a character
    single = tfidf(KINDS["classes"], [example("a", "!!"), example("b", "?")])
    assert single([example(None, "!")]).nnz  # signs alone are text as well


# --- fits


def test_features_are_standardised_and_the_model_folds_it_in():
    """Scale and place of dense features change nothing; a constant one is harmless."""
    chance = np.random.default_rng(0)
    x = chance.normal(size=(80, 3))
    y = (x[:, 0] + 0.1 * chance.normal(size=80) > 0).astype(int)
    moved = np.concatenate([1e4 * x - 3e5, np.full((80, 1), 7.7)], 1)
    for kind, target in (("classes", y), ("regression", x[:, 0] - 2 * x[:, 1])):
        plain, _ = linear._fit(KINDS[kind], x, target, 2, 1.0)
        other, ended = linear._fit(KINDS[kind], moved, target, 2, 1.0)
        assert ended and not other.weights[-1].any()
        np.testing.assert_allclose(other(moved), plain(x), rtol=1e-4, atol=1e-4)


class Clock:
    """A clock on which each look takes `seconds`."""

    def __init__(self, seconds):
        self.now, self.seconds = 0.0, seconds

    def __call__(self):
        self.now += self.seconds
        return self.now


def test_models_that_take_too_long_are_left_out_and_said(monkeypatch):
    task, _ = make_task("classes")
    clock = Clock(0.0)
    monkeypatch.setattr(watch.time, "monotonic", clock)

    def fit(seconds):
        def work():
            clock.now += seconds
            limit.need(seconds)
            return lambda examples: ["no"] * len(examples)

        return work

    models = {"quick": 1, "slow": 30, "short": 2, "last": 10, "late": 0}
    monkeypatch.setattr(
        baselines,
        "_baselines",
        lambda *_, **__: [(n, fit(s)) for n, s in models.items()],
    )
    log = []
    limit = watch.Watch(43.0, log.append)
    found = run_baselines(task, task.test, log=log.append, watch=limit)
    assert [one.name for one in found] == ["quick", "short"]
    assert limit.left_out == ["slow", "last", "late"]
    for name in limit.left_out:
        assert f"  {name}: left out, as it would end after 43 s" in log
    for limit in (watch.Watch(), watch.Watch(1e9)):
        assert len(run_baselines(task, task.test, watch=limit)) == 5
        assert limit.left_out == []


def test_a_probe_that_is_out_of_time_stops_between_batches(model, monkeypatch):
    config = TaskConfig(length=16)
    clock = Clock(0.0)
    monkeypatch.setattr(watch.time, "monotonic", clock)
    limit = watch.Watch(5.0)
    limit.begin("linear probe")
    featurise = probe_features(config, model, limit)
    seen = []
    monkeypatch.setattr(probe, "_BATCH", 2)

    def sums(encoder, platform, params, batch):
        seen.append(len(batch["tokens"]))
        clock.now += 2.0
        return np.zeros((len(batch["tokens"]), 16))

    monkeypatch.setattr(probe, "_sums", sums)
    texts = [example(None, "the sea") for _ in range(20)]
    with pytest.raises(watch.OutOfTime):
        featurise(texts)
    assert seen == [2, 2]  # 4 s; the ten batches need 20
    limit.begin(None)
    assert featurise(texts).shape == (20, 16)


def test_the_end_of_a_work_is_foreseen(monkeypatch):
    clock = Clock(0.0)
    monkeypatch.setattr(watch.time, "monotonic", clock)
    log = []
    limit = watch.Watch(100.0, log.append)
    limit.begin("probe")
    clock.now = 50.0
    limit.progress("states", 0, 1000)
    clock.now = 52.0
    limit.progress("states", 10, 1000)  # two seconds may be those of compiling
    clock.now = 61.0
    limit.progress("states", 250, 1000)  # 33 s more
    assert log == ["  probe: states, 25%, 33 s left"]
    with pytest.raises(watch.OutOfTime):
        limit.progress("states", 200, 1000)  # 44 s more, of 39
    limit.need(38.0)
    with pytest.raises(watch.OutOfTime):
        limit.need(39.0)
    limit.begin(None)  # a single example for a user is not limited
    limit.need(1e9)


def test_a_last_fit_that_would_take_too_long_is_not_begun(monkeypatch):
    train = classes(400, 1)
    monkeypatch.setattr(linear, "INNER_ROWS", 20)
    fitted = []
    monkeypatch.setattr(watch.time, "monotonic", clock := Clock(0.0))
    limit = watch.Watch(50.0)
    limit.begin("slow")

    def fit(kind, x, y, outputs, strength):
        fitted.append(len(y))
        clock.now += 4.0
        return lambda x: np.zeros((x.shape[0], 2)), True

    monkeypatch.setattr(linear, "_fit", fit)
    featurise = tfidf(KINDS["classes"], train)
    with pytest.raises(watch.OutOfTime):
        linear.fit_linear(
            KINDS["classes"], ["no", "yes"], train, featurise, print, watch=limit
        )
    assert fitted == [20] * len(linear.SPARSE)  # 400 rows would need 80 s


def test_a_fit_cut_short_is_said(monkeypatch):
    monkeypatch.setattr(linear, "_STEPS", 2)
    task, _ = make_task("classes")
    log = []
    run_baselines(task, task.test, log=log.append)
    assert any("stopped after 2 steps" in line for line in log)


def test_too_many_rows_are_drawn_and_said(model, monkeypatch):
    monkeypatch.setattr(linear, "DENSE_ROWS", 100)
    task, _ = make_task("tags")
    log = []
    found = run_baselines(task, task.test, model, log=log.append)
    assert "  fitted on 96 of the 600 words of train" in log
    assert all(len(one.predictions) == 60 for one in found)


def test_a_class_that_train_lacks_is_never_predicted():
    train = [example(label, label * 3) for label in "acac" * 5]
    predict = linear.fit_linear(
        KINDS["classes"], "abc", train, tfidf(KINDS["classes"], train), print
    )
    assert predict(train) == [one.label for one in train]


# --- static vectors


def test_a_text_is_the_mean_of_its_words(tmp_path):
    path = write_text(tmp_path / "v.vec")
    asked = [example("x", "A matrix, a LIST"), example("y", "unknown !")]
    vectors, share = from_file(path, KINDS["classes"], asked)
    known = [VECTORS[word] for word in ("a", "matrix", "a", "list")]
    expected = [np.mean(known, 0), [0, 0, 0]]
    np.testing.assert_allclose(
        static_features(KINDS["classes"], vectors)(asked), expected
    )
    assert share == 4 / 7  # the comma is asked for, too
    pair = [example("x", "matrix list", "value")]
    a, b = np.array([0.5, 0.5, 0]), np.array([0, 1, 1])
    found = static_features(
        KINDS["classes"], from_file(path, KINDS["classes"], pair)[0]
    )(pair)
    np.testing.assert_allclose(found, [[*a, *b, *abs(a - b), *(a * b)]])


def test_a_word_has_its_neighbours(tmp_path):
    asked = [example("xy", "matrix", "list"), example("x", "value")]
    vectors, _ = from_file(write_text(tmp_path / "v.vec"), KINDS["tags"], asked)
    none = [0, 0, 0]
    m, n, v = (VECTORS[word] for word in ("matrix", "list", "value"))
    expected = [none + m + n, m + n + none, none + v + none]
    np.testing.assert_array_equal(
        static_features(KINDS["tags"], vectors)(asked), expected
    )


def write_binary(path, newline):
    rows = (
        word.encode() + b" " + np.array(row, "<f4").tobytes() + newline
        for word, row in VECTORS.items()
    )
    path.write_bytes(f"{len(VECTORS)} 3\n".encode() + b"".join(rows))
    return path


@pytest.mark.parametrize("newline", [b"", b"\n"])
def test_all_formats_say_the_same(tmp_path, newline):
    plain = write_text(tmp_path / "a.vec")
    binary = write_binary(tmp_path / "a.bin", newline)
    files = [plain, write_text(tmp_path / "glove.txt", header=False), binary]
    for path in (plain, binary):
        packed = path.with_name(path.name + ".gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        files.append(packed)
    for path in files:
        number, table_VE = read_vectors(path, {"list", "a", "never"})
        found = {word: table_VE[row].tolist() for word, row in number.items()}
        assert found == {word: VECTORS[word] for word in ("list", "a")}, path
        assert table_VE.dtype == np.float32


@pytest.mark.parametrize(
    "name, content, wrong",
    [
        ("a.vec", b"", r"a\.vec:1: the first line is empty"),
        ("a.vec", b"2 3\nlist 1 2 3\na 1 2\n", r"a\.vec:3: 2 numbers where 3"),
        ("a.vec", b"2 3\nlist 1 2 3\na 1 2 3 4\n", r"a\.vec:3: 4 numbers where 3"),
        ("a.vec", b"list 1 2 3\nb 1 2\n", r"a\.vec:2: 2 numbers where 3"),
        ("a.vec", b"1 3\nlist 1 2 x3\n", r"a\.vec:2: 'x3' is no number"),
        ("a.vec", b"1 3\nlist 1 2 nan\n", r"a\.vec:2: .*'list' is not finite"),
        ("a.vec", b"3 3\nlist 1 2 3\n", r"a\.vec:1: .*3 words, but has 1"),
        ("a.vec", b"list\n", r"a\.vec:1: .* no word with its numbers"),
        ("a.vec", b"1 3\nmuro 1 2 3\n", r"none of the 2 words"),
        ("a.bin", b"list 1 2 3\n", r"a\.bin:1: .* numbers of words"),
        ("a.bin", b"2 1\nlist 1234a 123", r"a\.bin:1: .*2 words, but has 1"),
        ("a.bin", b"1 1\nlist 1234a 1234", r"a\.bin: more follows"),
        ("a.vec.gz", b"1 3\nlist 1 2 3\n", r"a\.vec\.gz cannot be read"),
        ("gone/a.vec", None, r"a\.vec cannot be read: No such file"),
    ],
)
def test_a_broken_file_is_refused_by_its_line(tmp_path, name, content, wrong):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PlmjaxError, match=wrong) as found:
        read_vectors(path, {"list", "a"})
    assert found.value.code == Exit.DATA and found.value.hint


def test_a_word_with_a_blank_is_passed_over(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("a 1 2\n. . 3 4\nlist 5 6\n")
    number, table_VE = read_vectors(path, {"a", "list", "."})
    assert number == {"a": 0, "list": 1} and table_VE.tolist() == [[1, 2], [5, 6]]


def test_a_models_table(model):
    table_VE = np.asarray(model.params["encoder"]["embeddings"]["token"])
    vectors = from_model(model)

    def mean(text):
        return table_VE[model.tokenizer.encode_batch([text]).tokens].mean(0)

    texts = ["the function returns", "rowx"]
    np.testing.assert_allclose(vectors.texts(texts), [*map(mean, texts)], rtol=1e-5)
    found = vectors.words([["the", "rowx"], ["matrix"]])
    expected = [mean(word) for word in ("the", "rowx", "matrix")]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# --- the probe


ENCODE = jax.jit(heads.encode, static_argnums=0)


def states(model, features, row):
    """States [tokens, H] of one row alone, those of padding left out."""
    names = ("tokens", "segments", "positions", "types")
    batch = {name: features.arrays[name][row][None] for name in names}
    found = ENCODE(model.encoder, model.params, batch, None)
    return np.asarray(found)[0, features.arrays["segments"][row] > 0]


def test_a_probe_sees_means_of_states(model):
    """Of windows all together, whatever else is in the batch."""
    config = TaskConfig(length=16, stride=7)
    long = " ".join(WORDS[:30])
    data = [example(None, text) for text in ("the model", long, "a word", "row")]
    features = make_features(config, data, model.tokenizer)
    assert (features.example == 1).sum() > 2
    expected = []
    for place in range(len(data)):
        rows = np.flatnonzero(features.example == place)
        parts = [states(model, features, row) for row in rows]
        expected.append(np.concatenate(parts).mean(0))
    featurise = probe_features(config, model)
    np.testing.assert_allclose(featurise(data), expected, rtol=1e-4, atol=1e-5)
    alone = np.concatenate([featurise([one]) for one in data])
    np.testing.assert_allclose(alone, expected, rtol=1e-4, atol=1e-5)


def test_a_probe_of_tags_sees_first_pieces(model):
    config = TaskConfig(kind="tags", length=16, long="truncate")
    data = [example(None, "rowx", "the"), example(None, *["matrix"] * 16)]
    features = make_features(config, data, model.tokenizer)
    found = probe_features(config, model)(data)
    pieces = len(model.tokenizer.encode_batch(["rowx"]).tokens)
    assert pieces > 1
    expected = states(model, features, 0)[[1, 1 + pieces]]
    np.testing.assert_allclose(found[:2], expected, rtol=1e-4, atol=1e-5)
    assert found.shape == (18, 16) and not found[-1].any()  # a word that was cut


def test_a_probe_of_choices_leaves_out_what_is_none(model):
    config = TaskConfig(kind="choices", length=16)
    data = [example(None, "the", "a", "row"), example(None, "the", "a", "all", "row")]
    featurise = probe_features(config, model)
    found = featurise(data)
    assert found.shape == (5, 16) and found.any(1).all()
    np.testing.assert_allclose(found[:2], featurise(data[:1]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[[0, 1]], found[[2, 4]], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_scored_is_refused(model):
    task, _ = make_task("classes")
    with pytest.raises(PlmjaxError, match="no examples to score"):
        run_baselines(task, ())
    with pytest.raises(PlmjaxError, match=r"task\.length is 32; .* for 16 tokens"):
        probe_features(TaskConfig(length=32), model)
    with pytest.raises(PlmjaxError, match="'bleu' is no score of task.kind=classes"):
        gain("classes", "bleu", ["a", "b"], ["a", "b"], ["a", "b"], [*"ab"])


# --- gains

ENTITY = ("B-x", "I-x", "B-y", "I-y", "O")


def draw_predictions(kind, count=30):
    """Truth and two models' predictions, of which the first is right more often."""
    chance = random.Random(kind)
    labels = ENTITY if kind == "entities" else tuple("abcd")

    def draw():
        if kind == "multilabel":
            return tuple(name for name in labels if chance.random() < 0.4)
        if kind in ("tags", "entities"):
            return tuple(chance.choices(labels, k=5))
        if kind == "regression":
            return chance.random()
        if kind == "choices":
            return chance.randrange(3)
        return chance.choice(labels)

    truth = [draw() for _ in range(count)]
    ours, theirs = (
        [t if chance.random() < share else draw() for t in truth] for share in (0.7, 0)
    )
    if kind == "answers":
        truth = [((name, 0),) if name > "a" else () for name in truth]
    return truth, ours, theirs, labels


@pytest.fixture
def few_draws(monkeypatch):
    def few(score, *rest):
        return compare_by(score, *rest, draws=5)

    monkeypatch.setattr(gains, "compare_by", few)
    return few


@pytest.mark.parametrize("kind", [*TASKS, "entities", "two"])
def test_a_gain_is_the_difference_of_scores(kind, few_draws):
    """And has the interval that scoring whole predictions, slowly, gives."""
    truth, ours, theirs, labels = draw_predictions(kind)
    if kind == "two":
        labels = tuple("ab")
        truth, ours, theirs = (
            ["ab"[name in "cd"] for name in names] for names in (truth, ours, theirs)
        )
    kind = {"entities": "tags", "two": "classes"}.get(kind, kind)
    a, b = (KINDS[kind].scores(truth, p, labels) for p in (ours, theirs))
    for metric in a:
        if metric.startswith(("has_answer", "no_answer")):
            continue
        found = gain(kind, metric, truth, ours, theirs, labels)
        sign = -1 if metric == "mse" else 1
        assert found.difference == pytest.approx(sign * (a[metric] - b[metric])), metric
        assert found.low <= found.difference <= found.high
        if KINDS[kind].each(metric, labels) is None:
            slow = few_draws(
                lambda t, p: KINDS[kind].scores(t, p, labels)[metric],  # noqa: B023
                truth,
                ours,
                theirs,
            )
            assert (found.low, found.high) == pytest.approx((slow.low, slow.high))


def test_a_correlation_of_many_texts_is_that_of_few():
    """The fourth power of their number is beyond 64 bits."""
    counts = np.array([[40, 30, 10], [60, 40, 20], [50, 50, 20]])
    few = label_counts.matthews(counts)
    assert 0 < few < 1
    assert label_counts.matthews(counts * 10_000) == pytest.approx(few)


def test_no_correlation_counts_as_0(few_draws):
    truth, ours = [0.0, 1.0, 2.0, 3.0, 5.0], [0.0, 1.0, 2.0, 3.0, 4.0]
    constant = [2.2] * 5
    found = gain("regression", "pearson", truth, ours, constant, ())
    assert found.difference == pytest.approx(np.corrcoef(truth, ours)[0, 1])
    none = Baseline("majority", constant, {"pearson": float("nan"), "mse": 9.0}, 1)
    some = Baseline("TF-IDF", ours, {"pearson": 0.1, "mse": 1.0}, 1)
    assert best_of([none, some], "pearson") is best_of([none, some], "mse") is some


def baseline(name, predictions, truth):
    scores = KINDS["classes"].scores(truth, predictions, [*"ab"])
    return Baseline(name, predictions, scores, 1.25)


def test_the_lines_say_what_is_gained():
    truth = [*"ab" * 100]
    weak = baseline("majority", [*"a" * 200], truth)
    better = baseline("TF-IDF", [*"ab" * 75, *"a" * 50], truth)

    def last(ours):
        lines = gain_lines("classes", "accuracy", truth, ours, [weak, better], [*"ab"])
        assert lines[:-1] == table([weak, better], "accuracy")
        return lines[-1]

    named = [Baseline("a", [], {"entity_f1": 0.5}, 1.0)]
    assert "  entity f1  " in table(named, "entity_f1")[0]  # as in the other lines
    assert [line.split() for line in table([weak, better], "accuracy")] == [
        ["baseline", "accuracy", "ms", "an", "example"],
        ["majority", "0.5000", "1.250"],
        ["TF-IDF", "0.8750", "1.250"],
    ]
    said = r"gain over the best of them \(TF-IDF, 0.8750; .*1.0000\): \+0.1250"
    assert re.search(said + r" \(95 % interval 0.0\d+ to 0.1\d+\)$", last(truth))
    assert re.search(r"WORSE .*TF-IDF.*: -0.3750 ", last(weak.predictions))
    assert last(truth).startswith("The model's gain")
    assert last(weak.predictions).startswith("The model (accuracy 0.5000) is WORSE")
    near = [*better.predictions]
    near[-1] = "b"
    said = last(near)
    assert "NOT distinguishable" in said and "0.0000 to 0.0150, which holds 0" in said


def test_metrics_have_one_spelling():
    truth = [*"ab" * 5]
    one = baseline("majority", [*"a" * 10], truth)
    lines = gain_lines("classes", "f1_macro", truth, truth, [one], [*"ab"])
    assert "f1 macro" in lines[0] and "its own f1 macro is 1.0000" in lines[-1]
    assert "f1_macro" not in " ".join(lines)


def test_answers_are_compared_in_the_units_of_the_task():
    """By words a Chinese answer is all or nothing; by characters it is not."""
    truth = [(("\u54c8\u5c14\u6ee8\u5e02", 0),)] * 10
    ours, theirs = ["\u54c8\u5c14\u6ee8"] * 10, [""] * 10
    config = TaskConfig("answers", compare_answers="characters")
    scores = KINDS["answers"].scores(truth, theirs, (), config)
    none = Baseline("majority", theirs, scores, 1.0)
    (_, _, line) = gain_lines("answers", "f1", truth, ours, [none], (), config)
    assert "its own f1 is 0.8571" in line and "+0.8571" in line
    (_, _, line) = gain_lines("answers", "f1", truth, ours, [none], ())
    assert "f1 0.0000" in line and "NOT distinguishable" in line
    examples = [example(label, "?", "\u54c8\u5c14\u6ee8\u5e02") for label in truth]
    task = Labelled(config, (), tuple(examples), (), tuple(examples))
    called = []
    kind = KINDS["answers"]
    original = type(kind).scores

    def spy(self, truth, predicted, labels, config=None):
        called.append(config)
        return original(self, truth, predicted, labels, config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(kind), "scores", spy)
        run_baselines(task, examples)
    assert called == [config]
