"""Makes a trained model's vocabulary larger or smaller, and compares two of them.

A word is what the tokenizer's model receives, see `count_words`; a piece keeps its
spelling, ids follow the order: those that stay, then new ones.
"""

import heapq
import json
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from plmjax import Exit, PlmjaxError
from plmjax.tokenizers.backends import byte_of_character, writes_blanks
from plmjax.tokenizers.coverage import count_words
from plmjax.tokenizers.files import ROLES
from plmjax.tokenizers.segmenters import plain_documents
from plmjax.tokenizers.tokenizer import Tokenizer
from plmjax.tokenizers.unigram import METASPACE

_INSIDE = "##"  # WordPiece's mark of a piece inside a word
_ABOVE = 0.01  # by which a new unigram piece beats its two parts


def words_of(tokenizer: Tokenizer, documents: Iterable[str]) -> Counter[str]:
    """Counts the words of documents, as the tokenizer's model receives them.

    Raises:
      PlmjaxError: the tokenizer cuts no words, or does not make them of pieces.
    """
    blanks, kind = writes_blanks(tokenizer.backend), tokenizer.kind
    if blanks or kind not in ("wordpiece", "bpe", "unigram"):
        what = "reads a text as one word" if blanks else f"is of the kind {kind}"
        raise PlmjaxError(
            f"the vocabulary {what}, so pieces can be neither added nor taken away.",
            hint="Give another one: --vocabulary=DIR.",
            code=Exit.MODEL,
        )
    plain = plain_documents(tokenizer.segmenter, documents)
    return count_words(tokenizer.backend, plain)


def uses(tokenizer: Tokenizer, words: Mapping[str, int]) -> Counter[str]:
    """Counts how often each piece occurs in words."""
    counts = Counter[str]()
    for word, count in words.items():
        for token in tokenizer.backend.model.tokenize(word):
            counts[token.value] += count
    return counts


# --- larger


def extended(tokenizer: Tokenizer, words: Mapping[str, int], count: int) -> Tokenizer:
    """Returns a vocabulary with at most `count` more pieces; old ones keep their order.

    First come the characters that it lacks, the commonest first. Then, as in the
    training of BPE (Sennrich et al. 2016, arXiv:1508.07909), the commonest pair of
    neighbours within a word becomes a piece, again and again. A BPE needs the pieces in
    between; of the others only those stay that the words use in the end.
    """
    letters = _missing(tokenizer, words)[:count]
    if letters:
        lowest = min(_scores(tokenizer).values(), default=0.0)
        scores = dict.fromkeys(letters, lowest)
        tokenizer = _rebuilt(tokenizer, [*_ordered(tokenizer), *letters], scores=scores)
    merges, scores = _joins(tokenizer, words, count - len(letters))
    old = _ordered(tokenizer)
    pieces = [piece for piece in scores if piece not in tokenizer.vocab]
    return _rebuilt(tokenizer, old + pieces, merges, scores)


def _missing(tokenizer: Tokenizer, words: Mapping[str, int]) -> list[str]:
    """Returns the characters that the words need twice, the commonest first."""
    lacking = Counter[str]()
    if tokenizer.kind == "bpe":
        return []  # its bytes write all
    inside = _INSIDE if tokenizer.kind == "wordpiece" else ""
    for word, count in words.items():
        for index, character in enumerate(word):
            piece = (inside if index else "") + character
            if piece not in tokenizer.vocab:
                lacking[piece] += count
    often = (piece for piece, count in lacking.items() if count > 1)
    return sorted(often, key=lambda piece: (-lacking[piece], piece))


def _joins(
    tokenizer: Tokenizer, words: Mapping[str, int], most: int
) -> tuple[list[tuple[str, str]], dict[str, float]]:
    """Joins the commonest pair of pieces until `most` new pieces are in use.

    Returns the pairs in order, and {new piece: log probability in these words}.
    """
    special = {*tokenizer.backend.get_added_tokens_decoder()}
    split, counts = [], []
    for word, count in words.items():
        tokens = tokenizer.backend.model.tokenize(word)
        if len(tokens) > 1 and not any(token.id in special for token in tokens):
            split.append([token.value for token in tokens])
            counts.append(count)
    pairs, places = Counter[tuple[str, str]](), defaultdict(set)
    used = uses(tokenizer, words)
    for index, pieces in enumerate(split):
        for pair in zip(pieces, pieces[1:], strict=False):
            pairs[pair] += counts[index]
            places[pair].add(index)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    total, scores = used.total(), _scores(tokenizer)
    merges: list[tuple[str, str]] = []
    new: dict[str, float] = {}
    while heap and len(new) < most:
        count, pair = heapq.heappop(heap)
        if -count != pairs[pair]:  # it has changed since
            if pairs[pair] > 1:
                heapq.heappush(heap, (-pairs[pair], pair))
            continue
        joined = _joined(tokenizer, pair)
        if count > -2 or joined is None:
            continue
        changed = _join(split, counts, places[pair], pair, joined)
        for other, more in changed.items():
            pairs[other] += more
        for index in places.pop(pair):
            pieces = split[index]
            for other in zip(pieces, pieces[1:], strict=False):
                places[other].add(index)
        for other, more in changed.items():
            if more > 0:
                heapq.heappush(heap, (-pairs[other], other))
        merges.append(pair)
        times = -count
        used[joined] += times
        parts = sum(scores.get(part, 0.0) for part in pair)
        scores[joined] = max(math.log(times / total), parts + _ABOVE)
        if joined not in tokenizer.vocab:
            new[joined] = scores[joined]
        for part in pair:
            used[part] -= times
            if tokenizer.kind != "bpe" and used[part] <= 0:
                new.pop(part, None)
    return merges, new


def _joined(tokenizer: Tokenizer, pair: tuple[str, str]) -> str | None:
    """Returns the piece that two neighbours make; None if it should be no piece."""
    left, right = pair
    if tokenizer.kind == "wordpiece":
        return left + right.removeprefix(_INSIDE)
    joined = left + right
    if tokenizer.kind == "unigram":
        # Its words may hold signs and digits, which stay pieces of their own.
        letters = joined.removeprefix(METASPACE)
        if any(unicodedata.category(letter)[0] not in "LM" for letter in letters):
            return None
    return joined


def _join(
    split: list[list[str]],
    counts: list[int],
    where: Iterable[int],
    pair: tuple[str, str],
    joined: str,
) -> Counter[tuple[str, str]]:
    """Joins a pair in the words `where`; returns the change of the pairs' counts."""
    changed = Counter[tuple[str, str]]()
    for index in where:
        before, after = split[index], []
        for piece in before:
            if after and (after[-1], piece) == pair:
                after[-1] = joined
            else:
                after.append(piece)
        if len(after) == len(before):
            continue
        for pieces, sign in ((before, -1), (after, 1)):
            for other in zip(pieces, pieces[1:], strict=False):
                changed[other] += sign * counts[index]
        split[index] = after
    return changed


# --- smaller


def shrunk(
    tokenizer: Tokenizer,
    words: Mapping[str, int],
    least: int = 1,
    most: int | None = None,
) -> Tokenizer:
    """Returns a vocabulary of the pieces that words use `least` times.

    Special tokens stay, and the alphabet: all bytes, the characters of ASCII and of the
    words. `most` is the largest number of pieces, the commonest ones. With least=1 and
    no `most`, the words are split as before.

    Raises:
      PlmjaxError: `most` is less than the special tokens and the alphabet.
    """
    letters = {*map(chr, range(128)), *"".join(words), METASPACE}
    kept = {
        token.content for token in tokenizer.backend.get_added_tokens_decoder().values()
    }
    for piece in tokenizer.vocab:
        plain = piece.removeprefix(_INSIDE) if tokenizer.kind == "wordpiece" else piece
        byte = len(plain) == 1 if tokenizer.kind == "bpe" else piece.startswith("<0x")
        if byte or plain in letters:
            kept.add(piece)
    if most is not None and len(kept) > most:
        raise PlmjaxError(
            f"--keep={most} is less than the special tokens and the alphabet, which "
            f"are {len(kept):,} pieces.",
            hint=f"Set --keep={len(kept)} or more.",
        )
    parts = defaultdict(set)
    for left, right in _merges(tokenizer):
        parts[left + right] |= {left, right}
    used = uses(tokenizer, words)
    for piece in sorted(used, key=lambda piece: (-used[piece], piece)):
        if used[piece] < least:
            break
        needed, open_ = set(), [piece]
        while open_:
            if (part := open_.pop()) not in kept | needed:
                needed.add(part)
                open_ += parts[part]
        if most is None or len(kept) + len(needed) <= most:
            kept |= needed
    return _rebuilt(tokenizer, [p for p in _ordered(tokenizer) if p in kept])


# --- the library's tokenizer, with other pieces


def _ordered(tokenizer: Tokenizer) -> list[str]:
    return sorted(tokenizer.vocab, key=tokenizer.vocab.__getitem__)


def _model(tokenizer: Tokenizer) -> dict[str, Any]:
    return json.loads(tokenizer.backend.to_str())["model"]


def _scores(tokenizer: Tokenizer) -> dict[str, float]:
    return dict(_model(tokenizer)["vocab"]) if tokenizer.kind == "unigram" else {}


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    return _model(tokenizer).get("merges", [])


def _rebuilt(
    tokenizer: Tokenizer,
    pieces: list[str],
    merges: Iterable[tuple[str, str]] = (),
    scores: Mapping[str, float] | None = None,
) -> Tokenizer:
    """Returns the tokenizer with these pieces in order, and these merges more."""
    import tokenizers

    number = {piece: index for index, piece in enumerate(pieces)}
    content = json.loads(tokenizer.backend.to_str())
    model = content["model"]
    if tokenizer.kind == "unigram":
        known = dict(model["vocab"]) | dict(scores or {})
        model["vocab"] = [(piece, known.get(piece, 0.0)) for piece in pieces]
        model["unk_id"] = number[str(tokenizer.specials.unk)]
    else:
        model["vocab"] = number
    if tokenizer.kind == "bpe":
        every = [*map(tuple, model["merges"]), *merges]
        model["merges"] = [
            pair for pair in every if number.keys() >= {*pair, "".join(pair)}
        ]
    for token in content["added_tokens"]:
        token["id"] = number[token["content"]]
    content["added_tokens"].sort(key=lambda token: token["id"])
    _renumber(content["post_processor"], number)
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    assert backend.get_vocab(with_added_tokens=True) == number
    segmenter, notes = tokenizer.segmenter, tokenizer.notes
    return Tokenizer(backend, tokenizer.specials, segmenter, notes)


def _renumber(step: dict[str, Any] | None, number: Mapping[str, int]) -> None:
    """Changes the ids of special tokens in a post-processor, in place."""
    step = step or {}
    for inner in step.get("processors", ()):
        _renumber(inner, number)
    for role in ("sep", "cls"):
        if role in step:
            step[role] = (step[role][0], number[step[role][0]])
    for token in step.get("special_tokens", {}).values():
        token["ids"] = [number[piece] for piece in token["tokens"]]


# --- two vocabularies


def sources(new: Tokenizer, old: Tokenizer) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns the old ids that spell each new id, and bool [V] which are equal pieces.

    A special token is equal to that of its role; a piece to that of its spelling,
    between kinds by its letters and whether it opens a word. Another is spelt as the
    old tokenizer splits its text, without unknown pieces: perhaps by none.
    """
    ids = [np.empty(0, np.int64)] * new.vocab_size
    equal = np.zeros(new.vocab_size, bool)

    def same(number: int, theirs: int) -> None:
        ids[number], equal[number] = np.array([theirs]), True

    for role in ROLES:
        ours, theirs = (getattr(tokenizer.specials, role) for tokenizer in (new, old))
        if ours and theirs and not equal[new.vocab[ours]]:
            same(new.vocab[ours], old.vocab[theirs])
    ordinary = {n for n in old.vocab.values() if n not in old.special_ids}
    kinds = [(t.kind, writes_blanks(t.backend)) for t in (new, old)]
    ours, theirs = _spellings(new), _spellings(old)
    known = {spelling: n for n, spelling in theirs.items() if n in ordinary}
    open_: list[tuple[int, str, bool]] = []
    for piece, number in new.vocab.items():
        if equal[number]:
            continue
        spelling, exact = ours.get(number), old.vocab.get(piece)
        if number in new.special_ids:
            if exact is not None:
                same(number, exact)
        elif kinds[0] == kinds[1] and exact in ordinary:
            same(number, exact)
        elif kinds[0] != kinds[1] and spelling in known:
            same(number, known[spelling])
        elif spelling is not None:
            open_.append((number, spelling[1], spelling[0]))
        elif kinds[0] == kinds[1] == ("bpe", False):  # a part of a character
            tokens = old.backend.model.tokenize(piece)
            ids[number] = np.array([token.id for token in tokens], np.int64)
    texts = [" " * opens + text for _, text, opens in open_]
    encoded = old.with_segmenter(None).encode_batch(texts)
    ends = np.cumsum(encoded.lengths)
    blank = {n for n, (_, text) in theirs.items() if not text.strip()}
    useless = {old.unk_id, *old.special_ids, *blank}
    inside = {text: n for (opens, text), n in known.items() if not opens}
    for (number, _, opens), end, size in zip(open_, ends, encoded.lengths, strict=True):
        tokens = encoded.tokens[end - size : end].tolist()
        some = [token for token in tokens if token not in useless]
        if some and not opens and old.kind != "bpe":  # their words always open
            some[0] = inside.get(theirs[some[0]][1], some[0])
        ids[number] = np.array(some, np.int64)
    return ids, equal


def _spellings(tokenizer: Tokenizer) -> dict[int, tuple[bool, str]]:
    """Returns {id: (whether the piece opens a word, its text)} of those that have one.

    A part of a character has none.
    """
    byte, spellings = byte_of_character(), {}
    plain = tokenizer.kind == "bpe" and not writes_blanks(tokenizer.backend)
    for piece, number in tokenizer.vocab.items():
        if tokenizer.kind == "wordpiece":
            opens, text = not piece.startswith(_INSIDE), piece.removeprefix(_INSIDE)
        elif plain and all(character in byte for character in piece):
            try:
                text = bytes(byte[character] for character in piece).decode()
            except UnicodeDecodeError:
                continue
            opens, text = text.startswith(" "), text.removeprefix(" ")
        elif piece.startswith("<0x"):
            continue
        else:
            opens = piece.startswith(METASPACE)
            text = piece.replace(METASPACE, " ").removeprefix(" ")
        spellings[number] = opens, text
    return spellings
