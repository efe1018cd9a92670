"""Trains vocabularies: the same documents give the same one, byte for byte."""

import dataclasses
import hashlib
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from plmjax import DataError, PlmjaxError
from plmjax.config import Block, number
from plmjax.tokenizers import unigram
from plmjax.tokenizers.backends import (
    ALBERT,
    BERT,
    BPE_ORDER,
    LONGEST_WORD,
    ROBERTA,
    UNIGRAM_ORDER,
    WORDPIECE_ORDER,
    bpe_backend,
    sequence_backend,
    unigram_backend,
    wordpiece_backend,
)
from plmjax.tokenizers.coverage import (
    count_words,
    describe_text,
    normaliser,
    unknown_words,
)
from plmjax.tokenizers.files import SPECIAL
from plmjax.tokenizers.segmenters import Segmenter, make_segmenter, plain_documents
from plmjax.tokenizers.tokenizer import Tokenizer
from plmjax.tokenizers.words import cutter

# More text than this is sampled. The trainer reads about 5 MB/s a core and keeps the
# sample in memory; a piece that occurs once in 64 MB is not needed among 50k pieces.
SAMPLE_BYTES = 64_000_000
# Unigram stores every piece of each distinct run between blanks and signs: for Chinese
# about 100 bytes of memory and 2 microseconds a byte.
# k-mers are counted in Python, about 3 million a second.
UNIGRAM_BYTES = 16_000_000
# GPT-2's words end at combining marks. Hindi has 30 %, text with some decomposed
# letters far less: it keeps GPT-2's words, which RobertaTokenizer builds.
MARKS_SHARE = 0.01

MOST_LOST = 0.05  # of the chunks of k letters; more that are no piece are reported
# k - 1 passes of the library over a text for each letter.
MOST_OVERLAPPING = 64


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(Block, prefix="tokenizer."):
    """The vocabulary: trained on the corpus, or read from path."""

    # wordpiece | bpe (byte-level) | unigram (SentencePiece's) | characters | kmer (k
    # letters of a sequence without blanks: DNA, proteins)
    kind: Literal["wordpiece", "bpe", "unigram", "characters", "kmer"] = "wordpiece"
    vocab_size: int = number(8192, at_least=1)
    min_frequency: int = number(2, at_least=1)
    lowercase: bool = True
    # None: a vocabulary trained here keeps accents, a loaded one does as its files say
    strip_accents: bool | None = None
    nfkc: bool | None = None  # None: as is usual for the kind, for unigram alone
    special_tokens: tuple = ()  # more of them, after the usual five
    # The most characters that are pieces, the commonest; None: all of the text.
    alphabet: int | None = number(None, at_least=1)
    longest_word: int = number(LONGEST_WORD, at_least=1)  # wordpiece: characters
    k: int = number(6, at_least=1, at_most=16)  # kmer
    stride: int | None = number(None, at_least=1)  # kmer: 1, or None for k
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
    check_options(config)
    segmenter = check_segmenter(config)
    limit = UNIGRAM_BYTES if config.kind in ("unigram", "kmer") else SAMPLE_BYTES
    sample = sample_documents(plain_documents(segmenter, documents), limit)
    if not any(text and not text.isspace() for text in sample):
        raise DataError(
            "There is no text to train a vocabulary on.",
            hint="Check --config.data.source.paths.",
        )
    tokenizer = KINDS[config.kind](config, sample)
    if config.special_tokens:
        tokenizer.backend.add_special_tokens([*config.special_tokens])
        tokenizer = tokenizer.with_segmenter(None)
    if tokenizer.vocab_size < config.vocab_size:
        tokenizer.notes += (
            f"The text gives {tokenizer.vocab_size:,} pieces that occur at least "
            f"{config.min_frequency} times, fewer than tokenizer.vocab_size="
            f"{config.vocab_size:,}: the vocabulary has {tokenizer.vocab_size:,}.",
        )
    keeps = config.strip_accents is False
    tokenizer.notes += describe_text(tokenizer, sample, keeps)
    if config.alphabet is not None:
        words = unknown_words(tokenizer, sample)
        share = words.unknown / max(words.words, 1)
        tokenizer.notes += (
            f"{share:.2%} of the words have letters that are not among the "
            f"tokenizer.alphabet={config.alphabet:,} commonest: "
            f"{', '.join(words.character_examples) or 'none'}.",
        )
    return tokenizer.with_segmenter(segmenter)


def sample_documents(
    documents: Iterable[str], limit_bytes: int = SAMPLE_BYTES
) -> list[str]:
    """Returns the documents with the lowest hashes, at most limit_bytes, or one.

    They keep their order, but the set does not depend on it. One pass, bounded memory.
    """
    kept: list[tuple[int, int, str]] = []
    lowest: list[tuple[int, str]] = []
    ceiling, total = 1 << 64, 0
    for text in documents:
        raw = text.encode()
        # Personal: by the plain hash, low ones are held out.
        hashed = hashlib.blake2b(raw, digest_size=8, person=b"sample").digest()
        rank = int.from_bytes(hashed, "big")
        lowest = [min([*lowest, (rank, text)])]
        if rank >= ceiling:
            continue
        kept.append((rank, len(raw), text))
        total += len(raw)
        while total > limit_bytes:
            ceiling //= 2
            kept = [item for item in kept if item[0] < ceiling]
            total = sum(size for _, size, _ in kept)
    return [text for _, _, text in kept] or [text for _, text in lowest]


def _train_wordpiece(config: TokenizerConfig, sample: list[str]) -> Tokenizer:
    """WordPiece trained by BPE's merges, as in the tokenizers library."""
    options = _normalisation(config)
    # The trainer numbers the letters inside words ("##a") in the order of a hash table,
    # which differs from run to run, and breaks ties between merges by number. So a
    # first pass, over the distinct words and without merges, collects the letters; the
    # second pass receives them in a fixed order.
    options["longest_word"] = config.longest_word
    first = [*WORDPIECE_ORDER, *config.special_tokens]
    like = wordpiece_backend(_numbered(first), **options)
    limits: dict[str, Any] = {}
    if config.alphabet is not None:
        limits["initial_alphabet"] = _commonest(config, count_words(like, sample))
        limits["limit_alphabet"] = len(limits["initial_alphabet"])
    words = set(itertools.chain.from_iterable(map(cutter(like).split, sample)))
    letters = _learn_wordpiece(like, words, 0, special_tokens=first, **limits)
    alphabet = sorted(letters.keys() - set(first))
    pieces = first + alphabet
    _check_letters(config, alphabet, len(pieces))
    limits |= {"special_tokens": pieces, "min_frequency": config.min_frequency}
    vocab = _learn_wordpiece(like, sample, config.vocab_size, **limits)
    return Tokenizer(wordpiece_backend(vocab, **options), BERT)


def _learn_wordpiece(like, sample, vocab_size: int, **options) -> dict[str, int]:
    """Returns the vocabulary; the special_tokens of the options get the first ids."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, trainers

    # No special tokens: one that is spelt out in the text is ordinary text.
    backend = Backend(models.WordPiece(unk_token=BERT.unk))
    backend.normalizer, backend.pre_tokenizer = like.normalizer, like.pre_tokenizer
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, show_progress=False, **options
    )
    backend.train_from_iterator(sample, trainer)
    return backend.get_vocab(with_added_tokens=False)


def _train_bpe(config: TokenizerConfig, sample: list[str]) -> Tokenizer:
    """Byte-level BPE; ties are deterministic, as its 256 bytes have fixed numbers."""
    from tokenizers import pre_tokenizers, trainers

    options = _normalisation(config)
    first = [*BPE_ORDER, *config.special_tokens]
    share = _share_of_marks(sample)
    options["joins_marks"] = not config.strip_accents and share > MARKS_SHARE
    backend = bpe_backend(_numbered(first), [], **options)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=first,
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
    empty = [(piece, 0.0) for piece in (*UNIGRAM_ORDER, *config.special_tokens)]
    words = count_words(unigram_backend(empty, **options), sample)
    if config.alphabet is not None:
        # "▁" is no character of the text.
        kept = "".join(map(re.escape, [unigram.METASPACE, *_commonest(config, words)]))
        parts = Counter[str]()
        for word, count in words.items():
            for part in re.findall(f"[{kept}]+", word):
                parts[part] += count
        words = parts
    letters = set(itertools.chain.from_iterable(words))
    _check_letters(config, letters, len(letters) + len(empty))
    room = config.vocab_size - len(empty)
    pieces = unigram.learn(words, room, config.min_frequency)
    return Tokenizer(unigram_backend(empty + pieces, **options), ALBERT)


def _train_sequences(config: TokenizerConfig, sample: list[str]) -> Tokenizer:
    """All letters, and for kmer the commonest chunks of k, wherever they begin."""
    options = _normalisation(config) | {"k": 1, "blanks": True}
    if config.kind == "kmer":
        options |= {"k": config.k, "blanks": False}
    first, k = [*WORDPIECE_ORDER, *config.special_tokens], options["k"]
    normalise = normaliser(sequence_backend(_numbered(first), **options))
    texts = [normalise(text) for text in sample]
    counts = Counter[str]()
    for text in texts:
        counts.update(text)
    kept = set(_commonest(config, counts))
    _check_letters(config, kept, len(first) + len(kept))
    chunks = Counter[str]()
    for text in texts if k > 1 else ():
        chunks.update(text[i : i + k] for i in range(len(text) - k + 1))
    often = [
        (-count, chunk)
        for chunk, count in chunks.items()
        if count >= config.min_frequency and kept.issuperset(chunk)
    ]
    overlap = "".join(sorted(kept)) if k > 1 and config.stride == 1 else ""
    if len(overlap) > MOST_OVERLAPPING:
        raise DataError(
            f"The text has {len(overlap)} letters; tokenizer.stride=1 is for at most "
            f"{MOST_OVERLAPPING}, as DNA and proteins have.",
            hint="Leave tokenizer.stride out, or clean the text.",
        )
    # An unknown chunk among others that overlap is one [UNK], else it is its letters.
    letters = [] if overlap else sorted(kept)
    pieces = [*first, *letters, *(chunk for _, chunk in sorted(often))]
    vocab = _numbered(pieces[: config.vocab_size])
    backend = sequence_backend(vocab, **options, overlap=overlap)
    tokenizer = Tokenizer(backend, BERT)
    held = sum(chunk in vocab for chunk in chunks)
    lost = 1 - sum(chunks[chunk] for chunk in chunks if chunk in vocab) / max(
        chunks.total(), 1
    )
    if len(pieces) > config.vocab_size and lost >= MOST_LOST:
        tokenizer.notes += (
            f"tokenizer.vocab_size={config.vocab_size:,} holds {held:,} of the "
            f"{len(chunks):,} {k}-mers of the text: {lost:.0%} of its chunks are no "
            f"piece, and become {'[UNK]' if overlap else 'their letters'}. "
            f"tokenizer.vocab_size={len(pieces):,} holds all that occur "
            f"{config.min_frequency} times.",
        )
    return tokenizer


def _normalisation(config: TokenizerConfig) -> dict[str, Any]:
    """The arguments of all backends; False, as None is BERT's rule to transformers."""
    strip = bool(config.strip_accents)
    options = {"lowercase": config.lowercase, "strip_accents": strip}
    return options | ({"nfkc": bool(config.nfkc)} if config.kind != "unigram" else {})


def _commonest(config: TokenizerConfig, words: Mapping[str, int]) -> list[str]:
    """The config.alphabet commonest characters of some words with counts, or all."""
    counts = Counter[str]()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    counts.pop(unigram.METASPACE if config.kind == "unigram" else "", None)
    order = sorted(counts, key=lambda character: (-counts[character], character))
    return order[: config.alphabet]


def check_options(config: TokenizerConfig) -> None:
    """Raises PlmjaxError for options that cannot be, whatever the text is.

    They contradict each other, have no effect, or are too small.
    """
    if config.kind not in KINDS:
        raise PlmjaxError(
            f"tokenizer.kind={config.kind!r} is not known.",
            hint=f"Known kinds: {', '.join(KINDS)}.",
        )
    orders = {"bpe": BPE_ORDER, "unigram": UNIGRAM_ORDER}
    known = [*orders.get(config.kind, WORDPIECE_ORDER), *config.special_tokens]
    for token, times in Counter(known).items():
        if not SPECIAL.fullmatch(str(token)) or str(token).split() != [token]:
            raise PlmjaxError(
                f"tokenizer.special_tokens has {token!r}; no text may spell it.",
                hint='Give words in brackets: ("[GENE]","<cell>").',
            )
        if times > 1:
            raise PlmjaxError(
                f"the special token {token!r} is given twice.",
                hint=f"These are always there: {', '.join(known[:5])}.",
            )
    kind = config.kind
    floor = len(known) + 256
    if kind == "bpe" and config.vocab_size < floor:
        raise PlmjaxError(
            f"tokenizer.vocab_size={config.vocab_size} is too small: the bytes and "
            f"special tokens alone are {floor}.",
            hint=f"Set --config.tokenizer.vocab_size to {floor} or more.",
        )
    for key, kinds in (
        ("alphabet", ("wordpiece", "unigram", "characters", "kmer")),
        ("longest_word", ("wordpiece",)),
        ("stride", ("kmer",)),
        ("k", ("kmer",)),
    ):
        value = getattr(config, key)
        if kind not in kinds and value != getattr(TokenizerConfig(), key):
            raise PlmjaxError(
                f"tokenizer.{key}={value} has no effect on kind={kind}.",
                hint=f"It is for {', '.join(kinds)}.",
            )
    if config.stride not in (None, 1, config.k):
        raise PlmjaxError(
            f"tokenizer.stride={config.stride} must be 1 or k={config.k}.",
            hint="1: all k-mers, which overlap; k: one after the other.",
        )
    if kind == "unigram" and config.nfkc is False:
        raise PlmjaxError(
            "tokenizer.nfkc=false has no effect on kind=unigram, which normalises as "
            "SentencePiece does.",
            hint="Leave it out.",
        )


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
            hint=f"Set --config.tokenizer.vocab_size={floor} or more, "
            "--config.tokenizer.alphabet to keep the commonest letters alone, or "
            "--config.tokenizer.kind=bpe, whose 256 bytes write every letter.",
        )


KINDS = {
    "wordpiece": _train_wordpiece,
    "bpe": _train_bpe,
    "unigram": _train_unigram,
    "characters": _train_sequences,
    "kmer": _train_sequences,
}
