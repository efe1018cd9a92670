"""The encoder of all families: one module, with variants selected by its config.

Legend: B rows, L tokens a row, T = B * L, E embedding width, H width, N heads, D head
width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from plmjax.models.attention import View, full
from plmjax.models.blocks import blocks
from plmjax.models.config import EncoderConfig
from plmjax.models.disentangled import Convolution, RelativePositions, disentangled
from plmjax.models.global_tokens import find
from plmjax.models.layers import (
    ACTIVATIONS,
    PRODUCT,
    dense,
    divided,
    dropout,
    norm,
    row_major,
)
from plmjax.models.noise import Noise
from plmjax.models.nystrom import nystrom
from plmjax.models.platform import ANY, Platform
from plmjax.models.positions import POSITIONS, reach, rotation

ATTENTION = {
    "full": full,
    "disentangled": disentangled,
    "blocks": blocks,
    "nystrom": nystrom,
}


class Embeddings(nn.Module):
    """Token, position and type vectors, summed; [B, L] ids -> [T, H]."""

    config: EncoderConfig
    platform: Platform = ANY

    @nn.compact
    def __call__(self, tokens_BL, positions_BL, types_BL, noise: Noise | None):
        config = self.config
        init = nn.initializers.normal(config.init_std)
        shape = (config.vocab_size, config.input_width)
        x_BLE = jnp.take(self.param("token", init, shape), tokens_BL, axis=0)
        x_BLE = POSITIONS[config.positions](self, config, x_BLE, positions_BL)
        if config.token_types:
            shape = (config.token_types, config.input_width)
            table = self.param("type", init, shape)
            x_BLE = x_BLE + jnp.take(table, types_BL, axis=0)
        x_TE = x_BLE.reshape(-1, config.input_width)
        if config.norm_place == "post" or config.norm_embeddings:
            x_TE = norm(config, "norm")(x_TE)
        x_TE = dropout(x_TE.astype(config.dtype), config.dropout, noise, "embeddings")
        if config.input_width != config.width:
            return dense(self, config.width, "projection")(x_TE)
        return x_TE


class Attention(nn.Module):
    """Multi-head self-attention to what the view shows; [T, H] -> [T, H].

    `window` is that of a local layer; 0: a global one. `number` is the layer's.
    """

    config: EncoderConfig
    platform: Platform = ANY
    window: int = 0
    number: int = 0

    @nn.compact
    def __call__(self, x_TH, view: View, noise: Noise | None, site: str):
        config = self.config
        rows, length = view.start.shape
        # On GPUs token l of all rows comes before l + 1: then the products of attention
        # see rows and heads as one axis, and nothing is transposed for them in memory.
        # The kernels read rows as they are.
        platform = self.platform
        turned = platform.kind == "gpu" and not (platform.kernels or divided(platform))

        def swapped(x_TH, first: int, second: int):
            if not turned:
                return x_TH
            return x_TH.reshape(first, second, -1).swapaxes(0, 1).reshape(x_TH.shape)

        swapped_TH = swapped(x_TH, rows, length)
        projections = {}

        def heads(name, y_SH=x_TH, shape=view.start.shape):
            """Projects y, of S = rows * length vectors, to [rows, N, length, D]."""
            count = config.heads
            if name in ("key", "value"):
                count = config.kv_heads or count
            if name == "global_query" and view.global_tokens:  # of these tokens alone
                y_BGH = view.global_tokens.gather(x_TH.reshape(*shape, -1))
                y_SH, shape = y_BGH.reshape(-1, config.width), y_BGH.shape[:2]
            if name not in projections:
                projections[name] = dense(self, count * config.head_width, name)
            split = (count, config.head_width)
            if turned and y_SH is x_TH:
                y_SO = projections[name](swapped_TH)
                y_LBND = row_major(y_SO.reshape(length, rows, *split))
                y_BNLD = y_LBND.transpose(1, 2, 0, 3)
            else:
                y_BLND = projections[name](y_SH).reshape(*shape, *split)
                y_BNLD = y_BLND.transpose(0, 2, 1, 3)
            # Recorded for distillation; no effect unless "intermediates" is mutable.
            self.sow("intermediates", f"{name}_heads", y_BNLD)
            return y_BNLD

        if self.window and config.global_projections and self.is_initializing():
            for name in ("global_query", "global_key", "global_value"):
                projections[name] = dense(self, config.width, name)
                projections[name](x_TH)
        attend = ATTENTION[config.attention]
        y_BNLD = attend(self, heads, view, noise=noise, site=site)
        y_TH = y_BNLD.transpose((2, 0, 1, 3) if turned else (0, 2, 1, 3))
        y_TH = dense(self, config.width, "output")(y_TH.reshape(x_TH.shape))
        return swapped(y_TH, length, rows)


class FeedForward(nn.Module):
    """Two dense layers with an activation, gated if the config says so."""

    config: EncoderConfig
    platform: Platform = ANY

    @nn.compact
    def __call__(self, x_TH):
        config = self.config
        activation = ACTIVATIONS[config.activation]
        y_TF = activation(dense(self, config.ffn_width, "up")(x_TH))
        if config.gated:
            y_TF = y_TF * dense(self, config.ffn_width, "gate")(x_TH)
        return dense(self, config.width, "down")(y_TF)


class Layer(nn.Module):
    """Attention, then feed-forward; two methods, since ALBERT can share each alone."""

    config: EncoderConfig
    platform: Platform = ANY
    number: int = 0

    def setup(self):
        local = self.config.layer_kind(self.number) == "local"
        window = self.config.window if local else 0
        self.attention = Attention(self.config, self.platform, window, self.number)
        if self.number or not self.config.norm_embeddings:
            self.attention_norm = norm(self.config)
        else:
            self.attention_norm = lambda x_TH: x_TH  # the embeddings have a norm
        self.ffn = FeedForward(self.config, self.platform)
        self.ffn_norm = norm(self.config)

    def attend(self, site: str, x_TH, view: View, noise: Noise | None):
        """Applies the attention block; [T, H] -> [T, H]."""
        site = f"{site}/attention"
        return self._around(
            x_TH,
            lambda x: self.attention(x, view, noise, site),
            self.attention_norm,
            noise,
            site,
        )

    def feed(self, site: str, x_TH, noise: Noise | None):
        """Applies the feed-forward block; [T, H] -> [T, H]."""
        return self._around(x_TH, self.ffn, self.ffn_norm, noise, f"{site}/ffn")

    def _around(self, x_TH, inner, norm, noise, site):
        """Residual, dropout and norm around a block; the config places the norm."""
        pre = self.config.norm_place == "pre"
        y_TH = inner(norm(x_TH) if pre else x_TH)
        y_TH = x_TH + dropout(y_TH, self.config.dropout, noise, site)
        return y_TH if pre else norm(y_TH)


class Encoder(nn.Module):
    """Turns [B, L] tokens, segments, positions and types into hidden states [B, L, H].

    `noise` switches dropout on; without it the encoder is deterministic. Segment 0 is
    padding; tokens attend within their segment only.
    """

    config: EncoderConfig
    platform: Platform = ANY

    @nn.compact
    def __call__(
        self, tokens_BL, segments_BL, positions_BL, types_BL, noise: Noise | None = None
    ) -> jax.Array:
        config = self.config
        embeddings = Embeddings(config, self.platform, name="embeddings")
        x_TH = embeddings(tokens_BL, positions_BL, types_BL, noise)
        relative_RH = None
        if config.attention == "disentangled":
            relative_RH = RelativePositions(config, name="relative")()
        kinds = [config.layer_kind(i) for i in range(config.layers)]
        views = {}
        for kind in set(kinds):
            views[kind] = View(
                *reach(segments_BL, config.causal, config.window * (kind == "local")),
                rotation=rotation(config, kind, positions_BL)
                if config.positions == "rope"
                else None,
                relative=relative_RH,
                global_tokens=find(config, tokens_BL, segments_BL)
                if kind == "local" and config.global_tokens != "none"
                else None,
            )
        layer_type = Layer
        if config.remat:
            # The large products within attention are not saved.
            dots = jax.checkpoint_policies.save_only_these_names(PRODUCT)
            # The site (argument 1, after self) is a Python string.
            layer_type = nn.remat(
                Layer,
                static_argnums=1,
                methods=["attend", "feed"],
                policy=dots if config.remat == "dots" else None,
            )
        layers = [
            layer_type(config, self.platform, i, name=f"layer_{i}")
            for i in range(config.layers)
        ]
        embedded_TH = x_TH
        for i in range(config.layers):
            shared = i * config.groups // config.layers
            attends = layers[shared if config.sharing in ("attention", "all") else i]
            feeds = layers[shared if config.sharing in ("ffn", "all") else i]
            x_TH = attends.attend(f"layer_{i}", x_TH, views[kinds[i]], noise)
            x_TH = feeds.feed(f"layer_{i}", x_TH, noise)
            if i == 0 and config.convolution_width:
                convolution = Convolution(config, self.platform, name="convolution")
                x_TH = convolution(embedded_TH, x_TH, segments_BL, noise)
            self.sow("intermediates", "states", x_TH)
        if config.norm_place == "pre":
            x_TH = norm(config, "final_norm")(x_TH)
        return x_TH.reshape(*tokens_BL.shape, config.width)
