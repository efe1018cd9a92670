"""Which components of ELECTRA help (Clark et al. 2020, arXiv:2003.10555, section 3.5).

  plmjax compare --pretrain=electra_ablation:small --seeds=3 \\
      --pretrain.data.source.paths='texts/*.txt' --tasks=classes \\
      --config.task.train=train.csv --config.task.test=test.csv --workdir=runs/electra

Argument: small (4 layers x 256, two CPU cores) or gpu (default; electra-small, with a
tenth of its steps). All settings use the compute of the first one's steps, generators
included. bert: masked language modelling. replace-mlm: the same, but a generator's
samples in the place of [MASK]. electra-15: replaced tokens are detected at the 15 %
that were chosen. all-tokens-mlm: the original is predicted at every token, with a gate
that copies. electra: replaced tokens are detected everywhere. No time or score is
claimed: text and tasks are yours.
"""

SIZES = {"small": ("tiny", 2_000), "gpu": ("small", 100_000)}
ARGUMENTS = tuple(SIZES)


def get_config(size: str = "gpu"):
    recipe, steps = SIZES[size]
    changed = {"train.steps": steps, "train.schedule.warmup_steps": None}
    return f"../pretrain/electra.py:{recipe}", changed


def get_settings(size: str = "gpu"):
    del size
    variant = "objective.variant"
    return {
        "bert": {"objective.kind": "mlm"},
        "replace-mlm": {variant: "replace_mlm"},
        "electra-15": {variant: "electra_15"},
        "all-tokens-mlm": {variant: "all_tokens_mlm"},
        "electra": {variant: "electra"},
    }
