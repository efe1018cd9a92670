"""MiniLM: the student learns how the teacher's last layer relates its tokens.

  plmjax pretrain 'wiki/*.txt.gz' --config=minilm:path/to/bert-base-uncased \\
      --workdir=runs/minilm

After Wang et al. (2020, arXiv:2002.10957): the relations of queries with keys and of
values with values in the last layer, and nothing else. Layers and widths are free, but
the number of heads is the teacher's. 6 layers x 384 of 12 heads, batches of 256 rows of
512 and 400,000 steps at 5e-4 are recalled from the paper. The vocabulary head learns
nothing here: fine-tune the encoder, or go on with objective.kind=mlm.

Nobody has trained this recipe to its end with plmjax yet: no time or score of ours is
claimed.
"""

from ml_collections import ConfigDict


def get_config(teacher: str = "bert-base-uncased") -> ConfigDict:
    return ConfigDict(
        {
            "name": "minilm",
            "data": {"source": {"kind": "text"}, "length": 512},
            "tokenizer": {"path": teacher},
            "model": {
                "preset": "bert-base",
                "layers": 6,
                "width": 384,
                "heads": 12,
                "ffn_width": 1536,
                "dtype": "bfloat16",
            },
            "objective": {
                "kind": "distill",
                "teacher": teacher,
                "teacher_dtype": "bfloat16",
                "start": "fresh",
                "soft_weight": 0.0,
                "mlm_weight": 0.0,
                "cosine_weight": 0.0,
                "attention_weight": 1.0,
            },
            "train": {
                "steps": 400_000,
                "batch": 256,
                "accumulation": 8,
                "evaluate_every_steps": 5_000,
                "checkpoint_every_steps": 1_000,
                "optimizer": {"learning_rate": 5e-4, "b2": 0.999},
                "schedule": {"warmup_steps": 4_000},
            },
        }
    )
