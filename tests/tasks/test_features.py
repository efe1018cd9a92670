import numpy as np
import pytest
from tests_common import sentences

from plmjax import PlmjaxError
from plmjax.data.examples import Example
from plmjax.data.task_batches import TaskBatches, batches_in_order
from plmjax.tasks.config import TaskConfig
from plmjax.tasks.features import make_features
from plmjax.tokenizers import TokenizerConfig, train_tokenizer

KINDS = {
    "wordpiece": TokenizerConfig(vocab_size=160),
    "bpe": TokenizerConfig(kind="bpe", vocab_size=300, lowercase=False),
    "unigram": TokenizerConfig(kind="unigram", vocab_size=80),
    "spaces": TokenizerConfig(vocab_size=160, segmenter="spaces"),
}
CHINESE = ["猫 坐 在 垫子 上 。", "狗 在 睡觉 。"]


def words_of(features, examples, values):
    """The `values` [N, L] of each example's words; -1 for words that were cut."""
    found = [np.full(len(example.texts), -1) for example in examples]
    for row, column in zip(*np.nonzero(features.word >= 0), strict=True):
        word = features.word[row, column]
        found[features.example[row]][word] = values[row, column]
    return found


def answer_text(features, examples, row, first, last):
    """The text of the context from token `first` to `last` of a row; "" for none."""
    begin, end = features.spans[row, first, 0], features.spans[row, last, 1]
    if begin < 0 or end <= begin:
        return ""
    return examples[features.example[row]].texts[1][begin:end]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return train_tokenizer(KINDS[request.param], sentences(100) + CHINESE * 3)


@pytest.fixture(scope="module")
def wordpiece():
    return train_tokenizer(KINDS["wordpiece"], sentences(100) + CHINESE * 3)


def example(label, *texts):
    return Example("0", "a:1", texts, label, texts[0])


def shown(tokenizer, features, row):
    tokens = features.arrays["tokens"][row][features.arrays["segments"][row] > 0]
    return tokens.tolist()


def ids(tokenizer, *texts):
    return [tokenizer.encode_batch([text]).tokens.tolist() for text in texts]


# --- offsets


@pytest.mark.parametrize(
    "text",
    [
        "The model learns, a word.",
        "  Ça va: naïve\tfaçade\x07 ﬁn 東京 \U0001f600 ",
        "猫 坐 在 the 垫子 上 。 a word",
        "",
    ],
)
def test_spans_name_the_characters_of_tokens(tokenizer, text):
    encoded, spans = tokenizer.encode_spans(["x y", text])
    alone = tokenizer.encode_batch([text])
    assert spans.dtype == np.int32 and spans.shape == (len(encoded.tokens), 2)
    mine = spans[encoded.lengths[0] :].tolist()
    assert len(mine) == len(alone.tokens)
    for (begin, end), before in zip(mine, [[0, 0], *mine], strict=False):
        assert 0 <= before[0] <= begin <= end <= len(text)
        assert begin == end or not text[begin].isspace()
    covered = {place for begin, end in mine for place in range(begin, end)}
    letters = {place for place, letter in enumerate(text) if letter.isalpha()}
    assert letters <= covered


# --- texts and pairs


def test_a_row_is_framed_and_padded(tokenizer):
    config = TaskConfig(length=24)
    data = [example("b", "the model"), example("a", "a word")]
    features = make_features(config, data, tokenizer, ("a", "b"))
    (words,) = ids(tokenizer, "the model")
    expected = [tokenizer.cls_id, *words, tokenizer.sep_id]
    assert shown(tokenizer, features, 0) == expected
    arrays = features.arrays
    n = len(expected)
    assert (arrays["tokens"][0, n:] == tokenizer.pad_id).all()
    assert arrays["positions"][0].tolist() == [*range(n)] + [0] * (24 - n)
    assert arrays["label"].tolist() == [1, 0] and arrays["label"].dtype == np.int32
    assert arrays["row"].tolist() == [0, 1] and arrays["weight"].tolist() == [1, 1]
    assert arrays["word_start"][0, 1] and not arrays["word_start"][0, [0, n - 1]].any()


def test_a_pair_is_framed_as_the_vocabulary_has_it(tokenizer):
    data = [example("b", "the model", "a word")]
    features = make_features(TaskConfig(length=24), data, tokenizer, ("a", "b"))
    a, b = ids(tokenizer, "the model", "a word")
    sep = [tokenizer.sep_id] * (2 if tokenizer.kind == "bpe" else 1)
    expected = [tokenizer.cls_id, *a, *sep, *b, tokenizer.sep_id]
    assert shown(tokenizer, features, 0) == expected
    if tokenizer.kind != "unigram":  # whose library splits no special tokens off
        whole = tokenizer.backend.encode("the model", "a word")
        assert list(whole.ids) == expected
    begin = 1 + len(a) + len(sep)
    types = [0] * begin + [1] * (len(b) + 1)
    assert features.arrays["types"][0, : len(expected)].tolist() == types


def word(n):
    return " ".join(["the"] * n)


def test_truncation_takes_from_the_longer_text_and_counts(wordpiece):
    config = TaskConfig(length=13, long="truncate")
    data = [
        example("a", word(3), word(9)),
        example("a", word(9), word(8)),
        example("b", word(20), word(2)),
        example("b", word(2), word(3)),
    ]
    features = make_features(config, data, wordpiece, ("a", "b"))
    of_pair = features.arrays["types"] == 1
    real = features.arrays["segments"] == 1
    sizes = [
        (n - 2 - b + 1 - 1, b - 1)
        for n, b in zip(real.sum(1), of_pair.sum(1), strict=True)
    ]
    assert [(a, b) for a, b in sizes] == [(3, 7), (5, 5), (8, 2), (2, 3)]
    assert features.report == {
        "examples": 4,
        "rows": 4,
        "windowed_examples": 0,
        "cut_examples": 3,
        "cut_tokens": 2 + 7 + 12,
    }


@pytest.mark.parametrize("stride", [3, 10, 50])
def test_windows_hold_every_token_and_name_their_example(wordpiece, stride):
    config = TaskConfig(length=12, stride=stride)
    text = " ".join(sentences(5))
    data = [example("a", "the"), example("b", text), example("a", word(10))]
    features = make_features(config, data, wordpiece, ("a", "b"))
    (tokens,) = ids(wordpiece, text)
    windows = [
        shown(wordpiece, features, row)[1:-1]
        for row in np.flatnonzero(features.example == 1)
    ]
    step = min(stride, 10)
    begins = [step * n for n in range(len(windows))]
    assert windows == [tokens[begin : begin + 10] for begin in begins]
    assert begins[-2] + 10 < len(tokens) <= begins[-1] + 10
    assert (features.example == 0).sum() == (features.example == 2).sum() == 1
    assert features.arrays["label"].tolist() == [0, *[1] * len(windows), 0]
    assert features.report["windowed_examples"] == 1
    assert features.report["cut_tokens"] == 0


def test_labels_of_sets_and_numbers(wordpiece):
    data = [example(("c", "a"), "the"), example((), "a")]
    features = make_features(
        TaskConfig(kind="multilabel"), data, wordpiece, ("a", "b", "c")
    )
    assert features.arrays["label"].tolist() == [[1, 0, 1], [0, 0, 0]]
    data = [example(2.5, "the"), example(-1.0, "a")]
    features = make_features(TaskConfig(kind="regression"), data, wordpiece)
    assert features.arrays["label"].tolist() == [2.5, -1.0]
    assert features.arrays["label"].dtype == np.float32
    unlabelled = make_features(TaskConfig(), [example(None, "the")], wordpiece)
    assert "label" not in unlabelled.arrays


# --- tags


@pytest.mark.parametrize("length, stride", [(64, 32), (10, 4), (10, 8)])
def test_each_word_has_its_tag_once_at_its_first_piece(tokenizer, length, stride):
    words = ("Antidisestablishmentarianism", "the", "\u200b", "东京", "don't", "words")
    tags = ("B", "O", "X", "I", "O", "B")
    data = [example(("O",), "a"), example(tags * 4, *words * 4)]
    config = TaskConfig(kind="tags", length=length, stride=stride)
    features = make_features(config, data, tokenizer, ("B", "I", "O", "X"))
    mine = features.example == 1
    label, word_number = features.arrays["label"][mine], features.word[mine]
    assert label.dtype == np.int32 and ((label >= 0) == (word_number >= 0)).all()
    order = np.argsort(word_number[word_number >= 0])
    assert word_number[word_number >= 0][order].tolist() == [*range(24)]
    named = [("B", "I", "O", "X")[n] for n in label[label >= 0][order]]
    assert named == [*tags * 4]
    assert features.report["lost_words"] == 0
    _, again = words_of(features, data, features.arrays["label"])
    assert [("B", "I", "O", "X")[n] for n in again] == named
    assert features.arrays["word_start"][mine][label >= 0].all()
    blank = " " if tokenizer.kind == "bpe" else ""
    firsts = features.arrays["tokens"][mine][word_number >= 0][order]
    for place, (token, text) in enumerate(zip(firsts, words * 4, strict=True)):
        found = tokenizer.encode_batch([(blank if place else "") + text]).tokens
        assert token == (found[0] if len(found) else tokenizer.unk_id)


def test_truncated_words_are_counted(wordpiece):
    data = [example(("O",) * 9, *["the"] * 9)]
    config = TaskConfig(kind="tags", length=8, long="truncate")
    features = make_features(config, data, wordpiece, ("O", "B"))
    assert features.report["lost_words"] == 3
    predicted = np.arange(8)[None]
    (found,) = words_of(features, data, predicted)
    assert found.tolist() == [1, 2, 3, 4, 5, 6, -1, -1, -1]
    assert (features.arrays["label"] >= 0).sum() == 6


# --- answers


def asked(text, context, *more):
    label = ((text, context.index(text)), *more) if text else more
    return example(label, "which word ?", context)


def test_an_answer_is_found_again_from_its_tokens(tokenizer):
    context = "  The Model learns\u00a0a word: naïve, 猫 坐 在 垫子 上 。 " + word(30)
    answers = ["The Model", "learns\u00a0a word", "naïve", "坐 在 垫子", "the"]
    data = [asked(answer, context) for answer in answers]
    for length in (200, 40):
        config = TaskConfig(kind="answers", length=length, stride=8)
        features = make_features(config, data, tokenizer)
        label = features.arrays["label"]
        assert label.shape == (features.rows, 2) and label.dtype == np.int32
        held = np.flatnonzero(label[:, 0])
        assert {*features.example[held]} == {*range(len(data))}
        for row in held:
            found = answer_text(features, data, row, *label[row])
            assert found == answers[features.example[row]]
        assert features.report["answers_outside"] == 0
    assert features.rows > len(data)
    context_places = features.spans[..., 0] >= 0
    types = features.arrays["types"] == 1
    assert (types.sum(1) == context_places.sum(1) + 1).all()


def test_answers_that_are_not_there(wordpiece):
    long = word(40) + " model"
    data = [
        asked("", long),
        asked("model", long),
        asked("", long, ("nothing", -1)),
        asked("", long, ("nothing", -1), ("model", long.index("model"))),
        asked(long, long),
    ]
    config = TaskConfig(kind="answers", length=24, stride=8)
    features = make_features(config, data, wordpiece)
    label = [features.arrays["label"][features.example == n] for n in range(5)]
    assert (label[0] == 0).all() and (label[2] == -1).all() and (label[4] == 0).all()
    for n in (1, 3):
        assert (label[n][:-1] == 0).all() and (label[n][-1] > 0).all()
    assert features.report["answers_misplaced"] == 1
    assert features.report["answers_outside"] == 1
    assert answer_text(features, data, 0, 0, 0) == ""
    assert answer_text(features, data, 0, 8, 7) == ""


@pytest.mark.parametrize("long", ["window", "truncate"])
@pytest.mark.parametrize(
    "question, context, kept", [(3, 40, 3), (40, 40, 8), (40, 4, 13), (4, 13, 4)]
)
def test_a_question_stays_whole_where_there_is_room(
    wordpiece, question, context, kept, long
):
    data = [example((), word(question), word(context))]
    config = TaskConfig(kind="answers", length=20, stride=5, long=long)
    features = make_features(config, data, wordpiece)
    types = features.arrays["types"]
    assert (types.argmax(1) == kept + 2).all()
    held = (types.sum(1) - 1).tolist()
    assert max(held) == min(context, 17 - kept)
    lost = question - kept + (context - held[0] if long == "truncate" else 0)
    assert features.report["cut_tokens"] == lost


# --- choices


def test_choices_stand_side_by_side(wordpiece):
    data = [example(1, "the", "a word", "word"), example(2, "the", "a", "word", "row")]
    features = make_features(TaskConfig(kind="choices", length=16), data, wordpiece)
    arrays = features.arrays
    assert arrays["tokens"].shape == arrays["segments"].shape == (2, 3, 16)
    assert arrays["label"].tolist() == [1, 2] and features.rows == 2
    assert not arrays["segments"][0, 2].any()
    assert (arrays["tokens"][0, 2] == wordpiece.pad_id).all()
    the, choice = ids(wordpiece, "the", "row")
    frame = [wordpiece.cls_id, *the, wordpiece.sep_id, *choice, wordpiece.sep_id]
    assert arrays["tokens"][1, 2, : len(frame)].tolist() == frame
    assert (features.report["examples"], features.report["rows"]) == (2, 5)


# --- batches


@pytest.fixture(scope="module")
def many(wordpiece):
    data = [example("ab"[n % 2], word(1 + n % 20)) for n in range(53)]
    return make_features(TaskConfig(length=24), data, wordpiece, ("a", "b"))


@pytest.mark.parametrize("lengths", [(), (8, 16)])
def test_an_epoch_holds_each_row_once_in_a_new_order(many, lengths):
    batches = TaskBatches(many, 8, seed=3, lengths=lengths)
    orders = []
    for epoch in range(2):
        rows = []
        for step in range(epoch * batches.steps, (epoch + 1) * batches.steps):
            batch = batches.batch(step)
            length = batch["tokens"].shape[1]
            assert batch["tokens"].shape == (8, length) and length in (*lengths, 24)
            real = batch["weight"] > 0
            rows += batch["row"][real].tolist()
            row = batch["row"][real]
            cut = many.arrays["tokens"][row]
            assert (batch["tokens"][real] == cut[:, :length]).all()
            assert (cut[:, length:] == many.pad_id).all()
            assert (batch["label"][real] == many.arrays["label"][row]).all()
            assert (batch["segments"][~real] == 0).all()
            assert (batch["label"][~real] == -1).all()
        assert sorted(rows) == [*range(53)]
        orders.append(rows)
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])
    again = TaskBatches(many, 8, seed=3, lengths=lengths).batch(5)
    for name, array in batches.batch(5).items():
        assert (again[name] == array).all()
    other = TaskBatches(many, 8, seed=4, lengths=lengths)
    found = [(b.rows(n)[1]).tolist() for b in (batches, other) for n in range(3)]
    assert found[:3] != found[3:]


def test_processes_read_their_rows_of_the_same_batch(many):
    whole = TaskBatches(many, 8, seed=0).batch(6)
    parts = [
        TaskBatches(
            many, 8, seed=0, mine=lambda size, n=n: np.arange(n, size, 2)
        ).batch(6)
        for n in range(2)
    ]
    for name, array in whole.items():
        for n in range(2):
            assert (parts[n][name] == array[n::2]).all()


def test_evaluation_sees_every_row_in_order(many):
    rows, found = zip(*batches_in_order(many, 8), strict=True)
    assert [len(batch["row"]) for batch in found] == [8] * 7
    assert np.concatenate(rows).tolist() == [*range(53), -1, -1, -1]
    real = np.concatenate([batch["weight"] for batch in found]) > 0
    assert real.sum() == 53 and real[:53].all()
    assert np.concatenate([batch["row"] for batch in found])[:53].tolist() == [
        *range(53)
    ]


def test_evaluation_by_length_sees_every_row_once(many):
    lengths = (int(np.median(many.sizes())),)
    seen = []
    for rows, batch in batches_in_order(many, 8, lengths=lengths):
        real = rows[rows >= 0]
        assert (batch["row"][rows >= 0] == real).all()
        # Nothing of a row is lost: what is cut off is padding.
        length = batch["tokens"].shape[1]
        assert (many.sizes()[real] <= length).all() and length in (*lengths, 24)
        seen += real.tolist()
    assert sorted(seen) == [*range(53)]


def test_lengths_beyond_the_rows_are_refused(many):
    with pytest.raises(PlmjaxError, match="task.length=24"):
        TaskBatches(many, 8, seed=0, lengths=(8, 48))


def test_tags_are_cut_with_their_tokens(wordpiece):
    data = [example(("O", "B"), "the", "a"), example(("O",) * 12, *["the"] * 12)]
    features = make_features(
        TaskConfig(kind="tags", length=16), data, wordpiece, ("B", "O")
    )
    batches = TaskBatches(features, 2, seed=0, lengths=(8,))
    shapes = {batches.batch(step)["label"].shape for step in range(batches.steps)}
    assert shapes == {(2, 8), (2, 16)}
