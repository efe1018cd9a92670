"""What an objective is: a few pure functions, and the models that they train."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

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


class Objective(abc.ABC):
    """What a model is trained for: pure functions of parameters and a batch.

    Each kind is a frozen dataclass of its config block, its encoder, and what it needs
    to know of the tokenizer or of the task.
    """

    @abc.abstractmethod
    def init(self, key: jax.Array, batch: Batch) -> dict:
        """Returns fresh parameters; `key` is a jax PRNG key."""

    def tables(self) -> dict[str, np.ndarray]:
        """Returns what is looked up by token id, by name.

        The caller puts these arrays into `frozen`: as constants they would make a
        compiled program larger, and another one for each tokenizer.
        """
        return {}

    @abc.abstractmethod
    def corrupt(self, frozen: dict, batch: Batch, key: Key, progress: Any) -> Batch:
        """Returns the global batch with its positions chosen and masked.

        It sets weights that sum to 1 for each term of the loss. `progress` is the share
        of the steps done; of `frozen` it reads the `tables` alone.
        """

    @abc.abstractmethod
    def loss(
        self, params: dict, frozen: dict, batch: Batch, key: Key, train: bool
    ) -> tuple[jax.Array, Metrics]:
        """Returns a scalar and metrics.

        A plain weighted sum, so losses and gradients of micro-batches add. `frozen`
        holds what the loss needs and the optimizer never sees: the `tables`, and beside
        them what the caller has loaded (a teacher).
        """

    @property
    @abc.abstractmethod
    def parts(self) -> Mapping[str, Part]:
        """The models by name; the first is the one that people are after.

        What they say of a batch is models.heads.outputs.
        """

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each term of the loss, by the metric whose mean the term is."""
        return {"loss": 1.0}

    def total(self, terms: Mapping[str, Any]) -> Any:
        """Returns the weighted sum of terms: arrays in `loss`, means in `scores`."""
        first, *rest = (weight * terms[name] for name, weight in self.weights.items())
        return sum(rest, first)

    @abc.abstractmethod
    def scores(self, means: dict[str, float]) -> dict[str, float]:
        """Returns what a person compares, out of the metrics' means.

        Its "loss" chooses the best checkpoint.
        """

    @property
    def token_loss(self) -> str | None:
        """The score in nats a predicted token, to compare with unigram counts."""
        return None

    @abc.abstractmethod
    def slots(self, length: int) -> int:
        """Returns how many positions of a row are predicted at most."""

    @abc.abstractmethod
    def flops(self, length: int) -> float:
        """Returns the matrix FLOPs of training on a row."""


@dataclasses.dataclass(frozen=True, eq=False)
class Altered(Objective):
    """Another objective with first parameters or a loss of its own, where given."""

    inner: Objective
    own_init: Callable[[jax.Array, Batch], dict] | None = None
    own_loss: Callable[..., tuple[jax.Array, Metrics]] | None = None

    def init(self, key, batch):
        return (self.own_init or self.inner.init)(key, batch)

    def tables(self):
        return self.inner.tables()

    def corrupt(self, frozen, batch, key, progress):
        return self.inner.corrupt(frozen, batch, key, progress)

    def loss(self, params, frozen, batch, key, train):
        return (self.own_loss or self.inner.loss)(params, frozen, batch, key, train)

    @property
    def parts(self):
        return self.inner.parts

    @property
    def weights(self):
        return self.inner.weights

    def scores(self, means):
        return self.inner.scores(means)

    @property
    def token_loss(self):
        return self.inner.token_loss

    def slots(self, length):
        return self.inner.slots(length)

    def flops(self, length):
        return self.inner.flops(length)


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

    Where each device computes for itself (train.step.gradients) they are put
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
