"""A one-layer student of the model that `plmjax pretrain` trains without options.

  plmjax pretrain --config=distill/docstrings

The teacher is runs/docstrings (two layers x 256), which `plmjax pretrain` trains; the
argument names another workdir of that size. Two CPU cores, nothing to download. The
soft loss is computed at the masked tokens only: with so small a model, the vocabulary
at all tokens would cost most of the step. No score is claimed: the end of the run
prints parameters, score and speed beside the teacher's.
"""

from ml_collections import ConfigDict


def get_config(teacher: str = "runs/docstrings") -> ConfigDict:
    return ConfigDict(
        {
            "name": "docstrings-student",
            "data": {"source": {"kind": "docstrings"}, "length": 128},
            "tokenizer": {"path": f"{teacher}/tokenizer"},
            "model": {
                "preset": "distilbert-tiny",
                "layers": 1,
                "width": 256,
                "heads": 4,
                "ffn_width": 1024,
                "dropout": 0.0,
                "attention_dropout": 0.0,
                "dtype": "bfloat16",
            },
            "objective": {
                "kind": "distill",
                "teacher": teacher,
                "soft_positions": "masked",
                # The first layer reads the embeddings; the last would not know them.
                "layers": (0,),
            },
            "train": {
                "steps": 1200,
                "batch": 8,
                "evaluate_every_steps": 400,
                "checkpoint_every_steps": 400,
                "optimizer": {
                    "learning_rate": 5e-4,
                    "b2": 0.98,
                    "weight_decay": 0.0,
                    "clip_norm": 5.0,
                },
            },
        }
    )
