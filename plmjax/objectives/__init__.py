"""What a model is trained for: objectives, each a frozen dataclass."""

from plmjax.objectives.base import Altered, Key, Objective, Part, Pieces
from plmjax.objectives.clm import CLM, CLMConfig
from plmjax.objectives.contrastive import Contrastive
from plmjax.objectives.distill import Distill, DistillConfig
from plmjax.objectives.electra import Electra, ElectraConfig
from plmjax.objectives.mlm import MLM, MLMConfig
from plmjax.objectives.supervised import Supervised, SupervisedConfig

# Each is made of its block, the encoder that the model block names, and what it needs
# to know of the tokenizer. Those of fine-tuning, Supervised and Contrastive, ask for
# the task in the place of the tokenizer's pieces, and so are none of them.
OBJECTIVES = {"mlm": MLM, "clm": CLM, "electra": Electra, "distill": Distill}

__all__ = [
    "CLM",
    "MLM",
    "OBJECTIVES",
    "Altered",
    "CLMConfig",
    "Contrastive",
    "Distill",
    "DistillConfig",
    "Electra",
    "ElectraConfig",
    "Key",
    "MLMConfig",
    "Objective",
    "Part",
    "Pieces",
    "Supervised",
    "SupervisedConfig",
]
