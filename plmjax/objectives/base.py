"""The interface of objectives: a few pure functions, and the models they train."""

import abc
import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from plmjax.config import Block
from plmjax.data.pairs import PairsConfig
from plmjax.models import EncoderConfig, Noise

Batch = dict[str, jax.Array]
# name -> (sum, count), so that micro-batches, devices and batches simply add up.
Metrics = dict[str, tuple[jax.Array, jax.Array]]


class Key(NamedTuple):
    """The seed and the step that all random draws of a step share: uint32 scalars."""

    seed: jax.Array
    step: jax.Array

    def noise(self, batch: Batch) -> Noise:
        """Returns the noise for the rows of a batch."""
        return Noise(self.seed, self.step, batch["row"])


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Tokenizer data that objectives need; `mask_id` is None without a mask token."""

    mask_id: int | None
    special_ids: tuple[int, ...]
    # UTF-8 bytes of each piece, for bits per byte.
    token_bytes: Sequence[int]


class ModelView(NamedTuple):
    """A model that an objective trains; it exports to one Hugging Face folder.

    `extract(params)` extracts the model's {"encoder", and its heads} from the run's
    parameters; `insert(params, part)` inserts them (initial weights).
    """

    encoder: EncoderConfig
    heads: tuple[str, ...]
    extract: Callable[[dict], dict]
    insert: Callable[[dict, dict], dict]


class Objective(abc.ABC):
    """A training objective: pure functions of parameters and a batch.

    Each kind is a frozen dataclass of its config block, its encoder, and facts of the
    tokenizer or of the task.
    """

    @abc.abstractmethod
    def init(self, key: jax.Array, batch: Batch) -> dict:
        """Returns fresh parameters; `key` is a jax PRNG key."""

    def tables(self) -> dict[str, np.ndarray]:
        """Returns {name: array} of the tables that are indexed by token id.

        The caller puts them into `frozen`: as constants they would make the compiled
        program larger, and different for each tokenizer.
        """
        return {}

    @abc.abstractmethod
    def corrupt(self, frozen: dict, batch: Batch, key: Key, progress: Any) -> Batch:
        """Returns the global batch with its positions chosen and masked.

        It sets weights that sum to 1 for each term of the loss. `progress` is the share
        of steps done; only the `tables` in `frozen` are read.
        """

    @abc.abstractmethod
    def loss(
        self, params: dict, frozen: dict, batch: Batch, key: Key, train: bool
    ) -> tuple[jax.Array, Metrics]:
        """Returns a scalar and metrics.

        The loss is a weighted sum, so losses and gradients of micro-batches add up.
        `frozen` holds arrays that are not trained: the `tables`, and those that the
        caller has loaded (a teacher).
        """

    @property
    @abc.abstractmethod
    def models(self) -> Mapping[str, ModelView]:
        """The models by name; the first is the main result.

        models.heads.outputs returns their outputs for a batch.
        """

    @property
    def weights(self) -> Mapping[str, float]:
        """{metric: weight} of the loss, the weighted sum of these metrics' means."""
        return {"loss": 1.0}

    def total(self, terms: Mapping[str, Any]) -> Any:
        """Returns the weighted sum of terms: arrays in `loss`, means in `scores`.

        A term of weight 0 is left out, since its mean over nothing is nan.
        """
        weights = {name: weight for name, weight in self.weights.items() if weight}
        first, *others = (weight * terms[name] for name, weight in weights.items())
        return sum(others, first)

    @abc.abstractmethod
    def scores(self, means: dict[str, float]) -> dict[str, float]:
        """Returns the reported scores, computed from the metrics' means.

        The score "loss" selects the best checkpoint.
        """

    @property
    def token_loss(self) -> str | None:
        """The name of the score in nats per token, compared with unigram counts."""
        return None

    @abc.abstractmethod
    def slots(self, length: int) -> int:
        """Returns the largest number of predicted positions in a row."""

    @abc.abstractmethod
    def flops(self, length: int) -> float:
        """Returns the matrix FLOPs of training on a row."""


def altered(objective: Objective, **methods: Callable[..., Any]) -> Objective:
    """Returns the objective with another `init` or `loss`, functions of its arguments.

    They may call the methods of the given one, which stays as it is.
    """
    other = copy.copy(objective)
    for name, method in methods.items():
        object.__setattr__(other, name, method)  # it may be frozen
    return other


class ObjectiveConfig(Block, prefix="objective."):
    """A block of an objective, with the settings that the data loader reads."""

    @property
    def static_copies(self) -> int:
        """The number of static masks per row; 1 if masks change at each step."""
        return 1

    @property
    def pairs_config(self) -> PairsConfig | None:
        """The config of sentence pairs; None: unpaired documents."""
        return None


def of_all_rows(arrays):
    """Returns arrays [B, ...] of all devices' rows, and the index of the local rows.

    Within shard_map (train.step.gradients) the arrays are gathered, and their gradients
    are summed over the devices; elsewhere they already hold all rows.
    """
    axes = jax.sharding.get_abstract_mesh().manual_axes
    if not axes:
        return arrays, 0
    rows = jax.tree.leaves(arrays)[0].shape[0]
    gathered = jax.tree.map(
        lambda x: jax.lax.all_gather(x, axes, axis=0, tiled=True), arrays
    )
    return gathered, jax.lax.axis_index(axes) * rows


def single_model(
    encoder: EncoderConfig, heads: tuple[str, ...]
) -> dict[str, ModelView]:
    """Returns the `models` of an objective that trains one model."""
    names = ("encoder", *heads)
    return {
        "model": ModelView(
            encoder,
            heads,
            extract=lambda params: {name: params[name] for name in names},
            insert=lambda params, part: params | part,
        )
    }
