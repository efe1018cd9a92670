"""GPT-2's architecture, trained to predict the next token.

  plmjax pretrain 'texts/*.jsonl.gz' --config=gpt2:small --workdir=runs/gpt2

Argument: tiny (two cores), small (default, 124M parameters), medium, large or xl. The
paper gives neither steps nor rates: those here, 600,000 steps of 512 rows of 1,024
tokens at 6e-4, Adam (.9, .95), decay .1, warm-up 2,000, cosine to a tenth, are those
of reproductions of the small size, recalled and not checked. Nobody has
trained this recipe to its end with plmjax yet: no time or score is claimed.
"""

from ml_collections import ConfigDict

ARGUMENTS = ("tiny", "small", "medium", "large", "xl")
PRESETS = {"tiny": "gpt2-tiny", "small": "gpt2"}


def get_config(size: str = "small") -> ConfigDict:
    config = ConfigDict(
        {
            "name": f"gpt2-{size}",
            "data": {
                "source": {"kind": "jsonl", "field": "text"},
                "length": 1024,
                "held_out_percent": 0.5,
            },
            "tokenizer": {"kind": "bpe", "vocab_size": 50_257, "lowercase": False},
            "model": {
                "preset": PRESETS.get(size, f"gpt2-{size}"),
                "dtype": "bfloat16",
                "dropout": 0.0,
                "attention_dropout": 0.0,
            },
            "objective": {"kind": "clm"},
            "train": {
                "steps": 600_000,
                "batch": 512,
                "accumulation": 32,
                "evaluate_every_steps": 5_000,
                "checkpoint_every_steps": 1_000,
                "optimizer": {
                    "learning_rate": 6e-4,
                    "b1": 0.9,
                    "b2": 0.95,
                    "eps": 1e-8,
                    "weight_decay": 0.1,
                    "clip_norm": 1.0,
                },
                "schedule": {
                    "kind": "cosine",
                    "warmup_steps": 2000,
                    "final_percent": 10.0,
                },
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
