"""GLUE's tasks, from the folders of tab-separated files that its site offers.

  plmjax finetune --config=glue:cola --config.model=runs/mine \\
      --config.task.train=GLUE/CoLA/train.tsv \\
      --config.task.held_out=GLUE/CoLA/dev.tsv --workdir=runs/cola

Arguments: cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli. GLUE's test files
have no labels.
"""

from ml_collections import ConfigDict

# {task: (kind, columns, the score that GLUE reports)}. CoLA's files have no header.
TASKS = {
    "cola": ("classes", {"text": "4", "label": "2"}, "mcc"),
    "sst2": ("classes", {"text": "sentence"}, "accuracy"),
    "mrpc": (
        "classes",
        {"text": "#1 String", "pair": "#2 String", "label": "Quality"},
        "f1",
    ),
    "qqp": (
        "classes",
        {"text": "question1", "pair": "question2", "label": "is_duplicate"},
        "f1",
    ),
    "stsb": (
        "regression",
        {"text": "sentence1", "pair": "sentence2", "label": "score"},
        "spearman",
    ),
    "mnli": (
        "classes",
        {"text": "sentence1", "pair": "sentence2", "label": "gold_label"},
        "accuracy",
    ),
    "qnli": ("classes", {"text": "question", "pair": "sentence"}, "accuracy"),
    "rte": ("classes", {"text": "sentence1", "pair": "sentence2"}, "accuracy"),
    "wnli": ("classes", {"text": "sentence1", "pair": "sentence2"}, "accuracy"),
}
ARGUMENTS = tuple(TASKS)


def get_config(task: str) -> ConfigDict:
    kind, columns, metric = TASKS[task]
    return ConfigDict(
        {
            "task": {
                "kind": kind,
                "format": "tsv",
                "header": task != "cola",
                "columns": columns,
                "length": 128,
            },
            "start": {"dropout": 0.1},
            "select": {"metric": metric},
            "train": {
                "epochs": 3.0,
                "batch": 32,
                "optimizer": {"learning_rate": 3e-5, "b2": 0.999},
                "schedule": {"warmup_percent": 10.0},
            },
        }
    )
