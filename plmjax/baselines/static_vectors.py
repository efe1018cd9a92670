"""One vector a word, the same in any context: of files, token tables and text.

Legend: V words or pieces, E width, N texts or words.
"""

import contextlib
import dataclasses
import gzip
import io
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import jax
import numpy as np

from plmjax import DataError, PlmjaxError
from plmjax.baselines.linear import Featurise
from plmjax.baselines.text_features import UNITS
from plmjax.data.corpus import unreadable
from plmjax.data.examples import Example
from plmjax.data.layout import Stream, encode_texts, encode_words
from plmjax.data.records import bad_data
from plmjax.evaluate.model import Model
from plmjax.models import heads
from plmjax.tasks import TaskKind

_WINDOW = 5  # tokens on each side that count as neighbours
_LONGEST = 10_000  # bytes of a word; a file with a longer one has another format


@dataclasses.dataclass(frozen=True)
class StaticVectors:
    """Vectors of texts and words, float32, 0 for what has no vector.

    `texts`: texts -> their mean vectors [N, E]; `words`: sentences of words -> the
    vectors of all their words [N, E].
    """

    name: str
    texts: Callable[[Sequence[str]], np.ndarray]
    words: Callable[[Sequence[Sequence[str]]], np.ndarray]


def static_features(kind: TaskKind, vectors: StaticVectors) -> Featurise:
    """Returns what computes the features [N, ...] of rows from static vectors.

    A text: its mean. A pair a, b: both means, |a - b| and a * b. A word: the vectors of
    the word before, of the word and of the next, 0 beyond the ends.
    """

    def of_words(examples: Sequence[Example]) -> np.ndarray:
        x_NE = vectors.words([example.texts for example in examples])
        ends = np.cumsum([len(example.texts) for example in examples])
        before, after = np.roll(x_NE, 1, 0), np.roll(x_NE, -1, 0)
        before[np.concatenate([[0], ends[:-1]])] = 0
        after[ends - 1] = 0
        return np.concatenate([before, x_NE, after], 1)

    def of_texts(examples: Sequence[Example]) -> np.ndarray:
        rows = [row for example in examples for row in kind.row_texts(example)]
        sides = [*zip(*rows, strict=True)]
        means = [vectors.texts(side) for side in sides]
        if len(means) == 2:
            a, b = means
            means += [np.abs(a - b), a * b]
        return np.concatenate(means, 1)

    return of_words if kind.per_word else of_texts


def _means(table_VE: np.ndarray, ids: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Returns means of rows of a table: of `sizes` [N] successive `ids` each."""
    from scipy import sparse

    ends = np.concatenate([[0], np.cumsum(sizes)])
    shape = (len(sizes), len(table_VE))
    counts = sparse.csr_array((np.ones(len(ids), np.float32), ids, ends), shape)
    return (counts @ table_VE) / np.maximum(sizes, 1)[:, None].astype(np.float32)


# --- a model's table


def from_model(model: Model) -> StaticVectors:
    """Returns vectors of a model's token table: means of a text's or word's pieces."""
    table_VE = np.asarray(jax.device_get(heads.token_table(model.params)), np.float32)

    def texts(texts: Sequence[str]) -> np.ndarray:
        stream = encode_texts(model.tokenizer, texts)
        return _means(table_VE, stream.tokens, stream.sizes)

    def words(sentences: Sequence[Sequence[str]]) -> np.ndarray:
        stream, first = encode_words(model.tokenizer, sentences)
        return _means(table_VE, stream.tokens, _pieces(stream, first))

    return StaticVectors("the model's token table", texts, words)


def _pieces(stream: Stream, first: np.ndarray) -> np.ndarray:
    """Returns the number of tokens of each word; `first` [T] is -1 inside a word."""
    begins = np.flatnonzero(first >= 0)
    return np.diff(np.concatenate([begins, [len(stream.tokens)]]))


# --- a file


def from_file(
    path: str | Path, kind: TaskKind, examples: Sequence[Example]
) -> tuple[StaticVectors, float]:
    """Returns vectors of the words of examples, and the share of words that have one.

    Reads a file of word2vec: text, with a header or without (GloVe's), or the binary
    format if its name ends in .bin; .gz too. A word that is not in it is looked up in
    lower case. Words of texts are runs of letters and digits, and single signs.

    Raises:
      PlmjaxError: no such file, a broken one, or none of the words in it.
    """
    path = Path(path)
    split = (lambda text: [text]) if kind.per_word else UNITS.findall
    every = [word for e in examples for text in e.texts for word in split(text)]
    wanted = {form for word in set(every) for form in (word, word.lower())}
    number, table_VE = read_vectors(path, wanted)

    def find(word: str) -> int | None:
        return number.get(word, number.get(word.lower()))

    def texts(texts: Sequence[str]) -> np.ndarray:
        return mean([UNITS.findall(text) for text in texts])

    def words(sentences: Sequence[Sequence[str]]) -> np.ndarray:
        return mean([[word] for sentence in sentences for word in sentence])

    def mean(bags: Sequence[Sequence[str]]) -> np.ndarray:
        known = [[n for word in bag if (n := find(word)) is not None] for bag in bags]
        ids = np.array([n for bag in known for n in bag], int)
        return _means(table_VE, ids, np.array([len(bag) for bag in known], int))

    share = np.mean([find(word) is not None for word in every])
    return StaticVectors(path.name, texts, words), float(share)


def read_vectors(path: Path, wanted: set[str]) -> tuple[dict[str, int], np.ndarray]:
    """Returns {wanted word: its row} and the table [V, E] float32.

    The form of the complete file is checked; numbers are read for wanted words only.

    Raises:
      PlmjaxError: the file cannot be read, or has none of the words.
    """
    names = {word.encode(errors="surrogatepass"): word for word in wanted}
    binary = path.name.removesuffix(".gz").endswith(".bin")
    read = _read_binary if binary else _read_text
    number: dict[str, int] = {}
    rows = []
    try:
        with contextlib.closing(_open(path)) as file:
            for where, name, row in read(file, path, names):
                if not np.isfinite(row).all():
                    what = f"the vector of {names[name]!r} is not finite."
                    raise bad_data(where, what, "Correct or remove it.")
                if names[name] not in number:  # the first of equal words counts
                    number[names[name]] = len(rows)
                    rows.append(row)
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from None
    if not rows:
        raise DataError(
            f"{path} has a vector for none of the {len(wanted):,} words of the task.",
            hint="Is it of the same language, and does it split words in the same way?",
        )
    return number, np.stack(rows)


def _open(path: Path) -> BinaryIO:
    if path.suffix != ".gz":
        return path.open("rb")
    return io.BufferedReader(gzip.open(path, "rb"), 1 << 20)  # pyright: ignore


Lines = Iterator[tuple[str, bytes, np.ndarray]]  # where, the word, its vector [E]


def _header(line: bytes) -> tuple[int, int] | None:
    """Returns the numbers of words and of columns if a line holds only these."""
    fields = line.split()
    if len(fields) != 2 or not all(field.isdigit() for field in fields):
        return None
    return int(fields[0]), int(fields[1])


def _read_text(file: BinaryIO, path: Path, names) -> Lines:
    first = file.readline()
    if not first.strip():
        hint = "Give a file of word vectors."
        raise bad_data(f"{path}:1", "the first line is empty.", hint)
    header = _header(first)
    width = header[1] if header else first.rstrip().count(b" ")
    if not width:
        raise bad_data(
            f"{path}:1",
            "the line is no word with its numbers, separated by blanks.",
            "The name of a file in word2vec's binary format must end in .bin.",
        )
    count = 0
    for line, raw in enumerate(itertools.chain([] if header else [first], file), 1):
        text = raw.rstrip(b" \r\n")
        extra = text.count(b" ") - width
        count += 1
        if extra > 0 and not _is_number(text.split(b" ", 2)[1]):
            continue  # a word with a blank in it; GloVe has some
        where = f"{path}:{line + bool(header)}"
        if extra:
            raise bad_data(
                where,
                f"{max(width + extra, 0)} numbers where {width} were expected.",
                "Correct or remove the line; was the file cut off?",
            )
        name, _, numbers = text.partition(b" ")
        if name in names:
            yield where, name, _numbers(numbers, where)
    if header and count != header[0]:
        raise _cut_off(path, header[0], count)


def _read_binary(file: BinaryIO, path: Path, names) -> Lines:
    header = _header(file.readline(_LONGEST))
    if not header or not header[1]:
        raise bad_data(
            f"{path}:1",
            "the line does not give the numbers of words and of columns.",
            "The name of a file of text must not end in .bin.",
        )
    words, width = header
    for count in range(words):
        name = _name(file)
        raw = file.read(4 * width)
        if name is None or len(raw) < 4 * width:
            raise _cut_off(path, words, count)
        if name in names:
            row = np.frombuffer(raw, "<f4").astype(np.float32)
            yield f"{path}, word {count + 1:,}", name, row
    if file.read(2).strip():
        hint = "Is it a file in word2vec's binary format?"
        raise bad_data(str(path), f"more follows its {words:,} words.", hint)


def _name(file: BinaryIO) -> bytes | None:
    """Reads a word up to its blank; None if there is none."""
    word = bytearray()
    while (byte := file.read(1)) != b" ":
        if not byte or len(word) > _LONGEST:
            return None
        word += byte
    return bytes(word).lstrip(b"\n")  # some writers end a word's numbers with it


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _numbers(text: bytes, where: str) -> np.ndarray:
    fields = text.split(b" ")
    bad = next((field for field in fields if not _is_number(field)), None)
    if bad is not None:
        shown = bad.decode(errors="replace")
        raise bad_data(where, f"{shown!r} is no number.", "Correct or remove the line.")
    return np.array(fields, np.float64).astype(np.float32)


def _cut_off(path: Path, promised: int, actual: int) -> PlmjaxError:
    return bad_data(
        f"{path}:1",
        f"it announces {promised:,} words, but has {actual:,}.",
        "Was the file cut off? Get it again, or correct the first line.",
    )


# --- text


def from_tokens(
    tokens: np.ndarray, lengths: np.ndarray, pieces: int, width: int = 128
) -> np.ndarray:
    """Returns vectors [V, E] of pieces by their neighbours in texts, 0 for the unseen.

    `tokens` are those of texts end to end, of `lengths` [N]. The vectors are those of
    Levy et al. 2015 (TACL 3): positive mutual information of pieces at most 5 apart,
    nearer ones weighted more, contexts smoothed by a power of 0.75; of it the first E
    singular vectors, times the roots of their values.
    """
    from scipy import sparse
    from sklearn.utils.extmath import randomized_svd

    text = np.repeat(np.arange(len(lengths)), lengths)
    counts = sparse.csr_array((pieces, pieces), dtype=np.float64)
    for apart in range(1, _WINDOW + 1):
        near = text[apart:] == text[:-apart]
        pair = tokens[:-apart][near], tokens[apart:][near]
        weights = np.full(len(pair[0]), 1 - (apart - 1) / _WINDOW)
        counts += sparse.coo_array((weights, pair), counts.shape).tocsr()
    counts = (counts + counts.T).tocoo()
    row_V = counts.sum(1)
    context_V = row_V**0.75
    expected = row_V[counts.row] * context_V[counts.col] / max(context_V.sum(), 1.0)
    information = np.maximum(np.log(counts.data / expected), 0)
    matrix = sparse.csr_array((information, counts.coords), counts.shape)
    u_VE, scale_E, _ = randomized_svd(matrix, min(width, pieces - 1), random_state=0)
    return (u_VE * np.sqrt(scale_E)).astype(np.float32)
