"""SentencePiece files, written here by hand; ids as transformers' classes have them."""

import json
import struct

import pytest

from plmjax import PlmjaxError
from plmjax.tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
LETTERS = [("▁the", -1.0), ("▁", -3.0), ("s", -3.5), ("e", -3.0), ("a", -3.2)]
LETTERS += [("é", -4.0), ("▁sea", -2.0), ("9", -4.0), (",", -4.0), ("9,", -2.0)]
SPECIAL = {
    "albert": ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"],
    "deberta-v2": ["[PAD]", "[CLS]", "[SEP]", "[UNK]"],
    "xlm-roberta": ["<unk>", "<s>", "</s>"],
    "bigbird": ["<pad>", "</s>", "<s>", "<unk>", "[CLS]", "[SEP]", "[MASK]"],
}


def varint(value):
    low, high = value & 127, value >> 7
    return bytes([low | 128]) + varint(high) if high else bytes([low])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def model(heads, pieces=LETTERS, trainer=(), normalizer=()):
    """The bytes of a model; trainer and normalizer are (field number, value)."""
    kinds = {"<unk>": UNKNOWN, "[UNK]": UNKNOWN}
    rows = [(head, 0.0, kinds.get(head, CONTROL)) for head in heads]
    rows += [(p, s, BYTE if p.startswith("<0x") else NORMAL) for p, s in pieces]
    raw = b"".join(
        field(1, field(1, text.encode()) + field(2, score) + field(3, kind))
        for text, score, kind in rows
    )
    for number, settings in ((2, trainer), (3, normalizer)):
        raw += field(number, b"".join(field(*setting) for setting in settings))
    return raw


def pieces_of(tokenizer, text):
    ids = tokenizer.encode_batch([text]).tokens
    return [tokenizer.backend.id_to_token(int(number)) for number in ids]


@pytest.mark.parametrize("kind", SPECIAL)
def test_ids_are_those_of_the_family(kind, tmp_path):
    (tmp_path / "spm.model").write_bytes(model(SPECIAL[kind]))
    ours = Tokenizer.load(tmp_path)
    letters = [piece for piece, _ in LETTERS]
    expected = {
        "albert": [*SPECIAL["albert"], *letters],
        "deberta-v2": [*SPECIAL["deberta-v2"], *letters, "[MASK]"],
        "xlm-roberta": ["<s>", "<pad>", "</s>", "<unk>", *letters, "<mask>"],
        "bigbird": [*SPECIAL["bigbird"], *letters],
    }[kind]
    assert sorted(ours.vocab, key=ours.vocab.__getitem__) == expected
    named = {"albert": "ALBERT", "deberta-v2": "DeBERTa-v2", "xlm-roberta": "XLM-R"}
    named["bigbird"] = "BigBird"
    assert f"spm.model: the ids are {named[kind]}'s" in ours.notes[0]
    unk = ours.specials.unk
    assert pieces_of(ours, "the  sea\nsx9") == ["▁the", "▁sea", "▁", "s", unk, "9"]
    assert pieces_of(ours, f"the {expected[0]}").count(expected[0]) == 0
    # All of it survives the run's own folder.
    ours.save(tmp_path / "copy")
    copy = Tokenizer.load(tmp_path / "copy")
    assert (copy.digest, copy.specials) == (ours.digest, ours.specials)
    (tmp_path / "tiny.spm").write_bytes(model(SPECIAL[kind]))
    assert Tokenizer.load(tmp_path / "tiny.spm").digest == ours.digest


def test_the_folder_names_the_family(tmp_path):
    (tmp_path / "spm.model").write_bytes(model(SPECIAL["albert"]))
    (tmp_path / "config.json").write_text('{"model_type": "deberta-v2"}')
    with pytest.raises(PlmjaxError, match=r"\[PAD\]"):  # but its pieces are ALBERT's
        settings = {"pad_token": "[PAD]"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    named = Tokenizer.load(tmp_path)
    assert "DeBERTa-v2" in named.notes[0] and "config.json has deb" in named.notes[0]
    assert named.vocab_size == 15  # there is a [MASK] already
    assert pieces_of(named, "THE é") == ["▁", "<unk>", "▁", "é"]
    settings = {"tokenizer_class": "AlbertTokenizerFast"}  # counts for more
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "ALBERT" in Tokenizer.load(tmp_path).notes[0]


def test_albert_lower_cases_and_drops_accents_by_its_settings(tmp_path):
    path = tmp_path / "spiece.model"
    path.write_bytes(model(SPECIAL["albert"]))
    assert pieces_of(Tokenizer.load(path), "THE é") == ["▁the", "▁", "e"]
    # No piece that ends in a digit and a comma is used, in transformers too.
    assert pieces_of(Tokenizer.load(path), "9,") == ["▁", "9", ","]
    settings = {"do_lower_case": False, "keep_accents": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert pieces_of(Tokenizer.load(path), "the THE é")[1:] == [
        *["▁", "<unk>"],
        *["▁", "é"],
    ]
    (tmp_path / "tokenizer_config.json").unlink()
    path.write_bytes(model(SPECIAL["albert"], [*LETTERS, ("▁THE", -1.0)]))
    assert pieces_of(Tokenizer.load(path), "THE é") == ["▁THE", "▁", "é"]


def test_unknown_characters_as_bytes(tmp_path):
    path = tmp_path / "spm.model"
    every = [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    path.write_bytes(model(SPECIAL["albert"], [*LETTERS, *every], [(35, 1)]))
    ours = Tokenizer.load(path)
    assert pieces_of(ours, "the 東") == ["▁the", "▁", "<0xE6>", "<0x9D>", "<0xB1>"]
    ids = ours.encode_batch(["the 東"]).tokens
    assert ours.decode(ids) == "the 東"
    assert ours.token_bytes[ids].sum() == 6


def test_word_models_are_used_as_transformers_uses_them(tmp_path):
    path = tmp_path / "spm.model"
    path.write_bytes(model(SPECIAL["albert"], trainer=[(3, 3)]))
    ours = Tokenizer.load(path)
    assert "a word model" in ours.notes[1]
    assert pieces_of(ours, "the sea") == ["▁the", "▁sea"]


@pytest.mark.parametrize(
    "raw, words",
    [
        (b"", "not a SentencePiece model"),
        (b"[PAD]\n[UNK]\n", "not a SentencePiece model"),
        (model(SPECIAL["albert"])[:-40], "not a SentencePiece model"),
        (model(SPECIAL["albert"], trainer=[(3, 2)]), "holds a bpe model"),
        (model(SPECIAL["albert"], trainer=[(24, 1)]), "treat_whitespace_as_suffix=tr"),
        (model(SPECIAL["albert"], normalizer=[(3, 0)]), "add_dummy_prefix=false"),
        (model(SPECIAL["albert"], normalizer=[(5, 0)]), "escape_whitespaces=false"),
        (
            model(SPECIAL["albert"], normalizer=[(2, b"xx")]),
            "table is damaged",
        ),
        (model(["<unk>"]), "neither"),
        (model(["[CLS]", "[SEP]"]), "lacks the special token"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(raw, words, tmp_path):
    path = tmp_path / "spm.model"
    path.write_bytes(raw)
    with pytest.raises(PlmjaxError, match=words) as caught:
        Tokenizer.load(path)
    assert caught.value.code == 4 and caught.value.hint
