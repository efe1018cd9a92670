"""The kinds of tokenizer, built with the tokenizers library."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from plmjax.tokenizers.unigram import METASPACE

if TYPE_CHECKING:
    import tokenizers


@dataclasses.dataclass(frozen=True)
class Specials:
    """The spelling of a vocabulary's special tokens, by role.

    A byte-level vocabulary may have no unk, and a causal model's no mask. One token
    may have several roles (GPT-2 has only one special token).
    """

    pad: str
    unk: str | None
    cls: str
    sep: str
    mask: str | None

    def tokens(self) -> list[str]:
        """The special tokens without duplicates."""
        return list(dict.fromkeys(t for t in dataclasses.astuple(self) if t))


BERT = Specials(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
ROBERTA = Specials(pad="<pad>", unk="<unk>", cls="<s>", sep="</s>", mask="<mask>")
ALBERT = Specials(pad="<pad>", unk="<unk>", cls="[CLS]", sep="[SEP]", mask="[MASK]")
GEMMA = Specials(pad="<pad>", unk="<unk>", cls="<bos>", sep="<eos>", mask="<mask>")
_END = "<|endoftext|>"
GPT2 = Specials(pad=_END, unk=_END, cls=_END, sep=_END, mask=None)

# The index of a token in its list is its id, as in the published checkpoints.
WORDPIECE_ORDER = [BERT.pad, BERT.unk, BERT.cls, BERT.sep, BERT.mask]
BPE_ORDER = [ROBERTA.cls, ROBERTA.pad, ROBERTA.sep, ROBERTA.unk, ROBERTA.mask]
UNIGRAM_ORDER = [ALBERT.pad, ALBERT.unk, ALBERT.cls, ALBERT.sep, ALBERT.mask]

LONGEST_WORD = 100  # characters, of BERT
WHITE = r"\s+"
_PRIVATE = 0xE000  # the first code point of Unicode's private area

# GPT-2's words, but with marks (vowel signs of Hindi, tones of Thai) and joiners as
# parts of words, where GPT-2 ends a word before each.
_LETTERS = r"\p{L}\p{M}\x{200C}\x{200D}"
_WORDS_WITH_MARKS = (
    rf"'s|'t|'re|'ve|'m|'ll|'d| ?[{_LETTERS}]+| ?\p{{N}}+| ?[^\s{_LETTERS}\p{{N}}]+"
    r"|\s+(?!\S)|\s+"
)


def wordpiece_backend(
    vocab: Mapping[str, int],
    specials: Specials = BERT,
    *,
    lowercase: bool,
    strip_accents: bool | None,
    nfkc: bool = False,
    chinese_characters: bool = True,
    longest_word: int = LONGEST_WORD,
) -> "tokenizers.Tokenizer":
    """BERT's tokenizer with the vocabulary piece -> id (Devlin et al. 2018).

    strip_accents=None follows lowercase, which is BERT's rule. Words of more than
    longest_word characters become one unknown token.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    assert specials.unk is not None
    model = models.WordPiece(
        dict(vocab), unk_token=specials.unk, max_input_chars_per_word=longest_word
    )
    backend = Tokenizer(model)
    bert = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=chinese_characters,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )
    backend.normalizer = (
        normalizers.Sequence([normalizers.NFKC(), bert]) if nfkc else bert
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return finish(backend, specials)


def bpe_backend(
    vocab: Mapping[str, int],
    merges: list[tuple[str, str]],
    specials: Specials = ROBERTA,
    *,
    lowercase: bool = False,
    strip_accents: bool = False,
    nfkc: bool = False,
    joins_marks: bool = False,
) -> "tokenizers.Tokenizer":
    """RoBERTa's tokenizer: byte-level BPE within GPT-2's words (Liu et al. 2019).

    With joins_marks, combining marks belong to the letter before them.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers as pre

    backend = Tokenizer(models.BPE(dict(vocab), merges))
    if steps := _steps(lowercase, strip_accents, nfkc):
        backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    if joins_marks:
        words = pre.Split(Regex(_WORDS_WITH_MARKS), "isolated")
        letters = pre.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre.Sequence([words, letters])
    backend.decoder = decoders.ByteLevel()
    return finish(backend, specials)


def _steps(lowercase: bool, strip_accents: bool, nfkc: bool) -> list:
    """The steps of normalisation that are asked for."""
    from tokenizers import normalizers as n

    steps = [n.NFKC()] if nfkc else []
    steps += [n.NFD(), n.StripAccents()] if strip_accents else []
    return [*steps, n.Lowercase()] if lowercase else steps


def sequence_backend(
    vocab: Mapping[str, int],
    specials: Specials = BERT,
    *,
    k: int,
    lowercase: bool,
    strip_accents: bool = False,
    nfkc: bool = False,
    blanks: bool = False,
    overlap: str = "",
) -> "tokenizers.Tokenizer":
    """Cuts a text every k characters; a chunk that is no piece becomes its letters.

    White space is "▁" with blanks, else dropped: a sequence may be wrapped. The model
    is a WordPiece without "##", so that the longest match is the chunk or a letter.

    With overlap, the letters, there is a chunk for each k adjacent ones (DNABERT, Ji et
    al. 2021).
    """
    from tokenizers import Regex, Tokenizer, decoders, models
    from tokenizers import normalizers as n

    assert specials.unk is not None
    model = models.WordPiece(
        dict(vocab),
        unk_token=specials.unk,
        max_input_chars_per_word=k,
        continuing_subword_prefix="",
    )
    backend = Tokenizer(model)
    steps = _steps(lowercase, strip_accents, nfkc)
    steps += [n.Replace(Regex(WHITE), METASPACE if blanks else "")]
    if overlap:
        steps += overlapping(overlap, k)
    backend.normalizer = n.Sequence(steps)
    backend.pre_tokenizer = _split(k)
    if not overlap:  # else, or without a decoder, a blank between the pieces
        blank = [decoders.Replace(METASPACE, " ")] if blanks else []
        backend.decoder = decoders.Sequence([*blank, decoders.Fuse()])
    return finish(backend, specials)


def overlapping(letters: str, k: int) -> list:
    """The steps that write a text as all its chunks of k adjacent letters, joined.

    The library cuts no text into parts that overlap. So each letter gets copies, from a
    private alphabet, of the k - 1 letters after it; then incomplete chunks are dropped
    and copies become letters. Any other character is a chunk without a piece.
    """
    from tokenizers import Regex
    from tokenizers import normalizers as n

    copy_of = {letter: chr(_PRIVATE + i) for i, letter in enumerate(letters)}
    some = "".join(map(re.escape, letters))
    copies = f"{chr(_PRIVATE)}-{chr(_PRIVATE + len(letters) - 1)}"
    steps: list = [
        n.Replace(
            Regex(
                f"(?<=[{some}][{copies}]{{{after}}})"
                f"(?=(?:[{some}][{copies}]*){{{after}}}{re.escape(letter)})"
            ),
            copy,
        )
        for after in range(k - 1)
        for letter, copy in copy_of.items()
    ]
    short = f"[{some}][{copies}]{{0,{k - 2}}}(?![{copies}])"
    steps += [n.Replace(Regex(short), "")]
    steps += [n.Replace(Regex(f"[^{some}{copies}]"), "\ufffd" * k)]
    return steps + [n.Replace(copy, letter) for letter, copy in copy_of.items()]


def unigram_backend(
    pieces: list[tuple[str, float]],
    specials: Specials = ALBERT,
    *,
    lowercase: bool,
    strip_accents: bool = False,
    byte_fallback: bool = False,
) -> "tokenizers.Tokenizer":
    """A unigram tokenizer: pieces, log probabilities, words with "▁" (Kudo 2018).

    The library can read SentencePiece's compiled normalisation table but cannot make
    one; its Nmt (control characters, blanks) and NFKC come closest.
    """
    from tokenizers import Tokenizer, decoders, models

    unk = [piece for piece, _ in pieces].index(specials.unk or "")
    backend = Tokenizer(models.Unigram(pieces, unk, byte_fallback))
    backend.normalizer = unigram_normalizer(lowercase, strip_accents)
    backend.pre_tokenizer = unigram_pre_tokenizer()
    backend.decoder = decoders.Metaspace(replacement=METASPACE, prepend_scheme="always")
    return finish(backend, specials)


def unigram_normalizer(lowercase: bool, strip_accents: bool):
    """The normaliser of unigram tokenizers."""
    from tokenizers import normalizers as n

    # NFC recombines decomposed characters without accents (Korean syllables).
    steps = [n.NFKD(), n.StripAccents(), n.NFC()] if strip_accents else [n.NFKC()]
    return n.Sequence([n.Nmt(), *steps, *([n.Lowercase()] if lowercase else [])])


def unigram_pre_tokenizer():
    """Splits at white space and puts "▁" in front of each word."""
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement=METASPACE, prepend_scheme="always"),
        ]
    )


def writes_blanks(backend: "tokenizers.Tokenizer") -> bool:
    """Whether a BPE writes "▁" for blanks and cuts no words (Gemma's, mmBERT's)."""
    model, normalizer = backend.model, backend.normalizer
    return (
        getattr(model, "byte_fallback", False)
        and type(model).__name__ == "BPE"
        and normalizer is not None
        and normalizer.normalize_str("a b").endswith(f"a{METASPACE}b")
    )


def finish(backend: "tokenizers.Tokenizer", specials: Specials):
    """Adds the special tokens, and the template for one text and for a pair."""
    from tokenizers import AddedToken, models, processors

    bpe = isinstance(backend.model, models.BPE)
    # Where a space is part of a word, the mask removes the space before it, because
    # " <mask>" replaces " word".
    strips = getattr(backend.model, "continuing_subword_prefix", None) != "##"
    added = backend.get_added_tokens_decoder().values()
    known = {token.content for token in added if token.special}
    backend.add_special_tokens(
        [
            AddedToken(token, lstrip=strips and token == specials.mask, special=True)
            for token in specials.tokens()
            if token not in known
        ]
    )
    if backend.post_processor is None and specials.cls == specials.sep:
        # With a single special token, as in GPT-2, none is added to a text.
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    if backend.post_processor is None:
        number = backend.get_vocab(with_added_tokens=True)
        cls, sep = ((token, number[token]) for token in (specials.cls, specials.sep))
        backend.post_processor = (
            processors.RobertaProcessing(sep, cls, add_prefix_space=False)
            if bpe
            else processors.TemplateProcessing(
                single=f"{specials.cls}:0 $A:0 {specials.sep}:0",
                pair=f"{specials.cls}:0 $A:0 {specials.sep}:0 $B:1 {specials.sep}:1",
                special_tokens=[cls, sep],
            )
        )
    return backend


def chunk_size(backend: "tokenizers.Tokenizer") -> int | None:
    """The characters of a chunk of sequence_backend; None for other kinds."""
    from tokenizers import models, pre_tokenizers

    model = backend.model
    if not isinstance(model, models.WordPiece) or model.continuing_subword_prefix:
        return None
    cut = _split(model.max_input_chars_per_word).__getstate__()
    ours = isinstance(backend.pre_tokenizer, pre_tokenizers.Split) and (
        backend.pre_tokenizer.__getstate__() == cut
    )
    return model.max_input_chars_per_word if ours else None


def _split(k: int):
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(f".{{1,{k}}}"), "isolated")


def overlaps(backend: "tokenizers.Tokenizer") -> bool:
    """Whether the chunks of sequence_backend overlap."""
    steps = json.loads(backend.to_str())["normalizer"]["normalizers"]
    return steps[-1].get("pattern") != {"Regex": WHITE}


def plain_text_backend(backend: "tokenizers.Tokenizer") -> "tokenizers.Tokenizer":
    """A copy of a unigram tokenizer in which no text can spell a special token.

    A unigram model matches every piece of its vocabulary in the text, "[MASK]" too.
    The copy spells special tokens with a blank in front, and no blank reaches the
    model because "▁" replaces it. The ids are the same.
    """
    from tokenizers import Tokenizer

    content = json.loads(backend.to_str())
    hidden = {token["content"] for token in content["added_tokens"] if token["special"]}
    for token in content["added_tokens"]:
        if token["content"] in hidden:
            token["content"] = " " + token["content"]
    content["model"]["vocab"] = [
        (" " + piece if piece in hidden else piece, score)
        for piece, score in content["model"]["vocab"]
    ]
    content["post_processor"] = None
    plain = Tokenizer.from_str(json.dumps(content))
    plain.encode_special_tokens = True
    return plain


def byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet as printable character -> byte, for all 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    shown = {chr(byte): byte for byte in printable}
    return shown | {chr(256 + index): byte for index, byte in enumerate(others)}
