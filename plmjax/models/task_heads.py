"""Heads of fine-tuning, each as in transformers' class of the family.

A fine-tuned model is {"encoder": ...} and one head by name: "sequence" (one label per
row), "tags" (one per token), "answers" (begin and end of an answer) or "choices" (one
of several rows). Their leaves are pooler/dense and classifier in every family. A model
of vectors of texts is an encoder without a head.

Legend: B rows, L tokens a row, K examples a packed row, T rows or tokens, H width, C
labels or choices, O outputs of the head for each of T.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from plmjax import PlmjaxError, with_article
from plmjax.models import heads
from plmjax.models.config import EncoderConfig
from plmjax.models.encoder import FeedForward
from plmjax.models.heads import Batch, Pooler, tanh
from plmjax.models.layers import ACTIVATIONS, dense, dropout, gelu, norm
from plmjax.models.noise import Noise
from plmjax.models.platform import ANY, Platform

# The score of padding and empty choices, which must not be chosen.
OUT_OF_REACH = -1e30
# The key of a batch for states that `encode` has computed before.
STATES = "states"
TASK_HEADS = ("sequence", "tags", "answers", "choices")


class HeadConfig(Protocol):
    """What a model knows of its task; plmjax.tasks.task.Task has it."""

    @property
    def head(self) -> str | None:
        """The name of the head; None: the model's vectors are the result."""

    @property
    def outputs(self) -> int:
        """The number of scores per row, token or choice."""
        ...

    @property
    def dropout(self) -> float | None:
        """The dropout before the classifier; None: the default of the family."""

    @property
    def pooling(self) -> Literal["mean", "cls", "max"]:
        """How a model without a head combines the vectors of a text's tokens."""
        ...

    @property
    def head_pooling(self) -> Literal["cls", "mean", "late"]:
        """What a head with one label per row reads of the row's tokens."""
        ...


class Pooling(NamedTuple):
    """The activation of a pooler; whether dropout is before it, and a norm after."""

    activation: Callable | None  # None: as in the layers
    drops_before: bool = False
    normed: bool = False
    # None: as in the layers.
    bias: bool | None = None


_TANH, _GELU, _RELU = Pooling(tanh), Pooling(gelu), Pooling(jax.nn.relu)
_NORMED = Pooling(gelu, normed=True)
# The pooler of a row in each family, for heads with one label per row. The
# GELU of ELECTRA and DeBERTa and DistilBERT's ReLU are independent of the layers'.
POOLERS: dict[str, dict[str, Pooling]] = {
    "sequence": {
        "bert": _TANH,
        "roberta": Pooling(tanh, drops_before=True),
        "xlm-roberta": Pooling(tanh, drops_before=True),
        "longformer": Pooling(tanh, drops_before=True),
        "albert": _TANH,
        "distilbert": _RELU,
        "electra": Pooling(gelu, drops_before=True),
        "deberta-v2": _GELU,
        "modernbert": _NORMED,
        "eurobert": Pooling(gelu, bias=True),
        "bigbird": Pooling(None, drops_before=True),
        "nystromformer": Pooling(None, drops_before=True),
    },
    "choices": {
        "bert": _TANH,
        "roberta": _TANH,
        "xlm-roberta": _TANH,
        "longformer": _TANH,
        "albert": _TANH,
        "distilbert": _RELU,
        "electra": _GELU,
        "deberta-v2": _GELU,
        "modernbert": _NORMED,
        "bigbird": _TANH,
        "nystromformer": _RELU,
    },
}
# The values of HeadConfig.head_pooling in families whose classes have more than cls.
POOLINGS = {
    ("modernbert", "sequence"): ("cls", "mean"),
    ("modernbert", "choices"): ("cls", "mean"),
    ("eurobert", "sequence"): ("cls", "mean", "late"),
}
# The same for each token, in the families that have it before every classifier.
_FOR_TOKENS = {"modernbert": _NORMED}
# The classifier's dropout, if it is not that of the layers.
_DROPOUT = {
    ("distilbert", "sequence"): 0.2,
    ("distilbert", "choices"): 0.2,
    ("distilbert", "answers"): 0.1,
    ("albert", "sequence"): 0.1,
    ("albert", "tags"): 0.1,
    ("albert", "choices"): 0.1,
    ("electra", "choices"): 0.1,
    ("nystromformer", "choices"): 0.0,
}


def pooler_of(family: str, head: str) -> Pooling | None:
    """Returns what is before a head's classifier in a family; None: nothing."""
    return POOLERS.get(head, _FOR_TOKENS).get(family)


def default_dropout(config: EncoderConfig, head: str) -> float:
    """Returns transformers' default dropout before the classifier."""
    plain = head == "answers" and config.family != "bigbird"
    usual = 0.0 if plain else config.dropout
    return _DROPOUT.get((config.family, head), usual)


class TaskHead(nn.Module):
    """Dropout and a dense layer with a bias, after a pooler if a row gets one label.

    BigBird's head for answers has a feed-forward block in place of the pooler. [T, H]
    -> float32 [T, outputs]. Dropout draws from separate sites.
    """

    config: EncoderConfig
    head: str
    outputs: int
    dropout: float = 0.0
    platform: Platform = ANY

    @nn.compact
    def __call__(self, x_TH: jax.Array, noise: Noise | None = None) -> jax.Array:
        config = self.config
        pooling = pooler_of(config.family, self.head)
        if pooling is not None:
            if pooling.drops_before:
                x_TH = dropout(x_TH, self.dropout, noise, f"{self.head}/pooler")
            x_TH = Pooler(
                config,
                pooling.activation or ACTIVATIONS[config.activation],
                platform=self.platform,
                bias=pooling.bias,
                normed=pooling.normed,
                name="pooler",
            )(x_TH)
        if (config.family, self.head) == ("bigbird", "answers"):
            y_TH = dropout(x_TH, self.dropout, noise, "answers/before")
            y_TH = FeedForward(config, self.platform, name="ffn")(y_TH)
            y_TH = dropout(y_TH, self.dropout, noise, "answers/after")
            x_TH = norm(config, "norm")(x_TH + y_TH)
        else:
            x_TH = dropout(x_TH, self.dropout, noise, f"{self.head}/classifier")
        return dense(self, self.outputs, "classifier", True)(x_TH).astype(jnp.float32)


def check(config: EncoderConfig, head: str | None = None, pooling: str = "cls") -> None:
    """Raises PlmjaxError if the family has no such head of fine-tuning, or pooling."""
    families = [*POOLERS["sequence"]]
    if head in ("answers", "choices"):
        families.remove("eurobert")  # transformers has no class to export it to
    if config.family not in families:
        kind = "" if config.family not in POOLERS["sequence"] else f" for {head}"
        raise PlmjaxError(
            f"{with_article(config.family)} has no head to fine-tune{kind} in plmjax.",
            hint=f"Use one of {', '.join(families)}.",
        )
    poolings = POOLINGS.get((config.family, str(head)), ("cls",))
    if pooling not in poolings:
        raise PlmjaxError(
            f"the classifier's pooling is {pooling}; {with_article(config.family)} for "
            f"{head} has {' or '.join(poolings)}.",
            hint="Set start.classifier_pooling to one of these, or leave it out.",
        )


def init_head(config: EncoderConfig, head: str, outputs: int, key: jax.Array) -> dict:
    """Returns fresh parameters of a head; `key` is a jax PRNG key."""
    x_TH = jnp.zeros((1, config.width), config.dtype)
    variables: Any = TaskHead(config, head, outputs).init(key, x_TH)
    return variables["params"]


def init_model(
    config: EncoderConfig, task: HeadConfig, key: jax.Array, batch: Batch
) -> dict:
    """Returns fresh parameters of an encoder and the task's head."""
    keys = jax.random.split(key)
    params = heads.init_model(config, keys[0], _rows(config, batch), ())
    if task.head is None:
        return params
    return params | {task.head: init_head(config, task.head, task.outputs, keys[1])}


def check_packing(config: EncoderConfig, task: HeadConfig) -> None:
    """Raises PlmjaxError if the model cannot read several examples a row."""
    for name, value, packs in (
        ("model.attention", config.attention, not config.one_document),
        ("model.global_tokens", config.global_tokens, config.global_tokens == "none"),
        ("start.classifier_pooling", task.head_pooling, task.head_pooling == "cls"),
    ):
        if not packs:
            raise PlmjaxError(
                f"task.rows='packed' cannot be with {name}={value!r}, which reads a "
                "row as one text.",
                hint="Set task.rows='single'; task.buckets makes rows of short texts "
                "shorter.",
            )


def encode(
    config: EncoderConfig,
    task: HeadConfig,
    params: dict,
    batch: Batch,
    noise: Noise | None,
    platform: Platform = ANY,
) -> jax.Array:
    """Returns the encoder's states that the task's head reads.

    [B, L, H]; one pooled vector, [B, 1, H], if a row gets one label (but for late), or
    the states at batch["cls"] [B, K] of K packed examples, [B, K, H]; for choices [B,
    C, 1, H].
    """
    rows = _rows(config, batch)
    x_BLH = heads.encode(config, params, rows, noise, platform)
    if "cls" in batch:
        x_BLH = jnp.take_along_axis(x_BLH, batch["cls"][:, :, None], axis=1)
    elif _pools(task):
        pooled_BH = heads.pooled(x_BLH, rows["segments"], task.head_pooling)
        x_BLH = pooled_BH[:, None].astype(x_BLH.dtype)
    return x_BLH.reshape(*batch["tokens"].shape[:-1], *x_BLH.shape[1:])


def task_logits(
    config: EncoderConfig,
    task: HeadConfig,
    params: dict,
    batch: Batch,
    noise: Noise | None,
    platform: Platform = ANY,
) -> jax.Array:
    """Returns the float32 scores of a batch; dropout is on only with noise.

    batch["states"], if present, is the result of `encode`, computed before.

    "sequence": [B, C], or [B, K, C] for packed rows; "tags": [B, L, C]; "answers": [B,
    L, 2], begin and end, -1e30 for padding; "choices": [B, C], from tokens [B, C, L],
    -1e30 for an empty choice. Without a head: float32 vectors [B, C, H] from tokens [B,
    C, L].
    """
    shape = batch["tokens"].shape
    if task.head is None:
        rows = _rows(config, batch)
        x_BLH = heads.encode(config, params, rows, noise, platform)
        vectors_TH = heads.pooled(x_BLH, rows["segments"], task.pooling)
        return vectors_TH.reshape(*shape[:-1], config.width)
    if STATES in batch:
        states = batch[STATES]
    else:
        states = encode(config, task, params, batch, noise, platform=platform)
    x_TH = states.reshape(-1, config.width)
    if _pools(task):
        shape = batch["cls"].shape if "cls" in batch else shape[:-1]
    rate = task.dropout
    if rate is None:
        rate = default_dropout(config, task.head)
    head = TaskHead(config, task.head, task.outputs, rate, platform)
    scores: Any = head.apply({"params": params[task.head]}, x_TH, noise)
    if task.head == "choices":
        real_BC = jnp.any(batch["segments"] > 0, axis=-1)
        return jnp.where(real_BC, scores.reshape(shape), jnp.float32(OUT_OF_REACH))
    scores = scores.reshape(*shape, task.outputs)
    if task.head in POOLERS and not _pools(task):
        return heads.pooled(scores, batch["segments"], "mean")
    if task.head == "answers":
        # Without this mask, as in transformers, more padding would change the loss.
        real_BL = batch["segments"] > 0
        if config.family == "bigbird":  # no answer is in the question
            first_L = jnp.arange(real_BL.shape[1]) == 0
            real_BL &= (batch["types"] > 0) | first_L[None]
        scores = jnp.where(real_BL[:, :, None], scores, jnp.float32(OUT_OF_REACH))
    return scores


def _pools(task: HeadConfig) -> bool:
    """Returns True if the head reads one vector of each row."""
    return task.head in POOLERS and task.head_pooling != "late"


def _rows(config: EncoderConfig, batch: Batch) -> Batch:
    """Returns the encoder's inputs, with [B, C, L] reshaped to B * C rows."""
    length = batch["tokens"].shape[-1]
    names = ("tokens", "segments", "positions", "types")
    rows = {name: batch[name].reshape(-1, length) for name in names}
    if config.token_types < 2:
        # A table of one type has no row for sentence B; only [SEP] separates them.
        rows["types"] = jnp.zeros_like(rows["types"])
    return rows
