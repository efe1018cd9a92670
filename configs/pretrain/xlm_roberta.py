"""XLM-RoBERTa (Conneau et al. 2019, arXiv:1911.02116): RoBERTa for many languages.

  plmjax pretrain 'texts/*.jsonl.gz' --config=xlm_roberta:base \\
      --workdir=runs/xlm-roberta-base

Argument: tiny (two cores), base (default) or large. A unigram vocabulary of 250,000
pieces over all languages; 1.5M steps of 8,192 rows of 512 tokens at 6e-4 (large 4e-4),
warm-up 24,000. Mix the languages in the text itself: the paper raises each language's
share to the power .3. All numbers are recalled and were not checked. Nobody has trained
this recipe to its end with plmjax yet: no time or score is claimed.
"""

from ml_collections import ConfigDict

ARGUMENTS = ("tiny", "base", "large")


def get_config(size: str = "base") -> ConfigDict:
    config = ConfigDict(
        {
            "name": f"xlm-roberta-{size}",
            "data": {
                "source": {"kind": "jsonl", "field": "text"},
                "length": 512,
                "held_out_percent": 0.5,
            },
            "tokenizer": {"kind": "unigram", "vocab_size": 250_000, "lowercase": False},
            "model": {"preset": f"xlm-roberta-{size}", "dtype": "bfloat16"},
            "train": {
                "steps": 1_500_000,
                "batch": 8192,
                "accumulation": 32,
                "evaluate_every_steps": 5_000,
                "checkpoint_every_steps": 1_000,
                "optimizer": {
                    "learning_rate": 4e-4 if size == "large" else 6e-4,
                    "b1": 0.9,
                    "b2": 0.98,
                    "eps": 1e-6,
                    "weight_decay": 0.01,
                    "clip_norm": None,
                },
                "schedule": {"warmup_steps": 24_000},
            },
        }
    )
    if size == "tiny":
        config.data.update({"length": 128, "held_out_percent": 2.0})
        config.data.source.kind = "text"
        config.tokenizer.vocab_size = 8192
        config.train.update({"steps": 2000, "batch": 16, "accumulation": 1})
        config.train.update({"evaluate_every_steps": 500})
        config.train.schedule.warmup_steps = 100
    return config
