"""Reads SentencePiece models (.model, .spm) as transformers' classes number them.

The file is a protobuf message; a reader of its wire format is shorter than the code
that protobuf would generate. Field numbers are those of sentencepiece_model.proto.
"""

import dataclasses
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plmjax import Exit, PlmjaxError
from plmjax.tokenizers.backends import Specials, unigram_backend

if TYPE_CHECKING:
    import tokenizers

IDS = {  # of a family
    "albert": "ALBERT's, those of the file",
    "debertav2": "DeBERTa-v2's, those of the file with [MASK] last",
    "bigbird": "BigBird's, those of the file",
    "xlmroberta": "XLM-R's, with <s>, <pad>, </s>, <unk> first and <mask> last",
}
_KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclasses.dataclass(frozen=True)
class Model:
    """The parts of a SentencePiece model that decide how it cuts text.

    `pieces` are (text, log probability), `control` those that no text gives. `charsmap`
    is the compiled normalisation table, if any. transformers' classes use a word or
    char model as a unigram model, too.
    """

    kind: str
    pieces: list[tuple[str, float]]
    control: tuple[str, ...]
    charsmap: "tokenizers.normalizers.Normalizer | None"
    byte_fallback: bool


def read_model(path: Path) -> Model:
    """Reads a unigram model.

    Raises:
      PlmjaxError: the file is not a SentencePiece model, or plmjax does not support its
        kind or its settings (code 4).
    """
    from tokenizers.normalizers import Precompiled

    try:
        message = _message(path.read_bytes())
        pieces = [_message(raw) for raw in message[1]]
        trainer, normalizer = (_message(b"".join(message.get(n, []))) for n in (2, 3))
        table = [
            (_last(p, 1, b"").decode(), *struct.unpack("<f", _last(p, 2, bytes(4))))
            for p in pieces
        ]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error):
        raise _refusal(f"{path} is not a SentencePiece model.") from None
    kind = _KINDS.get(_last(trainer, 3, 1), "unknown")
    if kind not in ("unigram", "word", "char"):
        raise _refusal(f"{path} holds a {kind} model; only unigram models are read.")
    for setting, field, message_of, supported in (
        ("treat_whitespace_as_suffix", 24, trainer, False),
        ("add_dummy_prefix", 3, normalizer, True),
        ("escape_whitespaces", 5, normalizer, True),
    ):
        if bool(_last(message_of, field, supported)) != supported:
            raise _refusal(f"{path} has {setting}={str(not supported).lower()}.")
    # Those of type 3 (control) are given by no text.
    types = (_last(piece, 3, 1) for piece in pieces)
    charsmap = _last(normalizer, 2, b"")
    try:
        compiled = Precompiled(charsmap) if charsmap else None
    except Exception:  # the library raises no narrower class
        raise _refusal(f"{path}: its normalisation table is damaged.") from None
    return Model(
        kind=kind,
        pieces=table,
        control=tuple(t for (t, _), x in zip(table, types, strict=True) if x == 3),
        charsmap=compiled,
        byte_fallback=bool(_last(trainer, 35, 0)),
    )


def family(model: Model, names: dict[str, str]) -> tuple[str, str]:
    """Returns the family whose class numbers the pieces, and why it is this one.

    `names` is {file: the class or type of model that it names}.

    Raises:
      PlmjaxError: neither the files nor the pieces show a known family (code 4).
    """
    for file, name in names.items():
        plain = name.lower().replace("-", "").replace("_", "")
        if known := next(filter(plain.startswith, IDS), None):
            return known, f"{file} has {name}"
    texts = [text for text, _ in model.pieces]
    if texts[:3] == ["<pad>", "</s>", "<s>"]:
        return "bigbird", "it begins with <pad>, </s>, <s>"
    if {"[CLS]", "[SEP]"} <= set(texts):
        mask = "[MASK]" in texts
        why = f"it has [CLS], [SEP] and {'' if mask else 'no '}[MASK]"
        return "albert" if mask else "debertav2", why
    if set(texts[:3]) == {"<unk>", "<s>", "</s>"}:
        return "xlmroberta", "it begins with <unk>, <s>, </s>"
    known = "[CLS] and [SEP] nor <unk>, <s>, </s>"
    raise _refusal(f"the SentencePiece model has neither {known}.")


def numbered(model: Model, kind: str) -> list[tuple[str, float]]:
    """Returns the pieces in the order of their ids in transformers' class.

    ALBERT and BigBird have them as in the file, but ALBERT never uses a piece that ends
    in a digit and a comma. DeBERTa-v2 adds [MASK]. XLM-R has fairseq's four special
    tokens first.
    """
    if kind == "albert":
        return [
            (text, score - 100 if text[-2:-1].isdigit() and text[-1] == "," else score)
            for text, score in model.pieces
        ]
    if kind == "bigbird":
        return model.pieces
    if kind == "debertav2":
        missing = "[MASK]" not in {text for text, _ in model.pieces}
        return [*model.pieces, *([("[MASK]", 0.0)] if missing else [])]
    heads = [(text, 0.0) for text in ("<s>", "<pad>", "</s>", "<unk>")]
    return [*heads, *model.pieces[3:], ("<mask>", 0.0)]


def backend(
    model: Model, kind: str, specials: Specials, *, lowercase: bool, strip_accents: bool
) -> "tokenizers.Tokenizer":
    """Builds the tokenizer of a family's class from its SentencePiece model."""
    from tokenizers import AddedToken, Regex, decoders, processors
    from tokenizers import normalizers as n

    tokenizer = unigram_backend(
        numbered(model, kind),
        specials,
        lowercase=False,
        byte_fallback=model.byte_fallback,
    )
    tokenizer.normalizer = n.Sequence(
        [
            *([n.Replace(q, '"') for q in ("``", "''")] if kind == "albert" else []),
            *([n.NFKD(), n.StripAccents()] if strip_accents else []),
            *([n.Lowercase()] if lowercase else []),
            *([model.charsmap] if model.charsmap else []),
            n.Replace(Regex(" {2,}"), " "),
        ]
    )
    vocab = tokenizer.get_vocab()
    known = {*specials.tokens()}
    tokenizer.add_special_tokens(
        [
            AddedToken(text, normalized=False, special=True)
            for text in model.control
            if text in vocab and text not in known
        ]
    )
    if model.byte_fallback:
        assert tokenizer.decoder is not None
        tokenizer.decoder = decoders.Sequence(
            [decoders.ByteFallback(), tokenizer.decoder]
        )
    if kind == "xlmroberta":  # two separators between two texts
        cls, sep = specials.cls, specials.sep
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} {sep} $B {sep}",
            special_tokens=[(token, vocab[token]) for token in (cls, sep)],
        )
    return tokenizer


def _message(raw: bytes) -> dict[int, list[Any]]:
    """Returns {field number: its values} of a protobuf message.

    A value is an int, or bytes for texts, messages and floats.
    """
    values: dict[int, list[Any]] = {}
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        field, wire = divmod(key, 8)
        if wire == 0:
            value, at = _varint(raw, at)
        else:
            size, at = _varint(raw, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            value, at = raw[at : at + size], at + size
            if at > len(raw):
                raise ValueError("the message is cut off")
        values.setdefault(field, []).append(value)
    return values


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """Returns a number of 7 bits a byte, lowest first, and the position after it."""
    value = shift = 0
    while raw[at] & 128:
        value |= (raw[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | raw[at] << shift, at + 1


def _last(message: dict[int, list[Any]], field: int, default: Any) -> Any:
    return message[field][-1] if field in message else default


def _refusal(message: str) -> PlmjaxError:
    hint = "Give a tokenizer.json instead (transformers' save_pretrained writes it)."
    return PlmjaxError(message, hint=hint, code=Exit.MODEL)
