"""Signs that a text is not what it seems: counted while it is tokenised, judged later.

The counts are in the store's manifest, so that a later start needs no second pass.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from plmjax.data.store import QUALITY, SPLITS, Store
from plmjax.tokenizers import Encoded, Tokenizer, UnknownWords, unknown_words

# Shares of the tokens that are [UNK]: from the first on it is said, from the second on
# refused.
SOME_UNKNOWN, MOST_UNKNOWN = 0.02, 0.5
MOST_REPLACED = 1e-3  # of the characters are U+FFFD
MOST = 0.5  # of the documents are copies; of the text is one document
# A vocabulary of another language spells words out: it uses few of its pieces, several
# for each word, and hardly fewer than the text has characters.
FEW_USED, MANY_PIECES, SPELT_OUT = 0.1, 4.0, 0.6
COUNTS = QUALITY[:4]  # of each text
REPLACEMENT = "\ufffd"
# The texts whose unknown words are counted, the first that have many.
_TEXTS, _TEXT_CHARACTERS = 200, 5000
_AROUND = 20  # characters shown on each side of an example


class Problem(NamedTuple):
    """What is wrong, with a number and how to fix it.

    `refused` without consent; `final` in any case, as there is nothing to learn.
    """

    text: str
    refused: bool = False
    final: bool = False


class Counted(NamedTuple):
    """Counts [COUNTS] of some texts, some with unknown words, one damaged excerpt."""

    counts: Sequence[int]
    texts: Sequence[str]
    damaged: str | None


def count(texts: list[str], encoded: Encoded, ends, unk_id: Any) -> Counted:
    """Counts in texts; text i has the tokens from ends[i] to ends[i + 1]."""
    unknown = np.flatnonzero(encoded.tokens == (-1 if unk_id is None else unk_id))
    replaced = [text.count(REPLACEMENT) for text in texts]
    characters, words = sum(map(len, texts)), np.count_nonzero(encoded.word_start)
    # By each text alone: the same ones in whatever groups the texts come.
    of_text = np.diff(np.searchsorted(unknown, ends))
    which = np.flatnonzero(of_text > SOME_UNKNOWN * np.diff(ends))[:_TEXTS]
    examples = tuple(texts[i][:_TEXT_CHARACTERS] for i in which.tolist())
    damaged = next((t for t, n in zip(texts, replaced, strict=True) if n), None)
    if damaged is not None:
        at = damaged.index(REPLACEMENT)
        damaged = " ".join(damaged[max(at - _AROUND, 0) : at + _AROUND].split())
    counts = (characters, int(words), len(unknown), sum(replaced))
    return Counted(counts, examples, damaged)


class Counts:
    """The sums of Counted, and what the manifest stores of them."""

    def __init__(self) -> None:
        self.counted = Counted((0,) * len(COUNTS), (), None)

    def add(self, new: Counted) -> None:
        """Adds the counts of some documents."""
        counts, texts, damaged = self.counted
        self.counted = Counted(
            tuple(map(sum, zip(counts, new.counts, strict=True))),
            (*texts, *new.texts[: _TEXTS - len(texts)]),
            damaged or new.damaged,
        )

    def facts(
        self, tokenizer: Tokenizer, tokens: int, documents: int, distinct: int
    ) -> dict[str, Any]:
        """Returns the manifest's "quality", ready for JSON."""
        counts, texts, damaged = self.counted
        facts: dict[str, Any] = dict(zip(COUNTS, counts, strict=True))
        facts |= {"all_documents": documents, "distinct_documents": distinct}
        if damaged is not None:
            facts["damaged"] = damaged
        if facts["unknown_tokens"] > SOME_UNKNOWN * tokens:
            words = unknown_words(tokenizer, texts)
            facts["unknown_words"] = " ".join(why_unknown(words))
        return facts


def problems(store: Store, held_out_percent: float) -> list[Problem]:
    """Returns what the counts of a store say against its text.

    A store of an older version has no counts; its documents are judged all the same.
    """
    tokens = sum(store.split(name).tokens for name in SPLITS)
    facts = store.manifest.get("quality")
    some = of_counts(facts, tokens, store.unigram) if facts else ()
    return [*some, *_of_documents(store, tokens, held_out_percent)]


def of_counts(
    facts: dict[str, Any], tokens: int, unigram: np.ndarray
) -> Iterator[Problem]:
    """Yields what `Counts.facts` of a text say against it; `unigram` [V] of tokens."""
    unknown = facts["unknown_tokens"]
    share = unknown / max(tokens, 1)
    if share > SOME_UNKNOWN:
        text = f"{share:.1%} of the tokens are [UNK] ({unknown:,} of {tokens:,}). "
        yield Problem(text + facts.get("unknown_words", ""), share > MOST_UNKNOWN)
    replaced, characters = facts["replacement_characters"], facts["characters"]
    if replaced > MOST_REPLACED * characters:
        yield Problem(
            f"{replaced / characters:.1%} of the characters are {REPLACEMENT} "
            f"({replaced:,} of {characters:,}), which stands for bytes that are not "
            f"UTF-8: {facts.get('damaged', '')!r}. Name the encoding, for example "
            "--config.data.encoding=latin-1, or leave out files that are no text.",
            refused=True,
        )
    used, pieces = np.count_nonzero(unigram), tokens / max(facts["words"], 1)
    few = used <= FEW_USED * len(unigram)
    if few and pieces > MANY_PIECES and tokens > SPELT_OUT * characters:
        yield Problem(
            f"The vocabulary spells the text out: {pieces:.1f} pieces a word, and only "
            f"{used:,} of its {len(unigram):,} pieces occur. It may be of another "
            "language; --config.tokenizer.path=none trains one on this text."
        )
    documents = facts["all_documents"]
    copies = documents - facts["distinct_documents"]
    if copies > MOST * documents:
        yield Problem(
            f"{copies / documents:.1%} of the documents repeat another one word for "
            f"word ({copies:,} of {documents:,}). Remove the copies, or check "
            "--config.data.source.document."
        )


def why_unknown(words: UnknownWords) -> tuple[str, str]:
    """Returns the cause of most unknown words, with examples, and what helps."""

    def listed(examples: Sequence[str]) -> str:
        return ", ".join(map(repr, examples))

    if 2 * words.too_long > words.unknown:
        return (
            f"Words of over {words.limit} characters become one [UNK] (DNA, proteins, "
            f"hashes): {listed(words.long_examples)}.",
            "A byte-level vocabulary reads them (--config.tokenizer.kind=bpe); one of "
            "letters or of k-mers is made for them (characters, kmer).",
        )
    return (
        f"The vocabulary lacks {listed(words.characters)}, as in "
        f"{listed(words.character_examples)}.",
        "Train a vocabulary on this text (--config.tokenizer.path=none), a larger one "
        "(--config.tokenizer.vocab_size), or one of bytes, which lacks nothing "
        "(--config.tokenizer.kind=bpe).",
    )


def _of_documents(
    store: Store, tokens: int, held_out_percent: float
) -> Iterator[Problem]:
    """Yields problems of a text of hardly more than one document."""
    train, held_out = (store.split(name) for name in SPLITS)
    ends = ends_of(store.manifest["source"])
    longest = max(int(np.diff(split.offsets).max()) for split in (train, held_out))
    if longest > MOST * tokens:
        yield Problem(
            f"One document has {longest / tokens:.1%} of the text ({longest:,} of "
            f"{tokens:,} tokens). {ends}",
            # Such a document is not held out by intent.
            refused=held_out.tokens > train.tokens and held_out_percent < 50,
        )
    if held_out.documents == 1:
        yield Problem(
            f"The held-out text is one document of {held_out.tokens:,} tokens "
            f"({held_out.tokens / tokens:.1%} of all). {ends} "
            "--config.data.held_out_percent=10 holds out more."
        )


def ends_of(source: dict[str, Any]) -> str:
    """Returns a sentence on what ends a document, with the key if there is one."""
    document, ends = source.get("document"), {"blank", "file", "line"}
    if document not in ends:
        return "A document is a record of the source."
    return (
        f"A document ends by data.source.document={document}; try "
        f"--config.data.source.document={' or '.join(sorted(ends - {document}))}."
    )
