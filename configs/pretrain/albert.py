"""ALBERT (Lan et al. 2019, arXiv:1909.11942): shared layers, n-gram masks, SOP.

  plmjax pretrain 'texts/*.txt.gz' --config=albert:base-v2 --workdir=runs/albert-base

Argument: tiny (two cores), or base-v1, large-v1 ... xxlarge-v2 (default base-v2).
125,000 steps of 4,096 rows of 512 tokens; LAMB at .00176, warm-up 3,125; masks of up to
three words; sentence order with MLM; embeddings of 128. Rates and steps are those of
the authors' code, whose second version trained longer. The paper's base scored 80.1 on
average over its tasks at E=128, all shared, 12M parameters. Nobody has trained this
recipe to its end with plmjax yet: no time or score of ours is claimed.
"""

from ml_collections import ConfigDict

ARGUMENTS = (
    "tiny",
    *(f"{n}-v{v}" for v in (1, 2) for n in ("base", "large", "xlarge", "xxlarge")),
)


def get_config(size: str = "base-v2") -> ConfigDict:
    config = ConfigDict(
        {
            "name": f"albert-{size}",
            "data": {
                "source": {"kind": "text"},
                "sentences": "punctuation",
                "length": 512,
                "held_out_percent": 0.5,
            },
            "tokenizer": {
                "kind": "unigram",
                "vocab_size": 30_000,
                "lowercase": True,
                "strip_accents": True,  # the authors' keep_accents=False
            },
            "model": {"preset": f"albert-{size}", "dtype": "bfloat16"},
            "objective": {"kind": "mlm", "unit": "ngram", "pairs": "sop"},
            "train": {
                "steps": 125_000,
                "batch": 4096,
                "accumulation": 32,
                "evaluate_every_steps": 5_000,
                "checkpoint_every_steps": 1_000,
                "optimizer": {
                    "kind": "lamb",
                    "learning_rate": 0.00176,
                    "b1": 0.9,
                    "b2": 0.999,
                    "eps": 1e-6,
                    "weight_decay": 0.01,
                    "clip_norm": 1.0,
                },
                "schedule": {"warmup_steps": 3125},
            },
        }
    )
    if size == "tiny":
        config.data.update({"length": 128, "held_out_percent": 2.0})
        config.tokenizer.vocab_size = 8192
        config.train.update({"steps": 2000, "batch": 16, "accumulation": 1})
        config.train.update({"evaluate_every_steps": 500})
        config.train.optimizer.update({"kind": "adamw", "learning_rate": 1e-3})
        config.train.schedule.warmup_steps = 100
    return config
