"""What transformers on PyTorch computes for tiny models: the references of parity.

Run `python tests/golden/make_goldens.py` (needs torch and transformers) to write
bert.npz and roberta.npz beside this file. They come from a float64 run, rounded to
float32, so that they do not depend on PyTorch's kernels; the live tests use the same
function in float32.
"""

import json
from pathlib import Path

import numpy as np

# Odd on purpose: 3 layers, 5 heads, and no two sizes alike.
SIZES = {
    "vocab_size": 23,
    "hidden_size": 10,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "intermediate_size": 14,
    "max_position_embeddings": 13,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
ROW_LENGTHS = (9, 6, 3)
# PyTorch's own settings but for eps: with 1e-8 it is 1.5e-6 from its float64 self.
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6}
WEIGHT_DECAY = 0.01


def make_model(family: str, sizes: dict, seed: int):
    """Returns a transformers model whose every parameter is random, in float32."""
    import torch
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        RobertaConfig,
        RobertaForMaskedLM,
    )

    classes = {
        "bert": (BertConfig, BertForMaskedLM),
        "roberta": (RobertaConfig, RobertaForMaskedLM),
    }
    make_config, make = classes[family]
    model = make(make_config(**sizes)).eval()
    random = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Biases and norms too, or a swap of two of them would not show. With larger
            # kernels PyTorch's own float32 leaves its float64 by more than 1e-5.
            spread = 0.5 * sizes["hidden_size"] ** -0.5 if parameter.ndim == 2 else 0.1
            values = random.normal(0, spread, parameter.shape)
            values += name.endswith(("LayerNorm.weight", "layer_norm.weight"))
            parameter.copy_(torch.from_numpy(values))
    return model


def make_batch(model, lengths, seed: int) -> dict[str, np.ndarray]:
    """Returns padded rows as int64: tokens, mask, types and labels (-100: none)."""
    config = model.config
    random = np.random.default_rng(seed + 1)
    shape = (len(lengths), max(lengths))
    mask = np.arange(shape[1]) < np.array(lengths)[:, None]
    tokens = random.integers(5, config.vocab_size, shape)
    labels = random.integers(0, config.vocab_size, shape)
    chosen = mask & (np.arange(shape[1]) % 3 == 1)
    return {
        "tokens": np.where(mask, tokens, config.pad_token_id),
        "mask": mask.astype(np.int64),
        "types": np.where(mask, random.integers(0, config.type_vocab_size, shape), 0),
        "labels": np.where(chosen, labels, -100),
    }


def reference(model, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns logits, loss, and by name the gradients and one AdamW step's result.

    The step is taken on `model` itself.
    """
    import torch

    before = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    result = model(
        input_ids=torch.from_numpy(batch["tokens"]),
        attention_mask=torch.from_numpy(batch["mask"]),
        token_type_ids=torch.from_numpy(batch["types"]),
        labels=torch.from_numpy(batch["labels"]),
    )
    result.loss.backward()
    plain = [p for n, p in model.named_parameters() if _is_plain(n)]
    decayed = [p for n, p in model.named_parameters() if not _is_plain(n)]
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": plain, "weight_decay": 0.0},
    ]
    torch.optim.AdamW(groups, **ADAMW).step()
    return {
        "logits": result.logits.detach().numpy(),
        "loss": result.loss.detach().numpy(),
        **{f"before/{name}": array for name, array in before.items()},
        **{f"grads/{n}": p.grad.numpy() for n, p in model.named_parameters()},
        **{f"after/{n}": p.detach().numpy() for n, p in model.named_parameters()},
    }


def _is_plain(name: str) -> bool:
    return name.endswith(".bias") or "norm" in name.lower()


def main() -> None:
    for family in ("bert", "roberta"):
        model = make_model(family, SIZES, seed=0)
        batch = make_batch(model, ROW_LENGTHS, seed=0)
        found = reference(model.double(), batch)
        arrays = {name: array.astype(np.float32) for name, array in found.items()}
        arrays |= {f"batch/{key}": rows.astype(np.int32) for key, rows in batch.items()}
        arrays["config"] = np.array(json.dumps(model.config.to_diff_dict()))
        np.savez_compressed(Path(__file__).with_name(f"{family}.npz"), **arrays)


if __name__ == "__main__":
    main()
