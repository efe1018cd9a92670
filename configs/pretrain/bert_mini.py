"""BERT-mini (4 layers x 256) on a text of your own.

  plmjax pretrain 'texts/*.txt' --config=bert_mini --workdir=runs/mine

Two CPU cores: see docs/performance.md for tokens a second. For some 10 MB to 1 GB of
text. No time or score is claimed: the corpus is yours.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "data": {"source": {"kind": "text"}, "length": 128},
            "tokenizer": {"kind": "wordpiece", "vocab_size": 16384},
            "model": {"preset": "bert-mini", "dtype": "bfloat16"},
            "objective": {"unit": "word"},
            "train": {
                "epochs": 10.0,
                "batch": 32,
                "evaluate_every_steps": 500,
                "checkpoint_every_steps": 500,
                "optimizer": {"learning_rate": 5e-4, "b2": 0.98},
                "schedule": {"warmup_percent": 6.0},
            },
        }
    )
