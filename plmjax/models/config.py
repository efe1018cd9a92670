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
    attention: Literal["full", "disentangled"] = "full"
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
    dtype: Literal["float32", "bfloat16"] = "float32"
    # Rematerialisation in the backward pass, to save memory: full layers (about a third
    # more work), or "dots", everything in a layer but its matrix products.
    remat: bool | Literal["dots"] = False

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.heads:
            raise PlmjaxError(
                f"model.heads={self.heads} does not divide model.width={self.width}.",
                hint="The nearest number of heads that does is "
                f"{_nearest_divisor(self.width, self.heads)}.",
            )
        self._check_sharing()
        self._check_attention()
        self._check_positions()

    def _check_sharing(self) -> None:
        if self.groups > 1 and self.sharing == "none":
            raise PlmjaxError(
                f"model.groups={self.groups} has no effect with model.sharing='none'.",
                hint="Set model.sharing to 'all', 'attention' or 'ffn', or "
                "model.groups to 1.",
            )
        if self.layers % self.groups:
            raise PlmjaxError(
                f"model.groups={self.groups} does not divide "
                f"model.layers={self.layers}.",
                hint="The nearest number of groups that does is "
                f"{_nearest_divisor(self.layers, self.groups)}.",
            )

    def _check_attention(self) -> None:
        kv_heads = self.kv_heads or self.heads
        if self.heads % kv_heads:
            raise PlmjaxError(
                f"model.kv_heads={kv_heads} does not divide model.heads={self.heads}.",
                hint="The nearest number that does is "
                f"{_nearest_divisor(self.heads, kv_heads)}.",
            )
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
        disentangled = self.attention == "disentangled"
        for name, on in (
            ("layer_kinds", "local" in self.layer_kinds),
            ("kv_heads", kv_heads != self.heads),
            ("positions", self.positions in ("rope", "alibi")),
        ):
            if disentangled and on:
                raise PlmjaxError(
                    "model.attention='disentangled' cannot have "
                    f"model.{name}={getattr(self, name)!r}.",
                    hint="Set model.attention='full'.",
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
        if disentangled and self.causal:
            raise PlmjaxError(
                "model.attention='disentangled' cannot be causal, but model.causal is "
                "True.",
                hint="Set model.attention='full', or model.causal=False.",
            )
        if self.positions == "none" and not (disentangled or self.causal):
            raise PlmjaxError(
                "model.positions='none' with model.attention='full' hides the order "
                "of the tokens from the model.",
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
    def input_width(self) -> int:
        """The width of the embedding tables."""
        return self.embedding_width or self.width

    @property
    def max_length(self) -> int:
        """The largest row length that the positions allow, in tokens."""
        return self.max_positions - self.position_offset


def _nearest_divisor(size: int, wanted: int) -> int:
    fits = [n for n in range(1, size + 1) if size % n == 0]
    return min(fits, key=lambda n: abs(n - wanted))


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


def _xlm_roberta(layers: int, width: int) -> EncoderConfig:
    return dataclasses.replace(
        _roberta(layers, width), family="xlm-roberta", vocab_size=250002
    )


def _albert(layers: int, width: int, heads: int, version: int) -> EncoderConfig:
    # Google's second version has no dropout and uses GELU's tanh approximation.
    rate = 0.1 if version == 1 else 0.0
    return dataclasses.replace(
        _bert(layers, width),
        family="albert",
        vocab_size=30000,
        heads=heads,
        embedding_width=128,
        activation="gelu" if version == 1 else "gelu_tanh",
        sharing="all",
        dropout=rate,
        attention_dropout=rate,
    )


def _albert_xxlarge_v1() -> EncoderConfig:
    # Already trained without dropout, according to its config.json.
    return dataclasses.replace(
        _albert(12, 4096, 64, version=1), dropout=0.0, attention_dropout=0.0
    )


def _distilbert(layers: int, width: int) -> EncoderConfig:
    return dataclasses.replace(_bert(layers, width), family="distilbert", token_types=0)


def _electra(layers: int, width: int, embedding_width: int) -> EncoderConfig:
    """The discriminator; objectives/generator.py makes its generator."""
    return dataclasses.replace(
        _bert(layers, width), family="electra", embedding_width=embedding_width
    )


def _deberta(layers: int, width: int, convolution_width: int = 0) -> EncoderConfig:
    return dataclasses.replace(
        _bert(layers, width),
        family="deberta-v2",
        vocab_size=128100,
        token_types=0,
        norm_eps=1e-7,
        attention="disentangled",
        positions="none",
        convolution_width=convolution_width,
    )


def _gpt2(layers: int, width: int) -> EncoderConfig:
    return dataclasses.replace(
        _bert(layers, width),
        family="gpt2",
        vocab_size=50257,
        max_positions=1024,
        token_types=0,
        activation="gelu_tanh",
        norm_place="pre",
        norm_eps=1e-5,
        causal=True,
        head="plain",
    )


def _modernbert(layers: int, width: int, ffn_width: int, **more) -> EncoderConfig:
    return dataclasses.replace(
        _bert(layers, width),
        **{
            "family": "modernbert",
            "vocab_size": 50368,
            "ffn_width": ffn_width,
            "max_positions": 8192,
            "token_types": 0,
            "gated": True,
            "bias": False,
            "norm_place": "pre",
            "norm_embeddings": True,
            "norm_eps": 1e-5,
            "layer_kinds": ("global", "local", "local"),
            "positions": "rope",
            "rope_theta": 160_000.0,
            "rope_local_theta": 10_000.0,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            **more,
        },
    )


# Layers, width and inner width.
_ETTIN = {
    "17m": (7, 256, 384),
    "32m": (10, 384, 576),
    "68m": (19, 512, 768),
    "150m": (22, 768, 1152),
    "400m": (28, 1024, 2624),
    "1b": (28, 1792, 3840),
}


def _ettin(layers: int, width: int, ffn_width: int, causal: bool) -> EncoderConfig:
    """Ettin's pairs: an encoder and a decoder of one shape."""
    family = "modernbert-decoder" if causal else "modernbert"
    return _modernbert(
        layers,
        width,
        ffn_width,
        family=family,
        causal=causal,
        max_positions=7999,
        rope_local_theta=None,
    )


def _eurobert(layers: int, width: int, ffn_width: int, heads: int, kv_heads: int):
    return dataclasses.replace(
        _bert(layers, width),
        family="eurobert",
        vocab_size=128256,
        heads=heads,
        kv_heads=kv_heads,
        ffn_width=ffn_width,
        max_positions=8192,
        token_types=0,
        activation="silu",
        gated=True,
        bias=False,
        norm="rms",
        norm_place="pre",
        norm_eps=1e-5,
        positions="rope",
        rope_theta=250_000.0,
        head="untied",
        dropout=0.0,
        attention_dropout=0.0,
    )


def _longformer(layers: int, width: int) -> EncoderConfig:
    return dataclasses.replace(
        _roberta(layers, width),
        family="longformer",
        max_positions=4098,
        layer_kinds=("local",),
        window=512,
    )


# From the config.json files on huggingface.co; Ettin's positions, EuroBERT's sizes and
# the bases of both families' rotations are recalled, and were not checked there.
# The tiny ones except BERT's are ours, for training on two cores.
PRESETS: dict[str, EncoderConfig] = {
    "bert-tiny": _bert(2, 128),
    "bert-mini": _bert(4, 256),
    "bert-small": _bert(4, 512),
    "bert-medium": _bert(8, 512),
    "bert-base": _bert(12, 768),
    "bert-large": _bert(24, 1024),
    "roberta-tiny": _roberta(4, 256),
    "roberta-base": _roberta(12, 768),
    "roberta-large": _roberta(24, 1024),
    "xlm-roberta-tiny": _xlm_roberta(4, 256),
    "xlm-roberta-base": _xlm_roberta(12, 768),
    "xlm-roberta-large": _xlm_roberta(24, 1024),
    "albert-tiny": _albert(4, 256, 4, version=2),
    "albert-base-v1": _albert(12, 768, 12, version=1),
    "albert-large-v1": _albert(24, 1024, 16, version=1),
    "albert-xlarge-v1": _albert(24, 2048, 16, version=1),
    "albert-xxlarge-v1": _albert_xxlarge_v1(),
    "albert-base-v2": _albert(12, 768, 12, version=2),
    "albert-large-v2": _albert(24, 1024, 16, version=2),
    "albert-xlarge-v2": _albert(24, 2048, 16, version=2),
    "albert-xxlarge-v2": _albert(12, 4096, 64, version=2),
    # Half the layers of bert-mini, its teacher.
    "distilbert-tiny": _distilbert(2, 256),
    "distilbert-base": _distilbert(6, 768),
    "electra-tiny": _electra(4, 256, 128),
    "electra-small": _electra(12, 256, 128),
    "electra-base": _electra(12, 768, 768),
    "electra-large": _electra(24, 1024, 1024),
    "deberta-v2-xlarge": _deberta(24, 1536, convolution_width=3),
    "deberta-v2-xxlarge": _deberta(48, 1536, convolution_width=3),
    "deberta-v3-tiny": _deberta(4, 256),
    "deberta-v3-xsmall": _deberta(12, 384),
    "deberta-v3-small": _deberta(6, 768),
    "deberta-v3-base": _deberta(12, 768),
    "deberta-v3-large": _deberta(24, 1024),
    "gpt2-tiny": _gpt2(4, 256),
    "gpt2": _gpt2(12, 768),
    "gpt2-medium": _gpt2(24, 1024),
    "gpt2-large": _gpt2(36, 1280),
    "gpt2-xl": _gpt2(48, 1600),
    "modernbert-tiny": _modernbert(4, 256, 384),
    "modernbert-base": _modernbert(22, 768, 1152),
    "modernbert-large": _modernbert(28, 1024, 2624),
    **{
        f"ettin-{kind}-{size}": _ettin(*shape, causal=kind == "decoder")
        for kind in ("encoder", "decoder")
        for size, shape in _ETTIN.items()
    },
    "longformer-tiny": _longformer(4, 256),
    "longformer-base-4096": _longformer(12, 768),
    "longformer-large-4096": _longformer(24, 1024),
    "eurobert-tiny": _eurobert(4, 256, 1024, heads=4, kv_heads=2),
    "eurobert-210m": _eurobert(12, 768, 3072, heads=12, kv_heads=12),
    "eurobert-610m": _eurobert(26, 1152, 4096, heads=18, kv_heads=6),
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
    if PRESETS[preset].position_offset:
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
