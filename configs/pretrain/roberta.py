"""RoBERTa as Liu et al. (2019) trained it: byte-level BPE, dynamic masks, long batches.

  plmjax pretrain 'texts/*.jsonl.gz' --config=roberta:base \\
      --config.mesh.data=auto \\
      --workdir=runs/roberta-base

Argument: base (default), large, or tiny, which trains on two cores. 500,000 steps of
8,192 rows of 512 tokens; Adam (.9, .98), eps 1e-6, decay .01; base 6e-4 after 24,000
warm-up steps, large 4e-4 after 30,000. The numbers are recalled from the paper; its
runs took 1,024 V100s a day. Raise train.accumulation until a micro-batch fits. Nobody
has trained this recipe to its end with plmjax yet: no time or score is claimed.
"""

from ml_collections import ConfigDict

PEAK = {"tiny": 1e-3, "base": 6e-4, "large": 4e-4}
WARMUP = {"tiny": 100, "base": 24_000, "large": 30_000}
ARGUMENTS = tuple(PEAK)


def get_config(size: str = "base") -> ConfigDict:
    config = ConfigDict(
        {
            "name": f"roberta-{size}",
            "data": {
                "source": {"kind": "jsonl", "field": "text"},
                "length": 512,
                "held_out_percent": 0.5,
            },
            "tokenizer": {"kind": "bpe", "vocab_size": 50_265, "lowercase": False},
            "model": {"preset": "roberta-base", "dtype": "bfloat16"},
            "train": {
                "steps": 500_000,
                "batch": 8192,
                "accumulation": 32,
                "evaluate_every_steps": 5_000,
                "checkpoint_every_steps": 1_000,
                "optimizer": {
                    "learning_rate": PEAK[size],
                    "b1": 0.9,
                    "b2": 0.98,
                    "eps": 1e-6,
                    "weight_decay": 0.01,
                    # The paper trained without clipping.
                    "clip_norm": None,
                },
                "schedule": {"kind": "linear", "warmup_steps": WARMUP[size]},
            },
        }
    )
    if size == "large":
        config.model.preset = "roberta-large"
    if size == "tiny":
        config.data.length = 128
        config.tokenizer.vocab_size = 8192
        config.model.update({"layers": 2, "width": 128, "heads": 2, "ffn_width": 512})
        config.train.update({"steps": 2000, "batch": 16, "accumulation": 1})
        config.train.update({"evaluate_every_steps": 500})
    return config
