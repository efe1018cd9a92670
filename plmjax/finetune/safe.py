"""The safe recipe: several remedies against seeds with which a model does not learn."""

from typing import Any

from plmjax.finetune.config import FinetuneConfig
from plmjax.models import EncoderConfig

# plmjax's Adam has bias correction anyway. docs/studies.md explains each.
SAFE = {
    "start.dropout": 0.1,
    "start.reinit_layers": 1,
    "train.epochs": 10.0,
    "train.schedule.warmup_percent": 10.0,
    "train.optimizer.layer_decay": 0.9,
    "train.average_from_percent": 50.0,
    "train.ema_decay": None,
    "select.keep": "best",
}
# With so few layers, a re-initialised one is too large a part of the model.
_FEW_LAYERS = 2


def safe_for(encoder: EncoderConfig, config: FinetuneConfig) -> dict[str, Any]:
    """Returns the recipe, {key: value}, without keys unsuited to a model and a config.

    A layer is re-initialised only if it is trained, in encoders of more than 2 layers
    that do not share parameters. A training that is longer already stays as long.
    """
    left_out = set()
    layers, optimizer = config.start.layers or encoder.layers, config.train.optimizer
    few = layers <= _FEW_LAYERS or encoder.sharing != "none"
    adapted = config.lora.rank > 0
    if few or adapted or optimizer.freeze is not None:
        left_out.add("start.reinit_layers")
    if adapted:
        left_out.add("train.optimizer.layer_decay")
    if (config.train.epochs or 0) >= SAFE["train.epochs"]:
        left_out.add("train.epochs")
    return {key: value for key, value in SAFE.items() if key not in left_out}
