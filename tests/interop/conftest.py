"""A tiny model, its tokenizer and its exported folder."""

import dataclasses

import jax
import numpy as np
import pytest

from plmjax.interop import export_folder
from plmjax.interop.names import FAMILIES, entries
from plmjax.models import EncoderConfig
from plmjax.tokenizers import TokenizerConfig, train_tokenizer
from plmjax.tree import unflatten

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
def tiny():
    """Makes a tiny model of a family, with random parameters of every kind."""
    from plmjax.interop.huggingface import _shapes

    def make(family="bert", **changes):
        kind = {"bert": "wordpiece", "roberta": "bpe"}[family]
        size = {"bert": 60, "roberta": 280}[family]
        tokenizer = train_tokenizer(
            TokenizerConfig(kind=kind, vocab_size=size, min_frequency=1), DOCUMENTS
        )
        config = EncoderConfig(
            family=family,
            vocab_size=tokenizer.vocab_size,
            layers=3,
            width=10,
            heads=5,
            ffn_width=14,
            max_positions=24,
            position_offset=2 if family == "roberta" else 0,
            token_types=1 if family == "roberta" else 2,
            norm_eps=1e-5,
        )
        config = dataclasses.replace(config, **changes)
        random, shapes = np.random.default_rng(0), _shapes(config)
        flat = {
            entry.ours: random.normal(
                0, 0.1, shapes[entry.ours.replace(_layer(entry.ours), "layer_0")]
            ).astype(np.float32)
            for entry in entries(FAMILIES[family], config.layers)
        }
        params = jax.tree.map(jax.numpy.asarray, unflatten(flat))
        return Tiny(config, params, tokenizer)

    return make


def _layer(name):
    return name.split("/")[1] if "/layer_" in name else "layer_0"
