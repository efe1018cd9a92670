"""Examples of hidden words in held-out text, guessed before and after training.

Legend: B rows, K slots a row, L tokens.
"""

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table
from rich.text import Text

from plmjax.evaluate.fill import guesses
from plmjax.evaluate.model import Model
from plmjax.objectives import Objective
from plmjax.train.step import evaluation_key

# Number of tokens shown on either side of a mask.
_CONTEXT = 14


def masked(objective: Objective, batch: dict) -> dict:
    """Returns a numpy batch with the masks that evaluation uses."""
    given = objective.tables(), batch, evaluation_key(), jnp.float32(1)
    return jax.device_get(jax.jit(objective.corrupt)(*given))


class Examples:
    """A few hidden words of held-out rows, guessed before and after training."""

    def __init__(self, objective: Objective, model: Model, batch: dict, count: int = 5):
        """Chooses one hidden word in each of the first `count` rows of `batch`."""
        self.model = model
        # A causal model predicts the token after the current position.
        self.shift = int(model.encoder.causal)
        # Uses more rows than needed, because some may have no mask to show.
        few = {name: array[: 2 * count] for name, array in batch.items()}
        self.batch = masked(objective, few)
        hidden_BK = self.batch["weights"] > 0
        if not self.shift:
            tokens, at = self.batch["tokens"], self.batch["mask_positions"]
            mask_BK = np.take_along_axis(tokens, at, 1) == model.tokenizer.mask_id
            # An objective may hide words without a mask token; masks are preferred.
            hidden_BK &= mask_BK if (hidden_BK & mask_BK).any() else True
        words = [self._words(row, slots) for row, slots in enumerate(hidden_BK)]
        # The middle slot has context on both sides.
        self.slots = [
            (row, int(slots[len(slots) // 2]))
            for row, slots in enumerate(words)
            if len(slots)
        ][:count]

    def _words(self, row: int, hidden_K: np.ndarray) -> np.ndarray:
        """Returns the hidden slots whose label is a word; all slots if none is."""
        slots = np.flatnonzero(hidden_K)
        truths = self.batch["labels"][row, slots].tolist()
        decode = self.model.tokenizer.decode
        words = [
            len(w) > 2 and w.isalpha() for w in (decode([t]).strip() for t in truths)
        ]
        return slots[words] if any(words) else slots

    def guess(self, top: int = 3) -> list[str]:
        """Returns the model's guesses, one line an example."""
        rows = np.array([row for row, _ in self.slots])
        slots = np.array([[slot] for _, slot in self.slots])
        few = {name: array[rows] for name, array in self.batch.items()}
        # The vocabulary head runs only on the slots that are shown.
        few["mask_positions"] = np.take_along_axis(few["mask_positions"], slots, 1)
        guessed = guesses(self.model, self.model.params, few, top)
        return [
            ", ".join(f"{g.text} {g.probability:.0%}" for g in slots[0])
            for slots in guessed
        ]

    def texts(self) -> list[tuple[str, str]]:
        """Returns (context with its masks, correct word) of each example."""
        decode = self.model.tokenizer.decode
        shown = []
        for row, slot in self.slots:
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
            # Text keeps rich from reading "[MASK]" as markup.
            table.add_row(Text(text), Text(truth), Text(old), Text(new))
        return table
