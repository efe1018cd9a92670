"""One tokenizer for all kinds: ids, word starts and surfaces."""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from plmjax.tokenizers import files
from plmjax.tokenizers.backends import Specials, byte_of_character
from plmjax.tokenizers.words import Encoded, WordCache, cutter

if TYPE_CHECKING:
    import tokenizers


class Tokenizer:
    """A picklable wrapper of a tokenizers.Tokenizer, its special tokens known by role.

    A special token spelt out in a text ("[MASK]" on a page about BERT) is text like
    any other here: no corpus can put masks or document ends into the training rows.
    `encode_prompt` is the one place where the mask's spelling means the mask.
    """

    def __init__(self, backend: "tokenizers.Tokenizer", specials: Specials):
        from tokenizers import models

        self.backend = backend
        self.specials = specials
        self.kind = "bpe" if isinstance(backend.model, models.BPE) else "wordpiece"
        backend.encode_special_tokens = True
        # Whoever makes the backend has checked that it knows them.
        self.pad_id: int = backend.token_to_id(specials.pad)  # type: ignore
        self.cls_id: int = backend.token_to_id(specials.cls)  # type: ignore
        self.sep_id: int = backend.token_to_id(specials.sep)  # type: ignore
        self.mask_id: int = backend.token_to_id(specials.mask)  # type: ignore
        self.unk_id = specials.unk and backend.token_to_id(specials.unk)
        added = backend.get_added_tokens_decoder()
        self.special_ids = tuple(sorted(i for i, t in added.items() if t.special))
        self.vocab = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self.vocab.values()) + 1

    def __reduce__(self):
        return _from_json, (self.backend.to_str(), self.specials)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of tokenizer.json with its keys sorted."""
        canonical = json.dumps(json.loads(self.backend.to_str()), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """[V] int32: UTF-8 bytes of each piece without blanks and "##"; specials 0."""
        surface = _byte_surface() if self.kind == "bpe" else _wordpiece_surface
        sizes = np.zeros(self.vocab_size, np.int32)
        for piece, number in self.vocab.items():
            sizes[number] = len(surface(piece))
        sizes[list(self.special_ids)] = 0
        return sizes

    @functools.cached_property
    def _cache(self) -> WordCache:
        return WordCache(self.backend, cutter(self.backend))

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """The texts' ids end to end, without [CLS] and [SEP]."""
        return self._cache.encode(texts)

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a text in which [MASK] or <mask> stands for the mask."""
        # Blanks before the mask belong to it, as RoBERTa has it; BERT has no blanks.
        spellings = {"[MASK]", "<mask>", self.specials.mask}
        parts = re.split(r"\s*(?:" + "|".join(map(re.escape, spellings)) + ")", text)
        ids = self.encode_batch(parts[:1]).tokens.tolist()
        for part in parts[1:]:
            ids += [self.mask_id, *self.encode_batch([part]).tokens.tolist()]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Readable text; padding is left out, other special tokens are shown."""
        shown = [int(number) for number in ids if number != self.pad_id]
        return self.backend.decode(shown, skip_special_tokens=False)

    def save(self, directory: str | Path, max_length: int = 512) -> None:
        """Write the files that AutoTokenizer of transformers 5 loads."""
        files.write(self.backend, self.specials, Path(directory), max_length)

    @classmethod
    def load(
        cls,
        path: str | Path,
        lowercase: bool = True,
        strip_accents: bool | None = None,
    ) -> "Tokenizer":
        """From a folder, a tokenizer.json or a vocab.txt.

        The last two arguments are for a vocab.txt that no tokenizer_config.json stands
        beside. Raises PlmjaxError (code 4) for a vocabulary that cannot be used.
        """
        return cls(*files.read(Path(path), lowercase, strip_accents))


def _from_json(text: str, specials: Specials) -> Tokenizer:
    import tokenizers

    return Tokenizer(tokenizers.Tokenizer.from_str(text), specials)


def _wordpiece_surface(piece: str) -> bytes:
    return "".join(piece.removeprefix("##").split()).encode()


def _byte_surface():
    byte = byte_of_character()

    def surface(piece: str) -> bytes:
        if not all(character in byte for character in piece):
            return _wordpiece_surface(piece)  # an added token is spelt as it is
        raw = bytes(byte[character] for character in piece)
        try:
            return "".join(raw.decode().split()).encode()
        except UnicodeDecodeError:  # a part of a character: only ASCII blanks show
            return b"".join(raw.split())

    return surface
