"""Vocabularies: trains, measures and loads them, and encodes texts."""

from plmjax.tokenizers.coverage import UnknownWords, describe, unknown_words
from plmjax.tokenizers.tokenizer import Encoded, Tokenizer
from plmjax.tokenizers.train import (
    TokenizerConfig,
    check_segmenter,
    get_tokenizer,
    train_tokenizer,
)

__all__ = [
    "Encoded",
    "Tokenizer",
    "TokenizerConfig",
    "UnknownWords",
    "check_segmenter",
    "describe",
    "get_tokenizer",
    "train_tokenizer",
    "unknown_words",
]
