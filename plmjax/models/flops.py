"""Matrix FLOPs of training, counted from a config."""

from plmjax.models.config import EncoderConfig


def encoder_flops(config: EncoderConfig, length: int) -> float:
    """Returns the matrix FLOPs of training the encoder on a row: forward times three.

    Attention counts the whole row, packed or not, since that is what is computed.
    """
    width, inner, narrow = config.width, config.ffn_width, config.input_width
    layer = 2 * (4 * width**2 + (3 if config.gated else 2) * width * inner)
    layer += 4 * length * width
    if config.attention == "disentangled":
        # Tokens against distances and distances against tokens, 2 x length of each.
        layer += 2 * 2 * width * 2 * length
    once = 2 * narrow * width if narrow != width else 0
    once += 2 * config.convolution_width * width**2
    return 3.0 * length * (config.layers * layer + once)


def vocabulary_flops(config: EncoderConfig, positions: int) -> float:
    """Returns the matrix FLOPs of training the vocabulary head on some positions."""
    width, narrow = config.width, config.input_width
    transform = width * narrow if config.head == "transform" else 0
    return 3.0 * positions * 2 * (transform + narrow * config.vocab_size)


def detector_flops(config: EncoderConfig, positions: int) -> float:
    """Returns the matrix FLOPs of training the detector head on some positions."""
    return 3.0 * positions * 2 * config.width * (config.width + 1)


def task_flops(config: EncoderConfig, positions: int, pooled: bool, outputs: int):
    """Returns the matrix FLOPs of training a head of fine-tuning on some positions."""
    inner = config.width if pooled else 0
    return 3.0 * positions * 2 * config.width * (inner + outputs)
