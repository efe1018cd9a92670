"""Cost of a pretraining, and the number of steps of another one of equal cost."""

import dataclasses

from plmjax import PlmjaxError
from plmjax.models import EncoderConfig
from plmjax.models.config import resolve
from plmjax.objectives import OBJECTIVES, Pieces
from plmjax.workdir import RunConfig


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of a training: steps, tokens of its rows with padding, FLOPs of matmuls."""

    steps: int
    tokens: int
    flops: float


def encoder_of(config: RunConfig, vocab_size: int | None = None) -> EncoderConfig:
    """Returns the encoder of a run whose tokenizer may not exist yet."""
    return resolve(config.model, vocab_size or config.tokenizer.vocab_size, pad_id=0)


def cost_of(config: RunConfig, vocab_size: int | None = None) -> Cost:
    """Returns the cost of a training, including its generator and heads.

    `vocab_size` is the tokenizer's; None: the size that the config asks for.

    Raises:
      PlmjaxError: the number of steps depends on the text, or the cost on a teacher.
    """
    steps = _steps(config)
    rows = steps * config.train.batch
    each = _row_flops(config, vocab_size)
    return Cost(steps, rows * config.data.length, rows * each)


def steps_for(config: RunConfig, flops: float) -> int:
    """Returns the number of steps of a training that comes nearest to `flops`."""
    each = config.train.batch * _row_flops(config, None)
    return max(1, round(flops / each))


def _steps(config: RunConfig) -> int:
    if config.train.steps is None or config.data.phases:
        raise PlmjaxError(
            "equal compute needs a number of steps, and this config has "
            f"{'data.phases' if config.data.phases else 'train.epochs'}.",
            hint="Set train.steps, of which the other settings' follow.",
        )
    return config.train.steps


def _row_flops(config: RunConfig, vocab_size: int | None) -> float:
    if config.objective.kind == "distill":
        raise PlmjaxError(
            "objective.kind=distill has a teacher, whose cost is not counted.",
            hint="Compare it by `plmjax compare` of finished models.",
        )
    encoder = encoder_of(config, vocab_size)
    make = OBJECTIVES[config.objective.kind]
    # The FLOPs do not depend on the pieces, so placeholders are enough.
    return make(config.objective, encoder, Pieces(0, (0,), (1,))).flops(
        config.data.length
    )
