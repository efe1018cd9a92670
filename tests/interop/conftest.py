"""Tiny models of every family and head, their tokenizers and exported folders."""

import dataclasses
import json

import pytest
from interop.cases import CASES, PATTERNS, draw

from plmjax.interop import export_folder
from plmjax.models import PRESETS, EncoderConfig
from plmjax.tokenizers import Tokenizer, TokenizerConfig, train_tokenizer
from plmjax.tokenizers.backends import GPT2, ROBERTA, bpe_backend

DOCUMENTS = ["the rows of a matrix are vectors", "a vector has a row of numbers"] * 3


@dataclasses.dataclass
class Tiny:
    config: EncoderConfig
    params: dict
    tokenizer: object

    def export(self, folder, **changes):
        facts = {"config": self.config, "params": self.params} | changes
        export_folder(folder, tokenizer=self.tokenizer, card="# Card\n", **facts)
        return folder


@pytest.fixture(scope="session")
def tokenizers():
    """A tokenizer of each family's kind, by family; "other" for the rest."""

    def train(kind, size):
        return train_tokenizer(
            TokenizerConfig(kind=kind, vocab_size=size, min_frequency=1), DOCUMENTS
        )

    unigram, bpe = train("unigram", 40), train("bpe", 280)
    return {
        "roberta": bpe,
        "gpt2": _gpt2(train("bpe", 280)),
        "albert": unigram,
        "deberta-v2": unigram,
        # Its padding has the id 0 here, and its positions are counted from 1.
        "xlm-roberta": unigram,
        "longformer": bpe,
        "other": train("wordpiece", 60),
    }


def _gpt2(tokenizer):
    """The same merges with GPT-2's one special token, which has the last id."""
    model = json.loads(tokenizer.backend.to_str())["model"]
    pieces = [piece for piece in model["vocab"] if piece not in ROBERTA.tokens()]
    vocab = {piece: i for i, piece in enumerate([*pieces, GPT2.pad])}
    merges = [tuple(merge) for merge in model["merges"]]
    return Tokenizer(bpe_backend(vocab, merges, GPT2), GPT2)


@pytest.fixture(scope="session")
def tiny(tokenizers):
    """Makes a tiny model of a family or case, with random parameters of every kind."""

    def make(case="bert", heads=None, **changes):
        family, usual, more, _ = CASES[case]
        tokenizer = tokenizers[family if family in tokenizers else "other"]
        config = dataclasses.replace(
            PRESETS[PATTERNS[family]],
            vocab_size=tokenizer.vocab_size,
            layers=3,
            width=10,
            heads=5,
            ffn_width=14,
            max_positions=24,
            kv_heads=PRESETS[PATTERNS[family]].kv_heads and 1,
        )
        if family in ("albert", "electra"):
            config = dataclasses.replace(config, embedding_width=6)
        if family == "deberta-v2":
            config = dataclasses.replace(config, position_buckets=6)
        if config.position_offset:
            offset = tokenizer.pad_id + 1
            config = dataclasses.replace(config, position_offset=offset)
        config = dataclasses.replace(config, **(more | changes))
        return Tiny(config, draw(config, usual if heads is None else heads), tokenizer)

    return make
