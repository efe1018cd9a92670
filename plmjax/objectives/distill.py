"""Distillation: a student learns its teacher's predictions on masked text (DistilBERT,
Sanh et al. 2019, arXiv:1910.01108), and its layers' states (TinyBERT, MiniLM).

Legend: B rows, L tokens, T positions that are predicted, H width of the student, W
width of the teacher, V vocabulary of the student.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from plmjax import PlmjaxError
from plmjax.config import number
from plmjax.models import EncoderConfig, flops, heads
from plmjax.models.layers import affine
from plmjax.objectives import distances, masking
from plmjax.objectives.base import Batch, Key, single_model
from plmjax.objectives.distances import Kept
from plmjax.objectives.masked import Masked, MaskedConfig, token_loss
from plmjax.objectives.mlm import token_scores

TERMS = ("soft", "mlm", "cosine", "hidden", "attention")


@dataclasses.dataclass(frozen=True)
class DistillConfig(MaskedConfig):
    """The teacher, the terms of the loss, and the start of the student."""

    kind: Literal["distill"] = "distill"
    # A run's workdir or a Hugging Face folder, with a vocabulary head.
    teacher: str | None = None
    # The teacher's dtype; none: as it is loaded.
    teacher_dtype: Literal["float32", "bfloat16"] | None = None
    # Softens both distributions of the soft loss; weights as in DistilBERT's code.
    temperature: float = number(2.0, above=0)
    soft_weight: float = number(5.0, at_least=0)
    mlm_weight: float = number(2.0, at_least=0)
    cosine_weight: float = number(1.0, at_least=0)
    # Mean squared error of hidden states, layer by layer (TinyBERT), and relations of
    # the last layers (MiniLM).
    hidden_weight: float = number(0.0, at_least=0)
    attention_weight: float = number(0.0, at_least=0)
    # Positions of the soft loss: all tokens, as in DistilBERT's code without
    # --restrict_ce_to_mask, or only the masked ones, which costs less.
    soft_positions: Literal["all", "masked"] = "all"
    # For each layer of the student, the teacher's layer that it starts from and follows
    # (from 0); empty: evenly spread from the first to the last.
    layers: tuple = ()
    start: Literal["teacher", "fresh"] = "teacher"
    # A teacher with another vocabulary is refused, or aligned by equal strings.
    align: Literal["none", "strings"] = "none"

    def __post_init__(self):
        super().__post_init__()
        if not any(self.weight(term) for term in TERMS):
            names = [f"{term}_weight" for term in TERMS]
            raise PlmjaxError(
                f"objective: {', '.join(names)} are all 0; one must be above 0."
            )

    def weight(self, term: str) -> float:
        """Returns the weight of a term of the loss."""
        return getattr(self, f"{term}_weight")

    @property
    def predicts_all(self) -> bool:
        """Whether the vocabulary head runs on all tokens of a row."""
        return self.soft_positions == "all" and self.soft_weight > 0


class Outputs(NamedTuple):
    """A model's outputs: logits [T, V], last states [B * L, H], intermediates."""

    logits_TV: jax.Array
    x_TH: jax.Array
    kept: Kept | None


@dataclasses.dataclass(frozen=True, eq=False)
class Distill(Masked):
    """Trains the encoder as the student of a teacher.

    frozen["teacher"] is the teacher, {"encoder", "head"}. With config.align,
    frozen["pieces"] maps the student's pieces to the teacher's: "ids" [V] int32 (the
    teacher's mask for unknown ones), "known" [V] bool. params["projection"], from the
    student's width to the teacher's, is not part of the exported model.

    Raises:
      PlmjaxError: there is no teacher, or it does not fit the student and the config.
    """

    config: DistillConfig
    teacher: EncoderConfig | None = None

    def __post_init__(self):
        if self.teacher is None:
            raise no_teacher()
        _check(self.config, self.encoder, self.teacher)
        _ = self.layers
        super().__post_init__()

    @property
    def layers(self) -> tuple[int, ...]:
        """The teacher's layer for each layer of the student; () if unused."""
        return chosen_layers(self.config, self.encoder, self._teacher)

    @property
    def _teacher(self) -> EncoderConfig:
        assert self.teacher is not None
        return self.teacher

    @property
    def projects(self) -> bool:
        """Whether the student's states are projected to the teacher's width."""
        compares = self.config.cosine_weight > 0 or self.config.hidden_weight > 0
        return compares and self.encoder.width != self._teacher.width

    @property
    def models(self):
        return single_model(self.encoder, ("head",))

    @property
    def weights(self):
        others = [t for t in TERMS if t != "mlm" and self.config.weight(t) > 0]
        return {"loss": self.config.mlm_weight} | {
            f"{term}_loss": self.config.weight(term) for term in others
        }

    @property
    def token_loss(self):
        return "mlm_loss"

    def init(self, key, batch):
        params = heads.init_model(self.encoder, key, batch, ("head",))
        if self.projects:
            shape = (self.encoder.width, self._teacher.width)
            kernel_HW = jax.random.normal(jax.random.fold_in(key, 1000), shape)
            params["projection"] = {"kernel": self.encoder.init_std * kernel_HW}
        return params

    def corrupt(self, frozen: dict, batch: Batch, key: Key, progress) -> Batch:
        batch = self.mask(frozen, batch, key, progress)
        real_BL = (batch["segments"] > 0).astype(jnp.float32)
        return batch | {"real_weights": real_BL / jnp.maximum(jnp.sum(real_BL), 1)}

    def _run(self, model: EncoderConfig, params, batch: Batch, noise) -> Outputs:
        kept = None
        if self.config.hidden_weight > 0 or self.config.attention_weight > 0:
            encoded = distances.encode(model, params, batch, noise, self.platform)
            x_BLH, kept = encoded
        else:
            x_BLH = heads.encode(model, params, batch, noise, self.platform)
        x_TH = at_TH = x_BLH.reshape(-1, model.width)
        if not self.config.predicts_all:
            at_TH = heads.gather_positions(x_BLH, batch["mask_positions"])
        logits_TV = heads.vocabulary_logits(model, params, at_TH, self.platform)
        return Outputs(logits_TV, x_TH, kept)

    def _project(self, params, x_TH) -> Any:
        if not self.projects:
            return x_TH
        kernel_HW = params["projection"]["kernel"]
        return affine(x_TH, kernel_HW, None, self.encoder.dtype, self.platform)

    def _distances(self, params, frozen, batch: Batch, ours: Outputs, theirs: Outputs):
        """Yields (term, values of the positions, weights of the positions)."""
        config, real_BL = self.config, batch["real_weights"]
        if config.soft_weight > 0:
            pieces = frozen["pieces"] if config.align == "strings" else None
            logits = aligned(ours.logits_TV, theirs.logits_TV, pieces)
            soft_T: Any = distances.softened_kl(*logits, config.temperature)
            yield "soft", soft_T, real_BL if config.predicts_all else batch["weights"]
        if config.cosine_weight > 0:
            x_TW = self._project(params, ours.x_TH)
            yield "cosine", distances.cosine_loss(x_TW, theirs.x_TH), real_BL
        if ours.kept is None or theirs.kept is None:
            return
        if config.hidden_weight > 0:
            follows = zip(ours.kept.states, self.layers, strict=True)
            pairs = [
                (self._project(params, x), theirs.kept.states[j]) for x, j in follows
            ]
            yield "hidden", distances.hidden_loss(pairs), real_BL
        if config.attention_weight > 0:
            attention_T = distances.attention_loss(
                ours.kept, theirs.kept, batch["segments"], self.platform
            )
            yield "attention", attention_T, real_BL

    def loss(self, params, frozen, batch: Batch, key: Key, train: bool):
        frozen = jax.lax.stop_gradient(frozen)
        noise = key.noise(batch) if train else None
        ours = self._run(self.encoder, params, batch, noise)
        teacher_batch = batch
        if self.config.align == "strings":
            ids_V = frozen["pieces"]["ids"]
            teacher_batch = batch | {"tokens": jnp.take(ids_V, batch["tokens"])}
        theirs = self._run(self._teacher, frozen["teacher"], teacher_batch, None)
        labelled = labels_of_all_tokens(batch) if self.config.predicts_all else batch
        bytes_V = frozen["piece_bytes"]
        value, metrics = token_loss(ours.logits_TV, labelled, bytes_V)
        terms = {"loss": value}
        for term, values_T, weights in self._distances(
            params, frozen, batch, ours, theirs
        ):
            name = f"{term}_loss"
            terms[name], metrics[name] = distances.weighted(
                values_T, weights.reshape(-1)
            )
        return self.total(terms), metrics

    def scores(self, means):
        losses = {name: means[name] for name in self.weights if name != "loss"}
        losses = {"mlm_loss": means["loss"]} | losses
        return token_scores(means) | {"loss": self.total(means)} | losses

    def slots(self, length):
        return length if self.config.predicts_all else self.config.slots(length)

    def flops(self, length):
        ours, theirs = (
            flops.encoder_flops(model, length)
            + flops.vocabulary_flops(model, self.slots(length))
            for model in (self.encoder, self._teacher)
        )
        # The teacher only runs the forward pass, a third of the training FLOPs.
        return ours + theirs / 3


def no_teacher() -> PlmjaxError:
    """Returns the error for a distillation without a teacher."""
    return PlmjaxError(
        "objective.kind=distill has no teacher.",
        hint="Set --config.objective.teacher to a run's workdir or to a Hugging Face "
        "folder.",
    )


def labels_of_all_tokens(batch: Batch) -> Batch:
    """Returns labels and weights [B, L] of all tokens, from those [B, K] of the masks.

    Gathering rows out of the logits [B, L, V] instead would double their memory.
    """
    at_BK = batch["mask_positions"]
    nothing_BL = jnp.zeros(batch["tokens"].shape, jnp.float32)
    return {
        "labels": masking.scatter_positions(batch["tokens"], at_BK, batch["labels"]),
        "weights": masking.scatter_positions(nothing_BL, at_BK, batch["weights"]),
    }


def aligned(ours_TV: jax.Array, theirs_TV: jax.Array, pieces: dict | None):
    """Returns the logits of both models over their common pieces, [T, V] each.

    Pieces of only one model get no probability from either, so the soft loss compares
    the distributions over the common pieces.
    """
    if pieces is None:
        # The vocabularies are equal, but one table may have more padding.
        size = min(ours_TV.shape[1], theirs_TV.shape[1])
        return ours_TV[:, :size], theirs_TV[:, :size]
    known_V = pieces["known"][None, :]
    theirs_TV = jnp.take(theirs_TV, pieces["ids"], axis=1)
    nothing = jnp.float32(-1e30)
    return (
        jnp.where(known_V, ours_TV, nothing),
        jnp.where(known_V, theirs_TV, nothing),
    )


def chosen_layers(
    config: DistillConfig, encoder: EncoderConfig, teacher: EncoderConfig
) -> tuple[int, ...]:
    """Returns the teacher's layer for each layer of the student; () if unused.

    Raises:
      PlmjaxError: config.layers has a wrong length, or a layer out of range.
    """
    layers, count = config.layers, teacher.layers
    if not layers:
        needed = config.start == "teacher" or config.hidden_weight > 0
        return even_layers(encoder.layers, count) if needed else ()
    if len(layers) != encoder.layers:
        raise PlmjaxError(
            f"objective.layers={layers} names {len(layers)} of the teacher's layers, "
            f"but the student has {encoder.layers}.",
            hint="Name one for each.",
        )
    if not all(isinstance(j, int) and 0 <= j < count for j in layers):
        raise PlmjaxError(
            f"objective.layers={layers} must be numbers from 0 to {count - 1}: the "
            f"teacher has {count} layers."
        )
    return layers


def even_layers(student: int, teacher: int) -> tuple[int, ...]:
    """Returns evenly spaced layers of a teacher, from the first to the last.

    For 6 of 12 they are those that DistilBERT started from, 0, 2, 4, 7, 9, 11. A
    student of one layer gets the last.

    Raises:
      PlmjaxError: the student has more layers than the teacher.
    """
    if student > teacher:
        raise PlmjaxError(
            f"the student has {student} layers, more than its teacher's {teacher}.",
            hint="Set model.layers to fewer, or name one of the teacher's for each in "
            "objective.layers.",
        )
    if student == 1:
        return (teacher - 1,)
    # Rounded in integers.
    gaps = student - 1
    return tuple((2 * i * (teacher - 1) + gaps) // (2 * gaps) for i in range(student))


# Fields that must be equal if a student starts from its teacher's layers.
_SAME = (
    "width",
    "input_width",
    "ffn_width",
    "heads",
    "activation",
    "gated",
    "bias",
    "norm_place",
    "norm_eps",
    "attention",
    "positions",
    "max_positions",
    "position_offset",
    "position_buckets",
    "share_position_projections",
    "position_norm",
    "convolution_width",
    "head",
)


def _check(config: DistillConfig, encoder: EncoderConfig, teacher: EncoderConfig):
    """Raises PlmjaxError if this student cannot follow this teacher."""
    if teacher.causal:
        raise PlmjaxError(
            f"the teacher {config.teacher} is causal; it cannot predict masked words "
            "from both sides.",
            hint="Give one that was trained with objective.kind=mlm.",
        )
    if config.attention_weight > 0:
        kinds = {encoder.attention, teacher.attention}
        counts = {encoder.heads, teacher.heads}
        counts |= {model.kv_heads or model.heads for model in (encoder, teacher)}
        if kinds != {"full"} or len(counts) > 1:
            raise PlmjaxError(
                "objective.attention_weight compares the attention head by head, and "
                f"student and teacher differ: {encoder.heads} heads of "
                f"{encoder.attention} attention, {teacher.heads} of "
                f"{teacher.attention}.",
                hint="Set model.heads and model.attention to the teacher's (full), or "
                "objective.attention_weight=0.",
            )
    if config.start == "teacher":
        _check_start(encoder, teacher)


def _check_start(encoder: EncoderConfig, teacher: EncoderConfig):
    hint = "Change the model block, or set --config.objective.start=fresh."
    wrong = [
        f"model.{name}={getattr(encoder, name)!r} (teacher: {getattr(teacher, name)!r})"
        for name in _SAME
        if getattr(encoder, name) != getattr(teacher, name)
        # Block sparse attention has the parameters of full attention.
        and {getattr(encoder, name), getattr(teacher, name)} != {"full", "blocks"}
    ]
    if encoder.token_types not in (0, teacher.token_types):
        wrong.append(
            f"model.token_types={encoder.token_types} (teacher: {teacher.token_types})"
        )
    if wrong:
        named = ", ".join(wrong).replace("input_width", "embedding_width")
        raise PlmjaxError(
            "objective.start=teacher copies the teacher's layers, and the student's "
            f"differ: {named}.",
            hint=hint,
        )
    if encoder.sharing != "none":
        raise PlmjaxError(
            "objective.start=teacher needs a student that shares no parameters, but "
            f"model.sharing={encoder.sharing}.",
            hint=hint,
        )
