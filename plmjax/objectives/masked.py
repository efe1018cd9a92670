"""Base of the objectives with masked tokens: the config block and the masking.

Legend: B rows, L tokens, K slots a row, V vocabulary.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from plmjax import PlmjaxError
from plmjax.config import number
from plmjax.models import EncoderConfig, heads
from plmjax.models.layers import cross_entropy
from plmjax.models.noise import Noise
from plmjax.models.platform import ANY, Platform
from plmjax.objectives import masking
from plmjax.objectives.base import (
    Batch,
    Key,
    Metrics,
    Objective,
    ObjectiveConfig,
    Pieces,
)


@dataclasses.dataclass(frozen=True)
class MaskedConfig(ObjectiveConfig):
    """The choice of tokens, their replacements, and how masks change over steps."""

    probability: float = number(0.15, above=0, below=1)
    # The probability at the last step, reached linearly; none: constant.
    final_probability: float | None = number(None, above=0, below=1)
    # ((percent of the steps, probability), ...): each holds from there on, in place of
    # the first: mmBERT's 30, 15 and 5 % (arXiv:2509.06888).
    probabilities: tuple = ()
    # Shares of the chosen tokens replaced by [MASK] and by random pieces; others: kept.
    mask_share: float = number(0.8, at_least=0, at_most=1)
    random_share: float = number(0.1, at_least=0, at_most=1)
    # The unit of choice: a token, a word, a span of words (SpanBERT), up to three words
    # (ALBERT).
    unit: Literal["token", "word", "span", "ngram"] = "token"
    # dynamic: new masks each step; static: `copies` fixed masks per row, in turn.
    masks: Literal["dynamic", "static"] = "dynamic"
    copies: int = number(10, at_least=1)

    def __post_init__(self):
        super().__post_init__()
        shares = (self.mask_share, self.random_share)
        if sum(shares) > 1:
            raise PlmjaxError(
                f"objective.mask_share={shares[0]} and random_share={shares[1]} must "
                "sum to at most 1; the other chosen tokens are kept."
            )
        changing = [
            name
            for name in ("final_probability", "probabilities")
            if getattr(self, name)
        ]
        if self.masks == "static" and changing:
            raise PlmjaxError(
                f"static masks cannot follow objective.{changing[0]}: they are the "
                "same at every step.",
                hint="Set --config.objective.masks=dynamic.",
            )
        if len(changing) == 2:
            raise PlmjaxError(
                "objective.final_probability and objective.probabilities both set how "
                "the share of masked tokens changes.",
                hint="Give one of them.",
            )
        self._check_probabilities()

    def _check_probabilities(self) -> None:
        before = 0.0
        for pair in self.probabilities:
            numbers = isinstance(pair, tuple) and len(pair) == 2
            numbers = numbers and all(type(n) in (int, float) for n in pair)
            if not numbers or not (before < pair[0] < 100 and 0 < pair[1] < 1):
                raise PlmjaxError(
                    f"objective.probabilities has {pair!r}; each is (percent, "
                    "probability), with rising percents between 0 and 100 and "
                    "probabilities between 0 and 1.",
                    hint="For example ((60, 0.15), (90, 0.05)).",
                )
            before = pair[0]

    @property
    def static_copies(self) -> int:
        return self.copies if self.masks == "static" else 1

    @property
    def largest_probability(self) -> float:
        """The largest probability of the schedule."""
        later = [probability for _, probability in self.probabilities]
        return max(self.probability, self.final_probability or 0, *later)

    def slots(self, length: int) -> int:
        """Returns K, the largest number of positions chosen in a row of `length`."""
        return masking.slots(self.largest_probability, length)


@dataclasses.dataclass(frozen=True, eq=False)
class Masked(Objective):
    """Base class of the objectives with masks.

    Raises:
      PlmjaxError: the tokenizer has no mask token, or the model is causal.
    """

    config: Any
    encoder: EncoderConfig
    pieces: Pieces
    platform: Platform = dataclasses.field(default=ANY, kw_only=True)

    def __post_init__(self):
        if self.encoder.causal:
            raise PlmjaxError(
                "model.causal=True hides the tokens on the right, but masked language "
                "modelling needs them.",
                hint="Set --config.model.causal=False, or --config.objective.kind=clm.",
            )
        if self.pieces.mask_id is None:
            raise PlmjaxError(
                "the tokenizer has no mask token, which masked language modelling "
                "needs.",
                hint="Train a tokenizer, or set --config.objective.kind=clm.",
            )

    @property
    def mask_config(self) -> MaskedConfig:
        """The config of masking."""
        return self.config

    def tables(self):
        """Returns the special pieces, the possible random ones, and the pieces' bytes.

        bool [V], int32 [N ordinary pieces], float32 [V].
        """
        special_V = np.zeros(self.encoder.vocab_size, bool)
        special_V[list(self.pieces.special_ids)] = True
        # Random pieces come from the tokenizer, not from a padded end of the table.
        ordinary_N = np.flatnonzero(~special_V[: len(self.pieces.token_bytes)])
        return {
            "is_special": special_V,
            "ordinary_ids": ordinary_N.astype(np.int32),
            "piece_bytes": bytes_of(self.pieces, self.encoder.vocab_size),
        }

    @property
    def masks_matter(self) -> bool:
        """Whether a row without a mask teaches less than others."""
        return True

    @property
    def least_probability(self) -> float:
        """The smallest share of tokens that is chosen."""
        config = self.mask_config
        later = [share for _, share in config.probabilities]
        return min(config.probability, config.final_probability or 1.0, *later)

    def noise(self, batch: Batch, key: Key) -> Noise:
        """Returns the noise for the draws; it has no step if masks are static."""
        noise = key.noise(batch)
        if self.mask_config.masks == "static":
            # Masks depend on the row and the number of its copy only.
            return noise._replace(step=batch["copy"].astype(jnp.uint32))
        return noise

    def probability(self, progress):
        """Returns the share of tokens to choose after `progress` of the steps."""
        first, last = self.mask_config.probability, self.mask_config.final_probability
        if later := self.mask_config.probabilities:
            starts = jnp.array([percent / 100 for percent, _ in later], jnp.float32)
            shares = jnp.array([first, *(share for _, share in later)], jnp.float32)
            return shares[jnp.sum(progress >= starts)]
        if last is None:
            return first
        return jnp.float32(first) + jnp.float32(last - first) * progress

    def mask(self, frozen: dict, batch: Batch, key: Key, progress) -> Batch:
        """Returns the batch masked, with mask_positions, labels and weights [B, K]."""
        tokens_BL, noise = batch["tokens"], self.noise(batch, key)
        config, mask_id = self.mask_config, self.pieces.mask_id
        assert mask_id is not None
        special_BL = jnp.asarray(frozen["is_special"])[tokens_BL]
        positions_BK, used_BK, unit_BK = masking.choose(
            noise,
            maskable_BL=(batch["segments"] > 0) & ~special_BL,
            word_start_BL=batch["word_start"],
            probability=self.probability(progress),
            slots=config.slots(tokens_BL.shape[1]),
            unit=config.unit,
        )
        masked_BL, labels_BK = masking.corrupt_tokens(
            noise,
            tokens_BL,
            positions_BK,
            used_BK,
            unit_BK,
            mask_id=mask_id,
            ordinary_N=jnp.asarray(frozen["ordinary_ids"]),
            mask_share=config.mask_share,
            random_share=config.random_share,
            unit=config.unit,
        )
        used = used_BK.astype(jnp.float32)
        return batch | {
            "tokens": masked_BL,
            "mask_positions": positions_BK,
            "labels": labels_BK,
            "weights": used / jnp.maximum(jnp.sum(used), 1),
        }

    def slots(self, length):
        return self.config.slots(length)


def bytes_of(pieces: Pieces, vocab_size: int) -> np.ndarray:
    """Returns float32 [V], the UTF-8 bytes of each piece; 0 past the tokenizer's."""
    bytes_V = np.zeros(vocab_size, np.float32)
    bytes_V[: len(pieces.token_bytes)] = pieces.token_bytes
    return bytes_V


def token_loss(
    logits_TV: jax.Array, batch: Batch, bytes_V: jax.Array, prefix: str = ""
) -> tuple[jax.Array, Metrics]:
    """Returns the weighted cross-entropy of batch["labels"], and its metrics.

    `logits_TV` belong to batch["labels"] and batch["weights"], flattened. Metrics: loss
    and accuracy per predicted token, and nats per byte of their text.
    """
    labels_T = batch["labels"].reshape(-1)
    weights_T = batch["weights"].reshape(-1)
    nll_T, hit_T = cross_entropy(logits_TV, labels_T)  # type: ignore
    used_T = (weights_T > 0).astype(jnp.float32)
    total, count = jnp.sum(nll_T * used_T), jnp.sum(used_T)
    hits = jnp.sum(jax.lax.stop_gradient(hit_T) * used_T)
    bytes_T = jnp.asarray(bytes_V)[labels_T]
    return jnp.sum(nll_T * weights_T), {
        f"{prefix}loss": (total, count),
        f"{prefix}accuracy": (hits, count),
        f"{prefix}nats_per_byte": (total, jnp.sum(bytes_T * used_T)),
    }


def masked_logits(
    encoder: EncoderConfig,
    params: dict,
    batch: Batch,
    noise: Noise | None,
    platform: Platform = ANY,
) -> tuple[jax.Array, jax.Array]:
    """Returns the logits [B * K, V] at the chosen positions, and all states [B, L, H].

    The vocabulary head runs on the chosen positions only.
    """
    x_BLH = heads.encode(encoder, params, batch, noise, platform)
    x_TH = heads.gather_positions(x_BLH, batch["mask_positions"])
    return heads.vocabulary_logits(encoder, params, x_TH, platform), x_BLH
