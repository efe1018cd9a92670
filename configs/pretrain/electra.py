"""ELECTRA as Clark et al. (2020, arXiv:2003.10555) trained it.

  plmjax pretrain 'wiki/*.txt.gz' --config=electra:small --workdir=runs/electra-small

Argument: tiny (two cores), small (default), base or large. Small: 1M steps of 128 rows
of 128 tokens at 5e-4; base: 766k of 256 x 512 at 2e-4; large: 400k of 2,048 x 512 at
2e-4 with a quarter of the tokens masked; Adam (.9, .999), eps 1e-6, decay .01, warm-up
10,000, clipping at 1; loss = MLM + 50 RTD. All of it is in the authors' code, except
the steps of base and large, which are recalled from the paper. The paper's small took 4
days on one V100 and scored 79.9 on GLUE's dev sets. Nobody has trained this recipe to
its end with plmjax yet: no time or score of ours is claimed.
"""

from ml_collections import ConfigDict

# (steps, length, batch, accumulation), rate, masked, width of the generator.
SIZES = {
    "tiny": ((2000, 128, 16, 1), 1e-3, 0.15, 0.25),
    "small": ((1_000_000, 128, 128, 1), 5e-4, 0.15, 0.25),
    "base": ((766_000, 512, 256, 4), 2e-4, 0.15, 1 / 3),
    "large": ((400_000, 512, 2048, 32), 2e-4, 0.25, 0.25),
}
ARGUMENTS = tuple(SIZES)


def get_config(size: str = "small") -> ConfigDict:
    (steps, length, batch, accumulation), rate, masked, width = SIZES[size]
    tiny = size == "tiny"
    return ConfigDict(
        {
            "name": f"electra-{size}",
            "data": {
                "source": {"kind": "text"},
                "length": length,
                "held_out_percent": 2.0 if tiny else 0.5,
            },
            "tokenizer": {
                "kind": "wordpiece",
                "vocab_size": 8192 if tiny else 30522,
                "strip_accents": True,  # its vocabulary is that of uncased BERT
            },
            "model": {"preset": f"electra-{size}", "dtype": "bfloat16"},
            "objective": {
                "kind": "electra",
                "probability": masked,
                "generator": {"width_fraction": width},
            },
            "train": {
                "steps": steps,
                "batch": batch,
                "accumulation": accumulation,
                "evaluate_every_steps": 500 if tiny else 10_000,
                "checkpoint_every_steps": 500 if tiny else 5_000,
                "log_every_steps": 10 if tiny else 100,
                "optimizer": {
                    "learning_rate": rate,
                    "b1": 0.9,
                    "b2": 0.999,
                    "eps": 1e-6,
                    "weight_decay": 0.01,
                    "clip_norm": 1.0,
                },
                "schedule": {"warmup_steps": 100 if tiny else 10_000},
            },
        }
    )
