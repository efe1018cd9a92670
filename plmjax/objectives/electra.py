"""Replaced-token detection (ELECTRA, Clark et al. 2020, arXiv:2003.10555; DeBERTaV3).

A small generator fills in masked tokens, and the discriminator classifies every token
as original or replaced. `variant` selects other ways to train the discriminator on
such text, from section 3.5 of the paper.

Legend: B rows, L tokens, K slots a row, T tokens judged, H width, V vocabulary.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from plmjax import PlmjaxError
from plmjax.config import number
from plmjax.models import EncoderConfig, Noise, flops, heads
from plmjax.models import noise as noise_lib
from plmjax.models.layers import cross_entropy
from plmjax.objectives.base import Batch, Key, Metrics
from plmjax.objectives.generator import (
    GeneratorConfig,
    generator_encoder,
    initial_params,
    model_views,
    sample,
)
from plmjax.objectives.masked import (
    Masked,
    MaskedConfig,
    masked_logits,
    token_loss,
)
from plmjax.objectives.masking import scatter_positions
from plmjax.objectives.mlm import token_scores


@dataclasses.dataclass(frozen=True)
class ElectraConfig(MaskedConfig):
    """Replaced-token detection; the model block is the discriminator."""

    kind: Literal["electra"] = "electra"
    # In the generator's input, 85 % of the chosen tokens are masked and 15 % are kept,
    # as in Google's pretrain_helpers.py. All chosen tokens are predicted and replaced.
    mask_share: float = number(0.85, at_least=0, at_most=1)
    random_share: float = number(0.0, at_least=0, at_most=1)
    # The discriminator's task: electra, detect replaced tokens; electra_15, the same at
    # the chosen positions only; replace_mlm, predict the original there, from the
    # generator's samples instead of [MASK]; all_tokens_mlm, predict it everywhere, or
    # copy the input.
    variant: Literal["electra", "electra_15", "replace_mlm", "all_tokens_mlm"] = (
        "electra"
    )
    generator: GeneratorConfig = dataclasses.field(default_factory=GeneratorConfig)
    # Shared by generator and discriminator: token embeddings; all embeddings and their
    # norm; nothing; the encoder; or as in DeBERTaV3, the generator's token embeddings
    # plus a delta, so that the discriminator's gradient does not reach the generator.
    tie: Literal["tokens", "embeddings", "none", "all", "disentangled"] = "tokens"
    # 0: the generator is not trained (two-stage training from train.init_from; weight
    # decay still applies unless train.optimizer.no_decay matches generator/.*).
    generator_weight: float = number(1.0, at_least=0)
    # Weights of the discriminator's loss: of detection, and of prediction.
    detector_weight: float = number(50.0, at_least=0)
    mlm_weight: float = number(1.0, at_least=0)
    # Temperature of the generator's samples; lower: its top pieces come more often.
    temperature: float = number(1.0, above=0)

    def __post_init__(self):
        super().__post_init__()
        if self.discriminator_weight == 0:
            name = VARIANTS[self.variant].weight
            raise PlmjaxError(
                f"objective.{name}=0 leaves the discriminator without a loss.",
                hint="For a generator alone, set --config.objective.kind=mlm.",
            )
        if self.generator.kind == "uniform" and self.variant == "electra_15":
            raise PlmjaxError(
                "objective.variant=electra_15 classifies only the chosen tokens, and a "
                "uniform generator replaces all of them: their labels are the same.",
                hint="Set --config.objective.variant=electra, or "
                "--config.objective.generator.kind=trained.",
            )
        moves = self.tie not in ("none", "disentangled")
        if self.generator_weight == 0 and self.generator.kind == "trained" and moves:
            raise PlmjaxError(
                "objective.generator_weight=0 does not train the generator, but "
                f"objective.tie={self.tie} lets the discriminator train the shared "
                "parameters.",
                hint="Set --config.objective.tie=none.",
            )

    @property
    def discriminator_weight(self) -> float:
        """The weight of the discriminator's loss in the variant."""
        return getattr(self, VARIANTS[self.variant].weight)

    def generator_encoder(self, encoder: EncoderConfig) -> EncoderConfig | None:
        """Returns the generator's encoder; None if it is uniform.

        Raises:
          PlmjaxError: the heads do not divide the width, or the sizes cannot be tied.
        """
        if self.generator.kind == "uniform":
            return None
        return generator_encoder(self.generator, self.tie, encoder)


@dataclasses.dataclass(frozen=True, eq=False)
class Electra(Masked):
    """Trains the encoder as discriminator, and a generator that replaces its input."""

    config: ElectraConfig

    def __post_init__(self):
        _ = self.models
        super().__post_init__()

    @functools.cached_property
    def generator(self) -> EncoderConfig | None:
        """The generator's encoder; None if it is uniform."""
        return self.config.generator_encoder(self.encoder)

    @property
    def variant(self) -> "DiscriminatorLoss":
        """The discriminator's loss in the variant."""
        return VARIANTS[self.config.variant]

    @property
    def mask_config(self):
        if self.generator is not None:
            return self.config
        # The samples are random pieces, so the corruption draws them.
        return dataclasses.replace(self.config, mask_share=0.0, random_share=1.0)

    @functools.cached_property
    def models(self):
        names = self.variant.heads
        return model_views(self.config.tie, self.encoder, self.generator, names)

    @property
    def weights(self):
        weights = {self.variant.term: self.config.discriminator_weight}
        if self.generator is None:
            return weights
        return {"generator_loss": self.config.generator_weight} | weights

    @property
    def token_loss(self):
        if "head" in self.variant.heads:
            return "discriminator_loss"
        return None if self.generator is None else "generator_loss"

    def init(self, key, batch):
        models = (self.encoder, self.generator)
        return initial_params(self.config.tie, *models, self.variant.heads, key, batch)

    def corrupt(self, frozen: dict, batch: Batch, key: Key, progress) -> Batch:
        batch = self.mask(frozen, batch, key, progress)
        real = (batch["segments"] > 0).astype(jnp.float32)
        return batch | {"token_weights": real / jnp.maximum(jnp.sum(real), 1)}

    def generate(self, params, frozen, batch, noise: Noise, train: bool):
        """Returns the generator's loss, its metrics, and its samples [B, K]."""
        config, model = self.config, self.models["generator"]
        generator = model.extract(params)
        if config.generator_weight == 0:
            generator = jax.lax.stop_gradient(generator)
        # Otherwise generator and discriminator would drop the same units.
        drops = _stream(noise, "generator") if train else None
        logits_TV, _ = masked_logits(
            model.encoder, generator, batch, drops, self.platform
        )
        bytes_V = frozen["piece_bytes"]
        value, metrics = token_loss(logits_TV, batch, bytes_V, "generator_")
        shape = batch["labels"].shape
        u_BK = noise_lib.uniform(noise, "generator/sample", shape[1])
        drawn_T = sample(logits_TV, u_BK.reshape(-1), config.temperature)
        return value, metrics, drawn_T.reshape(shape)

    def loss(self, params, frozen, batch: Batch, key: Key, train: bool):
        noise, terms, metrics = key.noise(batch), {}, {}
        drawn_BK = None
        if self.generator is not None:
            terms["generator_loss"], metrics, drawn_BK = self.generate(
                params, frozen, batch, noise, train
            )
        batch = substituted(batch, drawn_BK)
        discriminator, drops = (
            self.models["discriminator"].extract(params),
            noise if train else None,
        )
        x_BLH = heads.encode(self.encoder, discriminator, batch, drops, self.platform)
        terms[self.variant.term], more = self.variant.loss(
            self.encoder,
            discriminator,
            x_BLH,
            batch,
            bytes_V=frozen["piece_bytes"],
            platform=self.platform,
        )
        share = _mean(batch["replaced"], batch["segments"] > 0)
        return self.total(terms), metrics | more | {"replaced_share": share}

    def scores(self, means):
        scores = {"loss": self.total(means)}
        if self.generator is not None:
            scores |= token_scores(means, "generator_")
        scores |= self.variant.scores(means)
        return scores | {"replaced_share": means["replaced_share"]}

    def slots(self, length):
        everywhere = self.config.variant == "all_tokens_mlm"
        return length if everywhere else self.config.slots(length)

    def flops(self, length):
        slots = self.config.slots(length)
        total = flops.encoder_flops(self.encoder, length)
        total += self.variant.flops(self.encoder, length, slots)
        if self.generator is None:
            return total
        theirs = flops.encoder_flops(self.generator, length)
        theirs += flops.vocabulary_flops(self.generator, slots)
        # With weight 0 the generator only runs the forward pass.
        return total + (theirs if self.config.generator_weight else theirs / 3)


def _stream(noise: Noise, name: str) -> Noise:
    """Returns noise with draws that are independent of `noise`'s at the same sites."""
    word = jnp.uint32(zlib.crc32(name.encode()))
    return noise._replace(seed=noise_lib.hash32(noise.seed ^ word))


def substituted(batch: Batch, drawn_BK: jax.Array | None) -> Batch:
    """Returns the batch as the discriminator sees it, with its labels.

    The samples replace the chosen tokens in the used slots; None: the batch has them
    already. Adds "originals" and "replaced" [B, L]; a correct sample is not replaced.
    """
    at_BK, labels_BK = batch["mask_positions"], batch["labels"]
    original_BL = scatter_positions(batch["tokens"], at_BK, labels_BK)
    seen_BL = batch["tokens"]
    if drawn_BK is not None:
        drawn_BK = jnp.where(batch["weights"] > 0, drawn_BK, labels_BK)
        seen_BL = scatter_positions(original_BL, at_BK, drawn_BK)
    return batch | {
        "tokens": seen_BL,
        "originals": original_BL,
        "replaced": seen_BL != original_BL,
    }


def _mean(values, used) -> tuple[jax.Array, jax.Array]:
    """Returns (sum, count) of the used values; both arguments have one shape."""
    used = used.astype(jnp.float32)
    values = jax.lax.stop_gradient(values).astype(jnp.float32)
    return jnp.sum(values * used), jnp.sum(used)


def detector_loss(logits_T, replaced_T, weights_T) -> tuple[jax.Array, Metrics]:
    """Returns the weighted binary cross-entropy of `replaced`, and its metrics."""
    truth_T = replaced_T.astype(jnp.float32)
    nll_T = jax.nn.softplus(logits_T) - truth_T * logits_T
    used_T, called_T = weights_T > 0, logits_T > 0
    probability_T = jax.nn.sigmoid(logits_T)
    return jnp.sum(nll_T * weights_T), {
        "detector_loss": _mean(nll_T, used_T),
        "detector_accuracy": _mean(called_T == replaced_T, used_T),
        "detector_precision": _mean(replaced_T, used_T & called_T),
        "detector_recall": _mean(called_T, used_T & replaced_T),
        "detector_on_replaced": _mean(probability_T, used_T & replaced_T),
        "detector_on_originals": _mean(probability_T, used_T & ~replaced_T),
    }


def _detector_scores(means: dict[str, float]) -> dict[str, float]:
    names = ("loss", "accuracy", "precision", "recall")
    scores = {f"detector_{name}": means[f"detector_{name}"] for name in names}
    if means["detector_accuracy"] >= 0 and math.isnan(scores["detector_precision"]):
        scores["detector_precision"] = 0.0  # nothing is called replaced
    separation = means["detector_on_replaced"] - means["detector_on_originals"]
    return scores | {"detector_separation": separation}


def _detect(encoder, params, x_BLH, batch: Batch, bytes_V, platform):
    del bytes_V
    x_TH = x_BLH.reshape(-1, encoder.width)
    logits_T = heads.detector_logits(encoder, params, x_TH, platform)
    weights_T = batch["token_weights"].reshape(-1)
    return detector_loss(logits_T, batch["replaced"].reshape(-1), weights_T)


def _detect_chosen(encoder, params, x_BLH, batch: Batch, bytes_V, platform):
    del bytes_V
    at_BK = batch["mask_positions"]
    x_TH = heads.gather_positions(x_BLH, at_BK)
    logits_T = heads.detector_logits(encoder, params, x_TH, platform)
    replaced_BK = jnp.take_along_axis(batch["replaced"], at_BK, axis=1)
    weights_T = batch["weights"].reshape(-1)
    return detector_loss(logits_T, replaced_BK.reshape(-1), weights_T)


def _predict_chosen(encoder, params, x_BLH, batch: Batch, bytes_V, platform):
    x_TH = heads.gather_positions(x_BLH, batch["mask_positions"])
    logits_TV = heads.vocabulary_logits(encoder, params, x_TH, platform)
    return token_loss(logits_TV, batch, bytes_V, "discriminator_")


def _predict_all(encoder, params, x_BLH, batch: Batch, bytes_V, platform):
    """All-Tokens MLM: D times the input's piece plus 1 - D times the softmax.

    D, the copy probability, is the detector's probability that the token is original.
    The discriminator's metrics are over the chosen positions, as in Replace-MLM.
    """
    x_TH = x_BLH.reshape(-1, encoder.width)
    logits_TV = heads.vocabulary_logits(encoder, params, x_TH, platform)
    replaced_T = heads.detector_logits(encoder, params, x_TH, platform)
    seen_T, labels_T = batch["tokens"].reshape(-1), batch["originals"].reshape(-1)
    nll_T, hit_T = _copy_loss(logits_TV, replaced_T, seen_T, labels_T)
    weights_T = batch["token_weights"].reshape(-1)
    _, metrics = detector_loss(replaced_T, seen_T != labels_T, weights_T)
    at_BK, used_BK = batch["mask_positions"], batch["weights"] > 0
    shape = batch["tokens"].shape
    nll_BK = jnp.take_along_axis(nll_T.reshape(shape), at_BK, axis=1)
    hit_BK = jnp.take_along_axis(hit_T.reshape(shape), at_BK, axis=1)
    bytes_BK = jnp.asarray(bytes_V)[batch["labels"]]
    total, count = _mean(nll_BK, used_BK)
    return jnp.sum(nll_T * weights_T), metrics | {
        "all_tokens_loss": _mean(nll_T, weights_T > 0),
        "all_tokens_accuracy": _mean(hit_T, weights_T > 0),
        "discriminator_loss": (total, count),
        "discriminator_accuracy": _mean(hit_BK, used_BK),
        "discriminator_nats_per_byte": (total, _mean(bytes_BK, used_BK)[0]),
    }


def _copy_loss(logits_TV, replaced_T, seen_T, labels_T):
    """Returns the mixture's -log probability of labels, and True where they are top."""
    scored: Any = cross_entropy(logits_TV, labels_T)
    word_nll_T, word_hit_T = scored
    copy_T, write_T = jax.nn.log_sigmoid(-replaced_T), jax.nn.log_sigmoid(replaced_T)
    written_T = write_T - word_nll_T
    right_T = seen_T == labels_T
    nll_T = -jnp.where(right_T, jnp.logaddexp(copy_T, written_T), written_T)
    # The top piece of the mixture is the input's piece or the top of the softmax.
    fixed_TV = jax.lax.stop_gradient(logits_TV)
    label_T = jnp.take_along_axis(fixed_TV, labels_T[:, None], axis=1)[:, 0]
    lse_T = word_nll_T + label_T
    top_T = write_T + jnp.max(fixed_TV, axis=1) - lse_T
    same_T = jnp.take_along_axis(fixed_TV, seen_T[:, None], axis=1)[:, 0]
    same_T = jnp.logaddexp(copy_T, write_T + same_T - lse_T)
    return nll_T, jnp.where(same_T >= top_T, right_T, word_hit_T > 0)


def _predict_scores(means: dict[str, float]) -> dict[str, float]:
    return token_scores(means, "discriminator_")


def _predict_all_scores(means: dict[str, float]) -> dict[str, float]:
    all_tokens = {n: means[n] for n in ("all_tokens_loss", "all_tokens_accuracy")}
    return all_tokens | _predict_scores(means) | _detector_scores(means)


class DiscriminatorLoss(NamedTuple):
    """A loss of the discriminator.

    loss(encoder, params, x_BLH, batch, bytes_V, platform) -> (value, metrics), where
    `batch` has its input tokens, "originals" and "replaced" [B, L]; the value is the
    mean of the metric `term`, and `weight` the key of its weight; flops(encoder,
    length, slots).
    """

    heads: tuple[str, ...]
    loss: Callable[..., tuple[jax.Array, Metrics]]
    scores: Callable[[dict[str, float]], dict[str, float]]
    term: str
    weight: str
    flops: Callable[[EncoderConfig, int, int], float]


VARIANTS = {
    "electra": DiscriminatorLoss(
        heads=("detector",),
        loss=_detect,
        scores=_detector_scores,
        term="detector_loss",
        weight="detector_weight",
        flops=lambda encoder, length, _: flops.detector_flops(encoder, length),
    ),
    "electra_15": DiscriminatorLoss(
        heads=("detector",),
        loss=_detect_chosen,
        scores=_detector_scores,
        term="detector_loss",
        weight="detector_weight",
        flops=lambda encoder, _, slots: flops.detector_flops(encoder, slots),
    ),
    "replace_mlm": DiscriminatorLoss(
        heads=("head",),
        loss=_predict_chosen,
        scores=_predict_scores,
        term="discriminator_loss",
        weight="mlm_weight",
        flops=lambda encoder, _, slots: flops.vocabulary_flops(encoder, slots),
    ),
    "all_tokens_mlm": DiscriminatorLoss(
        heads=("head", "detector"),
        loss=_predict_all,
        scores=_predict_all_scores,
        term="all_tokens_loss",
        weight="mlm_weight",
        flops=lambda encoder, length, _: (
            flops.vocabulary_flops(encoder, length)
            + flops.detector_flops(encoder, length)
        ),
    ),
}
