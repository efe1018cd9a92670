"""The peer's models by objective: transformers' classes, and the loss of a step.

Each is a module whose forward(input_ids, attention_mask, labels) is the loss, labels
-100 where nothing was masked. It is made of the folder with the weights, the objective
block of the case, and whether its rows are full. `start(batch)` returns the terms of
the loss on a masked held-out batch, `compile_models` calls torch.compile.

Legend: B rows, L tokens, T masked tokens, V vocabulary, H width.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers

_IGNORED = -100


class MLM(torch.nn.Module):
    """The model that AutoModelForMaskedLM makes of the folder."""

    def __init__(self, folder: Path, settings: dict[str, Any], full: bool):
        super().__init__()
        del settings, full
        self.model = transformers.AutoModelForMaskedLM.from_pretrained(folder)

    def compile_models(self) -> None:
        self.model.compile()

    def forward(self, **batch):
        return self.model(**batch).loss

    def start(self, batch: dict) -> dict[str, float]:
        return {"loss": float(self(**_inputs(batch)))}


class Electra(torch.nn.Module):
    """ElectraForMaskedLM and ElectraForPreTraining, which share the token table.

    Rows without padding go without a mask: the loss then picks no tokens out, which
    would also part what torch.compile makes of the discriminator.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], full: bool):
        super().__init__()
        self.settings, self.full = settings, full
        self.generator = transformers.ElectraForMaskedLM.from_pretrained(
            folder / "generator"
        )
        self.discriminator = transformers.ElectraForPreTraining.from_pretrained(
            folder / "discriminator"
        )
        shared = self.discriminator.electra.embeddings.word_embeddings
        self.generator.electra.embeddings.word_embeddings = shared
        # It is the generator's decoder, too.
        self.generator.generator_lm_head.weight = shared.weight

    def compile_models(self) -> None:
        # Not the whole: how many tokens are masked differs from step to step.
        self.generator.compile()
        self.discriminator.compile()

    def forward(self, input_ids, attention_mask, labels, **_):
        attention_mask = None if self.full else attention_mask
        made = self.generator(input_ids, attention_mask, labels=labels)
        chosen = labels != _IGNORED
        with torch.no_grad():
            drawn_T = _sample(made.logits[chosen], self.settings["temperature"])
        detector = self._detect(input_ids, attention_mask, labels, drawn_T)
        weight = self.settings["generator_weight"]
        return weight * made.loss + self.settings["detector_weight"] * detector

    def _detect(self, input_ids, attention_mask, labels, drawn_T):
        chosen = labels != _IGNORED
        seen = input_ids.masked_scatter(chosen, drawn_T)
        replaced = chosen & (seen != labels)
        found = self.discriminator(seen, attention_mask, labels=replaced.long())
        return found.loss

    def start(self, batch: dict) -> dict[str, float]:
        made = self.generator(**_inputs(batch))
        drawn_T = batch["drawn"][batch["labels"] != _IGNORED]
        detector = self._detect(**_inputs(batch), drawn_T=drawn_T)
        return {"generator_loss": float(made.loss), "detector_loss": float(detector)}


def _sample(logits_TV, temperature: float):
    """Draws a piece from each softmax; [T].

    By the sums of the probabilities: torch.multinomial and Gumbel noise draw a number a
    piece, which took four times as long.
    """
    p_TV = torch.softmax(logits_TV / temperature, dim=-1, dtype=torch.float32)
    end_TV = p_TV.cumsum_(-1)
    at_T1 = torch.rand(len(end_TV), 1, device=end_TV.device) * end_TV[:, -1:]
    drawn_T1 = torch.searchsorted(end_TV, at_T1, right=True)
    return drawn_T1[:, 0].clamp_(max=end_TV.shape[1] - 1)


class Distill(torch.nn.Module):
    """A student and its teacher: the loop of transformers' distillation example.

    Soft loss and cosine at all tokens, masked prediction at the masks. Rows without
    padding are taken whole; to pick their tokens out would copy the logits.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], full: bool):
        super().__init__()
        self.settings, self.full = settings, full
        assert settings["soft_positions"] == "all"
        self.student = transformers.AutoModelForMaskedLM.from_pretrained(folder)
        teacher = transformers.AutoModelForMaskedLM.from_pretrained(
            folder.parent / "teacher"
        )
        # In a tuple it is no part of this module: never trained, no dropout.
        self._frozen = (teacher.eval().requires_grad_(False),)

    def compile_models(self) -> None:
        self.compile()

    def _apply(self, fn, recurse=True):
        # Moved to a device with the student, though it is no part.
        self._frozen[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, input_ids, attention_mask, labels, **_):
        return sum(self._terms(input_ids, attention_mask, labels).values())

    def _terms(self, input_ids, attention_mask, labels) -> dict[str, Any]:
        """Returns the weighted terms of the loss."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        ours = self.student(**given, labels=labels, output_hidden_states=True)
        with torch.no_grad():
            theirs = self._frozen[0](**given, output_hidden_states=True)
        real = None if self.full else attention_mask.bool()
        heat, weights = self.settings["temperature"], self.settings
        soft = F.kl_div(
            _log_softmax(_rows(ours.logits, real), heat),
            _softmax(_rows(theirs.logits, real), heat),
            reduction="batchmean",
        )
        x_TH = _rows(ours.hidden_states[-1], real)
        y_TH = _rows(theirs.hidden_states[-1], real)
        cosine = F.cosine_embedding_loss(x_TH, y_TH, x_TH.new_ones(len(x_TH)))
        return {
            "soft_loss": weights["soft_weight"] * heat**2 * soft,
            "mlm_loss": weights["mlm_weight"] * ours.loss,
            "cosine_loss": weights["cosine_weight"] * cosine,
        }

    def start(self, batch: dict) -> dict[str, float]:
        # Held-out rows have padding, whatever the others have.
        full, self.full = self.full, False
        found = self._terms(**_inputs(batch))
        self.full = full
        return {
            name: float(term) / self.settings[name.replace("_loss", "_weight")]
            for name, term in found.items()
        }


def _rows(x, real):
    """Returns [T, ...] of [B, L, ...]: all tokens, or those that are real."""
    return x.flatten(0, 1) if real is None else x[real]


def _log_softmax(logits_TV, temperature: float):
    return F.log_softmax(logits_TV / temperature, dim=-1, dtype=torch.float32)


def _softmax(logits_TV, temperature: float):
    return F.softmax(logits_TV / temperature, dim=-1, dtype=torch.float32)


def _inputs(batch: dict) -> dict:
    return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}


MODELS = {"mlm": MLM, "electra": Electra, "distill": Distill}
