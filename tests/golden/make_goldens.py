"""What transformers on PyTorch computes for tiny models: the references of parity.

Run `python tests/golden/make_goldens.py` (needs torch and transformers) to write a file
for each of CASES beside this one. They come from a float64 run, rounded to float32, so
that they do not depend on PyTorch's kernels; the live tests use the same function in
float32.
"""

import json
import re
from pathlib import Path

import numpy as np

# Odd on purpose: 5 heads, and no two sizes alike. Some families name them as in _NAMES.
SIZES = {
    "vocab_size": 23,
    "hidden_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "intermediate_size": 14,
    "max_position_embeddings": 13,
}
_NAMES = {
    "DistilBert": {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
    },
    "GPT2": {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
    },
}
_DROPOUT = {
    "DistilBert": ("dropout", "attention_dropout"),
    "GPT2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
}
_MODERN_DROPOUT = ("embedding_dropout", "mlp_dropout", "attention_dropout")
_DROPOUT |= {
    "ModernBert": _MODERN_DROPOUT,
    "ModernBertDecoder": _MODERN_DROPOUT,
    "EuroBert": ("attention_dropout",),
}
_USUAL_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
_DEBERTA = {
    "relative_attention": True,
    "position_buckets": 4,
    "pos_att_type": ["c2p", "p2c"],
}
# The usual ones are beyond so small a vocabulary.
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# {name: (family in transformers, class, its config beyond SIZES)}.
CASES: dict[str, tuple[str, str, dict]] = {
    "bert": ("Bert", "ForMaskedLM", {}),
    "bert_nsp": ("Bert", "ForPreTraining", {"hidden_act": "gelu_new"}),
    "roberta": ("Roberta", "ForMaskedLM", {}),
    "xlm_roberta": ("XLMRoberta", "ForMaskedLM", {}),
    "albert": ("Albert", "ForMaskedLM", {"embedding_size": 6, "num_hidden_layers": 3}),
    "albert_sop": (
        "Albert",
        "ForPreTraining",
        {"embedding_size": 6, "num_hidden_layers": 4, "num_hidden_groups": 2},
    ),
    "distilbert": ("DistilBert", "ForMaskedLM", {}),
    "electra_generator": ("Electra", "ForMaskedLM", {"embedding_size": 6}),
    "electra_discriminator": ("Electra", "ForPreTraining", {"embedding_size": 6}),
    "deberta_v2": (
        "DebertaV2",
        "ForMaskedLM",
        _DEBERTA
        | {"conv_kernel_size": 3, "conv_act": "gelu", "type_vocab_size": 2}
        | {"share_att_key": False},
    ),
    "deberta_v3": (
        "DebertaV2",
        "ForMaskedLM",
        _DEBERTA
        | {"share_att_key": True, "norm_rel_ebd": "layer_norm"}
        | {"position_biased_input": False},
    ),
    "gpt2": ("GPT2", "LMHeadModel", {"bos_token_id": 1, "eos_token_id": 1}),
    # Windows of 2 tokens to each side, in the second and third of four layers.
    "modernbert": (
        "ModernBert",
        "ForMaskedLM",
        _IDS | {"num_hidden_layers": 4, "local_attention": 4},
    ),
    "modernbert_decoder": (
        "ModernBertDecoder",
        "ForCausalLM",
        _IDS | {"num_hidden_layers": 3, "local_attention": 6},
    ),
    "eurobert": ("EuroBert", "ForMaskedLM", _IDS | {"num_key_value_heads": 1}),
    # Windows of 2 tokens to each side; rows of 9 tokens, no multiple of 4.
    "longformer": (
        "Longformer",
        "ForMaskedLM",
        {"attention_window": 4, "global_tokens": "listed", "global_token_limit": 9}
        | {"global_token_ids": [*range(5, 23, 2)]},
    ),
}
CAUSAL = ("gpt2", "modernbert_decoder")
# Heads whose dimensions are rotated in pairs have an even width.
ROTATED = ("modernbert", "modernbert_decoder", "eurobert")
# The class of XLM-R is RoBERTa's: one file serves both.
GOLDEN = [case for case in CASES if case != "xlm_roberta"]
ROW_LENGTHS = (9, 6, 3)
# PyTorch's own settings but for eps: with 1e-8 it is 1.5e-6 from its float64 self.
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6}
WEIGHT_DECAY = 0.01


def make_model(case: str, sizes: dict, seed: int):
    """Returns a transformers model whose every parameter is random, in float32."""
    import torch
    import transformers

    family, kind, more = CASES[case]
    names = _NAMES[family] if family in _NAMES else {}
    dropout = _DROPOUT[family] if family in _DROPOUT else _USUAL_DROPOUT
    values = {names[key] if key in names else key: v for key, v in sizes.items()}
    config = getattr(transformers, f"{family}Config")(
        **(values | dict.fromkeys(dropout, 0.0) | more)
    )
    model = getattr(transformers, f"{family}{kind}")(config).eval()
    random = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Biases and norms too, or a swap of two of them would not show. With larger
            # kernels PyTorch's own float32 leaves its float64 by more than 1e-5.
            spread = 0.5 * sizes["hidden_size"] ** -0.5 if parameter.ndim > 1 else 0.1
            drawn = random.normal(0, spread, parameter.shape)
            drawn += bool(_NORM.search(name)) and name.endswith(".weight")
            parameter.copy_(torch.from_numpy(drawn))
    return model


# What no weight decays, besides biases.
_NORM = re.compile(r"LayerNorm|norm\b|\bln_")


def make_batch(case: str, model, lengths, seed: int) -> dict[str, np.ndarray]:
    """Returns padded rows as int64: tokens, mask, types, and labels by head.

    Those of "head" are -100 where there is none; "pair" has one a row.
    """
    config = model.config
    random = np.random.default_rng(seed + 1)
    shape = (len(lengths), max(lengths))
    mask = np.arange(shape[1]) < np.array(lengths)[:, None]
    tokens = random.integers(5, config.vocab_size, shape)
    types = random.integers(0, 2, shape)
    if getattr(config, "type_vocab_size", 0) < 2:
        types = 0 * types
    batch = {
        "tokens": np.where(mask, tokens, config.pad_token_id or 0),
        "mask": mask.astype(np.int64),
        "types": np.where(mask, types, 0),
    }
    labels = random.integers(0, config.vocab_size, shape)
    chosen = mask & (np.arange(shape[1]) % 3 == 1)
    if case == "electra_discriminator":
        return batch | {"detector": (labels % 2) * mask}
    if case in CAUSAL:
        return batch | {"head": np.where(mask, tokens, -100)}
    if case in ("bert_nsp", "albert_sop"):
        batch["pair"] = np.arange(shape[0]) % 2
    return batch | {"head": np.where(chosen, labels, -100)}


def reference(model, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns logits by head, loss, and by name gradients and one AdamW step's result.

    The step is taken on `model` itself.
    """
    import torch

    named = _parameters(model)
    before = {n: p.detach().numpy().copy() for n, p in named.items()}
    rows = {name: torch.from_numpy(array) for name, array in batch.items()}
    result = model(**_arguments(model, rows))
    result.loss.backward()
    plain = [p for n, p in named.items() if _is_plain(n)]
    decayed = [p for n, p in named.items() if not _is_plain(n)]
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": plain, "weight_decay": 0.0},
    ]
    torch.optim.AdamW(groups, **ADAMW).step()
    return {
        "loss": result.loss.detach().numpy(),
        **{f"logits/{head}": _logits(result, head) for head in _heads(batch)},
        **{f"before/{name}": array for name, array in before.items()},
        **{f"grads/{n}": p.grad.numpy() for n, p in named.items()},
        **{f"after/{n}": p.detach().numpy() for n, p in named.items()},
    }


def _parameters(model) -> dict:
    """Each parameter once; a tied one by the name of what it is tied to."""
    tied = (model.config.tie_word_embeddings and model._tied_weights_keys) or {}
    return {tied[n] if n in tied else n: p for n, p in model.named_parameters()}


def _heads(batch):
    return [head for head in ("head", "pair", "detector") if head in batch]


def _arguments(model, rows) -> dict:
    """What the class wants to be given, by its names."""
    import torch

    kind = model.config.model_type
    found = {"input_ids": rows["tokens"], "attention_mask": rows["mask"]}
    if ids := getattr(model.config, "global_token_ids", None):
        listed = np.isin(rows["tokens"].numpy(), ids).astype(np.int64)
        found["global_attention_mask"] = torch.from_numpy(listed)
    if getattr(model.config, "type_vocab_size", 0):
        found["token_type_ids"] = rows["types"]
    if "pair" in rows:
        name = "sentence_order_label" if kind == "albert" else "next_sentence_label"
        found[name] = rows["pair"]
    found["labels"] = rows["detector" if "detector" in rows else "head"]
    if "detector" in rows:
        # It takes them as they come, without their type.
        found["labels"] = rows["detector"].to(model.dtype)
    return found


def _logits(result, head: str) -> np.ndarray:
    names = ["seq_relationship_logits", "sop_logits"]
    names = names if head == "pair" else ["logits", "prediction_logits"]
    return next(result[n] for n in names if n in result).detach().numpy()


def _is_plain(name: str) -> bool:
    return name.endswith(".bias") or bool(_NORM.search(name))


def pack(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Joins the many small arrays of each kind: a zip entry costs more than they do."""
    names = [name.removeprefix("grads/") for name in found if name.startswith("grads/")]
    shapes = [[name, found[f"before/{name}"].shape] for name in names]
    packed = {"shapes": np.array(json.dumps(shapes))}
    for kind in ("before", "grads", "after"):
        packed[kind] = np.concatenate([found[f"{kind}/{n}"].ravel() for n in names])
    alone = {n: array for n, array in found.items() if n.split("/")[0] not in packed}
    return {
        n: a.astype(np.float32) if a.dtype.kind == "f" else a
        for n, a in (packed | alone).items()
    }


def unpack(file) -> dict[str, np.ndarray]:
    """Undoes `pack`."""
    found = {
        n: file[n] for n in file if n not in ("shapes", "before", "grads", "after")
    }
    shapes = json.loads(str(file["shapes"]))
    ends = np.cumsum([int(np.prod(shape)) for _, shape in shapes])
    for kind in ("before", "grads", "after"):
        for (name, shape), part in zip(
            shapes, np.split(file[kind], ends[:-1]), strict=True
        ):
            found[f"{kind}/{name}"] = part.reshape(shape)
    return found


def main() -> None:
    for case in GOLDEN:
        model = make_model(case, SIZES, seed=0)
        batch = make_batch(case, model, ROW_LENGTHS, seed=0)
        # Longformer's softmax is always float32, where float64's least number is -inf:
        # a row with fewer global tokens than another would be nan.
        model = model if case == "longformer" else model.double()
        arrays = pack(reference(model, batch))
        arrays |= {f"batch/{key}": rows.astype(np.int32) for key, rows in batch.items()}
        arrays["config"] = np.array(json.dumps(model.config.to_diff_dict()))
        np.savez_compressed(Path(__file__).with_name(f"{case}.npz"), **arrays)


if __name__ == "__main__":
    main()
