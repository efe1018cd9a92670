"""Tokenizers in the published layouts of ModernBERT, EuroBERT and mmBERT, small."""

import dataclasses
import functools
import json
import logging

import numpy as np
import pytest
from interop.cases import PATTERNS, draw

from plmjax.interop import export_folder, read_folder
from plmjax.models import PRESETS
from plmjax.tokenizers import Tokenizer, describe

TEXTS = ["the rows of a matrix are vectors", "naïve 12 % in Zürich", "a\n  x"] * 3
# Llama's words; the rest are GPT-2's.
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Of each family: the names of special tokens, by what the settings call them.
SPECIALS = {
    "modernbert": {
        "unk": "[UNK]",
        "cls": "[CLS]",
        "sep": "[SEP]",
        "pad": "[PAD]",
        "mask": "[MASK]",
    },
    # Llama's settings have no cls and sep, and pad with the end.
    "eurobert": {
        "bos": "<|begin_of_text|>",
        "eos": "<|end_of_text|>",
        "pad": "<|end_of_text|>",
        "mask": "<|mask|>",
    },
    "mmbert": {
        "pad": "<pad>",
        "eos": "<eos>",
        "bos": "<bos>",
        "unk": "<unk>",
        "mask": "<mask>",
        "cls": "<bos>",
        "sep": "<eos>",
    },
}


@functools.cache
def trained(layout: str) -> str:
    """The tokenizer.json of a layout."""
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, trainers
    from tokenizers import Tokenizer as Backend
    from tokenizers import pre_tokenizers as pre

    names = list(dict.fromkeys(SPECIALS[layout].values()))
    if layout == "mmbert":  # Gemma's: blanks are "▁", and no text is cut into words
        backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>"))
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre.Split("▁", "merged_with_next")
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence(steps)
        alphabet, first = [], [*names, *(f"<0x{i:02X}>" for i in range(256))]
    else:
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
        if layout == "eurobert":
            letters = pre.ByteLevel(add_prefix_space=False, use_regex=False)
            words = pre.Split(Regex(LLAMA), "isolated")
            backend.pre_tokenizer = pre.Sequence([words, letters])
        else:
            backend.normalizer = normalizers.NFC()
        backend.decoder = decoders.ByteLevel()
        alphabet, first = pre.ByteLevel.alphabet(), []
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=alphabet,
        special_tokens=first,
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    if layout == "mmbert":
        backend.pre_tokenizer = pre.Split(" ", "merged_with_previous")
    if layout == "modernbert":
        backend.add_tokens([AddedToken("  ")])  # it has runs of blanks as pieces
    backend.add_special_tokens(
        [AddedToken(name, lstrip="mask" in name.lower()) for name in names]
    )
    body = json.loads(backend.to_str())
    added = [one for one in body["added_tokens"] if "<0x" not in one["content"]]
    body["added_tokens"] = added
    number = {one["content"]: one["id"] for one in added}
    cls, sep = (
        SPECIALS[layout].get(role) or SPECIALS[layout][other]
        for role, other in (("cls", "bos"), ("sep", "eos"))
    )
    end = {"SpecialToken": {"id": sep, "type_id": 0}}
    single = [{"SpecialToken": {"id": cls, "type_id": 0}}]
    single += [{"Sequence": {"id": "A", "type_id": 0}}, end]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}, end]
    body["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": {
            name: {"id": name, "ids": [number[name]], "tokens": [name]}
            for name in (cls, sep)
        },
    }
    return json.dumps(body)


@pytest.fixture(params=SPECIALS)
def published(request, tmp_path):
    """The folder of a tokenizer, and a model of its family with it, exported."""
    layout, folder = request.param, tmp_path / "published"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(trained(layout))
    names = {f"{role}_token": name for role, name in SPECIALS[layout].items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    tokenizer = Tokenizer.load(folder)
    family = "eurobert" if layout == "eurobert" else "modernbert"
    size = {"layers": 1, "width": 8, "heads": 2, "ffn_width": 8, "max_positions": 64}
    pattern = PRESETS[PATTERNS[family]]
    kv_heads = pattern.kv_heads and 1
    config = dataclasses.replace(
        pattern, vocab_size=tokenizer.vocab_size, kv_heads=kv_heads, **size
    )
    params = draw(config, ("head",))
    export_folder(tmp_path / "model", config, params, tokenizer, card="# Card\n")
    return folder, tmp_path / "model", tokenizer


WORDS = ["the", " rows", " of", " Zürich", " in", " <bos>", " [MASK]", " a", " matrix"]


def test_a_tokenizer_comes_in_and_goes_out(published):
    _, model, tokenizer = published
    encoded = tokenizer.encode_batch(["".join(WORDS)])
    assert tokenizer.decode(encoded.tokens) == "".join(WORDS)
    # What looks like a special token is text, and signs are words of their own.
    assert not set(encoded.tokens.tolist()) & set(tokenizer.special_ids)
    assert tokenizer.token_bytes[encoded.tokens].sum() == len(
        "".join(WORDS).replace(" ", "").encode()
    )
    starts = np.flatnonzero(encoded.word_start)
    assert len(starts) >= len(WORDS)
    pieces = np.split(encoded.tokens, starts[1:])
    words = [tokenizer.decode(ids).strip() for ids in pieces]
    assert {"the", "rows", "of", "Zürich", "in", "a", "matrix"} <= set(words)
    again = read_folder(model).tokenizer
    assert again.specials == tokenizer.specials
    assert again.vocabulary_digest == tokenizer.vocabulary_digest


def test_another_template_is_named(tmp_path):
    body = json.loads(trained("eurobert"))
    body["post_processor"]["single"].pop()
    names = {f"{role}_token": name for role, name in SPECIALS["eurobert"].items()}
    (tmp_path / "tokenizer.json").write_text(json.dumps(body))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    (line,) = describe(Tokenizer.load(tmp_path))
    assert "<|begin_of_text|> text <|end_of_text|>; for a text alone" in line
    assert "adds <|begin_of_text|>, and so" in line


@pytest.mark.peer
def test_transformers_gives_the_same_ids(published):
    import transformers

    folder, model, tokenizer = published
    warnings: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = warnings.append
    logging.getLogger("transformers").addHandler(handler)
    try:
        theirs = [
            transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
            for path in (folder, model)
        ]
        transformers.AutoModelForMaskedLM.from_pretrained(model, local_files_only=True)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert not warnings, warnings
    text = "the rows of Zürich,  a matrix\n  x"
    ids = tokenizer.encode_batch([text]).tokens.tolist()
    wanted = [tokenizer.cls_id, *ids, tokenizer.sep_id]
    assert [one(text).input_ids for one in theirs] == [wanted, wanted]
    assert theirs[0](text, "a row").input_ids == theirs[1](text, "a row").input_ids
    mask = tokenizer.specials.mask
    assert [tokenizer.mask_id in one(f"a {mask}").input_ids for one in theirs] == [
        True,
        True,
    ]
