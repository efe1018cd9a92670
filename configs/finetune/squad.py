"""Answers cut out of a context: SQuAD 1.1 and 2.0, and data in their format.

  plmjax finetune --config=squad --config.model=runs/mine \\
      --config.task.train=train-v2.0.json --config.task.held_out=dev-v2.0.json \\
      --workdir=runs/squad

Long contexts become windows of 384 tokens, 128 apart, as in BERT's code. If train
has questions without an answer, the model can predict that there is none. The argument
cmrc scores by characters, as CMRC 2018 does, and keeps answers with wrong positions.
"""

from ml_collections import ConfigDict

ARGUMENTS = ("squad", "cmrc")


def get_config(what: str = "squad") -> ConfigDict:
    more = {
        "squad": {},
        "cmrc": {"compare_answers": "characters", "misplaced_answers": "keep"},
    }
    return ConfigDict(
        {
            "task": {"kind": "answers", "length": 384, "stride": 128, **more[what]},
            "start": {"dropout": 0.1},
            "train": {
                "epochs": 2.0,
                "batch": 32,
                "evaluate_every_steps": 500,
                "checkpoint_every_steps": 500,
                "optimizer": {"learning_rate": 3e-5, "b2": 0.999},
                "schedule": {"warmup_percent": 10.0},
            },
        }
    )
