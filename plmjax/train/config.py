"""The blocks of a config that training reads: optimizer, schedule, mesh, intervals."""

import dataclasses
import itertools
import math
import re
from typing import Any, Literal

from plmjax import PlmjaxError
from plmjax.config import Block, number

SEED: dict[str, Any] = {"at_least": 0, "at_most": 2**32 - 1}
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


def _require(condition: bool, message: str, hint: str = "") -> None:
    if not condition:
        raise PlmjaxError(message, hint=hint)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Block, prefix="train.optimizer."):
    """AdamW (arXiv:1711.05101), LAMB (1904.00962) or StableAdamW (2304.13013)."""

    # stable_adamw: the update of an array shrinks where its gradients outgrow their
    # second moments, which makes spikes of the loss rarer; clip_norm can then be none.
    kind: Literal["adamw", "lamb", "stable_adamw"] = "adamw"
    learning_rate: float = number(1e-3, above=0)
    b1: float = number(0.9, at_least=0, below=1)
    b2: float = number(0.98, at_least=0, below=1)
    eps: float = number(1e-6, at_least=0)
    weight_decay: float = number(0.01, at_least=0)
    # Leaves whose name matches are not decayed (and not rescaled by LAMB).
    no_decay: str = r".*/(bias|scale)"
    # Gradients longer than this are scaled down to it; none: no clipping.
    clip_norm: float | None = number(1.0, above=0)
    # Each layer's rate is this share of the rate of the layer above; heads have all.
    layer_decay: float = number(1.0, above=0, at_most=1)
    # ((regex, factor), ...): the first that matches a leaf's full name scales its
    # rate, and each leaf must have one; none: all factors are 1.
    rates: tuple = ()
    # Parameters that do not train: "encoder", or the embeddings and the first N layers.
    freeze: int | Literal["encoder"] | None = number(None, at_least=0)
    # The heads train first, then one more layer every N steps, the embeddings last
    # (Howard & Ruder 2018, arXiv:1801.06146); none: all from the start.
    unfreeze_every_steps: int | None = number(None, at_least=1)

    def __post_init__(self):
        super().__post_init__()
        _check_regex("no_decay", self.no_decay)
        for rule in self.rates:
            self._check_rate(rule)
        frozen, every = self.freeze, self.unfreeze_every_steps
        _require(
            every is None or frozen is None,
            f"train.optimizer.freeze={frozen} and unfreeze_every_steps={every} cannot "
            "be combined: both set when layers train.",
            "Give one of them.",
        )

    def _check_rate(self, rule) -> None:
        _require(
            isinstance(rule, tuple)
            and len(rule) == 2
            and isinstance(rule[0], str)
            and type(rule[1]) in (int, float)
            and 0 <= rule[1] < math.inf,
            f"train.optimizer.rates has {rule!r}; each must be (regex, factor >= 0).",
            "For example (('encoder/.*', 0.1), ('.*', 1.0)).",
        )
        _check_regex("rates", rule[0])


def _check_regex(key: str, text: str) -> None:
    try:
        re.compile(text)
    except re.error as error:
        raise PlmjaxError(
            f"train.optimizer.{key}: {text!r} is not a valid regex: {error}."
        ) from None


@dataclasses.dataclass(frozen=True)
class ScheduleConfig(Block, prefix="train.schedule."):
    """Linear warm-up, then a decay to `final_percent` of the peak rate.

    `wsd` holds the peak and decays over the last `decay_percent` of the steps, linearly
    or by one minus the square root of the share that is done (arXiv:2405.18392).
    """

    kind: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    warmup_percent: float = number(5.0, at_least=0, at_most=100)
    # Overrides warmup_percent when given.
    warmup_steps: int | None = number(None, at_least=0)
    decay_percent: float = number(20.0, at_least=0, at_most=100)
    decay_shape: Literal["linear", "sqrt"] = "linear"
    final_percent: float = number(0.0, at_least=0, at_most=100)
    # linear, with warmup_steps: ((step, end), ...), from each step on the rate falls
    # toward that end, the last one train.steps; --minutes writes what it has aimed at.
    ends: tuple = ()

    def __post_init__(self):
        super().__post_init__()
        flat = [n for pair in self.ends if isinstance(pair, tuple) for n in pair]
        steps = [self.warmup_steps, *flat[::2]]
        _require(
            not self.ends
            or self.kind == "linear"
            and len(flat) == 2 * len(self.ends)
            and all(type(n) is int for n in (*steps, *flat))
            and all(a <= b for a, b in itertools.pairwise(steps))
            and all(a < b for a, b in zip(flat[::2], flat[1::2], strict=True)),
            f"train.schedule.ends is {self.ends!r}; it must be ((step, end), ...), in "
            "ascending order from train.schedule.warmup_steps on, with kind=linear.",
            "`plmjax pretrain --minutes=M` writes it into config.json.",
        )


@dataclasses.dataclass(frozen=True)
class PruneConfig(Block, prefix="train.prune."):
    """Pruning while a model trains; see pruning.py."""

    # The share of the weights of each kernel of the layers that are 0 in the end.
    sparsity: float = number(0.0, at_least=0, below=1)
    # Between these shares of the steps weights are pruned, in so many stages.
    begin_percent: float = number(0.0, at_least=0, at_most=100)
    end_percent: float = number(50.0, at_least=0, at_most=100)
    stages: int = number(20, at_least=1)
    # Weights that are 0 stay 0, as in a model that was pruned before.
    keep_zeros: bool = False

    @property
    def on(self) -> bool:
        """Whether zeros are kept; a schedule keeps those that it makes."""
        return self.keep_zeros or self.sparsity > 0


@dataclasses.dataclass(frozen=True)
class TrainConfig(Block, prefix="train."):
    """Length of training, batch size, and intervals."""

    # One of the two says how long to train; setting one clears the other.
    steps: int | None = number(None, at_least=1, replaces="epochs")
    epochs: float | None = number(None, above=0, replaces="steps")
    # Rows a step over all devices; `accumulation` micro-batches share one update.
    batch: int = number(16, at_least=1)
    accumulation: int = number(1, at_least=1)
    # What computes attention on a GPU or TPU: XLA; the kernels of models/kernels.py;
    # auto: these, where they can.
    attention: Literal["xla", "pallas", "auto"] = "xla"
    seed: int = number(0, **SEED)
    # A Hugging Face folder (in the workdir, or anywhere) with the initial weights.
    init_from: str | None = None
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    prune: PruneConfig = dataclasses.field(default_factory=PruneConfig)
    # Decay of an exponential moving average of the weights, which is then evaluated
    # and exported; none: no average.
    ema_decay: float | None = number(None, above=0, below=1)
    # Keeps the plain mean of the weights from this share of the steps on (SWA; Izmailov
    # et al. 2018, arXiv:1803.05407), used like the exponential average.
    average_from_percent: float | None = number(None, at_least=0, below=100)
    # With model.dtype=float16: what the loss is multiplied with, so that its gradients
    # do not vanish. It doubles after so many good steps in a row; where a gradient
    # overflows, it is halved and the update is skipped (arXiv:1710.03740).
    loss_scale: float = number(65536.0, at_least=1, at_most=2**24)
    loss_scale_steps: int = number(2000, at_least=1)
    log_every_steps: int = number(10, at_least=1)
    evaluate_every_steps: int = number(250, at_least=1)
    checkpoint_every_steps: int = number(250, at_least=1)
    # Training ends after this many evaluations in a row without a better one; none: it
    # continues to its last step.
    patience_evaluations: int | None = number(None, at_least=1)
    # Newest checkpoints kept, besides the best one.
    keep_checkpoints: int = number(
        2, at_least=2, hint="A damaged newest checkpoint then has one before it."
    )
    # Where checkpoints go: a directory (relative to the workdir), gs://BUCKET/PATH or
    # s3://BUCKET/PATH; none: WORKDIR/checkpoints.
    checkpoints: str | None = None
    # What happens at a bad step (loss or gradient not finite): its update is skipped;
    # or the run stops; or it resumes from the last good checkpoint without the rows of
    # the `rollback_batches` batches up to the bad one.
    on_bad_step: Literal["skip", "raise", "rollback"] = "skip"
    # Updates in a row that may be skipped.
    max_bad_steps: int = number(10, at_least=1)
    # A loss this many standard deviations above the median of the last 128 is bad, too;
    # none: only a loss or gradient that is not finite.
    spike_sigmas: float | None = number(None, above=0)
    rollback_batches: int = number(10, at_least=1)
    # The run stops instead of rolling back more often than this.
    max_rollbacks: int = number(3, at_least=1)
    # After so long without a step (or ten times the median step, if that is longer) the
    # run counts as hung and ends, to be started again; none: it waits for ever.
    hang_after_seconds: float | None = number(600.0, above=0)
    tensorboard: bool = True
    # Further trackers of the records: wandb, mlflow, trackio; joined by commas.
    trackers: tuple | str = ()

    def __post_init__(self):
        super().__post_init__()
        for name in self.tracker_names:
            _require(
                name in TRACKERS,
                f"train.trackers has {name!r}.",
                f"It may name {', '.join(TRACKERS)}.",
            )
        _require(
            self.steps is None or self.epochs is None,
            f"train.steps={self.steps} and train.epochs={self.epochs} both set the "
            "length of training.",
            "Give one of them.",
        )
        _require(
            self.batch % self.accumulation == 0,
            f"train.batch={self.batch} does not divide into "
            f"train.accumulation={self.accumulation} micro-batches.",
        )
        _require(
            self.spike_sigmas is None or self.on_bad_step != "skip",
            "train.spike_sigmas needs train.on_bad_step=rollback or raise: when the "
            "loss of a step is known, its update cannot be skipped any more.",
        )
        ends = self.schedule.ends
        _require(
            not ends or self.steps == ends[-1][1],
            f"train.steps={self.steps} is not the last end of train.schedule.ends.",
            "To train for another time, remove that key: train.schedule.ends=().",
        )
        decay, since = self.ema_decay, self.average_from_percent
        _require(
            decay is None or since is None,
            f"train.ema_decay={decay} and train.average_from_percent={since} both set "
            "how weights are averaged.",
            "Give one of them.",
        )
        begin, end = self.prune.begin_percent, self.prune.end_percent
        _require(
            begin <= end,
            f"train.prune.begin_percent={begin:g} is after end_percent={end:g}.",
            "Prune from an earlier to a later share of the steps.",
        )
        _require(
            not (self.prune.on and self.averages),
            "train.prune makes weights 0, and an average of them over the steps "
            "would not be 0.",
            "Leave train.ema_decay and train.average_from_percent out.",
        )

    @property
    def tracker_names(self) -> tuple[str, ...]:
        """The trackers to write to, TensorBoard among them."""
        named = self.trackers
        names = named.split(",") if isinstance(named, str) else map(str, named)
        names = [*["tensorboard"] * self.tensorboard, *map(str.strip, names)]
        return tuple(dict.fromkeys(filter(None, names)))

    @property
    def averages(self) -> bool:
        """Whether an average of the weights is kept."""
        return self.ema_decay is not None or self.average_from_percent is not None

    def average_from(self, steps: int) -> int | None:
        """Returns the first of `steps` steps that counts in the plain mean, or None."""
        if self.average_from_percent is None:
            return None
        return int(steps * self.average_from_percent / 100)


@dataclasses.dataclass(frozen=True)
class MeshConfig(Block, prefix="mesh."):
    """Number of devices along each axis: data, fsdp, tensor (see sharding.py).

    One axis may be "auto": it takes the devices that the others leave.
    """

    data: int | Literal["auto"] = number("auto", at_least=1)
    fsdp: int | Literal["auto"] = number(1, at_least=1)
    tensor: int | Literal["auto"] = number(1, at_least=1)
    # ZeRO-1 (arXiv:1910.02054): the optimizer's moments and the average of the weights
    # are divided over `data`, too, instead of copied to each device.
    zero1: bool = False

    def __post_init__(self):
        super().__post_init__()
        sizes = (self.data, self.fsdp, self.tensor)
        _require(
            sizes.count("auto") <= 1,
            f"mesh sizes {sizes}: only one axis can be 'auto'.",
        )
