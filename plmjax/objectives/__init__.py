"""Training objectives, each a frozen dataclass."""

from plmjax.objectives.base import Key, ModelView, Objective, Pieces, altered
from plmjax.objectives.clm import CLM, CLMConfig
from plmjax.objectives.contrastive import Contrastive
from plmjax.objectives.distill import Distill, DistillConfig
from plmjax.objectives.electra import Electra, ElectraConfig
from plmjax.objectives.mlm import MLM, MLMConfig
from plmjax.objectives.supervised import Supervised, SupervisedConfig

# Each is built from its config block, the encoder of the model block, and the
# tokenizer's pieces. Supervised and Contrastive, for fine-tuning, need the task instead
# of the pieces, so they are not listed here.
OBJECTIVES = {"mlm": MLM, "clm": CLM, "electra": Electra, "distill": Distill}

__all__ = [
    "CLM",
    "MLM",
    "OBJECTIVES",
    "CLMConfig",
    "Contrastive",
    "Distill",
    "DistillConfig",
    "Electra",
    "ElectraConfig",
    "Key",
    "MLMConfig",
    "Objective",
    "ModelView",
    "Pieces",
    "Supervised",
    "SupervisedConfig",
    "altered",
]
