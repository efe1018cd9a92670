"""One Tokenizer class for all kinds: ids, word starts and byte counts."""

import functools
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from plmjax import Exit, PlmjaxError
from plmjax.tokenizers import files, segmenters
from plmjax.tokenizers.backends import (
    Specials,
    byte_of_character,
    chunk_size,
    overlaps,
    plain_text_backend,
    writes_blanks,
)
from plmjax.tokenizers.segmenters import BLANK, SIGN, Segmenter, split_signs
from plmjax.tokenizers.unigram import METASPACE
from plmjax.tokenizers.words import Encoded, WordCache, cutter

if TYPE_CHECKING:
    import tokenizers


class Tokenizer:
    """A picklable wrapper of a tokenizers.Tokenizer with its special tokens by role.

    A special token spelt out in a text ("[MASK]" on a page about BERT) is encoded as
    ordinary text: no corpus can put masks or document ends into the training rows.
    Only `encode_prompt` reads the mask's spelling as the mask.
    """

    def __init__(
        self,
        backend: "tokenizers.Tokenizer",
        specials: Specials,
        segmenter: Segmenter | None = None,
        notes: Sequence[str] = (),
    ):
        from tokenizers import models

        self.backend = backend
        self.specials = specials
        self.segmenter = segmenter
        self.notes = tuple(notes)  # what was decided when it was read, for the user
        self.kind = {models.BPE: "bpe", models.Unigram: "unigram"}.get(
            type(backend.model), "wordpiece"
        )
        self.overlap = 1  # how many adjacent tokens share a letter
        if chunk := chunk_size(backend):
            self.kind = "characters" if chunk == 1 else "kmer"
            self.overlap = chunk if overlaps(backend) else 1
        backend.encode_special_tokens = True
        # The code that built the backend has checked that it has these tokens.
        self.pad_id: int = backend.token_to_id(specials.pad)  # type: ignore
        self.cls_id: int = backend.token_to_id(specials.cls)  # type: ignore
        self.sep_id: int = backend.token_to_id(specials.sep)  # type: ignore
        self.mask_id: int | None = (
            None if specials.mask is None else backend.token_to_id(specials.mask)
        )
        self.unk_id: int | None = (
            None if specials.unk is None else backend.token_to_id(specials.unk)
        )
        added = backend.get_added_tokens_decoder()
        self.special_ids = tuple(sorted(i for i, t in added.items() if t.special))
        self.vocab = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self.vocab.values()) + 1

    def __reduce__(self):
        return _from_json, (self.backend.to_str(), self.specials, self.segmenter)

    def with_segmenter(self, segmenter: Segmenter | None) -> "Tokenizer":
        """A tokenizer with the same vocabulary and this segmenter's word starts."""
        return Tokenizer(self.backend, self.specials, segmenter, self.notes)

    def require_mask(self) -> int:
        """Returns the mask's id.

        Raises:
          PlmjaxError: the vocabulary has no mask token (code 4).
        """
        if self.mask_id is None:
            raise PlmjaxError(
                "This tokenizer has no mask token, as GPT-2's has none.",
                hint="Use a vocabulary with one, or a causal objective and model.",
                code=Exit.MODEL,
            )
        return self.mask_id

    @functools.cached_property
    def vocabulary_digest(self) -> str:
        """SHA-256 of tokenizer.json with sorted keys; weights depend on it."""
        canonical = json.dumps(json.loads(self.backend.to_str()), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of vocabulary and segmenter, if any; a token store depends on it."""
        if self.segmenter is None:
            return self.vocabulary_digest
        both = self.vocabulary_digest + segmenters.as_json(self.segmenter)
        return hashlib.sha256(both.encode()).hexdigest()

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """[V] int32: UTF-8 bytes of each piece without blanks, ## and ▁; specials 0."""
        surface = {
            "bpe": (lambda: _unigram_surface) if self._blanks else _byte_surface,
            "wordpiece": lambda: _wordpiece_surface,
        }.get(self.kind, lambda: _unigram_surface)()
        sizes = np.zeros(self.vocab_size, np.int32)
        for piece, number in self.vocab.items():
            sizes[number] = len(surface(piece)) // self.overlap
        sizes[list(self.special_ids)] = 0
        return sizes

    @functools.cached_property
    def global_ids(self) -> dict[str, tuple[int, ...]]:
        """The ids by which each rule of model.global_tokens finds its tokens."""
        ends = {mark: self._ids(f"a{mark}")[-1:] for mark in ".!?。！？"}
        # Each a piece of its own, neither [UNK] nor a part of the character.
        bytes_V = self.token_bytes
        own = {
            n for m, ids in ends.items() for n in ids if bytes_V[n] == len(m.encode())
        }
        separator = (self.sep_id,)
        return {
            "question": separator,
            "second": separator,
            "sentences": tuple(sorted(own)),
        }

    @functools.cached_property
    def _plain(self) -> "tokenizers.Tokenizer":
        """The backend that encodes texts; no text can spell its special tokens."""
        return plain_text_backend(self.backend) if self._unigram else self.backend

    @property
    def _unigram(self) -> bool:
        return self.kind == "unigram"

    @functools.cached_property
    def _blanks(self) -> bool:
        return writes_blanks(self.backend)

    @functools.cached_property
    def _opens_V(self) -> np.ndarray:
        """[V] bool: pieces with a blank before them, for a BPE that cuts no words."""
        opens_V = np.zeros(self.vocab_size, bool)
        for piece, number in self.vocab.items():
            opens_V[number] = piece[:1] == METASPACE or piece[:1].isspace()
        return opens_V

    @functools.cached_property
    def _sign_V(self) -> np.ndarray | None:
        """[V] kinds of unigram pieces, as "▁" words would include signs (ALBERT)."""
        if not (self._unigram or self._blanks):
            return None
        sign_V = np.zeros(self.vocab_size, np.int8)
        for piece, number in self.vocab.items():
            signs = piece.replace(METASPACE, "")
            kinds = {unicodedata.category(sign)[0] for sign in signs}
            if kinds <= {"P", "S"}:
                sign_V[number] = SIGN if kinds else BLANK
        return sign_V

    @functools.cached_property
    def _cache(self) -> WordCache:
        return WordCache(self._plain, cutter(self._plain))

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """Encodes texts end to end, without [CLS] and [SEP]."""
        if self.segmenter is not None:
            return self.segmenter.encode(self._plain, texts, self._sign_V)
        encoded = self._cache.encode(texts)
        starts = encoded.word_start
        if self.overlap > 1:  # a word hides at least one letter from all its chunks
            begin = np.cumsum(encoded.lengths) - encoded.lengths
            at = np.arange(len(starts)) - np.repeat(begin, encoded.lengths)
            starts = at % self.overlap == 0
        if self._blanks:
            starts = starts | self._opens_V[encoded.tokens]
        starts = split_signs(encoded.tokens, starts, self._sign_V)
        return encoded._replace(word_start=starts)

    def encode_spans(self, texts: Sequence[str]) -> tuple[Encoded, np.ndarray]:
        """encode_batch, and [n, 2] int32: each token's characters (begin, end).

        Blanks before a token's first letter do not count. A token of one byte of a
        character has the span of the full character.
        """
        spans = [np.empty((0, 2), np.int64)]
        for first in range(0, len(texts), 256):
            some = texts[first : first + 256]
            plain = [self.segmenter.plain(t) for t in some] if self.segmenter else some
            encodings = self._plain.encode_batch(plain, add_special_tokens=False)
            for text, read, encoding in zip(some, plain, encodings, strict=True):
                offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
                spans.append(segmenters.spans_in_text(text, read, offsets))
        return self.encode_batch(texts), np.concatenate(spans).astype(np.int32)

    def encode_prompt(self, text: str) -> list[int]:
        """Returns the ids of a text, with [MASK] or <mask> read as the mask."""
        # Blanks before the mask belong to it, as in RoBERTa; BERT encodes no blanks.
        spellings = {"[MASK]", "<mask>", self.specials.mask or "[MASK]"}
        mask = r"\s*(?:" + "|".join(map(re.escape, spellings)) + ")"
        first, *others = re.split(mask, text)
        ids = self._ids(first)
        for other in others:
            ids += [self.require_mask(), *self._ids(other)]
        return ids

    def _ids(self, text: str) -> list[int]:
        if self.segmenter is not None:
            text = self.segmenter.plain(text)
        return self._cache.encode([text]).tokens.tolist()

    def decode(self, ids: Iterable[int]) -> str:
        """Returns readable text with special tokens, but without padding."""
        ids = [int(number) for number in ids]
        shown = [number for number in ids if number != self.pad_id]
        if self.pad_id in (self.cls_id, self.sep_id):
            shown = ids  # padding and the end of a text have the same id
        if self.overlap > 1:
            return self._joined(shown)
        return self.backend.decode(shown, skip_special_tokens=False)

    def _joined(self, ids: Sequence[int]) -> str:
        """Chunks that overlap, with each letter once."""
        pieces = [str(self.backend.id_to_token(number)) for number in ids]
        return "".join(
            piece[-1] if before[1:] == piece[:-1] else piece
            for before, piece in zip(["", *pieces], pieces, strict=False)
        )

    def save(
        self,
        directory: str | Path,
        max_length: int = 512,
        *,
        token_types: bool | None = None,
        segmenter: bool = True,
    ) -> None:
        """Writes the files that AutoTokenizer of transformers 5 loads.

        `token_types`: whether the tokenizer returns token_type_ids, for models that
        have them (None: as is usual for its kind). `segmenter`: whether to write the
        segmenter too, which only plmjax reads.
        """
        directory = Path(directory)
        files.write(self.backend, self.specials, directory, max_length, token_types)
        segmenters.write(self.segmenter if segmenter else None, directory)

    @classmethod
    def load(
        cls, path: str | Path, lowercase: bool = True, strip_accents: bool | None = None
    ) -> "Tokenizer":
        """Loads a folder, or a file that files.py reads, with its segmenter if any.

        The last two arguments are for files without a tokenizer_config.json beside
        them; a vocab.txt with capitals is never lower-cased by them. Raises PlmjaxError
        (code 4) for a vocabulary that cannot be used.
        """
        path = Path(path)
        backend, specials, notes = files.read(path, lowercase, strip_accents)
        folder = path if path.is_dir() else path.parent
        return cls(backend, specials, segmenters.read(folder), notes)


def _from_json(text: str, specials: Specials, segmenter: Segmenter | None) -> Tokenizer:
    import tokenizers

    return Tokenizer(tokenizers.Tokenizer.from_str(text), specials, segmenter)


def _wordpiece_surface(piece: str) -> bytes:
    return "".join(piece.removeprefix("##").split()).encode()


def _unigram_surface(piece: str) -> bytes:
    if re.fullmatch("<0x[0-9A-F]{2}>", piece):  # byte fallback
        return bytes.fromhex(piece[3:5])
    return "".join(piece.replace(METASPACE, "").split()).encode()


def _byte_surface():
    byte = byte_of_character()

    def surface(piece: str) -> bytes:
        if not all(character in byte for character in piece):
            return _wordpiece_surface(piece)  # an added token is not byte-encoded
        raw = bytes(byte[character] for character in piece)
        try:
            return "".join(raw.decode().split()).encode()
        except UnicodeDecodeError:  # part of a character: only ASCII blanks are known
            return b"".join(raw.split())

    return surface
