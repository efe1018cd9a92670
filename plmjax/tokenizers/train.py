"""Trains vocabularies: the same documents give the same one, byte for byte."""

import dataclasses
import hashlib
import itertools
import json
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any, Literal

from plmjax import DataError, PlmjaxError
from plmjax.config import Block, number
from plmjax.tokenizers import unigram
from plmjax.tokenizers.backends import (
    ALBERT,
    BERT,
    BPE_ORDER,
    ROBERTA,
    UNIGRAM_ORDER,
    WORDPIECE_ORDER,
    bpe_backend,
    unigram_backend,
    wordpiece_backend,
)
from plmjax.tokenizers.coverage import count_words, describe_text, normaliser
from plmjax.tokenizers.segmenters import Segmenter, make_segmenter, plain_documents
from plmjax.tokenizers.tokenizer import Tokenizer
from plmjax.tokenizers.words import cutter

# More text than this is sampled. The trainer reads about 5 MB/s a core and keeps the
# sample in memory; a piece that occurs once in 64 MB is not needed among 50k pieces.
SAMPLE_BYTES = 64_000_000
# Unigram stores every piece of each distinct run between blanks and signs: for Chinese
# about 100 bytes of memory and 2 microseconds a byte.
UNIGRAM_BYTES = 16_000_000
# GPT-2's words end at combining marks. Hindi has 30 %, text with some decomposed
# letters far less: it keeps GPT-2's words, which RobertaTokenizer builds.
MARKS_SHARE = 0.01


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(Block, prefix="tokenizer."):
    """The vocabulary: trained on the corpus, or read from path."""

    # wordpiece | bpe (byte-level) | unigram (SentencePiece's)
    kind: Literal["wordpiece", "bpe", "unigram"] = "wordpiece"
    vocab_size: int = number(8192, at_least=1)
    min_frequency: int = number(2, at_least=1)
    lowercase: bool = True
    # None: a vocabulary trained here keeps accents, a loaded one does as its files say
    strip_accents: bool | None = None
    path: str | None = None  # a folder, tokenizer.json, vocab.txt, .spm or .model
    # Chinese words for whole-word masking: found by jieba, or separated by spaces.
    segmenter: Literal["none", "jieba", "spaces"] = "none"
    user_dictionary: str | None = None  # more words for jieba: one a line


def check_segmenter(config: TokenizerConfig) -> Segmenter | None:
    """Returns the segmenter that config names; only its dictionary is read.

    Raises:
      PlmjaxError: it is not installed, or its dictionary cannot be used.
    """
    return make_segmenter(config.segmenter, config.user_dictionary)


def get_tokenizer(config: TokenizerConfig, documents: Iterable[str]) -> Tokenizer:
    """Loads the tokenizer at config.path, or trains one on documents if it is None.

    A segmenter saved beside a loaded one is used unless the config names another. The
    tokenizer's notes state what it loses of the documents.
    """
    if config.path is None:
        return train_tokenizer(config, documents)
    segmenter = check_segmenter(config)
    tokenizer = Tokenizer.load(config.path, config.lowercase, config.strip_accents)
    tokenizer.notes += describe_text(tokenizer, documents)
    strips = normaliser(tokenizer.backend)("ŭ") == "u"
    if config.strip_accents not in (None, strips):
        tokenizer.notes += (
            f"tokenizer.strip_accents={config.strip_accents} has no effect: accents "
            f"are {'dropped' if strips else 'kept'} by the files of {config.path}.",
        )
    return tokenizer if segmenter is None else tokenizer.with_segmenter(segmenter)


def train_tokenizer(config: TokenizerConfig, documents: Iterable[str]) -> Tokenizer:
    """Trains on documents, or on a sample of them (SAMPLE_BYTES, UNIGRAM_BYTES).

    A text with fewer pieces than config.vocab_size gives a smaller vocabulary, which
    the tokenizer's notes state. Raises PlmjaxError if there is no text, or if
    config.vocab_size cannot hold its letters.
    """
    if config.kind not in KINDS:
        raise PlmjaxError(
            f"tokenizer.kind={config.kind!r} is not known.",
            hint=f"Known kinds: {', '.join(KINDS)}.",
        )
    segmenter = check_segmenter(config)
    limit = UNIGRAM_BYTES if config.kind == "unigram" else SAMPLE_BYTES
    sample = sample_documents(plain_documents(segmenter, documents), limit)
    if not any(text and not text.isspace() for text in sample):
        raise DataError(
            "There is no text to train a vocabulary on.",
            hint="Check --config.data.source.paths.",
        )
    tokenizer = KINDS[config.kind](config, sample)
    if tokenizer.vocab_size < config.vocab_size:
        tokenizer.notes += (
            f"The text gives {tokenizer.vocab_size:,} pieces that occur at least "
            f"{config.min_frequency} times, fewer than tokenizer.vocab_size="
            f"{config.vocab_size:,}: the vocabulary has {tokenizer.vocab_size:,}.",
        )
    tokenizer.notes += describe_text(tokenizer, sample)
    return tokenizer.with_segmenter(segmenter)


def sample_documents(
    documents: Iterable[str], limit_bytes: int = SAMPLE_BYTES
) -> list[str]:
    """Returns the documents with the lowest hashes, at most about limit_bytes of text.

    They keep their order, but the set does not depend on it. One pass, bounded memory.
    """
    kept: list[tuple[int, int, str]] = []
    ceiling, total = 1 << 64, 0
    for text in documents:
        raw = text.encode()
        rank = int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big")
        if rank >= ceiling:
            continue
        kept.append((rank, len(raw), text))
        total += len(raw)
        while total > limit_bytes and len(kept) > 1:
            ceiling //= 2
            kept = [item for item in kept if item[0] < ceiling]
            total = sum(size for _, size, _ in kept)
    return [text for _, _, text in kept]


def _train_wordpiece(config: TokenizerConfig, sample: list[str]) -> Tokenizer:
    """WordPiece trained by BPE's merges, as in the tokenizers library."""
    options = _normalisation(config)
    # The trainer numbers the letters inside words ("##a") in the order of a hash table,
    # which differs from run to run, and breaks ties between merges by number. So a
    # first pass, over the distinct words and without merges, collects the letters; the
    # second pass receives them in a fixed order.
    split = cutter(wordpiece_backend(_numbered(WORDPIECE_ORDER), **options)).split
    words = set(itertools.chain.from_iterable(map(split, sample)))
    letters = _learn_wordpiece(WORDPIECE_ORDER, 0, config, options, words)
    alphabet = sorted(letters.keys() - set(WORDPIECE_ORDER))
    pieces = WORDPIECE_ORDER + alphabet
    _check_letters(config, alphabet, len(pieces))
    vocab = _learn_wordpiece(pieces, config.vocab_size, config, options, sample)
    return Tokenizer(wordpiece_backend(vocab, **options), BERT)


def _learn_wordpiece(first_pieces, vocab_size, config, options, sample):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, trainers

    like = wordpiece_backend(_numbered(WORDPIECE_ORDER), **options)
    # No special tokens: one that is spelt out in the text is ordinary text.
    backend = Backend(models.WordPiece(unk_token=BERT.unk))
    backend.normalizer, backend.pre_tokenizer = like.normalizer, like.pre_tokenizer
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=first_pieces,  # they get the first ids
        show_progress=False,
    )
    backend.train_from_iterator(sample, trainer)
    return backend.get_vocab(with_added_tokens=False)


def _train_bpe(config: TokenizerConfig, sample: list[str]) -> Tokenizer:
    """Byte-level BPE; ties are deterministic, as its 256 bytes have fixed numbers."""
    from tokenizers import pre_tokenizers, trainers

    options = _normalisation(config)
    floor = len(BPE_ORDER) + 256
    if config.vocab_size < floor:
        raise PlmjaxError(
            f"tokenizer.vocab_size={config.vocab_size} is too small: the bytes and "
            f"special tokens alone are {floor}.",
            hint=f"Set --config.tokenizer.vocab_size to {floor} or more.",
        )
    share = _share_of_marks(sample)
    options["joins_marks"] = not config.strip_accents and share > MARKS_SHARE
    backend = bpe_backend(_numbered(BPE_ORDER), [], **options)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=BPE_ORDER,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(sample, trainer)
    model = json.loads(backend.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(bpe_backend(model["vocab"], merges, **options), ROBERTA)
    if options["joins_marks"]:
        tokenizer.notes = (
            f"{share:.1%} of the characters are marks on letters: words hold them, "
            "where GPT-2's would end.",
        )
    return tokenizer


def _share_of_marks(sample: list[str]) -> float:
    """The share of combining marks among the letters and marks."""
    total = Counter[str]()
    for character, count in Counter(itertools.chain.from_iterable(sample)).items():
        total[unicodedata.category(character)[0]] += count
    return total["M"] / max(total["L"] + total["M"], 1)


def _train_unigram(config: TokenizerConfig, sample: list[str]) -> Tokenizer:
    """Unigram over "▁" words, by our trainer: the library's is not deterministic."""
    options = _normalisation(config)
    empty = [(piece, 0.0) for piece in UNIGRAM_ORDER]
    words = count_words(unigram_backend(empty, **options), sample)
    letters = set(itertools.chain.from_iterable(words))
    _check_letters(config, letters, len(letters) + len(empty))
    room = config.vocab_size - len(empty)
    pieces = unigram.learn(words, room, config.min_frequency)
    return Tokenizer(unigram_backend(empty + pieces, **options), ALBERT)


def _normalisation(config: TokenizerConfig) -> dict[str, Any]:
    """The arguments of all backends; False, as None is BERT's rule to transformers."""
    strip = bool(config.strip_accents)
    return {"lowercase": config.lowercase, "strip_accents": strip}


def _numbered(pieces: list[str]) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(pieces)}


def _check_letters(
    config: TokenizerConfig, letters: Collection[str], floor: int
) -> None:
    if not letters:
        raise DataError(
            "The text gives only characters that the tokenizer drops (controls and "
            "blanks), so there is no word to make pieces of.",
            hint="Check --config.data.source.paths.",
        )
    if floor > config.vocab_size:
        raise DataError(
            f"The text has {len(letters):,} letters (those inside words counted too), "
            f"more than tokenizer.vocab_size={config.vocab_size} can hold.",
            hint=f"Set --config.tokenizer.vocab_size={floor} or more, or "
            "--config.tokenizer.kind=bpe, whose 256 bytes write every letter.",
        )


KINDS = {"wordpiece": _train_wordpiece, "bpe": _train_bpe, "unigram": _train_unigram}
