"""Vocabularies: train WordPiece and byte-level BPE, load others, encode fast."""

from plmjax.tokenizers.tokenizer import Encoded, Tokenizer
from plmjax.tokenizers.train import TokenizerConfig, get_tokenizer, train_tokenizer

__all__ = [
    "Encoded",
    "Tokenizer",
    "TokenizerConfig",
    "get_tokenizer",
    "train_tokenizer",
]
