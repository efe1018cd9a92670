"""The blocks of a config that training reads: optimizer, schedule, mesh, intervals."""

import dataclasses
import math
import re
from typing import Literal

from plmjax import PlmjaxError


def _require(condition: bool, message: str, hint: str = "") -> None:
    if not condition:
        raise PlmjaxError(message, hint=hint)


def _replaces(other: str) -> dict:
    return {"replaces": other}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv:1711.05101) or LAMB (arXiv:1904.00962)."""

    kind: Literal["adamw", "lamb"] = "adamw"
    learning_rate: float = 1e-3
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.01
    # Leaves whose name matches are not decayed (and not rescaled by LAMB).
    no_decay: str = r".*/(bias|scale)"
    # Gradients longer than this are scaled down to it; none: no clipping.
    clip_norm: float | None = 1.0
    # Of the rate, each layer has this share of the one above it; heads have all of it.
    layer_decay: float = 1.0
    # ((regex, factor), ...): the first that matches a leaf's whole name scales its
    # rate, and each leaf must have one; none: all factors are 1.
    rates: tuple = ()
    # What does not learn: "encoder", or the embeddings and so many layers above them.
    freeze: int | Literal["encoder"] | None = None
    # The heads learn first, then one more layer after each so many steps, the
    # embeddings last (Howard & Ruder 2018, arXiv:1801.06146); none: all from the start.
    unfreeze_every_steps: int | None = None

    def __post_init__(self):
        rate = self.learning_rate
        _require(rate > 0, f"train.optimizer.learning_rate is {rate}; it must be > 0.")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            _require(
                0 <= value < 1,
                f"train.optimizer.{name} is {value}; it must be in [0, 1).",
            )
        for name in ("eps", "weight_decay"):
            value = getattr(self, name)
            _require(
                value >= 0,
                f"train.optimizer.{name} is {value}; it must not be negative.",
            )
        clip = self.clip_norm
        _require(
            clip is None or clip > 0,
            f"train.optimizer.clip_norm is {clip}; it must be > 0, or none.",
        )
        decay = self.layer_decay
        _require(
            0 < decay <= 1,
            f"train.optimizer.layer_decay is {decay}; it must be in (0, 1].",
        )
        _check_regex("no_decay", self.no_decay)
        for rule in self.rates:
            self._check_rate(rule)
        frozen = self.freeze
        _require(
            not isinstance(frozen, int) or frozen >= 0,
            f"train.optimizer.freeze is {frozen}; it must be a number of layers, "
            "'encoder', or none.",
        )
        every = self.unfreeze_every_steps
        _require(
            every is None or every >= 1,
            f"train.optimizer.unfreeze_every_steps is {every}; it must be at least 1, "
            "or none.",
        )
        _require(
            every is None or frozen is None,
            f"train.optimizer.freeze={frozen} and unfreeze_every_steps={every} both "
            "say when layers learn.",
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
            f"train.optimizer.{key}: {text!r} is no regex: {error}."
        ) from None


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up, then a decay to `final_percent` of the peak rate.

    `wsd` holds the peak and decays over the last `decay_percent` of the steps.
    """

    kind: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    warmup_percent: float = 5.0
    # Takes the place of warmup_percent when given.
    warmup_steps: int | None = None
    decay_percent: float = 20.0
    final_percent: float = 0.0

    def __post_init__(self):
        for name in ("warmup_percent", "decay_percent", "final_percent"):
            value = getattr(self, name)
            _require(
                0 <= value <= 100,
                f"train.schedule.{name} is {value}; it is a percentage, 0 to 100.",
            )
        _require(
            self.warmup_steps is None or self.warmup_steps >= 0,
            f"train.schedule.warmup_steps is {self.warmup_steps}; it must not be "
            "negative.",
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, in what portions, and how often something happens."""

    # One of the two says how long to train; setting one clears the other.
    steps: int | None = dataclasses.field(default=None, metadata=_replaces("epochs"))
    epochs: float | None = dataclasses.field(default=None, metadata=_replaces("steps"))
    # Rows a step over all devices; `accumulation` micro-batches share one update.
    batch: int = 16
    accumulation: int = 1
    seed: int = 0
    # A Hugging Face folder (in the workdir, or anywhere) whose weights are the start.
    init_from: str | None = None
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    # Keeps an exponential moving average of the weights, which then is evaluated and
    # exported; none: no average.
    ema_decay: float | None = None
    # The plain mean of the weights after each step from this share of the steps on
    # (SWA; Izmailov et al. 2018, arXiv:1803.05407), used as an exponential one is.
    average_from_percent: float | None = None
    log_every_steps: int = 10
    evaluate_every_steps: int = 250
    checkpoint_every_steps: int = 250
    # So many evaluations in a row without a better one end the training; none: it goes
    # on to its last step.
    patience_evaluations: int | None = None
    # Newest checkpoints kept, besides the best one.
    keep_checkpoints: int = 2
    # Where checkpoints go: a directory (from the workdir on), gs://BUCKET/PATH or
    # s3://BUCKET/PATH; none: WORKDIR/checkpoints.
    checkpoints: str | None = None
    # What a bad step does, one whose loss or gradient is not finite: its update is
    # skipped; or the run stops; or it goes back to the last good checkpoint and on
    # without the rows of the `rollback_batches` batches up to the bad one.
    on_bad_step: Literal["skip", "raise", "rollback"] = "skip"
    # Updates in a row that may be skipped.
    max_bad_steps: int = 10
    # A loss so many standard deviations above the median of the last 128 is bad, too;
    # none: only what is not finite.
    spike_sigmas: float | None = None
    rollback_batches: int = 10
    # Going back more often than this stops the run.
    max_rollbacks: int = 3
    # Without a step for so long (or ten times the median step, if that is longer) the
    # run counts as hung and ends, to be started again; none: it waits for ever.
    hang_after_seconds: float | None = 600.0
    tensorboard: bool = True

    def __post_init__(self):
        _require(
            self.steps is None or self.epochs is None,
            f"train.steps={self.steps} and train.epochs={self.epochs} both say how "
            "long to train.",
            "Give one of them.",
        )
        for name in (
            "batch",
            "accumulation",
            "log_every_steps",
            "evaluate_every_steps",
            "checkpoint_every_steps",
            "max_bad_steps",
            "rollback_batches",
            "max_rollbacks",
        ):
            value = getattr(self, name)
            _require(value >= 1, f"train.{name} is {value}; it must be at least 1.")
        _require(
            self.steps is None or self.steps >= 1,
            f"train.steps is {self.steps}; it must be at least 1.",
        )
        _require(
            self.epochs is None or self.epochs > 0,
            f"train.epochs is {self.epochs}; it must be > 0.",
        )
        _require(
            self.keep_checkpoints >= 2,
            f"train.keep_checkpoints is {self.keep_checkpoints}; it must be at least "
            "2, so that a damaged newest checkpoint has one before it.",
        )
        _require(
            self.batch % self.accumulation == 0,
            f"train.batch={self.batch} does not divide into "
            f"train.accumulation={self.accumulation} micro-batches.",
        )
        _require(
            0 <= self.seed < 2**32,
            f"train.seed is {self.seed}; it must be between 0 and 2**32 - 1.",
        )
        _require(
            self.spike_sigmas is None or self.spike_sigmas > 0,
            f"train.spike_sigmas is {self.spike_sigmas}; it must be > 0, or none.",
        )
        _require(
            self.spike_sigmas is None or self.on_bad_step != "skip",
            "train.spike_sigmas needs train.on_bad_step=rollback or raise: the update "
            "of a finite loss cannot be skipped once it is seen.",
        )
        hang = self.hang_after_seconds
        _require(
            hang is None or hang > 0,
            f"train.hang_after_seconds is {hang}; it must be > 0, or none.",
        )
        decay, since = self.ema_decay, self.average_from_percent
        _require(
            decay is None or 0 < decay < 1,
            f"train.ema_decay is {decay}; it must lie between 0 and 1, or be none.",
        )
        _require(
            since is None or 0 <= since < 100,
            f"train.average_from_percent is {since}; it must be at least 0 and below "
            "100, or none.",
        )
        _require(
            decay is None or since is None,
            f"train.ema_decay={decay} and train.average_from_percent={since} both say "
            "how weights are averaged.",
            "Give one of them.",
        )
        patience = self.patience_evaluations
        _require(
            patience is None or patience >= 1,
            f"train.patience_evaluations is {patience}; it must be at least 1, or "
            "none.",
        )

    @property
    def averages(self) -> bool:
        """Whether an average of the weights is kept."""
        return self.ema_decay is not None or self.average_from_percent is not None

    def average_from(self, steps: int) -> int | None:
        """Returns the first of `steps` steps whose weights count in the plain mean."""
        if self.average_from_percent is None:
            return None
        return int(steps * self.average_from_percent / 100)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices hold copies of the data, shards of each layer, parts of it.

    "auto" for one axis takes the devices that the others leave.
    """

    data: int | Literal["auto"] = "auto"
    fsdp: int | Literal["auto"] = 1
    tensor: int | Literal["auto"] = 1
    # ZeRO-1 (arXiv:1910.02054): the optimizer's moments and the average of the weights
    # are divided over `data`, too, in the place of a copy on each device.
    zero1: bool = False

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.tensor)
        _require(
            sizes.count("auto") <= 1,
            f"mesh sizes {sizes}: only one axis can be 'auto'.",
        )
        for name, size in zip(("data", "fsdp", "tensor"), sizes, strict=True):
            _require(
                size == "auto" or size >= 1,
                f"mesh.{name} is {size}; it must be at least 1, or 'auto'.",
            )
