"""EncoderConfig, and PRESETS with its values for published models."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Literal, Optional

from plmjax import PlmjaxError
from plmjax.config import Block, number

# Which tokens of a document all of it sees, see EncoderConfig.global_tokens.
GlobalRule = Literal["none", "first", "question", "second", "sentences", "listed"]
# The kinds of layers: all tokens of the document, or those within a window.
KINDS = ("global", "local")


@dataclasses.dataclass(frozen=True)
class EncoderConfig(Block, prefix="model."):
    """The config of an encoder of any family.

    Each option is read at one line of models/. `vocab_size` and the padding id follow
    from the tokenizer.
    """

    family: Literal[
        "bert",
        "roberta",
        "xlm-roberta",
        "albert",
        "distilbert",
        "electra",
        "deberta-v2",
        "gpt2",
        "modernbert",
        "modernbert-decoder",
        "eurobert",
        "longformer",
        "bigbird",
        "nystromformer",
    ] = "bert"
    vocab_size: int = number(30522, at_least=1)
    layers: int = number(12, at_least=1)
    width: int = number(768, at_least=1)
    heads: int = number(12, at_least=1)
    # Heads of the keys and values, each for several queries; None: as many as `heads`.
    kv_heads: int | None = number(
        None, at_least=1, hint="Leave it out for a key and a value a head."
    )
    ffn_width: int = number(3072, at_least=1)
    # Narrower than `width` factorises the embeddings (ALBERT, ELECTRA-small).
    embedding_width: int | None = number(
        None, at_least=1, hint="Leave it out for embeddings as wide as the layers."
    )
    max_positions: int = number(512, at_least=1)
    # RoBERTa counts positions from padding_idx + 1, so its table is longer by as much.
    position_offset: int = number(0, at_least=0)
    token_types: int = number(2, at_least=0)
    activation: Literal["gelu", "gelu_tanh", "silu"] = "gelu"
    # The activation times a second product: GeGLU with gelu, SwiGLU with silu.
    gated: bool = False
    bias: bool = True
    norm: Literal["layer", "rms"] = "layer"
    norm_place: Literal["post", "pre"] = "post"
    # With norm_place="pre": a norm of the embeddings in place of the first layer's.
    norm_embeddings: bool = False
    norm_eps: float = number(1e-12, at_least=0)
    # Which parameters layers share (ALBERT), and how many sets of them there are.
    sharing: Literal["none", "attention", "ffn", "all"] = "none"
    groups: int = number(1, at_least=1)
    attention: Literal["full", "disentangled", "blocks", "nystrom"] = "full"
    # Nyström attention: the stretches of a document whose means stand for its tokens,
    # and the width in tokens of a convolution of the values beside it; 0: none.
    landmarks: int = number(64, at_least=1, hint="64 is usual.")
    value_convolution: int = number(65, at_least=0, hint="65 is usual.")
    # The kind of each layer, global or local, repeated over the layers; (): all global.
    # The queries of a local layer see half of a window of tokens to each side.
    layer_kinds: tuple = ()
    window: int = number(128, at_least=2, hint="ModernBERT has 128.")
    # Tokens that see all of their document in local layers, and are seen by it: the
    # first; those before the first of `global_ids` (the question), or after it (the
    # second text); the first of each sentence, by its end; those of `global_ids`. A row
    # holds `global_limit` of them.
    global_tokens: GlobalRule = "none"
    global_ids: tuple = ()
    global_limit: int = number(16, at_least=1, hint="A row has one for each document.")
    # Block sparse attention (BigBird): tokens a block, and how many blocks at random
    # each block sees.
    block: int = number(64, at_least=1, hint="BigBird has 64.")
    random_blocks: int = number(3, at_least=0, hint="BigBird has 3.")
    # rope: rotated queries and keys; alibi: a penalty on the distance; none: the
    # attention knows distances by other means (DeBERTa), or is causal.
    positions: Literal["learned", "rope", "alibi", "none"] = "learned"
    # The base of the rotations' wavelengths, in all layers or the global ones.
    rope_theta: float = number(10_000.0, above=0, hint="10000 is usual.")
    rope_local_theta: float | None = number(
        None, above=0, hint="Leave it out for one base in all layers."
    )
    # Stretches the rotations of global layers for rows longer, by a factor, than those
    # of an earlier training: ntk scales the base, yarn each wavelength by its length.
    rope_scaling: Literal["none", "ntk", "yarn"] = "none"
    rope_factor: float = number(1.0, at_least=1, hint="4 turns 2048 tokens to 8192.")
    # Disentangled attention: distances beyond half of the buckets share log-spaced
    # buckets up to max_positions; the keys and queries of distances use the weights of
    # the tokens, or separate ones; LayerNorm on the table of distances.
    position_buckets: int = number(256, at_least=2, hint="DeBERTa has 256.")
    share_position_projections: bool = True
    position_norm: bool = True
    # Width in tokens of a convolution beside layer 0 (DeBERTa-v2-xlarge); 0: none.
    convolution_width: int = number(0, at_least=0)
    causal: bool = False
    # transform: dense, activation and norm before the vocabulary, and a bias after;
    # plain: the token table alone (GPT-2); untied: a separate table (EuroBERT).
    head: Literal["transform", "plain", "untied"] = "transform"
    dropout: float = number(0.1, at_least=0, below=1)
    attention_dropout: float = number(0.1, at_least=0, below=1)
    init_std: float = number(0.02, at_least=0)
    # The type of activations; parameters are always float32.
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    # Rematerialisation in the backward pass, to save memory: full layers (about a third
    # more work), or "dots", everything in a layer but its matrix products.
    remat: bool | Literal["dots"] = False

    def __post_init__(self):
        super().__post_init__()
        self._check_divides("heads", self.heads, "width")
        self._check_sharing()
        self._check_attention()
        self._check_positions()

    def _check_divides(self, name: str, count: int, of: str) -> None:
        size = getattr(self, of)
        if size % count:
            fits = [n for n in range(1, size + 1) if size % n == 0]
            nearest = min(fits, key=lambda n: abs(n - count))
            raise PlmjaxError(
                f"model.{name}={count} does not divide model.{of}={size}.",
                hint=f"The nearest number of {name} that does is {nearest}.",
            )

    def _check_sharing(self) -> None:
        if self.groups > 1 and self.sharing == "none":
            raise PlmjaxError(
                f"model.groups={self.groups} has no effect with model.sharing='none'.",
                hint="Set model.sharing to 'all', 'attention' or 'ffn', or "
                "model.groups to 1.",
            )
        self._check_divides("groups", self.groups, "layers")

    def _check_attention(self) -> None:
        kv_heads = self.kv_heads or self.heads
        self._check_divides("kv_heads", kv_heads, "heads")
        if "local" in self.layer_kinds and self.sharing != "none":
            raise PlmjaxError(
                f"model.sharing={self.sharing!r} needs layers of one kind, but "
                f"model.layer_kinds is {self.layer_kinds!r}.",
                hint="Set model.sharing='none', or model.layer_kinds='()'.",
            )
        if unknown := [kind for kind in self.layer_kinds if kind not in KINDS]:
            raise PlmjaxError(
                f"model.layer_kinds has {unknown[0]!r}; a layer is global or local.",
                hint="ModernBERT has ('global', 'local', 'local').",
            )
        if self.window % 2:
            raise PlmjaxError(
                f"model.window is {self.window}; it must be even: half of the tokens "
                "are on each side.",
                hint=f"Set model.window={self.window + 1}.",
            )
        self._check_global_tokens()
        for name, on in (
            ("layer_kinds", "local" in self.layer_kinds),
            ("kv_heads", kv_heads != self.heads),
            ("positions", self.positions in ("rope", "alibi")),
            ("causal", self.causal),
        ):
            if self.attention != "full" and on:
                raise PlmjaxError(
                    f"model.attention={self.attention!r} cannot have "
                    f"model.{name}={getattr(self, name)!r}.",
                    hint="Set model.attention='full'.",
                )
        if self.attention == "nystrom":
            self._check_landmarks()

    def _check_landmarks(self) -> None:
        if self.landmarks > self.max_length:
            raise PlmjaxError(
                f"model.landmarks={self.landmarks} is more than the {self.max_length} "
                "tokens of the longest row.",
                hint=f"Set model.landmarks={self.max_length} for the exact softmax, or "
                "less.",
            )
        if self.value_convolution and (
            self.value_convolution % 2 == 0 or self.value_convolution < 3
        ):
            raise PlmjaxError(
                f"model.value_convolution is {self.value_convolution}; it must be odd "
                "and at least 3, as many tokens on each side, or 0 for none.",
                hint="Nyströmformer has 65.",
            )

    def _check_global_tokens(self) -> None:
        rule = self.global_tokens
        if rule == "none":
            return
        kinds = {self.layer_kind(layer) for layer in range(self.layers)}
        for name, value, on, wanted in (
            ("layer_kinds", self.layer_kinds, "local" in kinds, "('local',)"),
            ("causal", self.causal, not self.causal, "False"),
            ("positions", self.positions, self.positions != "alibi", "'learned'"),
        ):
            if not on:
                raise PlmjaxError(
                    f"model.global_tokens={rule!r} cannot be with "
                    f"model.{name}={value!r}: global tokens see all of their "
                    "document, where others see a window to both sides.",
                    hint=f"Set model.{name}={wanted}, or model.global_tokens='none'.",
                )
        ids = [x for x in self.global_ids if type(x) is int and x >= 0]
        if len(ids) < len(self.global_ids) or rule == "listed" and not ids:
            raise PlmjaxError(
                f"model.global_tokens={rule!r} needs the numbers of tokens in "
                f"model.global_ids, which is {self.global_ids!r}.",
                hint="Set model.global_ids to ids of the vocabulary: (4, 17).",
            )

    def _check_positions(self) -> None:
        disentangled = self.attention == "disentangled"
        if self.positions == "none" and not (disentangled or self.causal):
            raise PlmjaxError(
                f"model.positions='none' with model.attention={self.attention!r} hides "
                "the order of the tokens from the model.",
                hint="Set model.positions='learned' or 'rope', or "
                "model.attention='disentangled'.",
            )
        if self.positions == "rope" and self.head_width % 2:
            raise PlmjaxError(
                f"model.positions='rope' needs heads of an even width, but they have "
                f"{self.head_width} (model.width / model.heads).",
                hint="Change model.heads.",
            )
        if self.rope_scaling != "none" and self.positions != "rope":
            raise PlmjaxError(
                f"model.rope_scaling={self.rope_scaling!r} has no effect with "
                f"model.positions={self.positions!r}.",
                hint="Set model.positions='rope', or model.rope_scaling='none'.",
            )
        if self.norm_embeddings and (self.norm_place, self.sharing) != ("pre", "none"):
            raise PlmjaxError(
                "model.norm_embeddings=True needs model.norm_place='pre' and "
                "model.sharing='none'.",
                hint="Set them, or leave model.norm_embeddings out.",
            )
        if self.convolution_width and self.convolution_width % 2 == 0:
            raise PlmjaxError(
                f"model.convolution_width is {self.convolution_width}; it must be odd, "
                "as many tokens on each side, or 0 for none.",
                hint="DeBERTa-v2-xlarge has 3.",
            )
        if self.convolution_width and self.norm_place == "pre":
            raise PlmjaxError(
                f"model.convolution_width={self.convolution_width} needs "
                "model.norm_place='post'.",
                hint="Set model.norm_place='post', or model.convolution_width to 0.",
            )

    @property
    def head_width(self) -> int:
        """The width of an attention head."""
        return self.width // self.heads

    def layer_kind(self, layer: int) -> str:
        """The kind of a layer, counted from 0: "global" or "local"."""
        kinds = self.layer_kinds or ("global",)
        return kinds[layer % len(kinds)]

    @property
    def global_projections(self) -> bool:
        """Whether local layers have projections for global tokens."""
        return self.family == "longformer" or self.global_tokens != "none"

    @property
    def shortest_sparse(self) -> int:
        """The shortest row that block sparse attention can read, in tokens."""
        return (5 + 2 * self.random_blocks) * self.block + 1

    @property
    def one_document(self) -> bool:
        """Whether the attention depends on the row: it must hold one document."""
        return self.attention in ("blocks", "nystrom")

    @property
    def input_width(self) -> int:
        """The width of the embedding tables."""
        return self.embedding_width or self.width

    @property
    def max_length(self) -> int:
        """The largest row length that the positions allow, in tokens."""
        return self.max_positions - self.position_offset


# What a family has, but for the sizes.
_ROBERTA = {
    "family": "roberta",
    "vocab_size": 50265,
    "max_positions": 514,
    "position_offset": 2,
    "token_types": 1,
    "norm_eps": 1e-5,
}
_XLM_ROBERTA = _ROBERTA | {"family": "xlm-roberta", "vocab_size": 250002}
_LONGFORMER = _ROBERTA | {
    "family": "longformer",
    "max_positions": 4098,
    "layer_kinds": ("local",),
    "window": 512,
}
_ALBERT = {
    "family": "albert",
    "vocab_size": 30000,
    "embedding_width": 128,
    "sharing": "all",
}
_NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0}
# Google's second version has no dropout and uses GELU's tanh approximation.
_ALBERT_V2 = _ALBERT | _NO_DROPOUT | {"activation": "gelu_tanh"}
_DISTILBERT = {"family": "distilbert", "token_types": 0}
# The discriminator; objectives/generator.py makes its generator.
_ELECTRA = {"family": "electra"}
_DEBERTA = {
    "family": "deberta-v2",
    "vocab_size": 128100,
    "token_types": 0,
    "norm_eps": 1e-7,
    "attention": "disentangled",
    "positions": "none",
}
_GPT2 = {
    "family": "gpt2",
    "vocab_size": 50257,
    "max_positions": 1024,
    "token_types": 0,
    "activation": "gelu_tanh",
    "norm_place": "pre",
    "norm_eps": 1e-5,
    "causal": True,
    "head": "plain",
}
_ROTATED = _NO_DROPOUT | {
    "max_positions": 8192,
    "token_types": 0,
    "gated": True,
    "bias": False,
    "norm_place": "pre",
    "norm_eps": 1e-5,
    "positions": "rope",
}
_MODERNBERT = _ROTATED | {
    "family": "modernbert",
    "vocab_size": 50368,
    "norm_embeddings": True,
    "layer_kinds": ("global", "local", "local"),
    "rope_theta": 160_000.0,
    "rope_local_theta": 10_000.0,
}
_ETTIN = _MODERNBERT | {"max_positions": 7999, "rope_local_theta": None}
# Ettin's pairs: an encoder and a decoder of one shape; layers, width and inner width.
_ETTIN_SIZES = {
    "17m": (7, 256, 384),
    "32m": (10, 384, 576),
    "68m": (19, 512, 768),
    "150m": (22, 768, 1152),
    "400m": (28, 1024, 2624),
    "1b": (28, 1792, 3840),
}
_EUROBERT = _ROTATED | {
    "family": "eurobert",
    "vocab_size": 128256,
    "activation": "silu",
    "norm": "rms",
    "rope_theta": 250_000.0,
    "head": "untied",
}
_BIGBIRD = {
    "family": "bigbird",
    "vocab_size": 50358,
    "max_positions": 4096,
    "activation": "gelu_tanh",
    "attention": "blocks",
}
_NYSTROMFORMER = {
    "family": "nystromformer",
    "vocab_size": 30000,
    "position_offset": 2,
    "activation": "gelu_tanh",
    "norm_eps": 1e-5,
    "attention": "nystrom",
}


def _model(layers: int, width: int, family: Mapping[str, Any], **more) -> EncoderConfig:
    """A model of a family; `more` replaces what BERT's shape or the family say."""
    shape = {"layers": layers, "width": width}
    shape |= {"heads": width // 64, "ffn_width": 4 * width}
    return EncoderConfig(**{**shape, **family, **more})


# From the config.json files on huggingface.co; of some modern sizes from their authors'
# training files (docs/model.md).
# The tiny ones except BERT's are ours, for training on two cores.
PRESETS: dict[str, EncoderConfig] = {
    "bert-tiny": _model(2, 128, {}),
    "bert-mini": _model(4, 256, {}),
    "bert-small": _model(4, 512, {}),
    "bert-medium": _model(8, 512, {}),
    "bert-base": _model(12, 768, {}),
    "bert-large": _model(24, 1024, {}),
    "roberta-tiny": _model(4, 256, _ROBERTA),
    "roberta-base": _model(12, 768, _ROBERTA),
    "roberta-large": _model(24, 1024, _ROBERTA),
    "xlm-roberta-tiny": _model(4, 256, _XLM_ROBERTA),
    "xlm-roberta-base": _model(12, 768, _XLM_ROBERTA),
    "xlm-roberta-large": _model(24, 1024, _XLM_ROBERTA),
    "albert-tiny": _model(4, 256, _ALBERT_V2),
    "albert-base-v1": _model(12, 768, _ALBERT),
    "albert-large-v1": _model(24, 1024, _ALBERT),
    "albert-xlarge-v1": _model(24, 2048, _ALBERT, heads=16),
    # Already trained without dropout, according to its config.json.
    "albert-xxlarge-v1": _model(12, 4096, _ALBERT | _NO_DROPOUT),
    "albert-base-v2": _model(12, 768, _ALBERT_V2),
    "albert-large-v2": _model(24, 1024, _ALBERT_V2),
    "albert-xlarge-v2": _model(24, 2048, _ALBERT_V2, heads=16),
    "albert-xxlarge-v2": _model(12, 4096, _ALBERT_V2),
    # Half the layers of bert-mini, its teacher.
    "distilbert-tiny": _model(2, 256, _DISTILBERT),
    "distilbert-base": _model(6, 768, _DISTILBERT),
    "electra-tiny": _model(4, 256, _ELECTRA, embedding_width=128),
    "electra-small": _model(12, 256, _ELECTRA, embedding_width=128),
    "electra-base": _model(12, 768, _ELECTRA, embedding_width=768),
    "electra-large": _model(24, 1024, _ELECTRA, embedding_width=1024),
    "deberta-v2-xlarge": _model(24, 1536, _DEBERTA, convolution_width=3),
    "deberta-v2-xxlarge": _model(48, 1536, _DEBERTA, convolution_width=3),
    "deberta-v3-tiny": _model(4, 256, _DEBERTA),
    "deberta-v3-xsmall": _model(12, 384, _DEBERTA),
    "deberta-v3-small": _model(6, 768, _DEBERTA),
    "deberta-v3-base": _model(12, 768, _DEBERTA),
    "deberta-v3-large": _model(24, 1024, _DEBERTA),
    "gpt2-tiny": _model(4, 256, _GPT2),
    "gpt2": _model(12, 768, _GPT2),
    "gpt2-medium": _model(24, 1024, _GPT2),
    "gpt2-large": _model(36, 1280, _GPT2),
    "gpt2-xl": _model(48, 1600, _GPT2),
    "modernbert-tiny": _model(4, 256, _MODERNBERT, ffn_width=384),
    "modernbert-base": _model(22, 768, _MODERNBERT, ffn_width=1152),
    "modernbert-large": _model(28, 1024, _MODERNBERT, ffn_width=2624),
    **{
        f"ettin-{kind}-{size}": _model(layers, width, _ETTIN | more, ffn_width=inner)
        for kind, more in (
            ("encoder", {}),
            ("decoder", {"family": "modernbert-decoder", "causal": True}),
        )
        for size, (layers, width, inner) in _ETTIN_SIZES.items()
    },
    "longformer-tiny": _model(4, 256, _LONGFORMER),
    "longformer-base-4096": _model(12, 768, _LONGFORMER),
    "longformer-large-4096": _model(24, 1024, _LONGFORMER),
    "eurobert-tiny": _model(4, 256, _EUROBERT, kv_heads=2),
    "eurobert-210m": _model(12, 768, _EUROBERT, kv_heads=12),
    "eurobert-610m": _model(26, 1152, _EUROBERT, kv_heads=6, ffn_width=4096),
    "bigbird-tiny": _model(4, 256, _BIGBIRD, max_positions=1024, block=16),
    "bigbird-base": _model(12, 768, _BIGBIRD),
    "bigbird-large": _model(24, 1024, _BIGBIRD),
    "nystromformer-tiny": _model(4, 256, _NYSTROMFORMER, max_positions=1026),
    **{
        f"nystromformer-{name}": _model(12, 768, _NYSTROMFORMER, max_positions=length)
        for name, length in ((512, 512), (1024, 1026), (2048, 2050), (4096, 4098))
    },
}


def _model_block() -> type:
    """A config block: a preset, and any field of EncoderConfig to override it."""
    preset = dataclasses.field(default="bert-tiny", metadata={"resets": True})
    block: list[tuple[str, Any, Any]] = [("preset", str, preset)]
    for field in dataclasses.fields(EncoderConfig):
        empty = dataclasses.field(default=None, metadata=field.metadata)
        block.append((field.name, Optional[field.type], empty))  # noqa: UP045
    prefix = {"prefix": EncoderConfig.prefix}
    return dataclasses.make_dataclass(
        "ModelConfig", block, bases=(Block,), namespace=prefix, frozen=True
    )


# vocab_size and position_offset follow from the tokenizer unless given.
ModelConfig = _model_block()


def resolve(
    block,
    vocab_size: int,
    pad_id: int,
    global_ids: Mapping[str, tuple[int, ...]] | None = None,
) -> EncoderConfig:
    """Returns the encoder that a model block names, for a tokenizer.

    `global_ids` are the tokenizer's for each rule of model.global_tokens.

    Raises:
      PlmjaxError: the preset is unknown, or values do not fit together.
    """
    given = {name: value for name, value in vars(block).items() if value is not None}
    preset = given.pop("preset")
    if preset not in PRESETS:
        # There are some forty presets: list all only if none is similar.
        near = difflib.get_close_matches(preset, PRESETS, n=4)
        raise PlmjaxError(
            f"model.preset cannot be {preset!r}.",
            hint=f"Did you mean {', '.join(near)}?"
            if near
            else f"Known: {', '.join(PRESETS)}.",
        )
    if given.get("vocab_size", vocab_size) < vocab_size:
        raise PlmjaxError(
            f"model.vocab_size={given['vocab_size']} is smaller than the tokenizer's "
            f"{vocab_size} pieces.",
            hint="Leave it out, and it follows the tokenizer.",
        )
    derived: dict = {"vocab_size": vocab_size}
    if PRESETS[preset].position_offset and PRESETS[preset].family != "nystromformer":
        # In RoBERTa, padding has position padding_idx, and text begins after it.
        derived["position_offset"] = pad_id + 1
    config = dataclasses.replace(PRESETS[preset], **(derived | given))
    return config if global_ids is None else with_global_ids(config, global_ids)


def with_global_ids(
    config: EncoderConfig, global_ids: Mapping[str, tuple[int, ...]]
) -> EncoderConfig:
    """Returns the config with the ids of its rule of global tokens, unless it has some.

    Raises:
      PlmjaxError: the rule has none, or the vocabulary has not the given ones.
    """
    rule = config.global_tokens
    ids = config.global_ids or global_ids.get(rule, ())
    if rule == "sentences" and not ids:
        raise PlmjaxError(
            "model.global_tokens='sentences', but the tokenizer has no piece that is a "
            "full stop, an exclamation or a question mark alone.",
            hint="Set model.global_ids to the ids of the pieces that end a sentence.",
        )
    if ids and max(ids) >= config.vocab_size:
        raise PlmjaxError(
            f"model.global_ids has {max(ids)}, but the ids end at "
            f"{config.vocab_size - 1}.",
            hint="Give ids of the tokenizer's pieces.",
        )
    return dataclasses.replace(config, global_ids=ids)
