"""What a model is trained for: each objective is a few pure functions."""

from plmjax.objectives.base import Key, Objective, Part, Pieces
from plmjax.objectives.clm import CLMConfig, clm
from plmjax.objectives.contrastive import contrastive
from plmjax.objectives.distill import DistillConfig, distill
from plmjax.objectives.electra import ElectraConfig, electra
from plmjax.objectives.mlm import MLMConfig, mlm
from plmjax.objectives.supervised import SupervisedConfig, supervised

# Each makes an objective of its block, the encoder that the model block names, and
# what it needs to know of the tokenizer. Fine-tuning, `supervised` and `contrastive`,
# asks for the task in the place of the tokenizer's pieces, and so is none of them.
OBJECTIVES = {"mlm": mlm, "clm": clm, "electra": electra, "distill": distill}

__all__ = [
    "OBJECTIVES",
    "CLMConfig",
    "DistillConfig",
    "ElectraConfig",
    "Key",
    "MLMConfig",
    "Objective",
    "Part",
    "Pieces",
    "SupervisedConfig",
    "clm",
    "contrastive",
    "distill",
    "electra",
    "mlm",
    "supervised",
]
