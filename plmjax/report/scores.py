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
        text = ", ".join(
            f"{name.replace('_', ' ')} {value:.4f}"
            for name, value in (first | scores).items()
        )
        lines.append(f"{split.replace('_', '-').capitalize()}: {text}.")
    return lines


def score_lines(
    objective: Objective, values: dict[str, float], baseline: float
) -> list[str]:
    """Returns the scores of a run as lines, first the loss and the unigram baseline."""
    lines, others = [], dict(values)
    if objective.token_loss is not None:
        loss = others.pop(objective.token_loss)
        gain = baseline - loss
        lines.append(
            f"Held-out loss {loss:.3f} nats a predicted token; unigram baseline "
            f"{baseline:.3f} ({gain:.2f} nats {'better' if gain > 0 else 'WORSE'})."
        )
    texts = [
        f"{name.replace('_', ' ')} {as_text(name, value)}"
        for name, value in others.items()
    ]
    return [*lines, ", ".join(texts).capitalize() + "."]


_SHARES = ("accuracy", "precision", "recall", "share")


def as_text(name: str, value: float, digits: int = 3) -> str:
    """Returns a score as text, shares in percent."""
    if name.endswith(_SHARES):
        return f"{value:.{digits - 2}%}"
    less = 2 if name.endswith("perplexity") else 0
    return f"{value:.{digits - less}f}"
