"""What a model is trained for: each objective is four pure functions."""

from plmjax.objectives.base import Key, Objective
from plmjax.objectives.mlm import MLMConfig, mlm

OBJECTIVES = {"mlm": mlm}

__all__ = ["OBJECTIVES", "Key", "MLMConfig", "Objective", "mlm"]
