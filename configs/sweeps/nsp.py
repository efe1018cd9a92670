"""With and without next-sentence prediction (Devlin et al. 2018; Liu et al. 2019).

  plmjax compare --pretrain=nsp:small --seeds=3 \\
      --pretrain.data.source.paths='texts/*.txt' --tasks=classes \\
      --config.task.train=train.csv --config.task.test=test.csv --workdir=runs/nsp

Argument: small (4 layers x 256, two CPU cores) or gpu (default; 12 layers x 768). none:
rows full of running text. pairs: rows of two segments, without a second loss. nsp: does
the second follow? sop: which is first? nsp minus pairs is the effect of the loss, pairs
minus none that of the rows. Documents are blocks between blank
lines, and must have several sentences. No time or score is claimed: text and tasks are
yours.
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
            "objective.masks": "dynamic",
            "train.schedule.warmup_steps": None,
        },
    ),
}
ARGUMENTS = tuple(RECIPES)


def get_config(size: str = "gpu"):
    recipe, changed = RECIPES[size]
    documents = {"data.source.document": "blank", "data.sentences": "punctuation"}
    return recipe, documents | changed


def get_settings(size: str = "gpu"):
    del size
    pairs = "objective.pairs"
    return {
        "none": {pairs: "none"},
        "pairs": {pairs: "nsp", "objective.pair_weight": 0.0},
        "nsp": {pairs: "nsp"},
        "sop": {pairs: "sop"},
    }
