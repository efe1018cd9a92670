"""TinyBERT's first stage: the hidden states of a teacher that knows no task yet.

  plmjax pretrain 'wiki/*.txt.gz' --config=tinybert:path/to/bert-base-uncased \\
      --workdir=runs/tinybert
  plmjax finetune --config=tinybert_task:runs/teacher-task \\
      --config.model=runs/tinybert --config.task.train=train.csv --workdir=runs/tiny

After Jiao et al. (2019, arXiv:1909.10351): four layers x 312 follow the layers 2, 5, 8
and 11 of twelve (counted from 0), by the squared error of their states. Their loss of
attention compares each layer's scores; ours the relations of the last layer, as MiniLM
does. Three epochs are recalled from the paper. The second stage is the recipe
finetune/tinybert_task.

Nobody has trained this recipe to its end with plmjax yet: no time or score of ours is
claimed.
"""

from ml_collections import ConfigDict


def get_config(teacher: str = "bert-base-uncased") -> ConfigDict:
    return ConfigDict(
        {
            "name": "tinybert",
            "data": {"source": {"kind": "text"}, "length": 128},
            "tokenizer": {"path": teacher},
            "model": {
                "preset": "bert-base",
                "layers": 4,
                "width": 312,
                "heads": 12,
                "ffn_width": 1200,
                "dtype": "bfloat16",
            },
            "objective": {
                "kind": "distill",
                "teacher": teacher,
                "teacher_dtype": "bfloat16",
                "start": "fresh",
                "layers": (2, 5, 8, 11),
                "soft_weight": 0.0,
                "mlm_weight": 0.0,
                "cosine_weight": 0.0,
                "hidden_weight": 1.0,
                "attention_weight": 1.0,
            },
            "train": {
                "epochs": 3.0,
                "batch": 256,
                "evaluate_every_steps": 1_000,
                "checkpoint_every_steps": 500,
                "optimizer": {"learning_rate": 1e-4, "b2": 0.999},
            },
        }
    )
