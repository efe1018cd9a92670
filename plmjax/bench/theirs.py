"""Hugging Face's side of the comparison: transformers on PyTorch, as its Trainer runs.

DataLoader with DataCollatorForLanguageModeling in the main process (the Trainer's
default), autocast for bf16, clipping, fused AdamW, a linear schedule, dropout as the
checkpoint says, the attention that transformers chooses. peer_models.py has the models.
"""

import contextlib
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers

from plmjax.bench import machine
from plmjax.bench.peer_models import MODELS
from plmjax.bench.worker import Spec
from plmjax.train.config import OptimizerConfig, ScheduleConfig
from plmjax.train.schedule import warmup_steps


class Side:
    """Trains the case with Hugging Face; peer.py calls its methods."""

    def __init__(self, spec: Spec):
        torch.set_num_threads(machine.cores())
        self.spec = spec
        self.device = torch.device("cuda" if spec.device == "gpu" else "cpu")
        # As JAX multiplies float32 on GPUs; no difference on CPUs.
        torch.set_float32_matmul_precision("high")
        folder = Path(spec.folder)
        settings = json.loads((folder / "config.json").read_text())["objective"]
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
        # DistilBERT has no types.
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
        """Goes back to the initial weights and the first batch."""
        torch.manual_seed(self.spec.seed)
        # Into the parameters that are there: what was compiled stays compiled.
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
            # The order is ours, so that tokens are counted outside of the timing.
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
            found = self.model.start(self.held_out[0])
        torch.set_float32_matmul_precision("high")
        return found

    def parameters(self) -> dict[str, float]:
        """Returns how many are trained."""
        return {"parameters": sum(x.numel() for x in self.model.parameters())}

    def evaluate(self) -> float:
        """Returns the mean loss of all held-out batches, in the run's precision."""
        total, count = 0.0, 0
        with self._evaluating(), self._autocast():
            for batch in self.held_out:
                masked = int((batch["labels"] != -100).sum())
                total += self.model.start(batch)["loss"] * masked
                count += masked
        return total / count

    @contextlib.contextmanager
    def _evaluating(self):
        """No dropout, no gradient, nothing compiled."""
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

    def memory(self) -> int:
        """Returns the peak bytes of this process, on a GPU those it held there."""
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
    """Returns where the case has a tokenizer as transformers loads it."""
    weights = folder / "weights"
    return weights if (weights / "config.json").exists() else weights / "discriminator"


def _as_peer_batches(arrays: dict[str, np.ndarray]) -> list[dict[str, torch.Tensor]]:
    """Returns plmjax's masked batches with the labels where transformers wants them."""
    batches = []
    for i in range(len(arrays["tokens"])):
        one = {name: array[i] for name, array in arrays.items()}
        labels = np.full(one["tokens"].shape, -100, np.int64)
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
