"""Refuses, before the first step, text that would be trained on by mistake."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from plmjax import DataError, PlmjaxError
from plmjax.data.loader import Batch, Loader, Phase
from plmjax.data.quality import Problem, problems
from plmjax.data.store import SPLITS, Store
from plmjax.evaluate.examples import masked
from plmjax.models import EncoderConfig
from plmjax.models.global_tokens import most
from plmjax.objectives import Objective
from plmjax.objectives.masked import Masked
from plmjax.report.dry_run import row_as_seen
from plmjax.tokenizers import Tokenizer
from plmjax.train import sharding
from plmjax.workdir import RunConfig, row_plan

SAMPLE = 512  # rows of each split in which masks are counted
SOME_UNMASKED = 0.01  # of the rows; fewer are not mentioned
MOSTLY_TOO_LONG = 0.5  # of the tokens are in words that are never masked
MOSTLY_PADDING = 0.2
_SHOWN = 300  # characters of the first row


def check_text(
    config: RunConfig,
    tokenizer: Tokenizer,
    store: Store,
    objective: Objective,
    loader: Loader,
    log: Callable[[str], Any],
) -> None:
    """Logs in one block what looks wrong in the text of a run.

    Raises:
      PlmjaxError: it looks so wrong that it is refused, unless data.accept_warnings is
        set; or no row has a mask.
    """
    phase = min(loader.phases, key=lambda phase: phase.plan.length)
    some = []
    for name, part in (store.parts or {"": store}).items():
        begin = f"{name}: " if name else ""
        for problem in problems(part, config.data.held_out_percent):
            some.append(problem._replace(text=begin + problem.text))
    emptiest = min((phase.plan for phase in loader.phases), key=lambda plan: plan.fill)
    if emptiest.fill < MOSTLY_PADDING and config.data.rows != "packed":
        text = f"Rows of {emptiest.length} tokens are {emptiest.fill:.1%} full; the "
        text += "rest is padding. "
        if any(view.encoder.one_document for view in objective.models.values()):
            text += "A smaller --config.data.length has less."
        else:
            text += "--config.data.rows=packed fills them with several documents."
        some.append(Problem(text))
    with sharding.alone():
        if isinstance(objective, Masked) and objective.masks_matter:
            rows = {
                name: sample(config, tokenizer, store, name, phase) for name in SPLITS
            }
            some += unmasked(objective, **rows)
        if not some:
            return
        first = {name: array[:1] for name, array in loader.batch(0).items()}
        row = row_as_seen(objective, tokenizer, first)
    row = row if len(row) <= _SHOWN else f"{row[:_SHOWN]} ..."
    lines = "".join(f"\n  - {problem.text}" for problem in some)
    text = f"The text may not be what it seems:{lines}\n  The first row: {row}"
    if any(problem.final for problem in some):
        raise DataError(text)
    if any(problem.refused for problem in some) and not config.data.accept_warnings:
        hint = "\nFix the text or the config; --yes trains on it all the same."
        raise DataError(text, hint=hint)
    log(f"WARNING: {text}")


def check_global_tokens(
    config: RunConfig,
    tokenizer: Tokenizer,
    store: Store,
    *,
    encoders: Sequence[EncoderConfig],
    phases: Iterable[Phase],
    log: Callable[[str], Any],
) -> None:
    """Raises PlmjaxError if a row has more global tokens than model.global_limit.

    It looks at SAMPLE rows of each split; the documents of a row are counted in all.
    Logs how many parameters of the first encoder no global token trains.
    """
    first = encoders[0]
    if first.global_projections and first.global_tokens == "none":
        count = 3 * (first.width + first.bias) * first.width
        count *= sum(first.layer_kind(i) == "local" for i in range(first.layers))
        log(
            f"WARNING: {count:,} parameters are for global tokens alone, and are not "
            "trained, because model.global_tokens is 'none'."
        )
    for phase, encoder in itertools.product(phases, encoders):
        rule, limit, count = encoder.global_tokens, encoder.global_limit, 0
        if rule == "none":
            continue
        for split in SPLITS:
            if rule == "first":
                length = phase.plan.length
                plan = row_plan(config, store.split(split), length, store)
                count = max(count, int(np.diff(plan.first).max(initial=0)))
                continue
            rows = sample(config, tokenizer, store, split, phase)
            with sharding.alone():
                count = max(count, most(encoder, rows["tokens"], rows["segments"]))
        if count > limit:
            raise PlmjaxError(
                f"a row of {phase.plan.length} tokens has {count:,} global tokens "
                f"(model.global_tokens={rule!r}), but model.global_limit is {limit}: "
                "the others would see a window alone.",
                hint=f"Set --config.model.global_limit={count + count // 4}.",
            )


# Why an attention cannot read packed rows.
_ONE_DOCUMENT = {
    "nystrom": "mixes all tokens of a row, so that it cannot keep the documents of a "
    "packed row apart",
    "blocks": "lets all tokens see the first and the last block of a row, which hold "
    "none of the documents between",
}


def check_one_document(config: RunConfig, encoder: EncoderConfig, name: str) -> None:
    """Raises PlmjaxError for packed rows of a model that cannot separate documents."""
    if encoder.one_document and config.data.rows == "packed":
        raise PlmjaxError(
            f"{name} {_ONE_DOCUMENT[encoder.attention]}.",
            hint="Set --config.data.rows=single: one document a row; long ones are cut "
            "into rows.",
        )


def sample(
    config: RunConfig, tokenizer: Tokenizer, store: Store, split: str, phase: Phase
) -> Batch:
    """Returns SAMPLE random rows of a split, or all if there are fewer."""
    plan = row_plan(config, store.split(split), phase.plan.length, store)
    one = Phase(1, min(SAMPLE, plan.rows), plan)
    return Loader(store.split(split), [one], tokenizer, config.train.seed).batch(0)


def unmasked(objective: Masked, train: Batch, held_out: Batch) -> list[Problem]:
    """Returns the problem of rows in which nothing is masked; [] if these are few."""
    bare, empty = rows_without_masks(objective, train)
    count, rows = int(bare.sum()), len(bare)
    long = (
        f"their words are longer than {objective.least_probability:.0%} of the row. "
        "Set --config.objective.unit=token, or longer rows."
    )
    special = "they hold only special pieces such as [UNK]."
    why = special if 2 * empty.sum() > count else long
    if count == rows:
        return [Problem(f"None of {rows:,} rows has a mask: {why}", final=True)]
    texts = []
    if count > SOME_UNMASKED * rows:
        share = f"{count / rows:.1%} of the rows ({count:,} of {rows:,})"
        texts.append(f"{share} have no mask: {why}")
    if (share := never_masked(objective, train)) > MOSTLY_TOO_LONG:
        texts.append(f"{share:.1%} of the tokens are never masked: {long}")
    some = [Problem(text) for text in texts]
    if rows_without_masks(objective, held_out)[0].all():
        text = "No held-out row has a mask, so no evaluation would have a figure."
        some.append(Problem(text, refused=True))
    return some


def rows_without_masks(
    objective: Masked, batch: Batch
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows in which nothing is masked, and those without ordinary pieces.

    Both are bool [B]. The objective draws the masks only if a word may be too long,
    because its program takes seconds to compile.
    """
    size_B, row_W, size_W = _units(objective, batch)
    empty_B = size_B == 0
    shortest_B = np.full(len(size_B), batch["tokens"].shape[1])
    np.minimum.at(shortest_B, row_W, size_W)
    share = np.float32(objective.least_probability)
    budget_B = np.maximum(np.floor(share * size_B.astype(np.float32)), 1)
    if not np.any((shortest_B > budget_B) & ~empty_B):
        return empty_B, empty_B
    return ~np.any(masked(objective, batch)["weights"] > 0, axis=1), empty_B


def never_masked(objective: Masked, batch: Batch) -> float:
    """Returns the share of the tokens in words that are too long for their row."""
    size_B, row_W, size_W = _units(objective, batch)
    most_B = np.floor(objective.mask_config.largest_probability * size_B + 1)
    return float(size_W[size_W > most_B[row_W]].sum() / max(size_W.sum(), 1))


def _units(
    objective: Masked, batch: Batch
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns [B] maskable tokens, and row and tokens [W] of the smallest units."""
    special_V = objective.tables()["is_special"]
    maskable_BL = (batch["segments"] > 0) & ~special_V[batch["tokens"]]
    start_BL = maskable_BL
    if objective.mask_config.unit != "token":
        before_BL = np.pad(maskable_BL[:, :-1], ((0, 0), (1, 0)))
        start_BL = maskable_BL & (batch["word_start"] | ~before_BL)
    word_BL = np.cumsum(start_BL).reshape(start_BL.shape) - 1
    size_W = np.bincount(word_BL[maskable_BL], minlength=1)[: start_BL.sum()]
    return maskable_BL.sum(1), np.nonzero(start_BL)[0], size_W
