"""Attention of GPUs and TPUs in one kernel each way, so that no scores cross memory.

A program of the kernel computes a block of queries against the keys that they see, a
step of keys at a time (FlashAttention, arXiv:2205.14135, arXiv:2307.08691); steps that
no query of the block sees are left out. Two more kernels compute the gradients, with
the weights and their dropout drawn anew. Written in Pallas, they are compiled by Triton
for GPUs and by Mosaic for TPUs, and interpreted on CPUs, in tests.

Legend: B rows, N heads, M heads of keys and values, L tokens a row, D head width, G
blocks a row, Q queries and K keys of a block or step.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu, triton
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from plmjax.models import noise as draws
from plmjax.models.config import EncoderConfig
from plmjax.models.noise import Noise
from plmjax.models.platform import Platform
from plmjax.models.tiles import Way

# Tokens of a block and of a step. Triton wants powers of 2, and at least 16; on TPUs a
# step fills the lanes of a register.
SIZES = {"gpu": (128, 32), "tpu": (128, 128), "cpu": (16, 8)}
# The widths of heads that the kernels are compiled for.
WIDTHS = {"gpu": (16, 32, 64, 128), "tpu": (32, 64, 96, 128)}
# The mesh axes that split rows, and heads.
ROW_AXES, HEAD_AXIS = ("data", "fsdp"), "tensor"


def refusal(config: EncoderConfig, kind: str) -> str | None:
    """Returns what of a model or a kind of device the kernels cannot do, or None."""
    if kind not in WIDTHS:
        return f"a {kind.upper()}: they are for GPUs and TPUs"
    widths = WIDTHS[kind]
    for name, value, known in (
        ("attention", config.attention, "full"),
        ("positions", config.positions, "learned, rope or none"),
        ("global_tokens", config.global_tokens, "none"),
    ):
        if value not in known:
            return f"model.{name}={value!r}: it must be {known}"
    if config.head_width not in widths:
        return (
            f"heads of a width of {config.head_width} (model.width / model.heads): on a "
            f"{kind.upper()} it must be one of {', '.join(map(str, widths))}"
        )
    return None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of the kernels when they are compiled."""

    kind: str
    # Of the dropout of the weights.
    rate: float
    # The tokens of a row before it is filled to full blocks, and heads a key.
    length: int
    groups: int

    @property
    def block(self) -> int:
        """The tokens of a program."""
        block, step = SIZES[self.kind]
        return min(block, max(step, pl.next_power_of_2(self.length)))

    @property
    def step(self) -> int:
        """The tokens that a program takes at a time."""
        return SIZES[self.kind][1]

    def grid(self, *sizes: int) -> tuple[int, ...]:
        """The grid, or the indices, of rows, heads and blocks: neighbours share keys.

        They differ in the first index on a GPU, in the last one on a TPU.
        """
        return sizes[::-1] if self.kind == "gpu" else sizes

    def moved(self, x):
        """Returns [B, N, L, D] as the kernels read it, or that as [B, N, L, D].

        A GPU reads the projections as they are, [B, L, N, D]; a TPU reads full tiles of
        the last two axes.
        """
        return x.swapaxes(1, 2) if self.kind == "gpu" else x

    def heads(self, tokens: int, width: int, at, heads: int | None = None):
        """The spec of vectors of a head, [tokens, D], or of several `heads`."""

        def index(*ids):
            row, head, block = at(*self.grid(*ids))
            return (row, block, head, 0) if self.kind == "gpu" else (row, head, block, 0)

        shape = (tokens, heads) if self.kind == "gpu" else (heads, tokens)
        return pl.BlockSpec((None, *shape, width), index)

    def numbers(self, tokens: int, at, heads: int | None = None) -> pl.BlockSpec:
        """The spec of a number a token of [B, N, 1, L], [1, tokens]."""

        def index(*ids):
            row, head, block = at(*self.grid(*ids))
            return row, head, 0, block

        return pl.BlockSpec((None, heads, 1, tokens), index)

    def scalars(self, *shape: int) -> pl.BlockSpec:
        """The spec of scalars of a row, [B, ...]."""
        space: Any = {"memory_space": tpu.SMEM} if self.kind == "tpu" else {}
        return pl.BlockSpec(
            (None, *shape), lambda *ids: (self.grid(*ids)[0], 0, 0), **space
        )

    def of_head(self, ref, head, tokens):
        """Returns `tokens` of a head of a ref of several, [Q, D]."""
        return ref[tokens, head] if self.kind == "gpu" else ref[head, tokens]

    def call(self, kernel, grid: tuple[int, int, int], arrays, specs, outs):
        """Calls a kernel with (rows, heads, blocks) programs."""
        params = {
            "gpu": triton.CompilerParams(num_warps=4, num_stages=2),
            "tpu": tpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary")
            ),
        }
        return pl.pallas_call(
            functools.partial(kernel, self),
            grid=self.grid(*grid),
            in_specs=specs,
            out_specs=[spec for _, spec in outs],
            out_shape=[jax.ShapeDtypeStruct(*shape) for shape, _ in outs],
            compiler_params=params.get(self.kind),
            interpret=self.kind == "cpu",
            name=kernel.__name__.strip("_"),
        )(*arrays)

    def program(self) -> tuple[Any, Any]:
        """Returns the head and the block of the running program."""
        return self.grid(*map(pl.program_id, range(3)))[1:]


class Pair(NamedTuple):
    """Queries and keys that a program multiplies; `keys` is the axis of the keys."""

    head: Any
    first_query: Any
    first_key: Any
    keys: int


def _product(a, b, contract_a: int, contract_b: int):
    return jax.lax.dot_general(
        a,
        b,
        (((contract_a,), (contract_b,)), ((), ())),
        preferred_element_type=jnp.float32,
    )


def _scores(query_QD, key_KD, start, end, pair: Pair):
    """Returns the float32 scores, [Q, K], or [K, Q] with the keys first."""
    operands = (query_QD, key_KD) if pair.keys else (key_KD, query_QD)
    scores = _product(*operands, 1, 1) * query_QD.shape[-1] ** -0.5
    index = pair.first_key + jax.lax.broadcasted_iota(jnp.int32, scores.shape, pair.keys)
    return jnp.where((index >= start) & (index < end), scores, jnp.float32(-1e30))


def _drop(plan: Plan, x, words_ref, pair: Pair):
    """Applies the dropout of attention.mix to weights, or to their gradients."""
    if plan.rate == 0:
        return x
    iota = functools.partial(jax.lax.broadcasted_iota, jnp.int32, x.shape)
    # Of 32 bits, as those of the hash: where it overflows, so does attention.mix's.
    head = words_ref[0, 2].astype(jnp.int32) + pair.head
    query = head * plan.length + pair.first_query + iota(1 - pair.keys)
    number = query * plan.length + pair.first_key + iota(pair.keys)
    bits = draws.draw(words_ref[0, 0], words_ref[0, 1], number.astype(jnp.uint32))
    return jnp.where(draws.kept(bits, plan.rate), x * (1 / (1 - plan.rate)), 0.0)


def _forward_kernel(
    plan, limits_ref, words_ref, start_ref, end_ref, query_ref, key_ref, value_ref, *outs
):
    """Mixes the values for a block of queries; also the logarithms of their sums."""
    (mixed_ref, log_sum_ref), (head, block) = outs, plan.program()
    query_QD, start_Q1, end_Q1 = query_ref[...], start_ref[...].T, end_ref[...].T

    def add(i, sums):
        """Adds a step of keys to the sums, all relative to the highest score."""
        top_Q1, total_Q1, mixed_QD = sums
        first = pl.multiple_of(i * plan.step, plan.step)
        tokens = pl.ds(first, plan.step)
        pair = Pair(head, block * plan.block, first, 1)
        scores_QK = _scores(query_QD, key_ref[tokens], start_Q1, end_Q1, pair)
        higher_Q1 = jnp.maximum(top_Q1, scores_QK.max(1, keepdims=True))
        weights_QK, shrink = jnp.exp(scores_QK - higher_Q1), jnp.exp(top_Q1 - higher_Q1)
        total_Q1 = total_Q1 * shrink + weights_QK.sum(1, keepdims=True)
        weights_QK = _drop(plan, weights_QK, words_ref, pair).astype(query_QD.dtype)
        more_QD = _product(weights_QK, value_ref[tokens], 1, 0)
        return higher_Q1, total_Q1, mixed_QD * shrink + more_QD

    zero_Q1 = jnp.zeros((plan.block, 1), jnp.float32)
    sums = (zero_Q1 - 1e30, zero_Q1, jnp.zeros(query_QD.shape, jnp.float32))
    limits = limits_ref[block, 0], limits_ref[block, 1]
    top_Q1, total_Q1, mixed_QD = jax.lax.fori_loop(*limits, add, sums)
    mixed_ref[...] = (mixed_QD / total_Q1).astype(mixed_ref.dtype)
    log_sum_ref[...] = (top_Q1 + jnp.log(total_Q1)).T


def _query_kernel(
    plan, limits_ref, words_ref, start_ref, end_ref, query_ref, key_ref, value_ref, *refs
):
    """The gradient of a block of queries."""
    gradient_ref, log_sum_ref, along_ref, dquery_ref = refs
    (head, block), query_QD, gradient_QD = plan.program(), query_ref[...], gradient_ref[...]
    start_Q1, end_Q1, log_sum_Q1, along_Q1 = (
        ref[...].T for ref in (start_ref, end_ref, log_sum_ref, along_ref)
    )

    def add(i, dquery_QD):
        first = pl.multiple_of(i * plan.step, plan.step)
        tokens = pl.ds(first, plan.step)
        pair = Pair(head, block * plan.block, first, 1)
        key_KD = key_ref[tokens]
        scores_QK = _scores(query_QD, key_KD, start_Q1, end_Q1, pair)
        change_QK = _product(gradient_QD, value_ref[tokens], 1, 1)
        change_QK = _drop(plan, change_QK, words_ref, pair) - along_Q1
        change_QK = change_QK * jnp.exp(scores_QK - log_sum_Q1)
        return dquery_QD + _product(change_QK.astype(key_KD.dtype), key_KD, 1, 0)

    limits = limits_ref[block, 0], limits_ref[block, 1]
    dquery_QD = jnp.zeros(query_QD.shape, jnp.float32)
    dquery_QD = jax.lax.fori_loop(*limits, add, dquery_QD)
    dquery_ref[...] = (dquery_QD * query_QD.shape[-1] ** -0.5).astype(dquery_ref.dtype)


def _key_kernel(
    plan, limits_ref, words_ref, start_ref, end_ref, query_ref, key_ref, value_ref, *refs
):
    """The gradients of a block of keys and values, of all their heads of queries."""
    gradient_ref, log_sum_ref, along_ref, dkey_ref, dvalue_ref = refs
    (kv_head, block), key_KD, value_KD = plan.program(), key_ref[...], value_ref[...]
    limits = limits_ref[block, 0], limits_ref[block, 1]

    def add(group, i, sums):
        dkey_KD, dvalue_KD = sums
        first = pl.multiple_of(i * plan.step, plan.step)
        tokens = pl.ds(first, plan.step)
        pair = Pair(kv_head * plan.groups + group, first, block * plan.block, 0)
        query_QD = plan.of_head(query_ref, group, tokens)
        gradient_QD = plan.of_head(gradient_ref, group, tokens)
        bounds = start_ref[:, tokens], end_ref[:, tokens]
        scores_KQ = _scores(query_QD, key_KD, *bounds, pair)
        weights_KQ = jnp.exp(scores_KQ - log_sum_ref[group, :, tokens])
        change_KQ = _product(value_KD, gradient_QD, 1, 1)
        change_KQ = _drop(plan, change_KQ, words_ref, pair)
        change_KQ = weights_KQ * (change_KQ - along_ref[group, :, tokens])
        weights_KQ = _drop(plan, weights_KQ, words_ref, pair)
        dtype = key_KD.dtype
        return (
            dkey_KD + _product(change_KQ.astype(dtype), query_QD, 1, 0),
            dvalue_KD + _product(weights_KQ.astype(dtype), gradient_QD, 1, 0),
        )

    zero_KD = jnp.zeros(key_KD.shape, jnp.float32)
    sums = (zero_KD, zero_KD)
    for group in range(plan.groups):
        sums = jax.lax.fori_loop(*limits, functools.partial(add, group), sums)
    dkey_ref[...] = (sums[0] * key_KD.shape[-1] ** -0.5).astype(dkey_ref.dtype)
    dvalue_ref[...] = sums[1].astype(dvalue_ref.dtype)


def _seen_keys(plan: Plan, start_BL, end_BL):
    """Returns the steps of keys that each block of queries sees, int32 [B, G, 2]."""
    start_BGQ, end_BGQ = (
        x.reshape(len(x), -1, plan.block) for x in (start_BL, end_BL)
    )
    begin_BG, end_BG = start_BGQ.min(2), end_BGQ.max(2)
    return jnp.stack([begin_BG // plan.step, -(-end_BG // plan.step)], axis=2)


def _seeing_queries(plan: Plan, start_BL, end_BL):
    """Returns the steps of queries that see each block of keys, int32 [B, G, 2]."""
    count = start_BL.shape[1]
    first_G1 = jnp.arange(0, count, plan.block, dtype=jnp.int32)[:, None]
    sees_BGL = end_BL[:, None] > first_G1
    sees_BGL &= start_BL[:, None] < first_G1 + plan.block
    step_L = jnp.arange(count, dtype=jnp.int32) // plan.step
    begin_BG = jnp.where(sees_BGL, step_L, count).min(2)
    return jnp.stack([begin_BG, jnp.where(sees_BGL, step_L, -1).max(2) + 1], axis=2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, query, key, value, bounds, words_B13):
    """Returns attention in the layout of `Plan.moved`."""
    return _forward(plan, query, key, value, bounds, words_B13)[0]


def _own(row, head, block):
    return row, head, block


def _row(row, head, block):
    del block
    return row, head, 0


def _bound_spec(plan: Plan, tokens: int, at) -> pl.BlockSpec:
    return plan.numbers(tokens, lambda row, _, block: at(row, 0, block))


def _forward(plan: Plan, query, key, value, bounds, words_B13):
    rows, heads, length, width = plan.moved(query).shape
    block, blocks = plan.block, length // plan.block

    def keys(row, head, _):
        return row, head // plan.groups, 0

    own = plan.heads(block, width, _own)
    of_keys = plan.heads(length, width, keys)
    of_bounds = _bound_spec(plan, block, _own)
    specs = [plan.scalars(blocks, 2), plan.scalars(1, 3), of_bounds, of_bounds]
    saved = (query, key, value, bounds, words_B13)
    mixed, log_sums = plan.call(
        _forward_kernel,
        (rows, heads, blocks),
        (_seen_keys(plan, *bounds), words_B13, *_as_numbers(bounds), query, key, value),
        [*specs, own, of_keys, of_keys],
        [
            ((query.shape, query.dtype), own),
            (((rows, heads, 1, length), jnp.float32), plan.numbers(block, _own)),
        ],
    )
    return mixed, (*saved, mixed, log_sums)


def _as_numbers(bounds):
    return [x_BL[:, None, None] for x_BL in bounds]


def _backward(plan: Plan, saved, gradient):
    query, key, value, bounds, words_B13, mixed, log_sums = saved
    rows, heads, length, width = plan.moved(query).shape
    block, blocks = plan.block, length // plan.block
    along = jnp.sum(gradient.astype(jnp.float32) * mixed.astype(jnp.float32), -1)
    along = along.swapaxes(1, 2) if plan.kind == "gpu" else along
    arrays = (words_B13, *_as_numbers(bounds), query, key, value)
    arrays = (*arrays, gradient, log_sums, along[:, :, None])
    scalars = [plan.scalars(blocks, 2), plan.scalars(1, 3)]

    def keys(row, head, _):
        return row, head // plan.groups, 0

    own, own_number = plan.heads(block, width, _own), plan.numbers(block, _own)
    of_bounds, of_keys = _bound_spec(plan, block, _own), plan.heads(length, width, keys)
    [dquery] = plan.call(
        _query_kernel,
        (rows, heads, blocks),
        (_seen_keys(plan, *bounds), *arrays),
        [*scalars, of_bounds, of_bounds, own, of_keys, of_keys, own, own_number, own_number],
        [((query.shape, query.dtype), own)],
    )
    queries = plan.heads(length, width, _row, plan.groups)
    of_bounds = _bound_spec(plan, length, _row)
    number = plan.numbers(length, _row, plan.groups)
    dkey, dvalue = plan.call(
        _key_kernel,
        (rows, heads // plan.groups, blocks),
        (_seeing_queries(plan, *bounds), *arrays),
        [*scalars, of_bounds, of_bounds, queries, own, own, queries, number, number],
        [((key.shape, key.dtype), own), ((value.shape, value.dtype), own)],
    )
    return dquery, dkey, dvalue, None, None


_attend.defvjp(_forward, _backward)


def flash(way: Way, query_BNLD, keys, bounds, noise: Noise | None):
    """Returns attention as attention.attend does, without further keys or slopes."""
    rows, heads, length, _ = query_BNLD.shape
    kv_heads = keys[0].shape[1]
    rate = way.rate if noise is not None else 0.0
    plan = Plan(way.platform.kind, rate, length, heads // kv_heads)
    words_B2 = jnp.zeros((rows, 2), jnp.uint32)
    if noise is not None and rate:
        words_B2 = jnp.stack(draws.words(noise, way.site), axis=1)

    def local(query, key, value, start_BL, end_BL, words_B2, first_head):
        """Computes the rows and heads of a device."""
        fill = -length % plan.block
        filled = (
            plan.moved(jnp.pad(x, ((0, 0), (0, 0), (0, fill), (0, 0))))
            for x in (query, key, value)
        )
        # What fills a row sees what its last token sees.
        bounds = tuple(jnp.pad(x, ((0, 0), (0, fill)), "edge") for x in (start_BL, end_BL))
        head_B1 = jnp.broadcast_to(first_head, (len(words_B2), 1)).astype(jnp.uint32)
        words_B13 = jnp.concatenate([words_B2, head_B1], 1)[:, None]
        return plan.moved(_attend(plan, *filled, bounds, words_B13))[:, :, :length]

    arrays = (query_BNLD, *keys, *bounds, words_B2)
    return _on_each_device(local, arrays, rows, kv_heads)


def _on_each_device(local, arrays, rows: int, kv_heads: int):
    """Calls `local` with the rows and heads of each device: XLA cannot split a kernel.

    Its last argument is the number of the first head. Where the caller has split the
    arrays (shard_map), or there is one device, it is called with all.
    """
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {
        name: mesh.shape[name]
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Auto and mesh.shape[name] > 1
    }
    if not sizes:
        return local(*arrays, jnp.int32(0))
    row_axes = []
    for axis in ROW_AXES:
        if rows % sizes.get(axis, rows + 1) == 0:
            row_axes.append(axis)
            rows //= sizes[axis]
    head_axis = HEAD_AXIS if kv_heads % sizes.get(HEAD_AXIS, kv_heads + 1) == 0 else None
    of_rows = tuple(row_axes) or None
    of_heads, of_tokens = P(of_rows, head_axis), P(of_rows)

    def split(query, *more):
        first = jax.lax.axis_index(head_axis) * query.shape[1] if head_axis else 0
        return local(query, *more, jnp.int32(first))

    return jax.shard_map(
        split,
        in_specs=(of_heads,) * 3 + (of_tokens,) * 3,
        out_specs=of_heads,
        check_vma=False,
    )(*arrays)
