"""ALBERT's two savings (Lan et al. 2019, arXiv:1909.11942): E x sharing.

  plmjax compare --pretrain=albert:small --seeds=3 \\
      --pretrain.data.source.paths='texts/*.txt' --tasks=classes \\
      --config.task.train=train.csv --config.task.test=test.csv --workdir=runs/albert

Argument: small (4 layers x 256, two CPU cores) or gpu (default; 12 layers x 768). The
first setting, embeddings as wide as the layers and nothing shared, is the one that the
others are compared with. Sharing makes a model smaller, not cheaper: at equal compute
the steps are nearly the same. Rows of 128 tokens, AdamW and fewer steps are not the
paper's. No time or score is claimed: text and tasks are yours.
"""

WIDTHS = {"small": (256, 128, 32), "gpu": (768, 256, 128, 64)}
ARGUMENTS = tuple(WIDTHS)


def get_config(size: str = "gpu"):
    if size == "small":
        return "../pretrain/albert.py:tiny"
    return "../pretrain/albert.py:base-v2", {
        "data.length": 128,
        "train.steps": 100_000,
        "train.batch": 256,
        "train.accumulation": 1,
        "train.optimizer.kind": "adamw",
        "train.optimizer.learning_rate": 3e-4,
        "train.schedule.warmup_steps": None,
    }


def get_settings(size: str = "gpu"):
    return {
        f"E{width}-{'shared' if sharing == 'all' else 'own'}": {
            "model.embedding_width": width,
            "model.sharing": sharing,
        }
        for width in WIDTHS[size]
        for sharing in ("none", "all")
    }
