"""One label a text: csv, tsv, jsonl, parquet or a folder of datasets.

  plmjax finetune --config=classes --config.model=runs/mine \\
      --config.task.train=train.csv --config.task.test=test.csv --workdir=runs/labels

Columns "text" and "label"; others by --config.task.columns.text=NAME. Two texts a line:
--config.task.columns.pair=NAME. Relations between two entities, by their positions:
--config.task.columns.entities=START,END,START,END (docs/tasks.md). Without a held-out
file a tenth of train is held out. Rates are those that are usual for base sizes (2e-5
to 5e-5) and, with the argument small, for models under some 30 million parameters.

  plmjax finetune --config=classes:small --config.model=runs/mine \\
      --config.task.train=train.csv --workdir=runs/labels
"""

from ml_collections import ConfigDict

RATES = {"base": 3e-5, "small": 3e-4}
ARGUMENTS = tuple(RATES)


def get_config(size: str = "base") -> ConfigDict:
    return ConfigDict(
        {
            "task": {"kind": "classes", "length": 128},
            "start": {"dropout": 0.1},
            "train": {
                "epochs": 3.0,
                "batch": 32,
                "optimizer": {"learning_rate": RATES[size], "b2": 0.999},
                "schedule": {"warmup_percent": 10.0},
            },
        }
    )
