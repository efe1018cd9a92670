"""The two kinds of vocabulary, put together from the tokenizers library."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers


@dataclasses.dataclass(frozen=True)
class Specials:
    """How a vocabulary spells its special tokens; byte-level ones may lack unk."""

    pad: str
    unk: str | None
    cls: str
    sep: str
    mask: str

    def tokens(self) -> list[str]:
        return [token for token in dataclasses.astuple(self) if token is not None]


BERT = Specials(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
ROBERTA = Specials(pad="<pad>", unk="<unk>", cls="<s>", sep="</s>", mask="<mask>")

# The ids are the places in these lists, as in the published checkpoints.
WORDPIECE_ORDER = [BERT.pad, BERT.unk, BERT.cls, BERT.sep, BERT.mask]
BPE_ORDER = [ROBERTA.cls, ROBERTA.pad, ROBERTA.sep, ROBERTA.unk, ROBERTA.mask]


def wordpiece_backend(
    vocab: Mapping[str, int],
    specials: Specials = BERT,
    *,
    lowercase: bool,
    strip_accents: bool | None,
    chinese_characters: bool = True,
) -> "tokenizers.Tokenizer":
    """BERT's tokenizer over vocab, piece -> id (Devlin et al. 2018)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    assert specials.unk is not None
    model = models.WordPiece(
        dict(vocab), unk_token=specials.unk, max_input_chars_per_word=100
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=chinese_characters,
        strip_accents=strip_accents,
        lowercase=lowercase,
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
    strip_accents: bool | None = None,
) -> "tokenizers.Tokenizer":
    """RoBERTa's tokenizer over bytes: BPE within GPT-2's words (Liu et al. 2019)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    backend = Tokenizer(models.BPE(dict(vocab), merges))
    parts = []
    if lowercase if strip_accents is None else strip_accents:
        parts += [normalizers.NFD(), normalizers.StripAccents()]
    if lowercase:
        parts += [normalizers.Lowercase()]
    if parts:
        backend.normalizer = normalizers.Sequence(parts)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return finish(backend, specials)


def finish(backend: "tokenizers.Tokenizer", specials: Specials):
    """Declare the special tokens, and how they frame one text and a pair of texts."""
    from tokenizers import AddedToken, models, processors

    bpe = isinstance(backend.model, models.BPE)
    backend.add_special_tokens(
        [
            # RoBERTa's mask eats the space before it: " <mask>" stands for " word".
            AddedToken(token, lstrip=bpe and token == specials.mask, special=True)
            for token in specials.tokens()
        ]
    )
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


def byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: the printable character that stands for each of 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    shown = {chr(byte): byte for byte in printable}
    return shown | {chr(256 + place): byte for place, byte in enumerate(others)}
