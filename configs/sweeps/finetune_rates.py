"""Learning rates of a fine-tuning, from those for large models to those for small ones.

  plmjax sweep --config=finetune_rates --workdir=runs/tuned \\
      --config.model=runs/mine --config.task.train=train.csv --parallel=2

Fifteen trials of configs/finetune/classes.py, three seeds each, compared by the score
on the held-out part, which also chooses the best step. A test part is scored, too, in
results.csv; a choice by it would be biased. Two CPU cores or a GPU, by the model. No
time is claimed: model and data are yours.
"""


def get_config():
    return "../finetune/classes.py", {"baselines": False}


def get_hyper(hyper):
    rates = [2e-5, 5e-5, 1e-4, 3e-4, 1e-3]
    return hyper.product(
        [hyper.sweep("train.optimizer.learning_rate", rates), hyper.seeds(3)]
    )
