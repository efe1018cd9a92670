"""A joint search of rate, batch, warm-up and masking, for a small BERT on docstrings.

  plmjax sweep --config=search --workdir=runs/search --parallel=2

Thirty trials of 1,200 steps; those that fall behind are stopped. Two CPU cores and
nothing to download; no time is claimed. Needs Optuna.
"""


def get_config():
    # Masking falls to 15 % in every trial: held-out losses are of the same task.
    return "../pretrain/docstrings.py", {
        "train.steps": 1200,
        "train.evaluate_every_steps": 100,
        "train.checkpoint_every_steps": 400,
        "objective.final_probability": 0.15,
    }


def get_space(space):
    return {
        "train.optimizer.learning_rate": space.log(2e-4, 3e-3),
        "train.batch": space.choice([4, 8, 16]),
        "train.schedule.warmup_percent": space.uniform(1, 20),
        "objective.probability": space.uniform(0.1, 0.4),
    }


def get_study():
    # At the same number of steps, larger batches have read more text.
    return {"trials": 30, "prune_from_step": 200}
