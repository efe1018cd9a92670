"""DistilBERT as Sanh et al. (2019, arXiv:1910.01108) distilled it from BERT-base.

  plmjax pretrain 'wiki/*.txt.gz' --config=distilbert:path/to/bert-base-uncased \\
      --workdir=runs/distilbert

Argument: the teacher, a Hugging Face folder with its vocabulary head (BertForMaskedLM
or BertForPreTraining); its tokenizer becomes the student's. Six layers of twelve, those
numbered 0, 2, 4, 7, 9, 11 to start. Weights 5 (soft, at all tokens, temperature 2), 2
(masked words) and 1 (cosine), Adam 5e-4, warm-up 5 %, clip 5, no decay of the weights
and 3 epochs are the command and the defaults of transformers' distillation example,
except that it masks rare words more often (p ~ count ** -.7); this recipe masks all
alike. Batches of up to 4,000 rows and 90 hours on eight V100 of 16 GB are recalled from
the paper.

The paper reports 40 % fewer parameters, 97 % of BERT's score on GLUE (77.0 of 79.5) and
60 % more speed. Nobody has trained this recipe to its end with plmjax yet: no time or
score of ours is claimed.
"""

from ml_collections import ConfigDict


def get_config(teacher: str = "bert-base-uncased") -> ConfigDict:
    return ConfigDict(
        {
            "name": "distilbert",
            "data": {
                "source": {"kind": "text"},
                "length": 512,
                "held_out_percent": 0.5,
            },
            "tokenizer": {"path": teacher},
            "model": {"preset": "distilbert-base", "dtype": "bfloat16"},
            "objective": {
                "kind": "distill",
                "teacher": teacher,
                "teacher_dtype": "bfloat16",
            },
            "train": {
                "epochs": 3.0,
                "batch": 4096,
                # Logits of all tokens are large: 16,384 tokens at a time on a device of
                # 16 GB or more.
                "accumulation": 128,
                "evaluate_every_steps": 1_000,
                "checkpoint_every_steps": 500,
                "optimizer": {
                    "learning_rate": 5e-4,
                    "b1": 0.9,
                    "b2": 0.999,
                    "eps": 1e-6,
                    "weight_decay": 0.0,
                    "clip_norm": 5.0,
                },
                "schedule": {"kind": "linear", "warmup_percent": 5.0},
            },
        }
    )
