"""AutoTokenizer reads what we write, and we read what it writes."""

import json
import struct

import pytest

from plmjax.tokenizers import Tokenizer, TokenizerConfig, train_tokenizer

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore"),  # transformers' own
]

# SentencePiece's compiled table of a double array without any rule.
CHARSMAP = struct.pack("<I", 1024) + bytes(1024)
TEXTS = [
    "The café’s owner—an old sailor—told us about the sea and the ships.",
    "It isn't  in\tits place,\nis it? 東京 2024 Ünïcode",
    "",
    "İstanbul x" + "y" * 120,
    "Ĉu vi ĝojas hodiaŭ? किताबें मिलेंगे में। e\u0301 u\u0308ber",
]
CONFIGS = [
    TokenizerConfig(vocab_size=150),
    TokenizerConfig(vocab_size=150, lowercase=False),
    TokenizerConfig(vocab_size=150, strip_accents=True),
    TokenizerConfig(kind="bpe", vocab_size=300, lowercase=False),
    TokenizerConfig(kind="bpe", vocab_size=300, lowercase=True),
    TokenizerConfig(kind="bpe", vocab_size=300, strip_accents=True),
    TokenizerConfig(kind="unigram", vocab_size=120),
    TokenizerConfig(kind="unigram", vocab_size=120, lowercase=False),
    TokenizerConfig(kind="unigram", vocab_size=120, strip_accents=True),
]
FAMILIES = ["bert", "electra", "distilbert", "roberta", "gpt2", "albert"]
FAMILIES += ["xlm-roberta", "deberta-v2"]


def auto(folder, model_type: str | None = None):
    """Returns what AutoTokenizer reads in a folder of a kind of model."""
    from transformers import AutoTokenizer

    if model_type is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return AutoTokenizer.from_pretrained(folder)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode_batch([text]).tokens.tolist()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("model_type", [None, *FAMILIES])
def test_auto_tokenizer_gives_our_ids(config, model_type, tmp_path):
    # Without the text with marks, byte-level BPE has GPT-2's words: RobertaTokenizer.
    ours = train_tokenizer(config, (TEXTS[:-1] if config.kind == "bpe" else TEXTS) * 3)
    ours.save(tmp_path, max_length=77)
    theirs = auto(tmp_path, model_type)
    for text in TEXTS:
        expected = ids_of(ours, text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == expected
        framed = [ours.cls_id, *expected, ours.sep_id]
        assert theirs(text)["input_ids"] == framed
    assert theirs.model_max_length == 77
    roles = ["pad", "unk", "cls", "sep", "mask"]
    found = [getattr(theirs, f"{role}_token_id") for role in roles]
    assert found == [getattr(ours, f"{role}_id") for role in roles]
    if config.kind == "wordpiece":
        assert type(theirs).__name__ == "BertTokenizer"
    elif config.kind == "bpe" and not config.lowercase:
        assert type(theirs).__name__ == "RobertaTokenizer"
    pair = theirs("old", "sea")
    if config.kind == "bpe":
        assert "token_type_ids" not in pair
    else:
        assert sorted(set(pair["token_type_ids"])) == [0, 1]
    for text in ("The {} and the sea", "{}.", "old{}, {} sea"):
        prompt = text.replace("{}", theirs.mask_token)
        assert theirs(prompt, add_special_tokens=False)["input_ids"] == (
            ours.encode_prompt(prompt)
        )
    batch = theirs(["old", "old sea"], padding=True, truncation=True)
    assert len({len(ids) for ids in batch["input_ids"]}) == 1

    theirs.save_pretrained(tmp_path / "theirs")
    back = Tokenizer.load(tmp_path / "theirs")
    for text in TEXTS:
        assert ids_of(back, text) == ids_of(ours, text)
    assert back.special_ids == ours.special_ids


@pytest.mark.parametrize(
    "config",
    [
        TokenizerConfig(kind="characters", vocab_size=120, special_tokens=("[A]",)),
        TokenizerConfig(kind="characters", vocab_size=120, strip_accents=True),
        TokenizerConfig(kind="kmer", k=3, vocab_size=300, lowercase=False),
        TokenizerConfig(kind="kmer", k=3, stride=1, vocab_size=300, nfkc=True),
        TokenizerConfig(nfkc=True, vocab_size=150, special_tokens=("[A]", "[B]")),
        TokenizerConfig(longest_word=8, vocab_size=150, alphabet=20),
        TokenizerConfig(kind="bpe", nfkc=True, vocab_size=300),
        TokenizerConfig(kind="unigram", alphabet=20, vocab_size=120),
    ],
    ids=str,
)
def test_auto_tokenizer_gives_our_ids_with_other_options(config, tmp_path):
    texts = [*TEXTS, "ＡＢＣ ﬁne …", "ACGTNNACGTTTGACA\nACGT acgtnac"]
    ours = train_tokenizer(config, texts * 3)
    ours.save(tmp_path)
    theirs = auto(tmp_path, "bert")
    for text in texts:
        expected = ids_of(ours, text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == expected
    prompt = f"acgta {theirs.mask_token} acgtn{theirs.mask_token}ac"
    ids = theirs(prompt, add_special_tokens=False)["input_ids"]
    assert ids == ours.encode_prompt(prompt) and ids.count(ours.mask_id) == 2
    special = theirs.convert_tokens_to_ids([*config.special_tokens])
    assert special == list(range(5, 5 + len(special)))
    assert Tokenizer.load(tmp_path).digest == ours.digest


def test_words_with_marks(tmp_path):
    texts = [*TEXTS, "वह अपने शहर में नई किताबें पढ़ेगा। क्\u200dष می\u200cخواهم don't"] * 3
    ours = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=400), texts)
    ours.save(tmp_path)
    theirs = auto(tmp_path, "roberta")
    for text in texts:
        expected = ids_of(ours, text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == expected


def test_token_types_by_the_model(tmp_path):
    ours = train_tokenizer(CONFIGS[0], TEXTS * 3)
    ours.save(tmp_path, token_types=False)  # DistilBERT has no types
    theirs = auto(tmp_path)
    assert sorted(theirs("old", "sea")) == ["attention_mask", "input_ids"]


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json"])
def test_gpt2_as_published(form, tmp_path):
    from transformers import GPT2Tokenizer

    trained = train_tokenizer(CONFIGS[3], TEXTS * 3)
    trained.backend.model.save(str(tmp_path))
    end = "<|endoftext|>"
    vocab = {p: n - 5 for p, n in trained.vocab.items() if n >= 5}  # without <s>, ...
    vocab[end] = len(vocab)
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    source = GPT2Tokenizer.from_pretrained(tmp_path)
    if form == "tokenizer.json":
        source.save_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    assert ours.kind == "bpe" and ours.mask_id is None
    ends = {ours.cls_id, ours.sep_id, ours.pad_id, ours.unk_id}
    assert ends == {source.convert_tokens_to_ids(end)} == set(ours.special_ids)
    ours.save(tmp_path / "ours")
    theirs = auto(tmp_path / "ours", "gpt2")
    assert type(theirs).__name__ == "GPT2Tokenizer"
    assert theirs.eos_token_id == theirs.pad_token_id == ours.pad_id
    for text in TEXTS:
        expected = ids_of(ours, text)
        assert source(text)["input_ids"] == theirs(text)["input_ids"] == expected
    assert Tokenizer.load(tmp_path / "ours").specials == ours.specials


@pytest.mark.parametrize("family", ["Albert", "XLMRoberta", "DebertaV2", "BigBird"])
def test_unigram_as_published(family, tmp_path):
    import transformers

    trained = train_tokenizer(CONFIGS[7], TEXTS * 3)
    pieces = json.loads(trained.backend.to_str())["model"]["vocab"]
    kind = getattr(transformers, f"{family}Tokenizer")
    heads = {
        "Albert": ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"],
        "XLMRoberta": ["<s>", "<pad>", "</s>", "<unk>"],
        "DebertaV2": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
        "BigBird": ["<pad>", "</s>", "<s>", "<unk>", "[CLS]", "[SEP]", "[MASK]"],
    }[family]
    vocab = [(piece, 0.0) for piece in heads]
    vocab += [(piece, score) for piece, score in pieces[5:]]
    if family == "XLMRoberta":
        vocab += [("<mask>", 0.0)]
    extra = (
        {"bos_token": "[CLS]", "eos_token": "[SEP]"} if family != "XLMRoberta" else {}
    )
    source = kind(vocab=vocab, _spm_precompiled_charsmap=CHARSMAP, **extra)
    source.save_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    roles = ["pad", "unk", "cls", "sep", "mask"]
    assert ours.kind == "unigram"
    assert [getattr(ours, f"{role}_id") for role in roles] == [
        getattr(source, f"{role}_token_id") for role in roles
    ]
    ours.save(tmp_path / "ours")
    theirs = auto(tmp_path / "ours")
    for text in TEXTS:
        expected = ids_of(ours, text)
        assert source(text, add_special_tokens=False)["input_ids"] == expected
        assert theirs(text)["input_ids"] == source(text)["input_ids"]
    # Spelt in a text they are text for us alone.
    spelt = ours.encode_batch([f"old {ours.specials.mask} {ours.specials.pad}sea"])
    assert not set(spelt.tokens.tolist()) & (set(ours.special_ids) - {ours.unk_id})
    assert (
        ours.encode_prompt("old [MASK] sea")
        == (
            source(f"old {source.mask_token} sea", add_special_tokens=False)[
                "input_ids"
            ]
        )
    )
