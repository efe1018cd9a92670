"""Scores on held-out text, the same in every evaluation."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from plmjax.data.loader import held_out_batches
from plmjax.data.store import Store
from plmjax.evaluate.model import Trained
from plmjax.objectives import Objective
from plmjax.tokenizers import Tokenizer
from plmjax.train import sharding
from plmjax.train.config import MeshConfig
from plmjax.train.loop import evaluate
from plmjax.train.metrics import Sums, added, means
from plmjax.train.step import make_evaluation
from plmjax.workdir import Workdir, row_plan


def unigram_loss(store: Store, tokenizer: Tokenizer) -> float | None:
    """Returns the mean loss of held-out tokens, in nats, under unigram frequencies.

    The frequencies are counts of the training text plus one; special tokens are left
    out, as they are never masked. None if there are no others.
    """
    counts = store.unigram.astype(np.float64) + 1
    counts[list(tokenizer.special_ids)] = 0
    split = store.split("held_out")
    held_out = np.zeros(len(counts))
    block = 1 << 24
    for begin in range(0, split.tokens, block):
        index = np.arange(begin, min(begin + block, split.tokens))
        held_out += np.bincount(split.read(index)[0], minlength=len(counts))
    held_out[list(tokenizer.special_ids)] = 0
    seen = held_out > 0
    if not seen.any():
        return None
    nats = -np.log(counts[seen] / counts.sum())
    return float((held_out[seen] * nats).sum() / held_out[seen].sum())


def score_run(
    model: Trained,
    frozen: dict,
    workdir: Workdir,
    batch: int,
    max_rows: int | None = None,
) -> dict[str, Any]:
    """Returns the scores of a run on its held-out rows, and the number of rows.

    `frozen` holds the inputs of the loss beside the objective's tables: a teacher.
    `max_rows` limits the rows of each source of a mixture.
    Masks depend on the row alone, so neither the batch size nor the device matters.

    Raises:
      PlmjaxError: the run's token store is missing or damaged.
    """
    config, store = model.config, workdir.store()
    split = store.split("held_out")
    plan = row_plan(config, split, config.data.shapes[-1].length, store)
    mesh = sharding.make_mesh(MeshConfig())
    sharding.check_batch(mesh, batch, 1, "--batch")
    batches = functools.partial(
        held_out_batches,
        split,
        plan,
        model.tokenizer,
        batch,
        max_rows=max_rows,
        mine=functools.partial(sharding.local_rows, mesh),
    )
    evaluation = make_evaluation(model.objective)
    arrays = model.params, model.objective.tables() | frozen
    params, frozen = jax.device_put(arrays, sharding.replicated(mesh))
    sums = functools.partial(evaluate, evaluation, params, frozen, mesh)
    values = source_scores(model.objective, sums, batches, [*store.parts])
    limit = plan.rows if max_rows is None else max_rows
    rows = int(np.minimum(np.diff(plan.bounds), limit).sum())
    figures = values | {"unigram_loss": unigram_loss(store, model.tokenizer)}
    return without_baseline(figures) | {"rows": rows}


def source_scores(
    objective: Objective,
    sums: Callable[[Iterator[dict]], Sums],
    batches: Callable[..., Iterator[dict]],
    names: Sequence[str],
) -> dict[str, float]:
    """Returns the scores on all held-out rows, and loss_NAME on those of each source.

    `sums` evaluates batches; `batches` has the argument `source`; `names` are those of
    the sources of a mixture. {} if the evaluation was interrupted.
    """
    numbers = range(len(names)) if names else [None]
    each = [sums(batches(source=number)) for number in numbers]
    if not all(each):
        return {}
    losses = {
        f"loss_{name}": objective.scores(means(some))["loss"]
        for name, some in zip(names, each, strict=False)
    }
    return objective.scores(means(functools.reduce(added, each))) | losses


def without_baseline(figures: dict[str, Any]) -> dict[str, Any]:
    """Returns figures, all None if unigram_loss is: then no token can be predicted."""
    return dict.fromkeys(figures) if figures["unigram_loss"] is None else figures
