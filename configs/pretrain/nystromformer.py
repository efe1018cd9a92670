"""Nyströmformer (Xiong et al. 2021, arXiv:2102.03902): attention by 64 landmarks.

  plmjax pretrain 'papers/*.txt.gz' --config=nystromformer:4096 --workdir=runs/nystrom

Argument: tiny (two cores), 512, 1024, 2048 or 4096 (default 4096): the tokens of a row.
One document a row, since landmarks are means of its stretches; time and memory grow
with the length. 500,000 steps of 131,072 tokens, Adam 1e-4, warm-up 10,000, linear to
0, decay .01: recalled from the paper's rows of 512; it also trained on the order of
sentences, for which transformers has no class. The published positions of 512 are 510:
rows of 448 tokens are the longest that 64 divides, as transformers needs. Nobody has
trained this recipe to its end with plmjax yet: no time or score is claimed.
"""

from ml_collections import ConfigDict

ARGUMENTS = ("tiny", "512", "1024", "2048", "4096")


def get_config(size: str = "4096") -> ConfigDict:
    length = {"tiny": 1024, "512": 448}.get(size) or int(size)
    config = ConfigDict(
        {
            "name": f"nystromformer-{size}",
            "data": {
                "source": {"kind": "text"},
                "length": length,
                "rows": "single",
                "held_out_percent": 0.5,
            },
            "tokenizer": {
                "kind": "unigram",
                "vocab_size": 30_000,
                "strip_accents": True,
            },
            "model": {"preset": f"nystromformer-{size}", "dtype": "bfloat16"},
            "train": {
                "steps": 500_000,
                "batch": max(2**17 // length // 32, 1) * 32,
                "evaluate_every_steps": 10_000,
                "checkpoint_every_steps": 5_000,
                "optimizer": {
                    "learning_rate": 1e-4,
                    "b1": 0.9,
                    "b2": 0.999,
                    "eps": 1e-6,
                    "weight_decay": 0.01,
                    "clip_norm": 1.0,
                },
                "schedule": {"kind": "linear", "warmup_steps": 10_000},
            },
        }
    )
    if size == "tiny":
        config.data.held_out_percent = 2.0
        config.tokenizer.vocab_size = 8192
        config.train.update({"steps": 2000, "batch": 8, "evaluate_every_steps": 500})
        config.train.optimizer.learning_rate = 1e-3
        config.train.schedule = {"kind": "linear", "warmup_percent": 10.0}
    return config
