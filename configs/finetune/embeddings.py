"""Vectors of texts: pairs that belong together, csv, tsv, jsonl, parquet or datasets.

  plmjax finetune --config=embeddings --config.model=runs/mine \\
      --config.task.train=train.jsonl --config.task.test=test.jsonl \\
      --workdir=runs/vectors
  plmjax embed --model=runs/vectors --input=texts.txt --output=texts.npy

A line is {"text": ..., "pair": ...}: a question and its answer, a title and its text, a
sentence and its paraphrase. --config.task.columns.negative=NAME is a third text, which
is similar but wrong. A row is compared with the others of its batch (with
train.accumulation: of its micro-batch), so it should be as large as memory allows.
Rates are those that are usual for base sizes and, with the argument small, for models
under some 30 million parameters.
"""

from ml_collections import ConfigDict

RATES = {"base": 2e-5, "small": 3e-4}
ARGUMENTS = tuple(RATES)


def get_config(size: str = "base") -> ConfigDict:
    return ConfigDict(
        {
            "task": {"kind": "embeddings", "length": 64},
            "start": {"dropout": 0.1},
            "train": {
                "epochs": 1.0,
                "batch": 128,
                "optimizer": {"learning_rate": RATES[size], "b2": 0.999},
                "schedule": {"warmup_percent": 10.0},
            },
        }
    )
