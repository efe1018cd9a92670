"""Examples of hidden words in held-out text, guessed before and after training.

Legend: B rows, K slots a row, L tokens.
"""

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table
from rich.text import Text

from plmjax.data.store import Split
from plmjax.evaluate.fill import guesses
from plmjax.evaluate.model import Model
from plmjax.objectives import Objective
from plmjax.tokenizers import Tokenizer
from plmjax.train.step import evaluation_key

# Number of tokens shown on either side of a mask.
_CONTEXT = 14
_SENTENCE_ENDS = (".", "!", "?", "。", "।", "؟", "…")


def masked(objective: Objective, batch: dict) -> dict:
    """Returns a numpy batch with the masks that evaluation uses."""
    given = objective.tables(), batch, evaluation_key(), jnp.float32(1)
    return jax.device_get(jax.jit(objective.corrupt)(*given))


class Examples:
    """A few predicted tokens of held-out rows, guessed before and after training."""

    def __init__(
        self,
        objective: Objective,
        model: Model,
        batch: dict,
        count: int = 8,
        seed: int = 0,
    ):
        """Draws `count` of all predicted tokens of `batch`, each with the same chance.

        So the share of right guesses is that of the accuracy, but for chance.
        """
        self.model = model
        # A causal model predicts the token after the current position.
        self.shift = int(model.encoder.causal)
        self.original = np.asarray(batch["tokens"])
        self.batch = masked(objective, batch)
        slots = np.argwhere(self.batch["weights"] > 0)
        drawn = np.random.default_rng(seed).permutation(len(slots))[:count]
        self.slots = [(int(row), int(slot)) for row, slot in slots[np.sort(drawn)]]

    def guess(self, top: int = 3) -> tuple[list[str], int]:
        """Returns the guesses, one line an example, and how many first ones are right.

        A piece is shown within its word, with the word's other pieces as they were.
        """
        rows = np.array([row for row, _ in self.slots])
        slots = np.array([[slot] for _, slot in self.slots])
        few = {name: array[rows] for name, array in self.batch.items()}
        # The vocabulary head runs only on the slots that are shown.
        few["mask_positions"] = np.take_along_axis(few["mask_positions"], slots, 1)
        lines, right = [], 0
        guessed = guesses(self.model, self.model.params, few, top)
        for (row, slot), (best,) in zip(self.slots, guessed, strict=True):
            right += best[0].piece == self.batch["labels"][row, slot]
            words = [(self._word(row, slot, g.piece), g.probability) for g in best]
            lines.append(", ".join(f"{word} {share:.0%}" for word, share in words))
        return lines, int(right)

    def _position(self, row: int, slot: int) -> int:
        return int(self.batch["mask_positions"][row, slot]) + self.shift

    def _span(self, row: int, at: int) -> tuple[int, int]:
        """Returns the positions of the word of a token, without special tokens."""
        segments = self.batch["segments"][row]
        inside = segments == segments[at]
        special = np.isin(self.original[row], self.model.tokenizer.special_ids)
        joined = inside & ~special & ~self.batch["word_start"][row]
        begin, end = at, at + 1
        while joined[begin] and not special[begin - 1]:
            begin -= 1
        while end < len(joined) and joined[end] and not special[at]:
            end += 1
        # A causal model has not seen what comes next.
        return begin, at + 1 if self.shift else end

    def _word(self, row: int, slot: int, piece: int) -> str:
        """Returns the word of a slot with `piece` in place of its own."""
        at = self._position(row, slot)
        begin, end = self._span(row, at)
        word = self.original[row, begin:end].tolist()
        word[at - begin] = int(piece)
        return self.model.tokenizer.decode(word).strip()

    def texts(self) -> list[tuple[str, str]]:
        """Returns (context as the model sees it, correct word) of each example."""
        tokenizer = self.model.tokenizer
        shown = []
        for row, slot in self.slots:
            at = self._position(row, slot)
            word_begin, word_end = self._span(row, at)
            tokens, segments = self.batch["tokens"][row], self.batch["segments"][row]
            inside = np.flatnonzero(segments == segments[at])
            begin = max(at - _CONTEXT, int(inside[0]) + 1)
            end = at + 1 if self.shift else min(at + _CONTEXT + 1, int(inside[-1]))
            before = tokenizer.decode(tokens[begin:at].tolist()).strip()
            after = tokenizer.decode(tokens[at + 1 : end].tolist()).strip()
            mask = "[ ? ]"
            if not self.shift and tokens[at] != tokenizer.mask_id:
                # Some chosen tokens are kept or replaced instead of masked.
                mask = f"[ {tokenizer.decode([tokens[at]]).strip()} ? ]"
            text = before.removeprefix("##") + " " * (word_begin == at) + mask
            text += " " * (word_end == at + 1) + after.removeprefix("##")
            truth = self._word(row, slot, int(self.batch["labels"][row, slot]))
            shown.append((text.strip(), truth))
        return shown


def table(record: dict, before: dict, after: dict) -> Table:
    """Returns the guesses of two steps in examples.json, ready to print."""
    what = "and what comes next" if record["causal"] else "masked"
    table = Table(title=f"Held-out text, {what}", show_lines=True, title_style="")
    for name in ("text", "was", "guesses before", "guesses after"):
        table.add_column(name, overflow="fold")
    lines = zip(record["texts"], before["lines"], after["lines"], strict=True)
    for (text, truth), old, new in lines:
        # Text keeps rich from reading "[MASK]" as markup.
        table.add_row(Text(text), Text(truth), Text(old), Text(new))
    right, count = after["right"], len(after["lines"])
    table.caption = (
        f"Drawn at random: {right} of {count} are guessed right "
        f"({right / count:.0%}); the accuracy below is that of all."
    )
    table.caption_style = ""
    return table


def held_out_words(
    split: Split, tokenizer: Tokenizer, most: int = 24, seed: int = 0
) -> list[list[int]]:
    """Returns the tokens of the first words of a random document, a list a word.

    They are six words or more, before any special token; [] if no document has them.
    """
    drawn = np.random.default_rng(seed).permutation(split.documents)[:100]
    for begin, end in zip(split.offsets[drawn], split.offsets[drawn + 1], strict=True):
        tokens, starts = split.read(np.arange(begin, min(end, begin + 8 * most)))
        special = np.isin(tokens, tokenizer.special_ids)
        size = int(special.argmax()) if special.any() else len(tokens)
        words = np.split(tokens[:size], np.flatnonzero(starts[1:size]) + 1)[:most]
        if len(words) >= 6:
            return [word.tolist() for word in words]
    return []


def first_sentence(words: list[list[int]], tokenizer: Tokenizer) -> list[list[int]]:
    """Returns the words up to the end of a sentence, at most 12 of them."""
    for index, word in enumerate(words[:12]):
        if index > 3 and tokenizer.decode(word).strip() in _SENTENCE_ENDS:
            return words[: index + 1]
    return words[:12]


def word_to_hide(words: list[list[int]], tokenizer: Tokenizer) -> int:
    """Returns the index of a word in the middle, of one piece and of letters if any."""

    def rank(index: int) -> tuple:
        text = tokenizer.decode(words[index]).strip()
        plain = len(words[index]) == 1 and any(map(str.isalpha, text))
        return not plain, len(text) < 3, abs(index - len(words) // 2)

    return min(range(len(words)), key=rank)


def as_text(words: list[list[int]], tokenizer: Tokenizer) -> str:
    """Returns words as a text of one line."""
    return " ".join(tokenizer.decode([t for word in words for t in word]).split())
