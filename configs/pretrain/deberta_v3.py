"""DeBERTa-v3 (He et al. 2021, arXiv:2111.09543): disentangled attention and RTD.

  plmjax pretrain 'texts/*.jsonl.gz' --config=deberta_v3:small \\
      --workdir=runs/deberta-v3-small

Argument: tiny (two cores), xsmall, small (default), base or large. 500,000 steps of
8,192 rows of 512 tokens; Adam (.9, .98), decay .01, warm-up 10,000, 6e-4 at the peak;
loss = MLM + 50 RTD; a generator of the discriminator's width and half its depth;
gradient-disentangled embedding sharing. The numbers are recalled from the paper and
were not checked against its code. Raise train.accumulation until a micro-batch fits.
Nobody has trained this recipe to its end with plmjax yet: no time or score is claimed.
"""

from ml_collections import ConfigDict

ARGUMENTS = ("tiny", "xsmall", "small", "base", "large")


def get_config(size: str = "small") -> ConfigDict:
    config = ConfigDict(
        {
            "name": f"deberta-v3-{size}",
            "data": {
                "source": {"kind": "jsonl", "field": "text"},
                "length": 512,
                "held_out_percent": 0.5,
            },
            "tokenizer": {"kind": "unigram", "vocab_size": 128_000, "lowercase": False},
            "model": {"preset": f"deberta-v3-{size}", "dtype": "bfloat16"},
            "objective": {
                "kind": "electra",
                "tie": "disentangled",
                "generator": {"width_fraction": 1.0, "layers_fraction": 0.5},
            },
            "train": {
                "steps": 500_000,
                "batch": 8192,
                "accumulation": 64,
                "evaluate_every_steps": 5_000,
                "checkpoint_every_steps": 1_000,
                "optimizer": {
                    "learning_rate": 6e-4,
                    "b1": 0.9,
                    "b2": 0.98,
                    "eps": 1e-6,
                    "weight_decay": 0.01,
                    "clip_norm": 1.0,
                },
                "schedule": {"warmup_steps": 10_000},
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
