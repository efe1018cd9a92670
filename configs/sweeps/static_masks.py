"""New masks each epoch, or the same again (Liu et al. 2019, arXiv:1907.11692).

  plmjax compare --pretrain=static_masks:small --seeds=3 \\
      --pretrain.data.source.paths='texts/*.txt' --tasks=classes \\
      --config.task.train=train.csv --config.task.test=test.csv --workdir=runs/masks

Argument: small (4 layers x 256, two CPU cores) or gpu (default; 12 layers x 768).
static-10: ten masks a row, in turn, as BERT's preprocessing wrote them; static-1: one.
They differ from dynamic ones only after as many epochs, so the text must be small
enough for the steps. No time or score is claimed: text and tasks are yours.
"""

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
            "train.schedule.warmup_steps": None,
        },
    ),
}
ARGUMENTS = tuple(RECIPES)


def get_config(size: str = "gpu"):
    return RECIPES[size]


def get_settings(size: str = "gpu"):
    del size
    masks, copies = "objective.masks", "objective.copies"
    return {
        "dynamic": {masks: "dynamic"},
        "static-10": {masks: "static", copies: 10},
        "static-1": {masks: "static", copies: 1},
    }
