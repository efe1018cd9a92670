"""Sparse features of texts and of words, and the usual tag of a word."""

import collections
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from plmjax.baselines.linear import Featurise
from plmjax.data.examples import Example
from plmjax.tasks import TaskKind
from plmjax.tasks.base import Predict

# A word, or a single sign that belongs to none.
UNITS = re.compile(r"\w+|[^\w\s]")
MOST = 50_000  # n-grams kept of each sort, the most frequent ones
_MANY = 10_000  # words, from which on a feature must occur twice
_LONGEST_SUFFIX = 4


# --- texts


def tfidf(kind: TaskKind, train: Sequence[Example]) -> Featurise:
    """Returns TF-IDF features of words, pairs of words and 2 to 4 characters of a word.

    Words' and characters' features of a text have length 1 each. A row of two texts has
    the features of both, and then their cosines.
    """
    from scipy import sparse

    views = _views(train)

    def featurise(examples: Sequence[Example]):
        rows = [row for example in examples for row in kind.row_texts(example)]
        sides = [
            [view.transform(side) for view in views] for side in zip(*rows, strict=True)
        ]
        blocks = [block for side in sides for block in side]
        if len(sides) == 2:
            cosines = [a.multiply(b).sum(1) for a, b in zip(*sides, strict=True)]
            blocks += [sparse.csr_array(cosine.reshape(-1, 1)) for cosine in cosines]
        return sparse.hstack(blocks, format="csr")

    return featurise


def tfidf_vectors(train: Sequence[Example]) -> Callable[[Sequence[str]], Any]:
    """Returns the same features of single texts, [N, F] sparse.

    Their products are means of the cosines by words and by characters.
    """
    from scipy import sparse

    views = _views(train)
    share = len(views) ** -0.5

    def vectors(texts: Sequence[str]):
        blocks = [share * view.transform(texts) for view in views]
        return sparse.hstack(blocks, format="csr")

    return vectors


def _views(train: Sequence[Example]) -> list[Any]:
    """Returns the fitted vectorizers of words and of characters."""
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
    """Returns the features that taggers without a model read of a word.

    The word, its affixes of up to 3 and 4 characters, and its shape; the two words on
    either side, and the suffixes and shapes of the nearest. If train has many words,
    features that occur only once are left out.
    """
    from sklearn.feature_extraction import text

    words = sum(len(example.texts) for example in train)
    vectorizer: Any = text.CountVectorizer  # its types, from defaults, are wrong
    least = 2 if words > _MANY else 1
    counter = vectorizer(analyzer=list, binary=True, min_df=least, dtype=float)
    counter.fit(_each_word(train))
    return lambda examples: counter.transform(_each_word(examples))


def _each_word(examples: Sequence[Example]) -> Iterator[list[str]]:
    for example in examples:
        known = ["", "", *example.texts, "", ""]
        for index in range(2, len(known) - 2):
            around = {step: known[index + step] for step in (-2, -1, 0, 1, 2)}
            yield [
                f"{step}{feature}"
                for step, word in around.items()
                for feature in _shape_and_affixes(word, abs(step))
            ]


@functools.lru_cache(maxsize=1 << 18)
def _shape_and_affixes(word: str, distance: int) -> tuple[str, ...]:
    """Returns features of a word, fewer the farther away it is."""
    small = word.lower()
    features = [f"w={small}"]
    if distance < 2:
        features += [f"shape={shape(word)}", f"s3={small[-3:]}", f"s2={small[-2:]}"]
    if distance == 0:
        features += [f"as={word}", f"s1={small[-1:]}", f"s4={small[-4:]}"]
        features += [f"p{size}={small[:size]}" for size in (1, 2, 3)]
    return tuple(features)


def shape(word: str) -> str:
    """Returns a word's shape: Xx of Word, XxX of McX, 9.9 of 3.14."""
    kinds = (
        "9" if c.isdigit() else "X" if c.isupper() else "x" if c.isalpha() else c
        for c in word
    )
    return re.sub(r"(.)\1+", r"\1", "".join(kinds), flags=re.DOTALL)


def usual_tags(labels: Sequence[str], train: Sequence[Example]) -> Predict:
    """Returns what predicts the tag that a word has most often in train.

    An unknown word gets that of its lower case; else the tag of most words with its
    longest known suffix, of up to 4 characters; else the most frequent tag.
    """
    by_word = collections.defaultdict(collections.Counter)
    for example in train:
        for word, tag in zip(example.texts, example.label, strict=True):
            by_word[word][tag] += 1
    by_suffix = collections.defaultdict(collections.Counter)
    for word, tags in by_word.items():
        for size in range(min(_LONGEST_SUFFIX, len(word)) + 1):
            # Each word once: unknown words are like rare ones.
            by_suffix[word[len(word) - size :]].update(tags.keys())
    total = functools.reduce(collections.Counter.__add__, by_word.values())
    usual = {word: _most_frequent(tags, labels) for word, tags in by_word.items()}
    of_suffix = {end: _most_frequent(tags, labels) for end, tags in by_suffix.items()}
    of_suffix[""] = _most_frequent(total, labels)

    def tag(word: str) -> str:
        known = usual.get(word) or usual.get(word.lower())
        ends = (word[begin:] for begin in range(max(len(word) - 4, 0), len(word) + 1))
        return known or next(of_suffix[end] for end in ends if end in of_suffix)

    return lambda examples: [tuple(map(tag, example.texts)) for example in examples]


def _most_frequent(counts: collections.Counter, labels: Sequence[Any]) -> Any:
    """Returns the most frequent label, the first of equal ones."""
    return max(labels, key=lambda label: counts[label])
