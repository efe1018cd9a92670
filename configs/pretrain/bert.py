"""BERT as Devlin et al. (2018) trained it, without next-sentence prediction.

  plmjax pretrain 'wiki/*.txt.gz' --config=bert:base --workdir=runs/bert-base

Argument: tiny, mini, small, medium, base (default) or large; all of them train as long
(for two cores use bert_mini.py). 900,000 steps of 256 rows
of 128 tokens, then 100,000 of 512; Adam 1e-4, warm-up 10,000, linear to 0, decay .01.
The numbers are recalled from the paper; its runs took days on TPUs, and nobody has
trained this recipe to its end with plmjax yet: no time or score is claimed.
Blank lines of the text end documents, as in the paper's Wikipedia dumps.
"""

from ml_collections import ConfigDict

ARGUMENTS = ("tiny", "mini", "small", "medium", "base", "large")


def get_config(size: str = "base") -> ConfigDict:
    return ConfigDict(
        {
            "name": f"bert-{size}",
            "data": {
                "source": {"kind": "text"},
                "phases": ((900_000, 128, 256), (100_000, 512, 256)),
                "held_out_percent": 0.5,
            },
            "tokenizer": {
                "kind": "wordpiece",
                "vocab_size": 30522,
                "strip_accents": True,  # as the uncased models do
            },
            "model": {"preset": f"bert-{size}", "dtype": "bfloat16"},
            # Ten static copies of the masks, as its preprocessing wrote them.
            "objective": {"masks": "static", "copies": 10},
            "train": {
                "evaluate_every_steps": 10_000,
                "checkpoint_every_steps": 5_000,
                "log_every_steps": 100,
                "optimizer": {
                    "learning_rate": 1e-4,
                    "b1": 0.9,
                    "b2": 0.999,
                    "eps": 1e-6,
                    "weight_decay": 0.01,
                    "clip_norm": 1.0,
                },
                "schedule": {"kind": "linear", "warmup_steps": 10_000},
            },
        }
    )
