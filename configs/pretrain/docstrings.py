"""A small BERT on the documentation of the installed Python packages.

  plmjax pretrain --config=docstrings

The defaults of `plmjax pretrain`, written out as a start for your own config. Two CPU
cores and nothing to download; docs/log.md has the time and the loss measured.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "data": {"length": 128},
            "tokenizer": {"kind": "wordpiece", "vocab_size": 8192},
            "model": {
                "preset": "bert-tiny",
                "width": 256,
                "heads": 4,
                "ffn_width": 1024,
                "dropout": 0.0,
                "attention_dropout": 0.0,
                "dtype": "bfloat16",
            },
            "train": {
                "steps": 2400,
                "batch": 8,
                "evaluate_every_steps": 400,
                "checkpoint_every_steps": 400,
                "optimizer": {"learning_rate": 1e-3, "b2": 0.98},
            },
        }
    )
