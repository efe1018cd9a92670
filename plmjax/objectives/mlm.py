"""Masked language modelling (Devlin et al. 2018, arXiv:1810.04805), with or without
next-sentence prediction or sentence order (Lan et al. 2019, arXiv:1909.11942).

Legend: B rows, L tokens, K slots a row, P pairs a row, H width, V vocabulary.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from plmjax import PlmjaxError
from plmjax.config import number
from plmjax.data.pairs import PairsConfig
from plmjax.models import flops, heads
from plmjax.models.layers import cross_entropy
from plmjax.objectives.base import Batch, Key, Metrics, single_model
from plmjax.objectives.masked import Masked, MaskedConfig, masked_logits, token_loss


@dataclasses.dataclass(frozen=True)
class MLMConfig(MaskedConfig):
    """Masked language modelling, and the task of [CLS] on pairs of texts."""

    kind: Literal["mlm"] = "mlm"
    # nsp: does B follow A in the text? sop: are the two in their original order?
    pairs: Literal["none", "nsp", "sop"] = "none"
    # Source of a B that does not follow A: another document, or anywhere.
    negatives: Literal["document", "corpus"] = "document"
    # Share of pairs that are cut short, since fine-tuning has short texts.
    short_share: float = number(0.1, at_least=0, at_most=1)
    mlm_weight: float = number(1.0, at_least=0)
    pair_weight: float = number(1.0, at_least=0)

    def __post_init__(self):
        super().__post_init__()
        if self.mlm_weight == 0 and self.pairs == "none":
            raise PlmjaxError(
                "objective.mlm_weight=0 with objective.pairs=none leaves no loss.",
                hint="Set objective.mlm_weight above 0, or objective.pairs.",
            )

    @property
    def pairs_config(self) -> PairsConfig | None:
        if self.pairs == "none":
            return None
        return PairsConfig(self.pairs, self.negatives, self.short_share)


@dataclasses.dataclass(frozen=True, eq=False)
class MLM(Masked):
    """Predicts masked tokens from both sides, and from [CLS] how two texts relate."""

    config: MLMConfig

    @property
    def paired(self) -> bool:
        """Whether [CLS] is trained on pairs of texts."""
        return self.config.pairs != "none"

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of the trained heads."""
        return ("head", "pair") if self.paired else ("head",)

    @property
    def models(self):
        return single_model(self.encoder, self.heads)

    @property
    def weights(self):
        tokens = {"loss": self.config.mlm_weight}
        return tokens | ({"pair_loss": self.config.pair_weight} if self.paired else {})

    @property
    def token_loss(self):
        # With weight 0 this loss is not trained.
        if not self.config.mlm_weight:
            return None
        return "mlm_loss" if self.paired else "loss"

    @property
    def masks_matter(self):
        return self.config.mlm_weight > 0

    def init(self, key, batch):
        return heads.init_model(self.encoder, key, batch, self.heads)

    def corrupt(self, frozen: dict, batch: Batch, key: Key, progress) -> Batch:
        batch = self.mask(frozen, batch, key, progress)
        if not self.paired:
            return batch
        if self.encoder.token_types < 2:
            # A table of one type has no row for sentence B; only [SEP] separates them.
            batch = batch | {"types": jnp.zeros_like(batch["types"])}
        return with_pair_weights(batch)

    def loss(self, params, frozen, batch: Batch, key: Key, train: bool):
        noise = key.noise(batch) if train else None
        encoder, platform = self.encoder, self.platform
        logits_TV, x_BLH = masked_logits(encoder, params, batch, noise, platform)
        value, metrics = token_loss(logits_TV, batch, frozen["piece_bytes"])
        terms = {"loss": value}
        if self.paired:
            x_TH = heads.gather_positions(x_BLH, batch["cls"])
            logits_T2 = heads.pair_logits(encoder, params, x_TH, platform)
            terms["pair_loss"], more = pair_loss(logits_T2, batch)
            metrics |= more
        return self.total(terms), metrics

    def scores(self, means):
        scores = token_scores(means)
        if not self.paired:
            return scores
        pair = {name: means[name] for name in ("pair_loss", "pair_accuracy")}
        losses = {"loss": self.total(means), "mlm_loss": means["loss"]}
        return scores | pair | losses

    def flops(self, length):
        return flops.encoder_flops(self.encoder, length) + flops.vocabulary_flops(
            self.encoder, self.slots(length)
        )


def with_pair_weights(batch: Batch) -> Batch:
    """Returns the batch with pair_weights [B, P] that sum to 1."""
    labelled = (batch["pair_label"] >= 0).astype(jnp.float32)
    return batch | {"pair_weights": labelled / jnp.maximum(jnp.sum(labelled), 1)}


def pair_loss(logits_T2: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    """Returns the weighted cross-entropy of batch["pair_label"], and its metrics."""
    labels_T = jnp.maximum(batch["pair_label"], 0).reshape(-1)
    weights_T = batch["pair_weights"].reshape(-1)
    scored: Any = cross_entropy(logits_T2, labels_T)
    nll_T, hit_T = scored
    used_T = (weights_T > 0).astype(jnp.float32)
    count = jnp.sum(used_T)
    return jnp.sum(nll_T * weights_T), {
        "pair_loss": (jnp.sum(nll_T * used_T), count),
        "pair_accuracy": (jnp.sum(jax.lax.stop_gradient(hit_T) * used_T), count),
    }


def token_scores(means: dict[str, float], prefix: str = "") -> dict[str, float]:
    """Returns the reported scores from the means of `token_loss`'s metrics."""
    loss = means[f"{prefix}loss"]
    return {
        f"{prefix}loss": loss,
        f"{prefix}accuracy": means[f"{prefix}accuracy"],
        f"{prefix}perplexity": math.exp(min(loss, 700.0)),
        f"{prefix}bits_per_byte": means[f"{prefix}nats_per_byte"] / math.log(2),
    }
