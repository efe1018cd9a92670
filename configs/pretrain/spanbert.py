"""SpanBERT's masks (Joshi et al. 2019, arXiv:1907.10529) on a model of BERT's kind.

  plmjax pretrain 'wiki/*.txt.gz' --config=spanbert:base --workdir=runs/spanbert-base

Argument: tiny (two cores), base (default) or large. Spans of whole words, their length
geometric with p = .2 up to 10, and one text a row without next-sentence prediction;
2.4M steps of 256 rows of 512 tokens; Adam 1e-4, eps 1e-8, decay .1, warm-up 10,000. The
numbers are recalled from the paper and were not checked; its span-boundary objective is
not part of this recipe. Nobody has trained it to its end with plmjax yet: no time or
score is claimed.
"""

from ml_collections import ConfigDict

ARGUMENTS = ("tiny", "base", "large")


def get_config(size: str = "base") -> ConfigDict:
    tiny = size == "tiny"
    return ConfigDict(
        {
            "name": f"spanbert-{size}",
            "data": {
                "source": {"kind": "text"},
                "length": 128 if tiny else 512,
                "held_out_percent": 2.0 if tiny else 0.5,
            },
            "tokenizer": {
                "kind": "wordpiece",
                "vocab_size": 8192 if tiny else 30522,
                "lowercase": False,
            },
            "model": {"preset": f"bert-{size}", "dtype": "bfloat16"},
            "objective": {"kind": "mlm", "unit": "span"},
            "train": {
                "steps": 2000 if tiny else 2_400_000,
                "batch": 16 if tiny else 256,
                "evaluate_every_steps": 500 if tiny else 10_000,
                "checkpoint_every_steps": 500 if tiny else 5_000,
                "optimizer": {
                    "learning_rate": 1e-3 if tiny else 1e-4,
                    "b1": 0.9,
                    "b2": 0.999,
                    "eps": 1e-8,
                    "weight_decay": 0.1,
                },
                "schedule": {"warmup_steps": 100 if tiny else 10_000},
            },
        }
    )
