"""Cost of the pretraining of a study's models, for a table beside their scores."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich.table import Table

from plmjax import tree
from plmjax.experiments import compute, tables
from plmjax.experiments.compute import Cost
from plmjax.models import heads
from plmjax.workdir import RunConfig


@dataclasses.dataclass(frozen=True)
class Budget:
    """Cost of one pretraining run of a setting, and the size of its encoder.

    `parameters` is None until the models are trained: counting them starts the devices,
    and the pretrainings need the memory of the devices.
    """

    name: str
    cost: Cost
    parameters: int | None = None


def planned(name: str, config: RunConfig) -> Budget:
    """Returns the budget of a setting, with the vocabulary size of its config."""
    return Budget(name, compute.cost_of(config))


def measured(name: str, config: RunConfig, vocab_size: int) -> Budget:
    """Returns the budget of a setting whose tokenizer has `vocab_size` pieces."""
    encoder = compute.encoder_of(config, vocab_size)
    ids = jax.ShapeDtypeStruct((1, 8), np.int32)
    batch: Any = dict.fromkeys(("tokens", "segments", "positions", "types"), ids)
    shapes = jax.eval_shape(
        lambda batch: heads.init_model(encoder, jax.random.key(0), batch, ()), batch
    )
    return Budget(name, compute.cost_of(config, vocab_size), tree.count(shapes))


HEAD = ("steps", "tokens", "PFLOPs", "of the first's", "encoder's parameters")


def row(budget: Budget, first: Budget) -> list[str]:
    """Returns the figures of a budget, in the order of HEAD."""
    cost = budget.cost
    return [
        f"{cost.steps:,}",
        f"{cost.tokens:,}",
        f"{cost.flops / 1e15:.4g}",
        f"{cost.flops / first.cost.flops:.1%}",
        "" if budget.parameters is None else f"{budget.parameters:,}",
    ]


def screen(budgets: Sequence[Budget]) -> Table:
    """Returns the table of each setting's cost of pretraining, per seed."""
    rows = [[budget.name, *row(budget, budgets[0])] for budget in budgets]
    return tables.screen("Pretraining, each seed", ["", *HEAD], rows)
