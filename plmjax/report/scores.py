"""Scores as text for people."""

from plmjax.objectives import Objective


def task_lines(result: dict) -> list[str]:
    """Returns a line of scores for each split, starting with the selected metric."""
    lines = []
    for split in ("held_out", "test"):
        scores = dict(result.get(split, {}))
        if not scores:
            continue
        first = {result["metric"]: scores.pop(result["metric"])}
        told = ", ".join(
            f"{name.replace('_', ' ')} {value:.4f}"
            for name, value in (first | scores).items()
        )
        lines.append(f"{split.replace('_', '-').capitalize()}: {told}.")
    return lines


def score_lines(
    objective: Objective, values: dict[str, float], baseline: float
) -> list[str]:
    """Returns the scores of a run as lines, first the loss and the unigram baseline."""
    lines, rest = [], dict(values)
    if objective.token_loss is not None:
        loss = rest.pop(objective.token_loss)
        gain = baseline - loss
        lines.append(
            f"Held-out loss {loss:.3f} nats a predicted token; unigram baseline "
            f"{baseline:.3f} ({gain:.2f} nats {'better' if gain > 0 else 'WORSE'})."
        )
    told = [f"{name.replace('_', ' ')} {as_text(name, v)}" for name, v in rest.items()]
    return [*lines, ", ".join(told).capitalize() + "."]


_SHARES = ("accuracy", "precision", "recall", "share")


def as_text(name: str, value: float, digits: int = 3) -> str:
    """Returns a score as text, shares in percent."""
    if name.endswith(_SHARES):
        return f"{value:.{digits - 2}%}"
    less = 2 if name.endswith("perplexity") else 0
    return f"{value:.{digits - less}f}"
