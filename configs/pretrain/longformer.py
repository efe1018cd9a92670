"""Longformer (Beltagy et al. 2020): windows of 512 tokens and global ones, on papers.

  plmjax pretrain 'papers/*.jsonl.gz' --config=longformer:base \\
      --config.mesh.data=auto --workdir=runs/longformer-base

Argument: base (default), large, or tiny, which trains on two cores. Rows of 4,096
tokens, 64 at once, 65,000 steps; Adam, rate 3e-5 after 500 warm-up steps: the paper's
numbers, recalled, which went on from RoBERTa (train.init_from); from fresh weights a
higher rate is needed, as --config.train.optimizer.learning_rate=3e-4. The first token
of each document is global, so that its projections are trained, too (the paper's had
none in pretraining). Nobody has trained this recipe to its end with plmjax yet: no time
or score is claimed.
"""

from ml_collections import ConfigDict

PRESETS = {
    "tiny": "longformer-tiny",
    "base": "longformer-base-4096",
    "large": "longformer-large-4096",
}
ARGUMENTS = tuple(PRESETS)


def get_config(size: str = "base") -> ConfigDict:
    tiny = size == "tiny"
    config = ConfigDict(
        {
            "name": f"longformer-{size}",
            "data": {
                "source": {"kind": "text"} if tiny else {"kind": "jsonl"},
                "length": 512 if tiny else 4096,
                "held_out_percent": 2.0 if tiny else 0.5,
            },
            "tokenizer": {
                "kind": "bpe",
                "vocab_size": 8192 if tiny else 50_265,
                "lowercase": False,
            },
            "model": {
                "preset": PRESETS[size],
                "dtype": "bfloat16",
                "global_tokens": "first",
                "global_limit": 64,
            },
            "train": {
                "steps": 2000 if tiny else 65_000,
                "batch": 4 if tiny else 64,
                "accumulation": 1 if tiny else 16,
                "evaluate_every_steps": 500 if tiny else 5_000,
                "checkpoint_every_steps": 500 if tiny else 1_000,
                "optimizer": {
                    "learning_rate": 1e-3 if tiny else 3e-5,
                    "b1": 0.9,
                    "b2": 0.98,
                    "eps": 1e-6,
                    "weight_decay": 0.01,
                },
                "schedule": {"kind": "linear", "warmup_percent": 10.0}
                if tiny
                else {"kind": "linear", "warmup_steps": 500},
            },
        }
    )
    if tiny:
        config.model.update({"window": 64, "max_positions": 514})
    return config
