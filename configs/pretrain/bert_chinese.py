"""A Chinese BERT whose masks cover whole words (Cui et al. 2019, arXiv:1906.08101).

  pip install -e ".[chinese]"
  plmjax pretrain 'texts/*.txt' --config=bert_chinese:base --workdir=runs/bert-chinese

Argument: tiny (two cores) or base (default). The vocabulary stays characters; jieba's
words are masked together. For text that is already segmented, with blanks between
words, set --config.tokenizer.segmenter=spaces. Rates and steps are BERT's, as recalled;
the paper continued from Google's Chinese BERT (`plmjax import`), whose 21,128 pieces
set the size of the vocabulary here. Nobody has trained this recipe to its end with
plmjax yet: no time or score is claimed.
"""

from ml_collections import ConfigDict

ARGUMENTS = ("tiny", "base")


def get_config(size: str = "base") -> ConfigDict:
    tiny = size == "tiny"
    return ConfigDict(
        {
            "name": f"bert-chinese-{size}",
            "data": {
                "source": {"kind": "text"},
                "length": 128,
                "held_out_percent": 2.0 if tiny else 0.5,
            },
            "tokenizer": {
                "kind": "wordpiece",
                "vocab_size": 8192 if tiny else 21128,
                "segmenter": "jieba",
                "strip_accents": True,  # Google's Chinese BERT is uncased
            },
            "model": {"preset": f"bert-{size}", "dtype": "bfloat16"},
            "objective": {"kind": "mlm", "unit": "word"},
            "train": {
                "steps": 2000 if tiny else 1_000_000,
                "batch": 16 if tiny else 256,
                "evaluate_every_steps": 500 if tiny else 10_000,
                "checkpoint_every_steps": 500 if tiny else 5_000,
                "optimizer": {
                    "learning_rate": 1e-3 if tiny else 1e-4,
                    "b2": 0.98 if tiny else 0.999,
                },
                "schedule": {"warmup_steps": 100 if tiny else 10_000},
            },
        }
    )
