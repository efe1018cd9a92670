"""The modern encoder: rotations, windows, gated layers (ModernBERT, arXiv:2412.13663).

  plmjax pretrain --config=modern:small texts/ --workdir=runs/modern-small

Argument: tiny (two cores), small (default; Ettin's 32M, arXiv:2507.11412) or base
(ModernBERT-base), each also as rtd-SIZE (replaced-token detection, with DeBERTa-v3's
sharing) and causal-SIZE (a decoder; `train.init_from` its run to go on with masks).
Base: 1.7T tokens in rows of 1,024 with rotations of base 10,000, then .3T in rows of
7,936 (Ettin has no more than 7,999 positions) with 160,000; 30 % masked, StableAdamW;
the batch grows over the first 50B tokens. The rate of 8e-4 is held after the warm-up,
and falls by the square root over the last tenth of the steps (ModernBERT's own is lower
for the long rows). Its weight decay of 1e-5 a step is 0.0125 times the rate.
Nobody has trained this recipe to its end with plmjax yet: no time or score is claimed.
"""

from ml_collections import ConfigDict

# Phases (steps, length, batch, base of the rotations), growth of the batch, rate, and
# the vocabulary.
SIZES = {
    "tiny": (((2000, 128, 16),), (), 1e-3, 8192),
    "small": (
        ((95_000, 1024, 256, 10_000.0), (5_000, 7936, 32, 160_000.0)),
        (655_000_000, 128),
        1e-3,
        50_368,
    ),
    "base": (
        ((379_000, 1024, 4608, 10_000.0), (63_000, 7936, 576, 160_000.0)),
        (50_000_000_000, 768),
        8e-4,
        50_368,
    ),
}
SHAPES = {
    "tiny": ("modernbert-tiny", "modernbert-tiny"),
    "small": ("ettin-encoder-32m", "ettin-decoder-32m"),
    "base": ("modernbert-base", "ettin-decoder-150m"),
}
RTD = {
    "kind": "electra",
    "tie": "disentangled",
    "probability": 0.3,
    "generator": {"width_fraction": 1.0, "layers_fraction": 0.5},
}
ARGUMENTS = tuple(
    f"{kind}{shape}" for kind in ("", "rtd-", "causal-") for shape in SIZES
)


def get_config(size: str = "small") -> ConfigDict:
    kind, _, shape = size.rpartition("-")
    objective = {
        "": {"kind": "mlm", "probability": 0.3},
        "rtd": RTD,
        "causal": {"kind": "clm"},
    }[kind]
    phases, ramp, rate, vocabulary = SIZES[shape]
    encoder, decoder = SHAPES[shape]
    tiny, causal = shape == "tiny", kind == "causal"
    config = ConfigDict(
        {
            "name": f"modern-{size}",
            "data": {
                "source": {"kind": "text" if tiny else "jsonl"},
                "phases": phases,
                "batch_ramp": ramp,
                "held_out_percent": 2.0 if tiny else 0.5,
            },
            "tokenizer": {
                "kind": "bpe",
                "vocab_size": vocabulary,
                "lowercase": False,
            },
            "model": {"preset": decoder if causal else encoder, "dtype": "bfloat16"},
            "objective": objective,
            "train": {
                "evaluate_every_steps": 500 if tiny else 10_000,
                "checkpoint_every_steps": 500 if tiny else 5_000,
                "log_every_steps": 10 if tiny else 100,
                "optimizer": {
                    "kind": "stable_adamw",
                    "learning_rate": rate,
                    "b1": 0.9,
                    "b2": 0.98,
                    "eps": 1e-6,
                    "weight_decay": 0.0125,
                    "clip_norm": None,
                },
                "schedule": {
                    "kind": "wsd",
                    "warmup_percent": 2.0,
                    "decay_percent": 10.0,
                    "decay_shape": "sqrt",
                },
            },
        }
    )
    if not tiny:
        config.train.update({"batch": phases[0][2], "accumulation": ramp[1] // 64})
    elif causal:
        config.model.update({"family": "modernbert-decoder", "causal": True})
    else:
        config.model.window = 32
    return config
