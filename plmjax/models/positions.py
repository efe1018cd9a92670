"""Position kinds: functions of one signature, chosen by EncoderConfig.positions.

Each adds information about the positions [B, L] to the summed embeddings [B, L, E].
"""

import flax.linen as nn
import jax.numpy as jnp

from plmjax.models.config import EncoderConfig


def learned(module: nn.Module, config: EncoderConfig, x_BLE, positions_BL):
    """Adds one trained vector per position, as in BERT."""
    table = module.param(
        "position",
        nn.initializers.normal(config.init_std),
        (config.max_positions, config.input_width),
    )
    return x_BLE + jnp.take(table, positions_BL + config.position_offset, axis=0)


def none(module: nn.Module, config: EncoderConfig, x_BLE, positions_BL):
    """Adds nothing: the attention uses distances (DeBERTa), or is causal."""
    del module, config, positions_BL
    return x_BLE


POSITIONS = {"learned": learned, "none": none}
