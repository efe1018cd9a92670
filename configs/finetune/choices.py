"""Which of several texts continues another best: SWAG, RACE, and your own jsonl.

  plmjax finetune --config=choices --config.model=runs/mine \\
      --config.task.train=train.jsonl --config.task.held_out=dev.jsonl \\
      --workdir=runs/choices

A line is {"text": ..., "choices": [...], "label": 0}. The argument swag reads the
columns of SWAG's csv files.
"""

from ml_collections import ConfigDict

COLUMNS = {
    "own": {},
    "swag": {
        "text": "sent1",
        "pair": "sent2",
        "choices": "ending0,ending1,ending2,ending3",
    },
}
ARGUMENTS = tuple(COLUMNS)


def get_config(what: str = "own") -> ConfigDict:
    return ConfigDict(
        {
            "task": {"kind": "choices", "length": 128, "columns": COLUMNS[what]},
            "start": {"dropout": 0.1},
            "train": {
                "epochs": 3.0,
                "batch": 16,
                "optimizer": {"learning_rate": 2e-5, "b2": 0.999},
                "schedule": {"warmup_percent": 10.0},
            },
        }
    )
