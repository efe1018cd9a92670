"""TinyBERT's second stage: a task from its labels and from a fine-tuned teacher.

  plmjax finetune --config=tinybert_task:runs/teacher-task \\
      --config.model=runs/tinybert --config.task.train=train.csv --workdir=runs/tiny

The argument is the teacher, a model fine-tuned for the same labels; the student may be
any other: one of distill/tinybert, or by --config.start.layers=2 the first layers of
the teacher itself (docs/finetuning.md#a-teacher). Jiao et al. (2019, arXiv:1909.10351)
learn from the teacher's scores alone, on text that was made more by hand; here a tenth
of the loss is that of the labels, and no text is added (`plmjax pseudo` does that).
"""

from ml_collections import ConfigDict


def get_config(teacher: str = "runs/teacher-task") -> ConfigDict:
    return ConfigDict(
        {
            "task": {"kind": "classes", "length": 128},
            "objective": {"teacher": teacher, "teacher_share": 0.9},
            "train": {
                "epochs": 6.0,
                "batch": 32,
                "optimizer": {"learning_rate": 1e-4, "b2": 0.999},
                "schedule": {"warmup_percent": 10.0},
            },
        }
    )
