"""BigBird: block sparse attention over 4,096 tokens (Zaheer et al. 2020).

  plmjax pretrain 'papers/*.jsonl.gz' --config=bigbird:base \\
      --config.mesh.data=auto --workdir=runs/bigbird-base

Argument: base (default), large, or tiny, which trains on two cores. 500,000 steps of
256 rows of one document each, up to 4,096 tokens; Adam at 1e-4 after 10,000 warm-up
steps, 15 % masked (arXiv:2007.14062; the numbers are recalled from its appendix). The
paper started from RoBERTa's weights; this recipe starts anew. Raise
train.accumulation until a micro-batch fits. Nobody has trained this recipe to its end
with plmjax yet: no time or score is claimed.
"""

from ml_collections import ConfigDict

ARGUMENTS = ("tiny", "base", "large")


def get_config(size: str = "base") -> ConfigDict:
    config = ConfigDict(
        {
            "name": f"bigbird-{size}",
            "data": {
                "source": {"kind": "jsonl", "field": "text"},
                "length": 4096,
                # Which blocks a token sees depends on its place in the row.
                "rows": "single",
                "held_out_percent": 0.5,
            },
            "tokenizer": {
                "kind": "unigram",
                "vocab_size": 50_358,
                "lowercase": False,
            },
            "model": {"preset": f"bigbird-{size}", "dtype": "bfloat16"},
            "train": {
                "steps": 500_000,
                "batch": 256,
                "accumulation": 16,
                "evaluate_every_steps": 5_000,
                "checkpoint_every_steps": 1_000,
                "optimizer": {
                    "learning_rate": 1e-4,
                    "b1": 0.9,
                    "b2": 0.999,
                    "eps": 1e-6,
                    "weight_decay": 0.01,
                },
                "schedule": {"kind": "linear", "warmup_steps": 10_000},
            },
        }
    )
    if size == "tiny":
        config.data.update({"length": 512, "held_out_percent": 2.0})
        config.data.source.kind = "text"
        config.tokenizer.vocab_size = 8192
        config.model.update({"layers": 2, "width": 128, "heads": 2, "ffn_width": 512})
        config.train.update({"steps": 2000, "batch": 8, "accumulation": 1})
        config.train.update({"evaluate_every_steps": 500})
        config.train.optimizer.learning_rate = 1e-3
        config.train.schedule = {"kind": "linear", "warmup_percent": 10.0}
    return config
