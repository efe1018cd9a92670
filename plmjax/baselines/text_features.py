"""Sparse features of texts and of words, and the usual tag of a word."""

import collections
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from plmjax.baselines.linear import Featurise, Predict, row_texts
from plmjax.data.labelled import Example

# A word, or one sign that is none: no text is without them.
UNITS = re.compile(r"\w+|[^\w\s]")
MOST = 50_000  # n-grams kept of each sort, the most frequent ones
_MANY = 10_000  # words, from which on a feature must occur twice
_LONGEST_SUFFIX = 4


# --- texts


def tfidf(kind: str, train: Sequence[Example]) -> Featurise:
    """TF-IDF of words and pairs of words, and of 2 to 4 characters within words.

    A text's rows have length 1 of each sort. Of pairs the two texts stand side by side,
    and then their cosines.
    """
    from scipy import sparse

    views = _views(train)

    def featurise(examples: Sequence[Example]):
        sides = [
            [view.transform(side) for view in views]
            for side in zip(*row_texts(kind, examples), strict=True)
        ]
        blocks = [block for side in sides for block in side]
        if len(sides) == 2:
            cosines = [a.multiply(b).sum(1) for a, b in zip(*sides, strict=True)]
            blocks += [sparse.csr_array(cosine.reshape(-1, 1)) for cosine in cosines]
        return sparse.hstack(blocks, format="csr")

    return featurise


def tfidf_vectors(train: Sequence[Example]) -> Callable[[Sequence[str]], Any]:
    """The same features of single texts, [N, F] sparse: products are means of cosines.

    That is of the cosines of words and of characters.
    """
    from scipy import sparse

    views = _views(train)
    share = len(views) ** -0.5

    def vectors(texts: Sequence[str]):
        blocks = [share * view.transform(texts) for view in views]
        return sparse.hstack(blocks, format="csr")

    return vectors


def _views(train: Sequence[Example]) -> list[Any]:
    """The fitted vectorizers of words and of characters."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    views: list[Any] = [
        TfidfVectorizer(
            token_pattern=UNITS.pattern,
            ngram_range=(1, 2),
            sublinear_tf=True,
            max_features=MOST,
        ),
        TfidfVectorizer(
            analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, max_features=MOST
        ),
    ]
    for view in views:
        view.fit(text for example in train for text in example.texts)
    return views


# --- words


def word_features(train: Sequence[Example]) -> Featurise:
    """What a tagger knows of a word without a model.

    The word, its affixes of up to 3 and 4 characters, and its shape; the two words on
    either side, and the suffixes and shapes of the nearest. In train of many words,
    what occurs in one place only is left out.
    """
    from sklearn.feature_extraction import text

    words = sum(len(example.texts) for example in train)
    make: Any = text.CountVectorizer  # its types are read off defaults, and wrong
    least = 2 if words > _MANY else 1
    counter = make(analyzer=list, binary=True, min_df=least, dtype=float)
    counter.fit(_each_word(train))
    return lambda examples: counter.transform(_each_word(examples))


def _each_word(examples: Sequence[Example]) -> Iterator[list[str]]:
    for example in examples:
        known = ["", "", *example.texts, "", ""]
        for place in range(2, len(known) - 2):
            around = {step: known[place + step] for step in (-2, -1, 0, 1, 2)}
            yield [
                f"{step}{feature}"
                for step, word in around.items()
                for feature in _look(word, abs(step))
            ]


@functools.lru_cache(maxsize=1 << 18)
def _look(word: str, distance: int) -> tuple[str, ...]:
    """Features of a word, fewer the farther away it is."""
    small = word.lower()
    found = [f"w={small}"]
    if distance < 2:
        found += [f"shape={shape(word)}", f"s3={small[-3:]}", f"s2={small[-2:]}"]
    if distance == 0:
        found += [f"as={word}", f"s1={small[-1:]}", f"s4={small[-4:]}"]
        found += [f"p{size}={small[:size]}" for size in (1, 2, 3)]
    return tuple(found)


def shape(word: str) -> str:
    """Returns a word's shape, as Xx for Word, XxX for McX, 9.9 for 3.14."""
    kinds = (
        "9" if c.isdigit() else "X" if c.isupper() else "x" if c.isalpha() else c
        for c in word
    )
    return re.sub(r"(.)\1+", r"\1", "".join(kinds), flags=re.DOTALL)


def usual_tags(labels: Sequence[str], train: Sequence[Example]) -> Predict:
    """Predicts the tag that a word has most often in train.

    A word that is not there: that of its lower case; else the tag that most words with
    its longest known suffix have, of up to 4 characters; else the most frequent tag.
    """
    by_word = collections.defaultdict(collections.Counter)
    for example in train:
        for word, tag in zip(example.texts, example.label, strict=True):
            by_word[word][tag] += 1
    by_suffix = collections.defaultdict(collections.Counter)
    for word, tags in by_word.items():
        for size in range(min(_LONGEST_SUFFIX, len(word)) + 1):
            # Each word once: those that are unknown are like the rare ones.
            by_suffix[word[len(word) - size :]].update(tags.keys())
    total = functools.reduce(collections.Counter.__add__, by_word.values())
    usual = {word: most_frequent(tags, labels) for word, tags in by_word.items()}
    of_suffix = {end: most_frequent(tags, labels) for end, tags in by_suffix.items()}
    of_suffix[""] = most_frequent(total, labels)

    def tag(word: str) -> str:
        found = usual.get(word) or usual.get(word.lower())
        ends = (word[place:] for place in range(max(len(word) - 4, 0), len(word) + 1))
        return found or next(of_suffix[end] for end in ends if end in of_suffix)

    return lambda examples: [tuple(map(tag, example.texts)) for example in examples]


def most_frequent(counts: collections.Counter, labels: Sequence[Any]) -> Any:
    """Returns which of the labels is most frequent, of equals the first."""
    return max(labels, key=lambda label: counts[label])
