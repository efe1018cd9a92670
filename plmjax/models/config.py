"""A published model is a value of EncoderConfig; PRESETS holds the ones we know."""

import dataclasses
from typing import Literal, Optional

from plmjax import PlmjaxError


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The whole family of encoders, as values.

    Each switch is read in one place of models/. `vocab_size` and the padding id follow
    from the tokenizer; everything else is the model's own.
    """

    family: Literal["bert", "roberta"] = "bert"
    vocab_size: int = 30522
    layers: int = 12
    width: int = 768
    heads: int = 12
    ffn_width: int = 3072
    # Narrower than `width` factorises the embeddings (ALBERT, ELECTRA-small).
    embedding_width: int | None = None
    max_positions: int = 512
    # RoBERTa counts positions from padding_idx + 1, and its table is that much longer.
    position_offset: int = 0
    token_types: int = 2
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    gated: bool = False
    bias: bool = True
    norm_place: Literal["post", "pre"] = "post"
    norm_eps: float = 1e-12
    sharing: Literal["none", "attention", "ffn", "all"] = "none"
    attention: Literal["full"] = "full"
    positions: Literal["learned"] = "learned"
    causal: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.1
    init_std: float = 0.02
    # The type of activations; parameters are always float32.
    dtype: Literal["float32", "bfloat16"] = "float32"
    # Recomputes each layer in the backward pass: less memory, about a third more work.
    remat: bool = False

    def __post_init__(self):
        for name in ("vocab_size", "layers", "width", "heads", "ffn_width"):
            if getattr(self, name) < 1:
                raise PlmjaxError(
                    f"model.{name} is {getattr(self, name)}; it must be at least 1."
                )
        if self.width % self.heads:
            fits = [n for n in range(1, self.width + 1) if self.width % n == 0]
            nearest = min(fits, key=lambda n: abs(n - self.heads))
            raise PlmjaxError(
                f"model.heads={self.heads} does not divide model.width={self.width}.",
                hint=f"The nearest number of heads that does is {nearest}.",
            )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise PlmjaxError(
                    f"model.{name} is {getattr(self, name)}; it must be in [0, 1)."
                )

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def input_width(self) -> int:
        """The width of the embedding tables."""
        return self.embedding_width or self.width

    @property
    def max_length(self) -> int:
        """The longest row the position table serves, in tokens."""
        return self.max_positions - self.position_offset


def _bert(layers: int, width: int) -> EncoderConfig:
    return EncoderConfig(
        layers=layers, width=width, heads=width // 64, ffn_width=4 * width
    )


def _roberta(layers: int, width: int) -> EncoderConfig:
    return dataclasses.replace(
        _bert(layers, width),
        family="roberta",
        vocab_size=50265,
        max_positions=514,
        position_offset=2,
        token_types=1,
        norm_eps=1e-5,
    )


PRESETS: dict[str, EncoderConfig] = {
    "bert-tiny": _bert(2, 128),
    "bert-mini": _bert(4, 256),
    "bert-small": _bert(4, 512),
    "bert-medium": _bert(8, 512),
    "bert-base": _bert(12, 768),
    "bert-large": _bert(24, 1024),
    "roberta-base": _roberta(12, 768),
    "roberta-large": _roberta(24, 1024),
}


def _model_block() -> type:
    """A config block: a preset, and any field of EncoderConfig in its place."""
    fields = dataclasses.fields(EncoderConfig)
    preset = dataclasses.field(default="bert-tiny", metadata={"resets": True})
    own = [("preset", str, preset)]
    taken = [(field.name, Optional[field.type], None) for field in fields]  # noqa: UP045
    return dataclasses.make_dataclass("ModelConfig", own + taken, frozen=True)


# vocab_size and position_offset follow from the tokenizer where they are not given.
ModelConfig = _model_block()


def resolve(block, vocab_size: int, pad_id: int) -> EncoderConfig:
    """Returns the encoder that a model block names, for a tokenizer.

    Raises:
      PlmjaxError: an unknown preset, or values that do not fit together.
    """
    given = {name: value for name, value in vars(block).items() if value is not None}
    preset = given.pop("preset")
    if preset not in PRESETS:
        raise PlmjaxError(
            f"model.preset cannot be {preset!r}.",
            hint=f"Known: {', '.join(PRESETS)}.",
        )
    if given.get("vocab_size", vocab_size) < vocab_size:
        raise PlmjaxError(
            f"model.vocab_size={given['vocab_size']} is smaller than the tokenizer's "
            f"{vocab_size} pieces.",
            hint="Leave it out, and it follows the tokenizer.",
        )
    derived: dict = {"vocab_size": vocab_size}
    if PRESETS[preset].position_offset:
        # RoBERTa's rule: padding has position padding_idx, text begins after it.
        derived["position_offset"] = pad_id + 1
    return dataclasses.replace(PRESETS[preset], **(derived | given))
