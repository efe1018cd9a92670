"""Vocabularies: trains WordPiece, BPE and unigram, loads others, encodes texts."""

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
    "check_segmenter",
    "get_tokenizer",
    "train_tokenizer",
]
