"""Cost of a pretraining: for another one of equal cost, and as a table."""

import dataclasses
from collections.abc import Sequence

import jax
from rich.table import Table

from plmjax import PlmjaxError, tree
from plmjax.console import as_table
from plmjax.evaluate.model import some_shapes
from plmjax.experiments.tables import Cell, cell
from plmjax.models import EncoderConfig, heads
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
    each = row_flops(config, vocab_size)
    return Cost(steps, rows * config.data.length, rows * each)


def steps_for(config: RunConfig, flops: float) -> int:
    """Returns the number of steps of a training that comes nearest to `flops`."""
    each = config.train.batch * row_flops(config, None)
    return max(1, round(flops / each))


def _steps(config: RunConfig) -> int:
    if config.train.steps is None or config.data.phases:
        raise PlmjaxError(
            "equal compute needs a number of steps, and this config has "
            f"{'data.phases' if config.data.phases else 'train.epochs'}.",
            hint="Set train.steps, from which those of the other settings follow.",
        )
    return config.train.steps


def row_flops(config: RunConfig, vocab_size: int | None) -> float:
    """Returns the FLOPs of training on a row; `vocab_size` as in `cost_of`."""
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


@dataclasses.dataclass(frozen=True)
class Budget:
    """Cost of one pretraining run of a setting, and the size of its encoder.

    `parameters` is None until the models are trained: counting them starts the devices,
    and the pretrainings need the memory of the devices.
    """

    name: str
    cost: Cost
    parameters: int | None = None


def budget_of(name: str, config: RunConfig, vocab_size: int | None = None) -> Budget:
    """Returns the budget of a setting; `vocab_size` is that of its trained models."""
    cost = cost_of(config, vocab_size)
    if vocab_size is None:
        return Budget(name, cost)
    encoder = encoder_of(config, vocab_size)
    shapes = jax.eval_shape(
        lambda batch: heads.init_model(encoder, jax.random.key(0), batch, ()),
        some_shapes(),
    )
    return Budget(name, cost, tree.count(shapes))


HEAD = ("steps", "tokens", "PFLOPs", "of the first's", "encoder's parameters")


def row(budget: Budget, first: Budget) -> list[Cell]:
    """Returns the figures of a budget, in the order of HEAD."""
    cost = budget.cost
    return [
        cell(cost.steps, ","),
        cell(cost.tokens, ","),
        cell(cost.flops / 1e15, ".4g"),
        cell(cost.flops / first.cost.flops, ".1%"),
        cell(budget.parameters, ","),
    ]


def screen(budgets: Sequence[Budget]) -> Table:
    """Returns the table of each setting's cost of pretraining, per seed."""
    rows = [[budget.name, *row(budget, budgets[0])] for budget in budgets]
    return as_table("Pretraining, each seed", ["", *HEAD], rows)
