"""The kinds of attention of models/ as ONNX nodes, each over all pairs of tokens.

What a query does not see is a large negative number beside its score, so local and
block sparse attention need memory that grows with the square of the length.

Legend: B rows, N heads, L tokens a row, D head width, K ids, M landmarks, or distances.
"""

import math
from typing import Any

import numpy as np

from plmjax.models import EncoderConfig
from plmjax.models.attention import slopes
from plmjax.models.disentangled import bucket
from plmjax.models.nystrom import STEPS
from plmjax.models.positions import frequencies
from plmjax.onnx.ops import Ops, Value

# In place of minus infinity, so that the softmax of padding is a number.
UNSEEN = -1e30


class Rows:
    """The inputs of a batch, and what follows from them for all layers."""

    def __init__(
        self, ops: Ops, tokens_BL: Value, mask_BL: Value, types_BL: Value | None = None
    ):
        self.ops, self.tokens_BL, self.mask_BL = ops, tokens_BL, mask_BL
        self.types_BL = types_BL
        self.length = ops("Shape", tokens_BL).cut(0, 1, 2)
        end = ops("Squeeze", self.length, [0])
        self.index_L: Value = ops("Range", np.array(0), end, np.array(1))
        self.size_B1 = mask_BL.reduce("Sum", 1, keep=True)
        self.real_BL1 = mask_BL.unsqueeze(2).to(float)
        missing_B11L = ops("Sub", 1.0, mask_BL.unsqueeze(1, 2).to(float))
        self.padding_B11L = missing_B11L * UNSEEN

    def chosen(self, config: EncoderConfig) -> Value:
        """Which tokens the config's rule makes global, bool [B, L]."""
        ids_K = np.array(config.global_ids, np.int64)
        first_L = self.index_L.equals(0)
        hits_BLK = self.tokens_BL.unsqueeze(2).equals(ids_K).to(int)
        count_BL = hits_BLK.reduce("Max", 2) if len(ids_K) else self.mask_BL
        named_BL = count_BL.to(bool)
        before_BL = self.ops("CumSum", count_BL, np.array(1)) - count_BL
        after_BL = self.ops("Pad", count_BL.cut(1, 0, -1), [0, 1, 0, 0]).to(bool)
        wanted_BL = {
            "first": lambda: first_L,
            "listed": lambda: named_BL,
            "question": lambda: before_BL.equals(0) & ~named_BL,
            "second": lambda: (
                ~before_BL.equals(0) & ~(named_BL & after_BL & before_BL.equals(1))
            ),
            "sentences": lambda: (
                first_L | after_BL & ~named_BL & (self.index_L < self.size_B1 - 1)
            ),
        }[config.global_tokens]()
        return wanted_BL & self.mask_BL.to(bool)

    def blocks_LL(self, config: EncoderConfig) -> Value:
        """What BigBird's plan of blocks adds to scores in evaluation, float32 [L, L].

        As in models/blocks.py: blocks beside, the first 1 + random_blocks times, the
        last; the first and the last see all. Short rows see all.
        """
        block_L, last = (x // config.block for x in (self.index_L, self.length - 1))
        query_L1, key_1L = block_L.unsqueeze(1), block_L.unsqueeze(0)
        seen = self.ops("Abs", query_L1 - key_1L) <= 1
        seen = (seen | key_1L.equals(last)).where(0.0, UNSEEN)
        seen = key_1L.equals(0).where(math.log1p(config.random_blocks), seen)
        sees_all = query_L1.equals(0) | query_L1.equals(last)
        return (sees_all | (self.length < config.shortest_sparse)).where(0.0, seen)


class View:
    """What the tokens of a batch see, in layers of a kind, and how they are rotated.

    `bias` [B, 1 or N, 1 or L, L] is added to scores; `global_BL` marks global tokens.
    """

    def __init__(self, config: EncoderConfig, rows: Rows, kind: str):
        self.rows, self.bias, ops = rows, rows.padding_B11L, rows.ops
        local, half = kind == "local", config.window // 2
        self.global_BL = None
        distance_LL = rows.index_L.unsqueeze(1) - rows.index_L.unsqueeze(0)
        if local or config.causal:  # half of a window to each side, or all of it before
            seen = distance_LL >= (0 if config.causal else -half)
            if local:
                seen &= distance_LL <= half - config.causal
            if local and config.global_tokens != "none":
                self.global_BL = rows.chosen(config)
                seen |= self.global_BL.unsqueeze(1, 2)
            self.bias += seen.where(0.0, UNSEEN)
        if config.attention == "blocks":
            self.bias += rows.blocks_LL(config)
        if config.positions == "alibi":
            slope_N11 = np.array(slopes(config.heads), np.float32)[:, None, None]
            self.bias -= ops("Abs", distance_LL).to(float) * slope_N11
        self.rotation = None
        if config.positions == "rope":
            speed, factor = frequencies(config, kind)
            angle = np.arange(config.max_positions, dtype=np.float32)[:, None] * speed
            self.rotation = [
                ops.constant((turn(angle) * factor).astype(np.float32))
                for turn in (np.cos, np.sin)
            ]


def heads_of(model: Any, x: Value, path: str, names: str) -> list[Value]:
    """Projects x [B, L, H] to [B, N, L, D] by each of the names."""
    width = model.config.head_width
    projected = [model.dense(x, f"{path}/{name}") for name in names.split()]
    return [y.reshape(0, 0, -1, width).transpose(0, 2, 1, 3) for y in projected]


def rotate(x_BNLD: Value, rotation: list[Value] | None, length: Any) -> Value:
    """Rotates pairs (i, i + D / 2) of dimensions, of the first `length` tokens."""
    if rotation is None:
        return x_BNLD
    cos, sin = (table.cut(0, 0, length) for table in rotation)
    a, b = x_BNLD.ops("Split", x_BNLD, outputs=2, axis=-1, num_outputs=2)
    return x_BNLD.ops("Concat", a * cos - b * sin, b * cos + a * sin, axis=-1)


def weigh(query: Value, key: Value, bias: Any, width: int) -> Value:
    """The weights [B, N, Q, K] of keys for queries of `width`."""
    scores = (query @ key.transpose(0, 1, 3, 2)) / math.sqrt(width)
    return query.ops("Softmax", scores + bias, axis=-1)


def full(model: Any, x: Value, path: str, view: View) -> Value:
    """Softmax attention to all keys that a token sees; [B, N, L, D]."""
    config, length, turns = model.config, view.rows.length, view.rotation
    query, key, value = heads_of(model, x, path, "query key value")
    query, key = rotate(query, turns, length), rotate(key, turns, length)
    groups = config.heads // (config.kv_heads or config.heads)
    if groups > 1:
        which = np.arange(config.heads) // groups
        key, value = (x.ops("Gather", y, which, axis=1) for y in (key, value))
    mixed = weigh(query, key, view.bias, config.head_width) @ value
    if view.global_BL is None:
        return mixed
    # The global tokens see all of their document, by projections of their own.
    key, value = heads_of(model, x, path, "global_key global_value")
    key = rotate(key, turns, length)
    if config.global_tokens == "first":
        x, length = x.cut(1, 0, 1), 1
    (query,) = heads_of(model, x, path, "global_query")
    query, padding = rotate(query, turns, length), view.rows.padding_B11L
    theirs = weigh(query, key, padding, config.head_width) @ value
    return view.global_BL.unsqueeze(1, 3).where(theirs, mixed)


def disentangled(model: Any, x: Value, path: str, view: View) -> Value:
    """Scores of contents and of distances (DeBERTa); [B, N, L, D]."""
    config, length = model.config, view.rows.length
    query, key, value = heads_of(model, x, path, "query key value")
    prefix = "" if config.share_position_projections else "position_"
    names = f"{prefix}query {prefix}key"
    tables = heads_of(model, model.distances.unsqueeze(0), path, names)
    # Distances 1 - L to L of the longest row, of which shorter ones have the middle.
    longest = config.max_length
    ahead_M = np.arange(2 * longest) - (longest - 1)
    begin, end = x.ops("Sub", longest, length), length + longest

    def scores(y: Value, table: Value, distance_M: np.ndarray) -> Value:
        """y_i . table[row of j - i], [B, N, L, L]; see disentangled.skew."""
        row_M = bucket(distance_M, config.position_buckets, config.max_positions)
        row_M = x.ops.constant(row_M.astype(np.int64)).cut(0, begin, end)
        table = x.ops("Gather", table, row_M, axis=2).transpose(0, 1, 3, 2)
        first, odd = length - 1, length * 2 - 1
        flat = (y @ table).reshape(0, 0, -1).cut(2, first, first + length * odd)
        return flat.reshape(0, 0, length, odd).cut(3, 0, length)

    total = query @ key.transpose(0, 1, 3, 2) + scores(query, tables[1], -ahead_M)
    total += scores(key, tables[0], ahead_M).transpose(0, 1, 3, 2)
    total /= math.sqrt(3 * config.head_width)
    return x.ops("Softmax", total + view.bias, axis=-1) @ value


def nystrom(model: Any, x: Value, path: str, view: View) -> Value:
    """Attention by landmarks, and a convolution of the values; [B, N, L, D]."""
    config, rows = model.config, view.rows
    query, key, value = heads_of(model, x, path, "query key value")
    if config.landmarks < config.max_length:
        mixed = _by_landmarks(config, rows, query, key, value)
    else:  # the exact softmax
        mixed = weigh(query, key, view.bias, config.head_width) @ value
    if not config.value_convolution:
        return mixed
    kernel = x.ops.weight(f"{path}/value_convolution").transpose(3, 0, 1, 2)
    half, real = config.value_convolution // 2, value * rows.real_BL1.unsqueeze(1)
    pads = [half, 0, half, 0]
    return mixed + x.ops("Conv", real, kernel, group=config.heads, pads=pads)


def _by_landmarks(
    config: EncoderConfig, rows: Rows, query: Value, key: Value, value: Value
) -> Value:
    """The product of three softmaxes and the values, as in models/nystrom.py."""
    count, width = config.landmarks, config.head_width
    stretch_BL = rows.index_L * count // rows.size_B1.at_least(count)
    # Padding is beyond the last stretch, or in landmarks that no token sees.
    member_B1ML = stretch_BL.unsqueeze(1, 2).equals(np.arange(count)[:, None])
    share_B1ML = member_B1ML.to(float)
    tokens_B1M1 = share_B1ML.reduce("Sum", 3, keep=True).at_least(1.0)
    query_M, key_M = ((share_B1ML @ y) / tokens_B1M1 for y in (query, key))
    mixed = weigh(query_M, key, rows.padding_B11L, width) @ value
    # In a short document each token is a landmark, and takes what that sees.
    short_B111 = (rows.size_B1 <= count).unsqueeze(2, 3)
    seen = ~short_B111 | member_B1ML.transpose(0, 1, 3, 2)
    near = weigh(query, key_M, seen.where(0.0, UNSEEN), width)
    a = weigh(query_M, key_M, 0.0, width)
    largest = a.reduce("Sum", 2, keep=True).reduce("Max", 3, keep=True)
    z = a.transpose(0, 1, 3, 2) / largest.reduce("Max", 1, keep=True)
    for _ in range(STEPS):  # towards the inverse
        az = inner = a @ z
        for factor, left in ((7, az), (15, az), (13, z * 0.25)):
            one = (factor * np.eye(count)).astype(np.float32)
            inner = left @ a.ops("Sub", one, inner)
        z = inner
    return near @ short_B111.where(mixed, z @ mixed)


ATTENTION = {
    "full": full,
    "disentangled": disentangled,
    "blocks": full,
    "nystrom": nystrom,
}
