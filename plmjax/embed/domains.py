"""Compares texts of several domains: words, a model's figures, clusters of vectors.

Legend: N passages, H width, K domains.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import DataError, PlmjaxError
from plmjax.data.sources import SourceConfig, open_source
from plmjax.embed.run import embed_texts
from plmjax.embed.vectors import EmbedConfig
from plmjax.evaluate.texts import Contender, make_plan, open_contender, score_texts
from plmjax.evaluate.words import word_pattern
from plmjax.tokenizers.train import sample_documents

_TOP = 10_000  # words that are compared
_SAMPLE_BYTES = 8_000_000  # of each domain
# About 100 tokens; the last blank ends a passage, if it has one.
_PASSAGE = re.compile(r"\S.{1,400}(?!\S)|\S.{0,400}", re.DOTALL)
_PASSAGES = 300  # of each domain that a model reads
_DIMENSIONS = 50  # of the vectors that are clustered
# From here on adapting is likely to pay: rules of thumb.
_FEW_SHARED, _MORE_BITS, _MORE_TOKENS = 0.5, 1.1, 1.15


def compare_domains(
    paths: Sequence[str],
    model: str | None = None,
    checkpoint: str = "newest",
    log: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Returns figures of each domain, and of the domains together; the first is home.

    A domain is a file, folder or pattern. All are compared by samples of passages, of
    at most the bytes of the smallest, and of about half of them at least. Overlap is
    the share of the most frequent words that two have in common, without stop words of
    English (Gururangan et al. 2020, arXiv:2004.10964). The clusters are a Gaussian
    mixture of K on 50 principal components of mean vectors of passages, purity the
    share of passages of the cluster's commonest domain (Aharoni & Goldberg 2020,
    arXiv:2004.02105); without a model they are those of TF-IDF.
    "points" [N, 2] are the first two components.

    Raises:
      PlmjaxError: one domain only, two of a name, or one without text.
    """
    names = [Path(path).stem for path in paths]
    names = [*paths] if len({*names}) < len(names) else names
    if len({*names}) < 2 or len({*names}) < len(names):
        raise PlmjaxError(
            f"{', '.join(names)}: domains are compared with each other.",
            hint="Give two or more, each once: plmjax data domains news.txt papers/",
        )
    sources = [open_source(SourceConfig(paths=(path,))) for path in paths]
    contender = None if model is None else open_contender(model, checkpoint)
    domains, samples = [], []
    for name, source in zip(names, sources, strict=True):
        domain = {"name": name, "documents": 0, "bytes": 0}
        documents = _counting(domain, source.documents())
        sample = sample_documents(_passages(documents), _SAMPLE_BYTES)
        if not any(word_pattern().search(text) for text in sample):
            raise DataError(f"{name} has no words.", hint="Give files of text.")
        domains.append(domain)
        samples.append(sample)
    size = min(sum(len(text.encode()) for text in sample) for sample in samples)
    samples = [sample_documents(sample, size) for sample in samples]
    total = sum(domain["bytes"] for domain in domains)
    for domain in domains:
        domain["share"] = domain["bytes"] / total
    result: dict[str, Any] = {"model": model, "sample_bytes": size}
    result |= {"domains": domains} | _overlap(samples)
    step = [max(len(sample) // _PASSAGES, 1) for sample in samples]
    some = [s[::n][:_PASSAGES] for s, n in zip(samples, step, strict=True)]
    if contender is not None:
        for domain, passages in zip(domains, some, strict=True):
            log(f"{contender.name} reads {domain['name']}.")
            domain |= _score(contender, passages)
    result |= _clusters(_vectors(contender, some), [len(texts) for texts in some])
    result["advice"] = [
        _advice(domains[0], other, overlap)
        for other, overlap in zip(domains[1:], result["overlap"][0][1:], strict=True)
    ]
    return result


def _counting(domain: dict[str, Any], documents: Iterable[str]) -> Iterator[str]:
    """Yields the documents, and counts them and their bytes."""
    for text in documents:
        domain["documents"] += 1
        domain["bytes"] += len(text.encode())
        yield text


def _passages(documents: Iterable[str]) -> Iterator[str]:
    for text in documents:
        yield from _PASSAGE.findall(text)


def _overlap(samples: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Returns the number of words compared, and the shares [K, K] in common."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    orders = []
    for sample in samples:
        found = (word_pattern().findall(text.lower()) for text in sample)
        counts = Counter(itertools.chain.from_iterable(found))
        words = counts.keys() - ENGLISH_STOP_WORDS
        orders.append(sorted(words, key=lambda word: (-counts[word], word)))
    most = max(min(_TOP, *map(len, orders)), 1)
    tops = [{*order[:most]} for order in orders]
    shares = [[len(one & other) / most for other in tops] for one in tops]
    return {"words": most, "overlap": shares}


def _score(contender: Contender, passages: Sequence[str]) -> dict[str, float]:
    """Returns what a model makes of a domain, as `plmjax evaluate --text`."""
    plan = make_plan([contender], passages)
    record = score_texts([contender], plan, batch=16)[0]
    tokens = contender.model.tokenizer.encode_batch(passages).lengths.sum()
    words = sum(len(text.split()) for text in passages)
    names = ("bits_per_byte", "loss", "accuracy", "unknown_share")
    figures = {name: record[name] for name in names}
    return figures | {"tokens_per_word": float(tokens / words)}


def _vectors(
    contender: Contender | None, samples: Sequence[Sequence[str]]
) -> np.ndarray:
    texts = [text for sample in samples for text in sample]
    if contender is not None:
        config = EmbedConfig(pooling="mean", long="truncate")
        return embed_texts(contender.model, texts, config, contender.length)
    from sklearn.feature_extraction.text import TfidfVectorizer

    tfidf = TfidfVectorizer(sublinear_tf=True, max_features=_TOP)
    return tfidf.fit_transform(texts).toarray().astype(np.float32)  # type: ignore


def _clusters(vectors_NH: np.ndarray, sizes: Sequence[int]) -> dict[str, Any]:
    """Returns clusters of the vectors of `sizes` [K] passages of each domain."""
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    most = min(_DIMENSIONS, min(vectors_NH.shape) - 1)
    points = PCA(max(most, 1), random_state=0).fit_transform(vectors_NH)
    mixture = GaussianMixture(len(sizes), reg_covar=1e-4, random_state=0)
    cluster = mixture.fit_predict(points / max(points.std(), 1e-9))
    domain = np.repeat(np.arange(len(sizes)), sizes)
    counts = np.zeros((len(sizes), len(sizes)), int)
    np.add.at(counts, (domain, cluster), 1)
    return {
        "clusters": counts.tolist(),  # [domain][cluster]
        "purity": float(counts.max(0).sum() / sum(sizes)),
        "purity_by_chance": max(sizes) / sum(sizes),
        "points": points[:, :2].tolist(),
        "passages": [*sizes],
    }


def _advice(home: dict, other: dict, overlap: float) -> dict[str, Any]:
    """Returns whether adapting from `home` to `other` is likely to pay, and why."""
    why, vocabulary = [], False
    if overlap < _FEW_SHARED:
        why.append(f"{overlap:.0%} of the most frequent words in common")
    if "bits_per_byte" in home:
        for name, what, times in (
            ("bits_per_byte", "bits a byte", _MORE_BITS),
            ("tokens_per_word", "tokens a word", _MORE_TOKENS),
        ):
            if other[name] > times * home[name]:
                why.append(f"{other[name]:.2f} {what} against {home[name]:.2f}")
                vocabulary |= name == "tokens_per_word"
        if other["unknown_share"] > home["unknown_share"] + 0.01:
            why.append(f"{other['unknown_share']:.1%} of the bytes unknown")
            vocabulary = True
    likely = bool(why)
    why = why or [f"{overlap:.0%} of the most frequent words in common"]
    return {"to": other["name"], "likely": likely, "vocabulary": vocabulary, "why": why}
