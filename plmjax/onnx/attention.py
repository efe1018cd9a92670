"""The kinds of attention of models/ as ONNX nodes, each over all pairs of tokens.

What a query does not see is a large negative number beside its score, so local and
block sparse attention need memory that grows with the square of the length.

Legend: B rows, N heads, M heads of keys and values, L tokens a row (Q queries, K keys),
D head width, R = 2 * position_buckets rows of the table of distances, S landmarks.
"""

import math
from typing import Any

import numpy as np
from onnx import TensorProto

from plmjax.models import EncoderConfig
from plmjax.models.attention import slopes
from plmjax.models.disentangled import bucket
from plmjax.models.positions import frequencies
from plmjax.onnx.ops import Ops

# In place of minus infinity, so that the softmax of padding is a number.
UNSEEN = -1e30


class View:
    """What the tokens of a batch see, in layers of a kind, and how they are rotated."""

    def __init__(self, config: EncoderConfig, rows: "Rows", kind: str):
        ops = rows.ops
        self.rows, self.kind = rows, kind
        self.global_BL = None
        self.bias = rows.padding_B11L
        local = kind == "local"
        seen = None
        if local or config.causal:
            # Query minus key; half of a window is to each side, or all of it before.
            half = config.window // 2
            distance = rows.distance_LL
            low, high = (0, half - 1) if config.causal else (-half, half)
            if local:
                seen = ops("LessOrEqual", distance, high)
            if config.causal or local:
                above = ops("GreaterOrEqual", distance, low)
                seen = above if seen is None else ops("And", seen, above)
        if local and config.global_tokens != "none":
            self.global_BL = rows.chosen(config)
            seen = ops("Or", seen, ops("Unsqueeze", self.global_BL, [1, 2]))
        if seen is not None:
            unseen = ops("Where", seen, 0.0, UNSEEN)
            self.bias = ops("Add", self.bias, unseen)
        if config.attention == "blocks":
            self.bias = ops("Add", self.bias, rows.blocks_LL(config))
        if config.positions == "alibi":
            away = ops("Cast", ops("Abs", rows.distance_LL), to=TensorProto.FLOAT)
            slope_N11 = np.array(slopes(config.heads), np.float32)[:, None, None]
            self.bias = ops("Sub", self.bias, ops("Mul", slope_N11, away))
        self.rotation: tuple[str, str] | None = None
        if config.positions == "rope":
            speed, factor = frequencies(config, kind)
            angle = np.arange(config.max_positions, dtype=np.float32)[:, None] * speed
            tables = (np.cos(angle) * factor, np.sin(angle) * factor)
            self.rotation = tuple(
                ops.cut(ops.constant(t.astype(np.float32)), 0, 0, rows.length)
                for t in tables
            )  # type: ignore


class Rows:
    """The inputs of a batch, and what follows from them for all layers."""

    def __init__(self, ops: Ops, tokens_BL: str, mask_BL: str):
        self.ops, self.tokens_BL, self.mask_BL = ops, tokens_BL, mask_BL
        self.shape = ops("Shape", tokens_BL)
        self.length = ops.cut(self.shape, 0, 1, 2)
        mask_B11L = ops("Unsqueeze", mask_BL, [1, 2])
        mask_B11L = ops("Cast", mask_B11L, to=TensorProto.FLOAT)
        self.padding_B11L = ops("Mul", ops("Sub", 1.0, mask_B11L), UNSEEN)
        self.real_BL1 = ops(
            "Cast", ops("Unsqueeze", mask_BL, [2]), to=TensorProto.FLOAT
        )
        self._index: str | None = None
        self._distance: str | None = None

    @property
    def index_L(self) -> str:
        """The indices of a row's tokens."""
        if self._index is None:
            end = self.ops("Squeeze", self.length, [0])
            zero, one = (np.array(n, np.int64) for n in (0, 1))
            self._index = self.ops("Range", zero, end, one)
        return self._index

    @property
    def distance_LL(self) -> str:
        """The index of the query minus that of the key."""
        if self._distance is None:
            ops = self.ops
            pair = [ops("Unsqueeze", self.index_L, [axis]) for axis in (1, 0)]
            self._distance = ops("Sub", *pair)
        return self._distance

    @property
    def size_B1(self) -> str:
        """The number of a row's tokens without padding."""
        return self.ops("ReduceSum", self.mask_BL, [1])

    def chosen(self, config: EncoderConfig) -> str:
        """Which tokens the config's rule makes global, bool [B, L]."""
        ops = self.ops
        real_BL = ops("Cast", self.mask_BL, to=TensorProto.BOOL)
        first_L = ops("Equal", self.index_L, 0)
        if config.global_tokens == "first":
            return ops("And", real_BL, first_L)
        ids_K = np.array(config.global_ids, np.int64)
        hits_BLK = ops("Equal", ops("Unsqueeze", self.tokens_BL, [2]), ids_K)
        hits_BLK = ops("Cast", hits_BLK, to=TensorProto.INT64)
        named_BL = ops("ReduceMax", hits_BLK, [2], keepdims=0)
        before_BL = ops("Sub", ops("CumSum", named_BL, np.array(1, np.int64)), named_BL)
        after_BL = ops("Pad", ops.cut(named_BL, 1, 0, -1), [0, 1, 0, 0])
        named_BL, after_BL = (
            ops("Cast", x, to=TensorProto.BOOL) for x in (named_BL, after_BL)
        )
        other_BL, none_BL = ops("Not", named_BL), ops("Equal", before_BL, 0)
        if config.global_tokens == "question":
            wanted_BL = ops("And", none_BL, other_BL)
        elif config.global_tokens == "sentences":
            end_B1 = ops("Sub", self.size_B1, 1)
            inner_BL = ops("And", after_BL, ops("Less", self.index_L, end_B1))
            wanted_BL = ops("Or", first_L, ops("And", inner_BL, other_BL))
        elif config.global_tokens == "second":
            second_BL = ops(
                "And", ops("And", named_BL, after_BL), ops("Equal", before_BL, 1)
            )
            wanted_BL = ops("And", ops("Not", none_BL), ops("Not", second_BL))
        else:  # listed
            wanted_BL = named_BL
        return ops("And", wanted_BL, real_BL)

    def blocks_LL(self, config: EncoderConfig) -> str:
        """What BigBird's plan of blocks adds to scores in evaluation, float32 [L, L].

        As in models/blocks.py: blocks beside, the first 1 + random_blocks times, the
        last; the first and the last see all. Short rows see all.
        """
        ops = self.ops
        block_L = ops("Div", self.index_L, config.block)
        last = ops("Div", ops("Sub", self.length, 1), config.block)
        short = ops("Less", self.length, config.shortest_sparse)

        def ends(x: str) -> str:
            return ops("Or", ops("Equal", x, 0), ops("Equal", x, last))

        query_L1, key_1L = (ops("Unsqueeze", block_L, [axis]) for axis in (1, 0))
        beside = ops("LessOrEqual", ops("Abs", ops("Sub", query_L1, key_1L)), 1)
        seen = ops("Or", beside, ends(key_1L))
        inner = ops("Where", seen, 0.0, UNSEEN)
        often = math.log1p(config.random_blocks)
        inner = ops("Where", ops("Equal", key_1L, 0), often, inner)
        return ops("Where", ops("Or", ends(query_L1), short), 0.0, inner)


def split_heads(model: Any, x: str, path: str, *, turned: bool = False) -> str:
    """Projects x [B, L, H] to [B, N, L, D]; `turned`: [B, N, D, L]."""
    y = model.dense(x, path)
    y = model.ops.reshape(y, 0, 0, -1, model.config.head_width)
    return model.ops.transpose(y, *((0, 2, 3, 1) if turned else (0, 2, 1, 3)))


def rotate(ops: Ops, x: str, rotation: tuple[str, str]) -> str:
    """Rotates pairs (i, i + D / 2) of dimensions of [B, N, L, D]."""
    cos, sin = rotation
    a, b = ops("Split", x, outputs=2, axis=-1, num_outputs=2)
    first = ops("Sub", ops("Mul", a, cos), ops("Mul", b, sin))
    second = ops("Add", ops("Mul", b, cos), ops("Mul", a, sin))
    return ops("Concat", first, second, axis=-1)


def softmax(ops: Ops, query: str, turned_key: str, bias: str, width: int) -> str:
    """The weights of the keys [B, N, D, K] for queries [B, N, Q, D]."""
    scores = ops("Div", ops("MatMul", query, turned_key), math.sqrt(width))
    return ops("Softmax", ops("Add", scores, bias), axis=-1)


def full(model: Any, x: str, path: str, view: View) -> str:
    """Softmax attention to all keys that a token sees; [B, N, L, D]."""
    config, ops = model.config, model.ops

    def projected(prefix: str, of: str = x, rotation=view.rotation):
        query = split_heads(model, of, f"{path}/{prefix}query")
        if rotation is not None:
            query = rotate(ops, query, rotation)
        key = split_heads(model, x, f"{path}/{prefix}key", turned=view.rotation is None)
        if view.rotation is not None:
            key = ops.transpose(rotate(ops, key, view.rotation), 0, 1, 3, 2)
        value = split_heads(model, x, f"{path}/{prefix}value")
        groups = config.heads // (config.kv_heads or config.heads)
        if groups > 1:
            which = np.arange(config.heads) // groups
            key, value = (ops("Gather", y, which, axis=1) for y in (key, value))
        return query, key, value

    query, key, value = projected("")
    weights = softmax(ops, query, key, view.bias, config.head_width)
    mixed = ops("MatMul", weights, value)
    if view.global_BL is None:
        return mixed
    # The global tokens see all of their document, by projections of their own.
    of, rotation = x, view.rotation
    if config.global_tokens == "first":
        of = ops.cut(x, 1, 0, 1)
        if rotation is not None:
            rotation = tuple(ops.cut(table, 0, 0, 1) for table in rotation)
    query, key, value = projected("global_", of, rotation)
    padding = view.rows.padding_B11L
    weights = softmax(ops, query, key, padding, config.head_width)
    where = ops("Unsqueeze", view.global_BL, [1, 3])
    return ops("Where", where, ops("MatMul", weights, value), mixed)


def disentangled(model: Any, x: str, path: str, view: View) -> str:
    """Scores of contents and of distances (DeBERTa); [B, N, L, D]."""
    config, ops, rows = model.config, model.ops, view.rows
    prefix = "" if config.share_position_projections else "position_"
    query, key, value = (
        split_heads(model, x, f"{path}/{name}") for name in ("query", "key", "value")
    )
    table_1RH = ops("Unsqueeze", model.distances, [0])
    at_query, at_key = (
        split_heads(model, table_1RH, f"{path}/{prefix}{name}")
        for name in ("query", "key")
    )
    # Slices of tables for the longest row: distances 1 - L to L, and their opposites.
    longest = config.max_length
    ahead = np.arange(2 * longest) - (longest - 1)
    begin = ops("Sub", longest, rows.length)
    end = ops("Add", rows.length, longest)

    def scores(y: str, table: str, distance: np.ndarray) -> str:
        """y_i . table[row of j - i], [B, N, L, L]; see disentangled.skew."""
        known = bucket(distance, config.position_buckets, config.max_positions)
        row_M = ops.cut(ops.constant(known.astype(np.int64)), 0, begin, end)
        table = ops.transpose(ops("Gather", table, row_M, axis=2), 0, 1, 3, 2)
        flat = ops.reshape(ops("MatMul", y, table), 0, 0, -1)
        odd = ops("Sub", ops("Mul", rows.length, 2), 1)
        first = ops("Sub", rows.length, 1)
        last = ops("Add", first, ops("Mul", rows.length, odd))
        flat = ops.cut(flat, 2, first, last)
        shape = ops("Concat", [0, 0], rows.length, odd, axis=0)
        return ops.cut(ops("Reshape", flat, shape), 3, 0, rows.length)

    products = ops("MatMul", query, ops.transpose(key, 0, 1, 3, 2))
    from_key = ops.transpose(scores(key, at_query, ahead), 0, 1, 3, 2)
    total = ops("Add", products, scores(query, at_key, -ahead))
    total = ops("Add", total, from_key)
    total = ops("Div", total, math.sqrt(3 * config.head_width))
    weights = ops("Softmax", ops("Add", total, view.bias), axis=-1)
    return ops("MatMul", weights, value)


ATTENTION = {"full": full, "disentangled": disentangled, "blocks": full}
