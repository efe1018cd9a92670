"""Deep and narrow, or shallow and wide, at about as many parameters of the layers.

  plmjax compare --pretrain=depth_width:small --seeds=3 \\
      --pretrain.data.source.paths='texts/*.txt' --tasks=classes \\
      --config.task.train=train.csv --config.task.test=test.csv --workdir=runs/depth

Argument: small (around 4 layers x 256, two CPU cores) or gpu (default; around 12 x
768). All use the compute of the first one's steps; the learning rate is the same for
all, which may favour some. No time or score is claimed: text and tasks are yours.
"""

# (layers, width): layers x width^2 is within a fifth of the first one's.
SHAPES = {
    "small": ((4, 256), (1, 512), (2, 384), (8, 192)),
    "gpu": ((12, 768), (3, 1536), (6, 1024), (24, 512)),
}


RECIPES = {
    "small": (
        "../pretrain/bert_mini.py",
        {"train.steps": 2_000, "train.batch": 16, "tokenizer.vocab_size": 8192},
    ),
    "gpu": (
        "../pretrain/bert.py:base",
        {
            "data.phases": (),
            "train.steps": 100_000,
            "train.batch": 256,
            "objective.masks": "dynamic",
            "train.schedule.warmup_steps": None,
        },
    ),
}
ARGUMENTS = tuple(RECIPES)


def get_config(size: str = "gpu"):
    return RECIPES[size]


def get_settings(size: str = "gpu"):
    return {
        f"{layers}x{width}": {
            "model.layers": layers,
            "model.width": width,
            "model.heads": width // 64,
            "model.ffn_width": 4 * width,
        }
        for layers, width in SHAPES[size]
    }
