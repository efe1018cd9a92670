"""What a vocabulary loses of a text: unknown words, and accents that are dropped."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from plmjax.tokenizers.words import cutter

if TYPE_CHECKING:
    import tokenizers

    from plmjax.tokenizers.tokenizer import Tokenizer

SHOWN = 3  # examples of each cause
SHOWN_CHARACTERS = 24  # longer examples are cut


@dataclasses.dataclass(frozen=True)
class UnknownWords:
    """The words that a vocabulary cannot write, by cause.

    `unknown` of `words` become or contain the unknown token. `too_long` of these are
    longer than `limit` characters, which WordPiece refuses (None: no limit). In all
    others, characters are missing from the vocabulary: `characters` has the commonest.
    Examples are the commonest words of each cause, cut to SHOWN_CHARACTERS.
    """

    words: int
    unknown: int
    too_long: int
    limit: int | None
    long_examples: tuple[str, ...]
    characters: tuple[str, ...]
    character_examples: tuple[str, ...]

    @property
    def share(self) -> float:
        """The share of the words that are unknown, in [0, 1]."""
        return self.unknown / max(self.words, 1)


def unknown_words(tokenizer: "Tokenizer", texts: Iterable[str]) -> UnknownWords:
    """Counts the words of texts that become or contain the unknown token, by cause."""
    model, vocab = tokenizer.backend.model, tokenizer.vocab
    limit = getattr(model, "max_input_chars_per_word", None)
    words = count_words(tokenizer.backend, texts)
    long, others, characters = Counter[str](), Counter[str](), Counter[str]()
    for word, count in words.items():
        if limit is not None and len(word) > limit:
            long[word] = count
        elif any(piece.id == tokenizer.unk_id for piece in model.tokenize(word)):
            others[word] = count
            for index, character in enumerate(word):
                inside = tokenizer.kind == "wordpiece" and index > 0
                if ("##" if inside else "") + character not in vocab:
                    characters[character] += count
    return UnknownWords(
        words=words.total(),
        unknown=long.total() + others.total(),
        too_long=long.total(),
        limit=limit,
        long_examples=_examples(long),
        characters=_examples(characters),
        character_examples=_examples(others),
    )


def count_words(backend: "tokenizers.Tokenizer", texts: Iterable[str]) -> Counter[str]:
    """Counts the words that the tokenizer's model receives, normalised."""
    assert backend.pre_tokenizer is not None
    cut = backend.pre_tokenizer.pre_tokenize_str
    normalise = normaliser(backend)
    words = Counter[str]()
    for unit, count in count_units(backend, texts).items():
        for word, _ in cut(normalise(unit)):
            words[word] += count
    return words


def count_units(backend: "tokenizers.Tokenizer", texts: Iterable[str]) -> Counter[str]:
    """Counts the units of the exact word cache, before any normalisation."""
    return Counter(itertools.chain.from_iterable(map(cutter(backend).split, texts)))


def normaliser(backend: "tokenizers.Tokenizer") -> Callable[[str], str]:
    """Returns the function that normalises a text for the tokenizer's model."""
    if backend.normalizer is None:
        return str
    return backend.normalizer.normalize_str


def _examples(counts: Counter[str]) -> tuple[str, ...]:
    """The commonest keys; in alphabetical order where equally common."""
    order = sorted(counts, key=lambda key: (-counts[key], key))[:SHOWN]
    return tuple(
        key if len(key) <= SHOWN_CHARACTERS else key[: SHOWN_CHARACTERS - 1] + "…"
        for key in order
    )
