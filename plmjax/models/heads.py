"""What stands on an encoder: the vocabulary head and the pooler.

Legend: T chosen tokens, H width, E embedding width, V vocabulary.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from plmjax.models.config import EncoderConfig
from plmjax.models.encoder import dense, norm
from plmjax.models.layers import ACTIVATIONS, affine


class VocabularyHead(nn.Module):
    """Scores every piece of the vocabulary; [T, H] -> float32 logits [T, V].

    The decoder is the token table [V, E], handed in: tied, as in BERT and RoBERTa.
    """

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_TH: jax.Array, table_VE: jax.Array) -> jax.Array:
        config = self.config
        x_TE = dense(config, config.input_width, "transform")(x_TH)
        x_TE = norm(config, "norm")(ACTIVATIONS[config.activation](x_TE))
        bias = self.param("bias", nn.initializers.zeros, (config.vocab_size,))
        return affine(x_TE, table_VE.T, bias, config.dtype)


class Pooler(nn.Module):
    """The first token's state through a dense layer and tanh; [B, H] -> [B, H]."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_BH: jax.Array) -> jax.Array:
        y_BH = dense(self.config, self.config.width, "dense")(x_BH)
        return jnp.tanh(y_BH.astype(jnp.float32)).astype(y_BH.dtype)
