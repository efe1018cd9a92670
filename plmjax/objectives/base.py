"""What an objective is: three pure functions, and the models that they train."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax

from plmjax.config import Block
from plmjax.data.pairs import PairsConfig
from plmjax.models import EncoderConfig, Noise

Batch = dict[str, jax.Array]
# name -> (sum, count): means over micro-batches, devices and batches simply add.
Metrics = dict[str, tuple[jax.Array, jax.Array]]


class Key(NamedTuple):
    """What every draw of a step shares: uint32 scalars."""

    seed: jax.Array
    step: jax.Array

    def noise(self, batch: Batch) -> Noise:
        return Noise(self.seed, self.step, batch["row"])


@dataclasses.dataclass(frozen=True)
class Pieces:
    """What objectives need to know of the tokenizer; `mask_id` is None without one."""

    mask_id: int | None
    special_ids: tuple[int, ...]
    # UTF-8 bytes of each piece, for bits per byte.
    token_bytes: Sequence[int]


class Part(NamedTuple):
    """A model that an objective trains: what one Hugging Face folder holds.

    `take(params)` gives the part's own {"encoder", and its heads} out of the run's
    parameters; `place(params, part)` puts them back (start weights).
    """

    encoder: EncoderConfig
    heads: tuple[str, ...]
    take: Callable[[dict], dict]
    place: Callable[[dict, dict], dict]


class Objective(NamedTuple):
    """An objective as pure functions of parameters, frozen arrays and a batch.

    init(key, batch) -> params: `key` is a jax PRNG key.
    corrupt(batch, key, progress) -> batch: chooses and masks positions on the global
      batch (`progress`: share of the steps done); sets weights that sum to 1 for each
      term of the loss.
    loss(params, frozen, batch, key, train) -> (scalar, metrics): a plain weighted sum,
      so losses and gradients of micro-batches add. `frozen` holds what the loss needs
      and the optimizer never sees (a teacher), loaded by whoever calls.
    parts: the models by name; the first is the one that people are after. What they
      say of a batch is models.heads.outputs.
    scores(means) -> what a person compares, out of the metrics' means; its "loss"
      chooses the best checkpoint.
    token_loss: the score in nats a predicted token, to compare with unigram counts.
    slots(length) -> how many positions of a row are predicted at most.
    flops(length) -> matrix FLOPs of training on a row.
    """

    init: Callable[[jax.Array, Batch], dict]
    corrupt: Callable[[Batch, Key, jax.Array], Batch]
    loss: Callable[[dict, dict, Batch, Key, bool], tuple[jax.Array, Metrics]]
    parts: Mapping[str, Part]
    scores: Callable[[dict[str, float]], dict[str, float]]
    token_loss: str | None
    slots: Callable[[int], int]
    flops: Callable[[int], float]


class ObjectiveConfig(Block, prefix="objective."):
    """What the data loader asks of every kind of objective block."""

    @property
    def static_copies(self) -> int:
        """Static masks a row, in turn; 1 where masks are fresh each step."""
        return 1

    @property
    def pairs_config(self) -> PairsConfig | None:
        """How sentences are paired; None: documents as they are."""
        return None


def of_all_rows(arrays):
    """Returns a pytree's arrays [B, ...] of all devices' rows, and where the own begin.

    Where each device computes for itself (train.step.row_parallel) they are put
    together; elsewhere the arrays are those of all rows as they are. What flows back
    through them is summed over the devices.
    """
    axes = jax.sharding.get_abstract_mesh().manual_axes
    if not axes:
        return arrays, 0
    rows = jax.tree.leaves(arrays)[0].shape[0]
    gathered = jax.tree.map(
        lambda x: jax.lax.all_gather(x, axes, axis=0, tiled=True), arrays
    )
    return gathered, jax.lax.axis_index(axes) * rows


def whole(encoder: EncoderConfig, heads: tuple[str, ...]) -> dict[str, Part]:
    """Returns the parts of a run whose parameters are one model."""
    names = ("encoder", *heads)
    return {
        "model": Part(
            encoder,
            heads,
            take=lambda params: {name: params[name] for name in names},
            place=lambda params, part: params | part,
        )
    }
