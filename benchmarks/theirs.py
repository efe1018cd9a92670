"""Hugging Face's side of the comparison: transformers on PyTorch, like its Trainer.

DataLoader with DataCollatorForLanguageModeling in the main process (the Trainer's
default), autocast for bf16, clipping, fused AdamW, a linear schedule, the checkpoint's
dropout, the attention that transformers chooses.

Legend: B rows, L tokens, T masked tokens, V vocabulary, H width.
"""

import contextlib
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
import transformers

from plmjax import machine
from plmjax.train.config import OptimizerConfig, ScheduleConfig
from plmjax.train.schedule import warmup_steps
from sides import Spec

# The label of a token that is not predicted.
_IGNORED = -100


class Side:
    """Trains the case with Hugging Face; peer.py calls its methods."""

    def __init__(self, spec: Spec):
        torch.set_num_threads(machine.cores())
        self.spec = spec
        self.device = torch.device("cuda" if spec.device == "gpu" else "cpu")
        # JAX uses this precision for float32 on GPUs; on CPUs it makes no difference.
        torch.set_float32_matmul_precision("high")
        folder = Path(spec.folder)
        settings = json.loads((folder / "config.json").read_text())["objective"]
        settings["attention"] = spec.attention
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            _tokenizer_folder(folder)
        )
        self.collator = transformers.DataCollatorForLanguageModeling(
            tokenizer,
            mlm_probability=settings["probability"],
            mask_replace_prob=settings["mask_share"],
            random_replace_prob=settings["random_share"],
        )
        rows = datasets.load_from_disk(str(folder / spec.padding))
        # DistilBERT's tokenizer has no token types.
        names = [*tokenizer.model_input_names, "special_tokens_mask"]
        self.dataset = rows.select_columns(names)
        self.row_tokens = np.load(folder / f"{spec.padding}.npy")
        with np.load(folder / "held_out.npz") as saved:
            self.held_out = [self._put(x) for x in _as_peer_batches(dict(saved))]
        model = MODELS[settings["kind"]]
        full = spec.padding == "group_texts"
        self.model = model(folder / "weights", settings, full).train().to(self.device)
        if spec.compile:
            self.model.compile_models()
        self.initial = copy.deepcopy(self.model.state_dict())
        self.reset()

    def reset(self) -> None:
        """Restores the initial weights and the first batch."""
        torch.manual_seed(self.spec.seed)
        # Loaded into the existing parameters, so that compiled code stays valid.
        self.model.load_state_dict(self.initial)
        self.optimizer = _optimizer(self.model)
        total = self.spec.steps
        warm = warmup_steps(ScheduleConfig(), total)
        self.schedule = transformers.get_scheduler(
            "linear", self.optimizer, num_warmup_steps=warm, num_training_steps=total
        )
        self.order: list[int] = []
        self.batches = self._batches()
        self.done = 0

    def _batches(self) -> Iterator[dict]:
        rng = np.random.default_rng(self.spec.seed)
        while True:
            order = rng.permutation(len(self.dataset)).tolist()
            # The order is drawn here, so that tokens are counted outside of the timing.
            order = order[: len(order) // self.spec.batch * self.spec.batch]
            self.order += order
            batches = torch.utils.data.DataLoader(
                self.dataset,  # type: ignore
                batch_size=self.spec.batch,
                sampler=order,
                collate_fn=self.collator,
                pin_memory=self.device.type == "cuda",
            )
            yield from map(self._put, batches)

    def _put(self, batch: dict) -> dict:
        return {k: x.to(self.device, non_blocking=True) for k, x in batch.items()}

    def _autocast(self):
        if self.spec.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def loss(self) -> dict[str, float]:
        """Returns the losses of the first held-out batch, computed in float32."""
        torch.set_float32_matmul_precision("highest")
        with self._evaluating():
            losses = self.model.start(self.held_out[0])
        torch.set_float32_matmul_precision("high")
        return losses

    def parameters(self) -> dict[str, float]:
        """Returns the number of trained parameters."""
        return {"parameters": sum(x.numel() for x in self.model.parameters())}

    def evaluate(self) -> float:
        """Returns the mean loss of all held-out batches, in the run's precision."""
        total, count = 0.0, 0
        with self._evaluating(), self._autocast():
            for batch in self.held_out:
                masked = int((batch["labels"] != _IGNORED).sum())
                total += self.model.start(batch)["loss"] * masked
                count += masked
        return total / count

    @contextlib.contextmanager
    def _evaluating(self):
        """Turns off dropout, gradients and compiled code in the block."""
        self.model.eval()
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
        self.model.train()

    def train(self, steps: int) -> dict:
        """Takes steps; returns wall and CPU seconds and the documents' tokens."""
        begin, begin_cpu = time.perf_counter(), time.process_time()
        total = torch.zeros((), device=self.device)
        for _ in range(steps):
            batch = next(self.batches)
            with self._autocast():
                loss = self.model(**batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            total += loss.detach()
        assert torch.isfinite(total)  # also waits for the device
        seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
        size = self.spec.batch
        rows = self.order[self.done * size : (self.done + steps) * size]
        self.done += steps
        tokens = int(self.row_tokens[rows].sum())
        return {"seconds": seconds, "cpu_seconds": cpu, "tokens": tokens}

    def attention(self) -> str:
        """Returns transformers' name of the attention in use."""
        models = (m for m in self.model.modules() if hasattr(m, "config"))
        return next(models).config._attn_implementation

    def memory(self) -> int:
        """Returns the peak memory in bytes, of the GPU or else of this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return machine.peak_rss_bytes()


def _optimizer(model) -> torch.optim.Optimizer:
    """Returns the Trainer's default, fused AdamW, with plmjax's default constants."""
    config = OptimizerConfig()
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        kept = name.endswith("bias") or "norm" in name.lower()
        (plain if kept else decayed).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.b1, config.b2),
        eps=config.eps,
        fused=True,
    )


def _tokenizer_folder(folder: Path) -> Path:
    """Returns the case's folder with a tokenizer that transformers can load."""
    weights = folder / "weights"
    return weights if (weights / "config.json").exists() else weights / "discriminator"


def _as_peer_batches(arrays: dict[str, np.ndarray]) -> list[dict[str, torch.Tensor]]:
    """Returns plmjax's masked batches in the format of transformers."""
    batches = []
    for i in range(len(arrays["tokens"])):
        one = {name: array[i] for name, array in arrays.items()}
        labels = np.full(one["tokens"].shape, _IGNORED, np.int64)
        row, slot = np.nonzero(one["weights"])
        labels[row, one["mask_positions"][row, slot]] = one["labels"][row, slot]
        batches.append(
            {
                "input_ids": torch.from_numpy(one["tokens"].astype(np.int64)),
                "attention_mask": torch.from_numpy((one["segments"] > 0).astype(int)),
                "labels": torch.from_numpy(labels),
            }
        )
        if "drawn" in one:
            drawn = np.zeros_like(labels)
            drawn[row, one["mask_positions"][row, slot]] = one["drawn"][row, slot]
            batches[-1]["drawn"] = torch.from_numpy(drawn)
    return batches


# The models by objective: transformers' classes, and the loss of a step. Each is a
# module whose forward(input_ids, attention_mask, labels) returns the loss, with labels
# of -100 where nothing was masked. Its arguments are the folder with the weights, the
# objective block of the case, and whether its rows are full. `start(batch)` returns the
# loss terms of a masked held-out batch, `compile_models` calls torch.compile.


def _load(model, folder: Path, settings: dict[str, Any]):
    """Returns a model of transformers, with the attention that was asked for."""
    return model.from_pretrained(folder, attn_implementation=settings["attention"])


class MLM(torch.nn.Module):
    """The model that AutoModelForMaskedLM loads from the folder."""

    def __init__(self, folder: Path, settings: dict[str, Any], full: bool):
        super().__init__()
        del full
        self.model = _load(transformers.AutoModelForMaskedLM, folder, settings)

    def compile_models(self) -> None:
        self.model.compile()

    def forward(self, **batch):
        return self.model(**batch).loss

    def start(self, batch: dict) -> dict[str, float]:
        return {"loss": float(self(**_inputs(batch)))}


class Electra(torch.nn.Module):
    """ElectraForMaskedLM and ElectraForPreTraining, which share the token table.

    Rows without padding have no mask: the loss then selects no tokens, a selection that
    would also split the graph that torch.compile makes of the discriminator.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], full: bool):
        super().__init__()
        self.settings, self.full = settings, full
        self.generator = _load(
            transformers.ElectraForMaskedLM, folder / "generator", settings
        )
        self.discriminator = _load(
            transformers.ElectraForPreTraining, folder / "discriminator", settings
        )
        shared = self.discriminator.electra.embeddings.word_embeddings
        self.generator.electra.embeddings.word_embeddings = shared
        # The table is also the generator's output layer.
        self.generator.generator_lm_head.weight = shared.weight

    def compile_models(self) -> None:
        # Each model separately: the number of masked tokens differs between steps.
        self.generator.compile()
        self.discriminator.compile()

    def forward(self, input_ids, attention_mask, labels, **_):
        attention_mask = None if self.full else attention_mask
        output = self.generator(input_ids, attention_mask, labels=labels)
        chosen = labels != _IGNORED
        with torch.no_grad():
            drawn_T = _sample(output.logits[chosen], self.settings["temperature"])
        detector = self._detect(input_ids, attention_mask, labels, drawn_T)
        weight = self.settings["generator_weight"]
        return weight * output.loss + self.settings["detector_weight"] * detector

    def _detect(self, input_ids, attention_mask, labels, drawn_T):
        chosen = labels != _IGNORED
        seen = input_ids.masked_scatter(chosen, drawn_T)
        replaced = chosen & (seen != labels)
        return self.discriminator(seen, attention_mask, labels=replaced.long()).loss

    def start(self, batch: dict) -> dict[str, float]:
        output = self.generator(**_inputs(batch))
        drawn_T = batch["drawn"][batch["labels"] != _IGNORED]
        detector = self._detect(**_inputs(batch), drawn_T=drawn_T)
        return {"generator_loss": float(output.loss), "detector_loss": float(detector)}


def _sample(logits_TV, temperature: float):
    """Samples a piece from each softmax; [T].

    Uses cumulative probabilities: torch.multinomial and Gumbel noise draw one number
    per piece, which took four times as long.
    """
    p_TV = torch.softmax(logits_TV / temperature, dim=-1, dtype=torch.float32)
    end_TV = p_TV.cumsum_(-1)
    at_T1 = torch.rand(len(end_TV), 1, device=end_TV.device) * end_TV[:, -1:]
    drawn_T1 = torch.searchsorted(end_TV, at_T1, right=True)
    return drawn_T1[:, 0].clamp_(max=end_TV.shape[1] - 1)


class Distill(torch.nn.Module):
    """A student and its teacher: the loop of transformers' distillation example.

    Soft loss and cosine loss at all tokens, masked prediction at the masks. Rows
    without padding are not filtered: selecting their tokens would copy the logits.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], full: bool):
        super().__init__()
        self.settings, self.full = settings, full
        assert settings["soft_positions"] == "all"
        model = transformers.AutoModelForMaskedLM
        self.student = _load(model, folder, settings)
        teacher = _load(model, folder.parent / "teacher", settings)
        # Inside a tuple it is no submodule: never trained, no dropout.
        self._frozen = (teacher.eval().requires_grad_(False),)

    def compile_models(self) -> None:
        self.compile()

    def _apply(self, fn, recurse=True):
        # The teacher moves to a device with the student, though it is no submodule.
        self._frozen[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, input_ids, attention_mask, labels, **_):
        return sum(self._terms(input_ids, attention_mask, labels).values())

    def _terms(self, input_ids, attention_mask, labels) -> dict[str, Any]:
        """Returns the weighted terms of the loss by name."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        ours = self.student(**inputs, labels=labels, output_hidden_states=True)
        with torch.no_grad():
            theirs = self._frozen[0](**inputs, output_hidden_states=True)
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
        # Held-out rows always have padding, even if the training rows are full.
        full, self.full = self.full, False
        terms = self._terms(**_inputs(batch))
        self.full = full
        return {
            name: float(term) / self.settings[name.replace("_loss", "_weight")]
            for name, term in terms.items()
        }


def _rows(x, real):
    """Returns [T, ...] of [B, L, ...]: all tokens, or those where `real` is True."""
    return x.flatten(0, 1) if real is None else x[real]


def _log_softmax(logits_TV, temperature: float):
    return F.log_softmax(logits_TV / temperature, dim=-1, dtype=torch.float32)


def _softmax(logits_TV, temperature: float):
    return F.softmax(logits_TV / temperature, dim=-1, dtype=torch.float32)


def _inputs(batch: dict) -> dict:
    return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}


MODELS = {"mlm": MLM, "electra": Electra, "distill": Distill}
