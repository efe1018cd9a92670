"""Scores as text for people."""

import math
from collections.abc import Sequence
from typing import Any

from plmjax.files import without_nan
from plmjax.objectives import Objective


def task_lines(result: dict) -> list[str]:
    """Returns a line of scores for each split, starting with the selected metric."""
    lines = []
    for split in ("held_out", "test"):
        scores = dict(result.get(split, {}))
        if not scores:
            continue
        first = {result["metric"]: scores.pop(result["metric"])}
        text = ", ".join(
            f"{name.replace('_', ' ')} {value:.4f}"
            for name, value in (first | scores).items()
        )
        lines.append(f"{split.replace('_', '-').capitalize()}: {text}.")
    return lines


def score_lines(
    objective: Objective, values: dict[str, float], baseline: float | None
) -> list[str]:
    """Returns the scores of a run as lines, first the loss and the unigram baseline.

    Where nothing was predicted (no baseline, or scores that are None or not finite),
    the lines have no figure.
    """
    lines, others = [], without_nan(values)
    if objective.token_loss is not None:
        loss = others.pop(objective.token_loss)
        if loss is None or baseline is None:
            return [
                "WARNING: no token of the held-out text was predicted, so there is no "
                "loss and no other figure; --dry_run shows a row with its masks."
            ]
        gain = baseline - loss
        lines.append(
            f"Held-out loss {loss:.3f} nats a predicted token; unigram baseline "
            f"{baseline:.3f} ({gain:.2f} nats {'better' if gain > 0 else 'WORSE'})."
        )
    texts = [
        f"{name.replace('_', ' ')} {as_text(name, value)}"
        for name, value in others.items()
        if value is not None
    ]
    return [*lines, ", ".join(texts).capitalize() + "."]


_SHARES = ("accuracy", "precision", "recall", "share")


def as_text(name: str, value: float | None, digits: int = 3) -> str:
    """Returns a score as text, shares in percent; "-" if there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    if name.endswith(_SHARES):
        return f"{value:.{digits - 2}%}"
    less = 2 if name.endswith("perplexity") else 0
    return f"{value:.{digits - less}f}"


def text_lines(records: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the scores of several models on a text as a table for each kind."""
    lines = []
    for kind, what in (
        ("masked", "hidden words"),
        ("causal", "causal models, which guess all of the text"),
    ):
        some = [record for record in records if record["kind"] == kind]
        if not some:
            continue
        width = max(len(what), *(len(record["model"]) for record in some))
        right = "words right" if kind == "masked" else "pieces right"
        lines.append(
            f"{what:{width}}  bits a byte  {right:>12}  nats a piece  unknown"
            + "  against the first (95 % interval)" * (len(some) > 1)
        )
        for record in some:
            lines.append(
                f"{record['model']:{width}}  {record['bits_per_byte']:11.4f}"
                f"  {record['accuracy']:12.2%}  {record['loss']:12.4f}"
                f"  {record['unknown_share']:7.2%}  {_against(record)}".rstrip()
            )
    return lines


def _against(record: dict[str, Any]) -> str:
    if "difference" not in record:
        return ""
    text = f"{record['difference']:+.4f}"
    if "low" in record:
        text += f" ({record['low']:+.4f} to {record['high']:+.4f}) {record['verdict']}"
    return text
