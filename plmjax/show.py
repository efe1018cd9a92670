"""What a person is shown of a run: masked examples, a row as the model sees it, sizes.

Legend: B rows, K slots a row, L tokens.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from plmjax.evaluate.fill import guesses
from plmjax.evaluate.model import Model
from plmjax.models import EncoderConfig
from plmjax.objectives import Objective
from plmjax.tokenizers import Tokenizer
from plmjax.train.step import evaluation_key

# Tokens shown on either side of a mask.
_CONTEXT = 14


def masked(objective: Objective, batch: dict) -> dict:
    """Returns a numpy batch with the masks that evaluation gives it."""
    corrupt = jax.jit(objective.corrupt)
    return jax.device_get(corrupt(batch, evaluation_key(), jnp.float32(1)))


class Examples:
    """A few hidden words of held-out rows, guessed before and after training."""

    def __init__(self, objective: Objective, model: Model, batch: dict, count: int = 5):
        """Chooses one hidden word in each of the first `count` rows of `batch`."""
        self.model = model
        # A causal model guesses the token after the position it guesses from.
        self.shift = int(model.encoder.causal)
        # A few rows more than asked: one may have no mask to show.
        few = {name: array[: 2 * count] for name, array in batch.items()}
        self.batch = masked(objective, few)
        hidden_BK = self.batch["weights"] > 0
        if not self.shift:
            tokens, at = self.batch["tokens"], self.batch["mask_positions"]
            mask_BK = np.take_along_axis(tokens, at, 1) == model.tokenizer.mask_id
            # Masks if there are any; an objective may do without.
            hidden_BK &= mask_BK if (hidden_BK & mask_BK).any() else True
        places = [self._words(row, slots) for row, slots in enumerate(hidden_BK)]
        # The middle one: context on both sides.
        self.places = [
            (row, int(slots[len(slots) // 2]))
            for row, slots in enumerate(places)
            if len(slots)
        ][:count]

    def _words(self, row: int, hidden_K: np.ndarray) -> np.ndarray:
        """Returns the hidden slots whose truth is a word; all where there is none."""
        slots = np.flatnonzero(hidden_K)
        truths = self.batch["labels"][row, slots].tolist()
        decode = self.model.tokenizer.decode
        words = [
            len(w) > 2 and w.isalpha() for w in (decode([t]).strip() for t in truths)
        ]
        return slots[words] if any(words) else slots

    def guess(self, top: int = 3) -> list[str]:
        """Returns what the model says, a line an example."""
        rows = np.array([row for row, _ in self.places])
        slots = np.array([[slot] for _, slot in self.places])
        few = {name: array[rows] for name, array in self.batch.items()}
        # The vocabulary head need not run where nothing is shown.
        few["mask_positions"] = np.take_along_axis(few["mask_positions"], slots, 1)
        found = guesses(self.model, self.model.params, few, top)
        return [
            ", ".join(f"{g.text} {g.probability:.0%}" for g in guessed[0])
            for guessed in found
        ]

    def texts(self) -> list[tuple[str, str]]:
        """Returns (context with its masks, the right word) of each example."""
        decode = self.model.tokenizer.decode
        shown = []
        for row, slot in self.places:
            at = int(self.batch["mask_positions"][row, slot]) + self.shift
            segments = self.batch["segments"][row]
            inside = np.flatnonzero(segments == segments[at])
            begin = max(at - _CONTEXT, int(inside[0]) + 1)
            end = at + 1 if self.shift else min(at + _CONTEXT + 1, int(inside[-1]))
            tokens = self.batch["tokens"][row]
            before = decode(tokens[begin:at].tolist()).strip()
            after = decode(tokens[at + 1 : end].tolist()).strip()
            truth = decode([int(self.batch["labels"][row, slot])]).strip()
            shown.append((f"{before} [ ? ] {after}".rstrip(), truth))
        return shown

    def table(self, before: list[str], after: list[str]) -> Table:
        """Returns the examples with both guesses, ready to print."""
        what = "and what comes next" if self.shift else "masked"
        table = Table(title=f"Held-out text, {what}", show_lines=True, title_style="")
        for name in ("text", "was", "guesses before", "guesses after"):
            table.add_column(name, overflow="fold")
        for (text, truth), old, new in zip(self.texts(), before, after, strict=True):
            table.add_row(_plain(text), _plain(truth), _plain(old), _plain(new))
        return table


def task_lines(result: dict) -> list[str]:
    """Returns the scores of a fine-tuned model as a line a split, the chosen first."""
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
    """Returns the scores of a run as lines: the loss beside guessing blindly first."""
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
    """Returns a score as a person reads it: shares in percent."""
    if name.endswith(_SHARES):
        return f"{value:.{digits - 2}%}"
    less = 2 if name.endswith("perplexity") else 0
    return f"{value:.{digits - less}f}"


def try_it(objective: Objective, workdir: Path) -> str:
    """Returns the commands that use what the objective has trained, a line each."""
    causal = any(part.encoder.causal for part in objective.parts.values())
    text = "The rows of the" if causal else "The [MASK] of the array"
    commands = {
        "head": f'plmjax fill "{text}" --model={workdir}',
        "pair": f'plmjax next "It was late." "We went home." --model={workdir}',
        "detector": f'plmjax detect "The rows of the array" --model={workdir}',
    }
    trained = {head for part in objective.parts.values() for head in part.heads}
    return "".join(f"  {commands[head]}\n" for head in commands if head in trained)


def _plain(text: str):
    from rich.text import Text

    return Text(text)  # "[MASK]" is text here, not rich's markup.


def row_as_seen(objective: Objective, tokenizer: Tokenizer, batch: dict) -> str:
    """Returns the first row of a batch as the model sees it, decoded, masks shown.

    A masked word appears as [MASK=word], a replaced one as [other=word], a kept one as
    [=word]. Pairs of sentences come with their labels.
    """
    row = {name: array[0] for name, array in masked(objective, batch).items()}
    chosen = {}
    if not any(part.encoder.causal for part in objective.parts.values()):
        chosen = {
            int(position): int(label)
            for position, label, weight in zip(
                row["mask_positions"], row["labels"], row["weights"], strict=True
            )
            if weight > 0
        }
    words = []
    for at in np.flatnonzero(row["segments"] > 0).tolist():
        token = int(row["tokens"][at])
        piece = tokenizer.backend.id_to_token(token)
        if at in chosen:
            truth = tokenizer.backend.id_to_token(chosen[at])
            new = "MASK" if token == tokenizer.mask_id else piece
            piece = f"[{'' if new == truth else new}={truth}]"
        words.append(piece)
    if "pair_label" in row:
        meaning = {0: "in order", 1: "not in order"}
        labels = [meaning[n] for n in row["pair_label"].tolist() if n in meaning]
        words.append(f"\nPairs: {', '.join(labels) or 'none'}")
    return " ".join(words)


def example_as_seen(tokenizer: Tokenizer, batch: dict, label: Any) -> str:
    """Returns the first row of a task's batch as the model sees it, and its label.

    Of several texts a row, each stands on a line of its own.
    """
    tokens, segments = batch["tokens"][0], batch["segments"][0]
    length = tokens.shape[-1]
    lines = [
        " ".join(
            tokenizer.backend.id_to_token(int(token)) or ""
            for token in row[real > 0].tolist()
        )
        for row, real in zip(
            tokens.reshape(-1, length), segments.reshape(-1, length), strict=True
        )
    ]
    told = [line for line in lines if line]  # a choice that is not there has no token
    return "\n".join(told if label is None else [*told, f"Label: {label}"])


def activation_bytes(config: EncoderConfig, rows: int, length: int, slots: int) -> int:
    """Estimates what the forward pass keeps for the backward pass of `rows` rows.

    Counts the arrays that our layers save: about 10 of the model's width and 3 of the
    inner width a token and layer, attention weights twice, float32 logits twice.
    """
    size = np.dtype(jnp.dtype(config.dtype)).itemsize
    per_token = 10 * config.width + 3 * config.ffn_width + 2 * config.heads * length
    layers = 1 if config.remat else config.layers
    # What a layer that is computed again starts from.
    kept = config.layers * config.width if config.remat else 0
    if config.remat == "dots":
        kept = config.layers * (6 * config.width + config.ffn_width)
    tokens = rows * length
    logits = 2 * 4 * rows * slots * config.vocab_size
    return int(tokens * size * (layers * per_token + kept) + logits)
