"""A published BERT, trained further with MLM and next-sentence prediction on your text.

  plmjax import --from=bert-base-uncased --workdir=runs/meditations
  plmjax pretrain meditations.txt --config=nsp --workdir=runs/meditations
  plmjax next "It was late." "We went home." --model=runs/meditations

Sizes, vocabulary and start weights are the import's. A line is a document here, its
sentences end at punctuation; half of the pairs follow each other. Three epochs at 5e-5
are our guess. Two cores suffice for a small book. No time or score is claimed: the
text is yours.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "data": {
                "source": {"kind": "text", "document": "line"},
                "sentences": "punctuation",
                "length": 128,
                "held_out_percent": 5.0,
            },
            "objective": {"kind": "mlm", "pairs": "nsp"},
            "train": {
                "epochs": 3.0,
                "batch": 16,
                "evaluate_every_steps": 50,
                "checkpoint_every_steps": 50,
                "optimizer": {"learning_rate": 5e-5, "b2": 0.999},
                "schedule": {"warmup_percent": 10.0},
            },
        }
    )
