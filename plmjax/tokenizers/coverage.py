"""What a vocabulary loses of a text: unknown words, and accents that are dropped."""

import dataclasses
import itertools
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from plmjax.tokenizers.files import SPECIAL
from plmjax.tokenizers.words import cutter

if TYPE_CHECKING:
    import tokenizers

    from plmjax.tokenizers.tokenizer import Tokenizer

SHOWN = 3  # examples of each cause
SHOWN_CHARACTERS = 24  # longer examples are cut
SAMPLE_CHARACTERS = 8_000_000  # about a second; further text is not looked at
UNUSED_SHARE = 0.001  # of a vocabulary's pieces; fewer are not named
_KEEPING = (
    " (tokenizer.strip_accents=false keeps them, except for a tokenizer whose files "
    "decide it)."
)
_FORMAT = ("Cf", "Co")  # joiners, soft hyphens, private characters


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
            # The letters of chunks that overlap are no pieces.
            for index, character in enumerate(
                word if tokenizer.overlap == 1 else [word]
            ):
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


@dataclasses.dataclass(frozen=True)
class Dropped:
    """The characters that normalisation drops from words.

    `marks` (accents, vowel signs) and `formats` (joiners, soft hyphens) of `characters`
    are dropped. `examples` are the commonest words that lose a mark ("hodiaŭ ->
    hodiau"), `names` the commonest dropped format characters.
    """

    characters: int
    marks: int
    formats: int
    examples: tuple[str, ...]
    names: tuple[str, ...]


def dropped_characters(tokenizer: "Tokenizer", texts: Iterable[str]) -> Dropped:
    """Counts the marks and format characters that normalisation drops from texts."""
    normalise = normaliser(tokenizer.backend)
    words, names = Counter[str](), Counter[str]()
    characters = marks = formats = 0
    for word, count in Counter(word for text in texts for word in text.split()).items():
        characters += count * len(word)
        if word.isascii():
            continue
        normal = normalise(word)
        # Decomposed, so that a character and its marks count one by one.
        lost = Counter(unicodedata.normalize("NFD", word))
        lost -= Counter(unicodedata.normalize("NFD", normal))
        for character, times in lost.items():
            category = unicodedata.category(character)
            if category[0] == "M":
                marks += times * count
                words[f"{word} -> {normal}"] = count
            elif category in _FORMAT:
                formats += times * count
                names[f"U+{ord(character):04X}"] += times * count
    return Dropped(characters, marks, formats, _examples(words), _examples(names))


def unused_pieces(tokenizer: "Tokenizer") -> tuple[list[str], list[str]]:
    """Returns the ordinary pieces that no text can give, as normalisation changes them.

    First those with capitals, then the others (accents, mostly), each by id.
    """
    decoder = tokenizer.backend.decoder
    if tokenizer.backend.normalizer is None or decoder is None:
        return [], []
    normalise = normaliser(tokenizer.backend)
    capitals, others = [], []
    for piece, number in sorted(tokenizer.vocab.items(), key=lambda item: item[1]):
        if piece.isascii() and piece == piece.lower():
            continue  # most pieces: no normaliser changes them
        if tokenizer.kind == "bpe" and len(piece) == 1:
            continue  # a byte, which every byte-level vocabulary has
        if number in tokenizer.special_ids or SPECIAL.fullmatch(piece):
            continue
        text = "".join(decoder.decode([piece.removeprefix("##")]).split())
        # Part of a character is no text; BERT's normaliser puts blanks around 中.
        if "\ufffd" in text or text == "".join(normalise(text).split()):
            continue
        (capitals if text != text.lower() else others).append(piece)
    return capitals, others


def describe(tokenizer: "Tokenizer") -> list[str]:
    """Returns one line for each thing to know about a tokenizer that was read."""
    lines = list(tokenizer.notes)
    around = tokenizer.backend.encode("").tokens
    ours = [tokenizer.specials.cls, tokenizer.specials.sep]
    if around not in ([], ours):  # GPT-2 has none
        lines.append(
            f"Rows of plmjax are {ours[0]} text {ours[1]}; for a text alone, "
            f"tokenizer.json adds {' '.join(around)}, and so does AutoTokenizer."
        )
    capitals, others = unused_pieces(tokenizer)
    for pieces, why, fix in (
        (capitals, "have capitals, but text is lower-cased", '"do_lower_case": false'),
        (others, "have characters that are normalised", '"strip_accents": false'),
    ):
        if len(pieces) >= UNUSED_SHARE * tokenizer.vocab_size:
            lines.append(
                f"{len(pieces):,} of {tokenizer.vocab_size:,} pieces can never be "
                f"used: they {why}, e.g. {', '.join(pieces[:SHOWN])}. If that is not "
                f"meant, set {fix} in tokenizer_config.json."
            )
    return lines


def describe_text(
    tokenizer: "Tokenizer", documents: Iterable[str], keeps: bool = False
) -> tuple[str, ...]:
    """Returns one line for each kind of character that the documents lose.

    Only the first SAMPLE_CHARACTERS are read. `keeps`: strip_accents is false already.
    """
    sample, size = [], 0
    for text in documents:
        sample.append(text[: SAMPLE_CHARACTERS - size])
        size += len(sample[-1])
        if size >= SAMPLE_CHARACTERS:
            break
    dropped = dropped_characters(tokenizer, sample)
    total, examples, lines = max(dropped.characters, 1), dropped.examples, []
    if dropped.marks:
        lines.append(
            f"Accents are dropped from the text: {dropped.marks:,} of {total:,} "
            f"characters ({dropped.marks / total:.2%}), e.g. {', '.join(examples)}"
            + ("." if keeps else _KEEPING)
        )
    if dropped.formats:
        lines.append(
            f"Format characters are dropped from the text: {dropped.formats:,} "
            f"({dropped.formats / total:.2%}), {', '.join(dropped.names)}."
        )
    return tuple(lines)


def count_words(backend: "tokenizers.Tokenizer", texts: Iterable[str]) -> Counter[str]:
    """Counts the words that the tokenizer's model receives, normalised."""
    assert backend.pre_tokenizer is not None
    cut = backend.pre_tokenizer.pre_tokenize_str
    normalise = normaliser(backend)
    # The units of the word cache, so that each distinct one is normalised once.
    units = Counter(itertools.chain.from_iterable(map(cutter(backend).split, texts)))
    words = Counter[str]()
    for unit, count in units.items():
        for word, _ in cut(normalise(unit)):
            words[word] += count
    return words


def normaliser(backend: "tokenizers.Tokenizer") -> Callable[[str], str]:
    """Returns the function that normalises a text for the tokenizer's model."""
    if backend.normalizer is None:
        return str
    return backend.normalizer.normalize_str


def _examples(counts: Counter[str]) -> tuple[str, ...]:
    """The commonest keys; in alphabetical order where equally common."""
    order = sorted(counts, key=lambda key: (-counts[key], key))[:SHOWN]
    most = SHOWN_CHARACTERS
    return tuple(k if len(k) <= most else k[: most - 1] + "…" for k in order)
