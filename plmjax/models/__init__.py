"""The encoder family as one pure function of values, and its heads."""

from plmjax.models.config import PRESETS, EncoderConfig
from plmjax.models.encoder import Encoder
from plmjax.models.noise import Noise
from plmjax.models.platform import Platform

__all__ = ["PRESETS", "Encoder", "EncoderConfig", "Noise", "Platform"]
