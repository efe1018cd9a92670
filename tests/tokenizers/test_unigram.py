"""The unigram trainer against its definition, and unigram vocabularies of others."""

import base64
import itertools
import json
import math
import struct

import numpy as np
import pytest

from plmjax import PlmjaxError
from plmjax.tokenizers import Tokenizer, TokenizerConfig, train_tokenizer, unigram

WORDS = {
    "▁banana": 7,
    "▁bandana": 4,
    "▁ban": 9,
    "▁an": 5,
    "▁2024": 3,
    "▁(nab)": 2,
    "▁東京タワー": 3,
}
TEXTS = [
    "The old ships sailed; the sailors told tales of the sea (in 1914).",
    "Ünïcode",
]
# SentencePiece's compiled table of a double array without any rule.
CHARSMAP = struct.pack("<I", 1024) + bytes(1024)


def segmentations(word, log):
    """All ways to cut a word into pieces, with their log probability."""
    for cuts in itertools.product([0, 1], repeat=len(word) - 1):
        ends = [n + 1 for n, cut in enumerate(cuts) if cut] + [len(word)]
        parts = [word[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        if all(part in log for part in parts):
            yield parts, sum(log[part] for part in parts)


def lattice():
    runs = {"▁banana": 7.0, "▁bandana": 4.0, "▁ban": 9.0}
    texts = sorted(runs)
    corpus = unigram._Corpus.join(texts, np.array([runs[t] for t in texts]))
    seeds = unigram._seeds(corpus, 2, 100)
    names = corpus.pieces(seeds.first, seeds.length)
    log_N = np.log(np.random.default_rng(0).uniform(0.01, 0.3, len(names)))
    return runs, corpus, seeds, names, log_N


def test_expected_counts_are_those_of_all_segmentations():
    runs, corpus, seeds, names, log_N = lattice()
    log = dict(zip(names, log_N, strict=True))
    expected = dict.fromkeys(names, 0.0)
    for run, count in runs.items():
        ways = list(segmentations(run, log))
        total = sum(math.exp(value) for _, value in ways)
        for parts, value in ways:
            for part in parts:
                expected[part] += count * math.exp(value) / total
    found = unigram._lattice(corpus, seeds).expected(log_N, corpus.count)
    np.testing.assert_allclose(found, [expected[name] for name in names], rtol=1e-9)


def test_a_piece_is_weighed_against_its_best_other_segmentation():
    _, corpus, seeds, names, log_N = lattice()
    inside = unigram._inside(corpus, unigram._lattice(corpus, seeds), seeds)
    found = dict(zip(names, inside.best(log_N, seeds), strict=True))
    long = [name for name in names if len(name) > 1]
    assert len(long) > 5
    for name in long:
        log = dict(zip(names, log_N, strict=True))
        del log[name]
        best = max(value for _, value in segmentations(name, log))
        assert math.isclose(found[name], best, rel_tol=1e-9)


def test_seeds_are_the_frequent_substrings_that_no_longer_one_replaces():
    _, _, seeds, names, _ = lattice()
    count = dict(zip(names, seeds.count, strict=True))
    assert count["an"] == 9 + 2 * 7 + 2 * 4 and count["▁ban"] == 20
    assert "▁ba" not in count  # "▁ban" wherever it stands
    assert set("▁band") <= set(names)


def test_learns_letters_and_pieces_of_one_script():
    letters = set("".join(WORDS))
    learnt = unigram.learn(WORDS, len(letters) + 4, 2)
    names, scores = zip(*learnt, strict=True)
    assert len(names) == len(set(names)) == len(letters) + 4
    assert letters <= set(names)
    assert list(scores) == sorted(scores, reverse=True)
    assert sum(map(math.exp, scores)) == pytest.approx(1, abs=0.2)
    more = {name for name, _ in unigram.learn(WORDS, 200, 2)}
    assert {"▁ban", "▁2024", "▁東京タワー"} <= more
    assert not {"▁(nab", "nab)", "▁(nab)"} & more


def test_pruning_keeps_what_the_text_needs():
    words = {"▁" + letter + "zwischen": 1 for letter in "abdfgh"}
    size = len(set("".join(words))) + 1
    learnt = [name for name, _ in unigram.learn(words, size, 2)]
    assert [name for name in learnt if len(name) > 1] == ["zwischen"]


def test_digamma():
    # Abramowitz and Stegun, table 6.1: psi(1) = -gamma, psi(1/2) = -gamma - 2 ln 2.
    found = unigram._digamma(np.array([1.0, 0.5, 10.0]))
    expected = [-0.5772156649, -1.9635100260, 2.2517525890]
    np.testing.assert_allclose(found, expected, atol=1e-7)


def published(heads, normalizer, pre_tokenizer, tail=()):
    """A tokenizer.json as others have it, over pieces that we train."""
    config = TokenizerConfig(kind="unigram", vocab_size=90, lowercase=False)
    content = json.loads(train_tokenizer(config, TEXTS * 3).backend.to_str())
    pieces = content["model"]["vocab"][5:]
    heads = [[piece, 0.0] for piece in heads]
    content["model"]["vocab"] = heads + pieces + [[piece, 0.0] for piece in tail]
    content["model"]["unk_id"] = [p for p, _ in heads].index(
        "[UNK]" if "[UNK]" in dict(heads) else "<unk>"
    )
    content["normalizer"] = normalizer
    content["pre_tokenizer"] = pre_tokenizer
    content["added_tokens"], content["post_processor"] = [], None
    return content


def metaspace(**more):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"} | more


PRECOMPILED = {
    "type": "Precompiled",
    "precompiled_charsmap": base64.b64encode(CHARSMAP).decode(),
}
BLANKS = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
SPLIT = {
    "type": "Sequence",
    "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace()],
}
LAYOUTS = {
    "albert": (
        ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"],
        {"type": "Sequence", "normalizers": [{"type": "NFKD"}, PRECOMPILED]},
        SPLIT,
    ),
    "xlm-roberta": (["<s>", "<pad>", "</s>", "<unk>"], PRECOMPILED, SPLIT, ["<mask>"]),
    "deberta-v3": (
        ["[PAD]", "[CLS]", "[SEP]", "[UNK]"],
        {"type": "Sequence", "normalizers": [PRECOMPILED, BLANKS]},
        metaspace(split=True),
        ["[MASK]"],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_published_layouts(layout, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(published(*LAYOUTS[layout])))
    found = Tokenizer.load(tmp_path)
    pieces = {
        piece: n
        for n, (piece, _) in enumerate(published(*LAYOUTS[layout])["model"]["vocab"])
    }
    roberta = layout == "xlm-roberta"
    spelt = dict(pad="<pad>", unk="<unk>", cls="<s>", sep="</s>", mask="<mask>")
    if not roberta:
        spelt = dict(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
    if layout == "albert":
        spelt |= dict(pad="<pad>", unk="<unk>")
    for role, token in spelt.items():
        assert getattr(found.specials, role) == token
        assert getattr(found, f"{role}_id") == pieces[token]
    text = f"The sailors  told tales {spelt['mask']} of (the sea)."
    encoded = found.encode_batch([text])
    assert not set(encoded.tokens.tolist()) & (set(found.special_ids) - {found.unk_id})
    words, word = [], ""
    for number, start in zip(encoded.tokens, encoded.word_start, strict=True):
        piece = found.backend.id_to_token(int(number))
        if start and word:
            words.append(word)
            word = ""
        word += piece.replace("▁", "")
    words.append(word)
    assert words[:4] == ["The", "sailors", "told", "tales"]
    after = words[words.index("of") :]
    assert after[:4] == ["of", "(", "the", "sea"] and "".join(after[4:]) == ")."
    ids = found.encode_prompt("The sea [MASK] tales")
    assert ids.count(found.require_mask()) == 1


def test_settings_name_the_roles(tmp_path):
    content = published(*LAYOUTS["albert"])
    content["model"]["vocab"][4][0] = "[BLANK]"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(PlmjaxError, match="lacks the special token"):
        Tokenizer.load(tmp_path)
    settings = {"mask_token": {"content": "[BLANK]"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert Tokenizer.load(tmp_path).mask_id == 4


@pytest.mark.parametrize(
    "change, words",
    [
        ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, "Metaspace"),
        ({"pre_tokenizer": None}, "Metaspace"),
        ({"pre_tokenizer": metaspace(split=False)}, "Metaspace"),
    ],
)
def test_refuses_words_it_cannot_tell(change, words, tmp_path):
    content = published(*LAYOUTS["albert"]) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(PlmjaxError, match=words):
        Tokenizer.load(tmp_path)


def test_gpt2_has_one_special_token_and_no_mask(tmp_path):
    trained = train_tokenizer(
        TokenizerConfig(kind="bpe", vocab_size=270, lowercase=False), TEXTS * 3
    )
    trained.backend.model.save(str(tmp_path))
    vocab = {p: n - 5 for p, n in trained.vocab.items() if n >= 5}
    vocab["<|endoftext|>"] = end = len(vocab)
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    found = Tokenizer.load(tmp_path)
    ids = [found.cls_id, found.sep_id, found.pad_id, found.unk_id, *found.special_ids]
    assert set(ids) == {end}
    assert found.mask_id is None
    tokens = found.encode_batch([TEXTS[0]]).tokens.tolist()
    assert found.decode([*tokens, end]) == TEXTS[0] + "<|endoftext|>"
    assert found.token_bytes[end] == 0
    assert found.encode_prompt(TEXTS[0]) == tokens
    for ask in (found.require_mask, lambda: found.encode_prompt("The [MASK]")):
        with pytest.raises(PlmjaxError, match="no mask token"):
            ask()
    found.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert (again.digest, again.specials) == (found.digest, found.specials)
