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
from plmjax.models.noise import Noise
from plmjax.models.tiles import Way

# Tokens of a block and of a step. Triton wants powers of 2, and at least 16; on TPUs a
# step fills the lanes of a register.
SIZES = {"gpu": (128, 32), "tpu": (128, 128)}
# The device whose kernels a CPU interprets.
INTERPRETED = "gpu"
# The mesh axes that split rows, and heads.
ROW_AXES, HEAD_AXIS = ("data", "fsdp"), "tensor"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of the kernels when they are compiled."""

    # gpu or tpu.
    kind: str
    interpret: bool
    # Of the dropout of the weights.
    rate: float
    # The heads of queries for each of keys.
    groups: int
    # The tokens of a row before it is filled to full blocks.
    length: int
    # The tokens of a program, and those that it takes at a time.
    block: int
    step: int

    @classmethod
    def of(cls, way: Way, rate: float, length: int, groups: int) -> "Plan":
        """The plan for rows of a length."""
        interpret = way.platform.kind == "cpu"
        kind = INTERPRETED if interpret else way.platform.kind
        block, step = SIZES[kind]
        block = min(block, max(step, pl.next_power_of_2(length)))
        sizes = {"length": length, "block": block, "step": step}
        return cls(kind, interpret, rate, groups=groups, **sizes)

    def ordered(self, ids: tuple) -> tuple:
        """Turns (row, head, block) to the order of the grid, or that to this.

        Neighbours read the same keys: they differ in the first place on a GPU, in the
        last one on a TPU.
        """
        return ids[::-1] if self.kind == "gpu" else ids

    def moved(self, x):
        """Turns [B, N, L, D] to the layout of the kernels, or that to this.

        A GPU reads the projections as they are, [B, L, N, D]; a TPU reads full tiles of
        the last two axes.
        """
        return x.swapaxes(1, 2) if self.kind == "gpu" else x

    def program(self) -> tuple[Any, Any]:
        """Returns the head and the block of the running program."""
        _, head, block = self.ordered(tuple(map(pl.program_id, range(3))))
        return head, block

    def of_head(self, ref, head: int, tokens):
        """Returns the vectors of `tokens` of a head, [Q, D], of a ref of several."""
        return ref[tokens, head] if self.kind == "gpu" else ref[head, tokens]

    def spec(self, block: tuple, index, **memory) -> pl.BlockSpec:
        """The spec of blocks whose index is a function of (row, head, block)."""
        return pl.BlockSpec(block, lambda *ids: index(*self.ordered(ids)), **memory)


class Refs(NamedTuple):
    """The inputs of a kernel: arrays, or the parts of them that a program sees."""

    # The first step of the other side that a block sees, and one past the last,
    # int32 [B, G, 2].
    limits: Any = None
    # For dropout: the row's words, and the number of the first head, uint32 [B, 1, 3].
    words: Any = None
    # The keys that the queries see, int32 [B, 1, 1, L].
    start: Any = None
    end: Any = None
    # In the layout of Plan.moved.
    query: Any = None
    key: Any = None
    value: Any = None
    # For gradients: that of the result, the logarithms of the sums of the weights, and
    # the products of the gradient and the result, float32 [B, N, 1, L].
    gradient: Any = None
    log_sum: Any = None
    along: Any = None


class Pair(NamedTuple):
    """The queries and keys of a product, and the axis of the keys in it."""

    head: Any
    first_query: Any
    first_key: Any
    axis: int


def _product(a, b, contract_b: int):
    """Returns a's last axis times an axis of b, float32."""
    dimensions = (((1,), (contract_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _scores(query_QD, key_KD, start, end, pair: Pair):
    """Returns the float32 scores, [Q, K], or [K, Q] if the axis of the keys is 0."""
    operands = (query_QD, key_KD) if pair.axis else (key_KD, query_QD)
    scores = _product(*operands, 1) * query_QD.shape[-1] ** -0.5
    key = pair.first_key + jax.lax.broadcasted_iota(jnp.int32, scores.shape, pair.axis)
    return jnp.where((key >= start) & (key < end), scores, jnp.float32(-1e30))


def _drop(plan: Plan, x, words, pair: Pair):
    """Applies the dropout of attention.mix to weights, or to their gradients."""
    if plan.rate == 0:
        return x
    iota = functools.partial(jax.lax.broadcasted_iota, jnp.int32, x.shape)
    # The number of attention.mix: it overflows where that does.
    head = words[0, 2].astype(jnp.int32) + pair.head
    query = head * plan.length + pair.first_query + iota(1 - pair.axis)
    number = query * plan.length + pair.first_key + iota(pair.axis)
    bits = draws.draw(words[0, 0], words[0, 1], number.astype(jnp.uint32))
    return jnp.where(draws.kept(bits, plan.rate), x * (1 / (1 - plan.rate)), 0.0)


def _steps(plan: Plan, given: Refs, add, sums):
    """Sums up over what the block sees: add(sums, first token, tokens of the step)."""
    _, block = plan.program()

    def step(i, sums):
        first = pl.multiple_of(i * plan.step, plan.step)
        return add(sums, first, pl.ds(first, plan.step))

    limits = given.limits[block, 0], given.limits[block, 1]
    return jax.lax.fori_loop(*limits, step, sums)


def _forward_kernel(plan: Plan, *refs):
    """Mixes the values for a block of queries; also the logarithms of their sums."""
    mixed_ref, log_sum_ref = refs[-2:]
    given, (head, block) = Refs(*refs[:-2]), plan.program()
    query_QD, start_Q1, end_Q1 = given.query[...], given.start[...].T, given.end[...].T

    def add(sums, first, tokens):
        """All sums are relative to the highest score."""
        top_Q1, total_Q1, mixed_QD = sums
        pair = Pair(head, block * plan.block, first, 1)
        scores_QK = _scores(query_QD, given.key[tokens], start_Q1, end_Q1, pair)
        higher_Q1 = jnp.maximum(top_Q1, scores_QK.max(1, keepdims=True))
        weights_QK, shrink = jnp.exp(scores_QK - higher_Q1), jnp.exp(top_Q1 - higher_Q1)
        total_Q1 = total_Q1 * shrink + weights_QK.sum(1, keepdims=True)
        weights_QK = _drop(plan, weights_QK, given.words, pair).astype(query_QD.dtype)
        more_QD = _product(weights_QK, given.value[tokens], 0)
        return higher_Q1, total_Q1, mixed_QD * shrink + more_QD

    zero_Q1 = jnp.zeros((plan.block, 1), jnp.float32)
    sums = (zero_Q1 - 1e30, zero_Q1, jnp.zeros(query_QD.shape, jnp.float32))
    top_Q1, total_Q1, mixed_QD = _steps(plan, given, add, sums)
    mixed_ref[...] = (mixed_QD / total_Q1).astype(mixed_ref.dtype)
    log_sum_ref[...] = (top_Q1 + jnp.log(total_Q1)).T


def _query_kernel(plan: Plan, *refs):
    """The gradient of a block of queries."""
    dquery_ref = refs[-1]
    given, (head, block) = Refs(*refs[:-1]), plan.program()
    query_QD, gradient_QD = given.query[...], given.gradient[...]
    numbers = (given.start, given.end, given.log_sum, given.along)
    start_Q1, end_Q1, log_sum_Q1, along_Q1 = (ref[...].T for ref in numbers)

    def add(dquery_QD, first, tokens):
        pair, key_KD = Pair(head, block * plan.block, first, 1), given.key[tokens]
        scores_QK = _scores(query_QD, key_KD, start_Q1, end_Q1, pair)
        change_QK = _product(gradient_QD, given.value[tokens], 1)
        change_QK = _drop(plan, change_QK, given.words, pair) - along_Q1
        change_QK = change_QK * jnp.exp(scores_QK - log_sum_Q1)
        return dquery_QD + _product(change_QK.astype(key_KD.dtype), key_KD, 0)

    dquery_QD = _steps(plan, given, add, jnp.zeros(query_QD.shape, jnp.float32))
    dquery_ref[...] = (dquery_QD * query_QD.shape[-1] ** -0.5).astype(dquery_ref.dtype)


def _key_kernel(plan: Plan, *refs):
    """The gradients of a block of keys and values, of all their heads of queries."""
    dkey_ref, dvalue_ref = refs[-2:]
    given, (kv_head, block) = Refs(*refs[:-2]), plan.program()
    key_KD, value_KD = given.key[...], given.value[...]

    def add(group, sums, first, tokens):
        dkey_KD, dvalue_KD = sums
        head = kv_head * plan.groups + group
        pair = Pair(head, first, block * plan.block, 0)
        query_QD = plan.of_head(given.query, group, tokens)
        gradient_QD = plan.of_head(given.gradient, group, tokens)
        bounds = given.start[:, tokens], given.end[:, tokens]
        scores_KQ = _scores(query_QD, key_KD, *bounds, pair)
        weights_KQ = jnp.exp(scores_KQ - given.log_sum[group, :, tokens])
        change_KQ = _product(value_KD, gradient_QD, 1)
        change_KQ = _drop(plan, change_KQ, given.words, pair)
        change_KQ = weights_KQ * (change_KQ - given.along[group, :, tokens])
        weights_KQ = _drop(plan, weights_KQ, given.words, pair)
        change_KQ, weights_KQ = (
            x.astype(key_KD.dtype) for x in (change_KQ, weights_KQ)
        )
        dkey_KD += _product(change_KQ, query_QD, 0)
        return dkey_KD, dvalue_KD + _product(weights_KQ, gradient_QD, 0)

    sums = (jnp.zeros(key_KD.shape, jnp.float32),) * 2
    for group in range(plan.groups):
        sums = _steps(plan, given, functools.partial(add, group), sums)
    dkey_ref[...] = (sums[0] * key_KD.shape[-1] ** -0.5).astype(dkey_ref.dtype)
    dvalue_ref[...] = sums[1].astype(dvalue_ref.dtype)


def _call(plan: Plan, kernel, by_keys: bool, arrays: Refs, outs: str) -> list:
    """Calls a kernel with a program for each head and block of queries, or of keys.

    Of the results, "q" is like the queries, "k" like the keys, "n" a number a query.
    """
    rows, heads, length, width = plan.moved(arrays.query).shape
    blocks, gpu = length // plan.block, plan.kind == "gpu"
    bounds = arrays.start[:, 0, 0], arrays.end[:, 0, 0]
    # Of each side: its tokens, the indices of head and tokens, and how many heads. The
    # other side is a whole row.
    own = (plan.block, lambda head, block: (head, block), None)
    sides: dict[str, Any] = {"q": own, "k": own}
    if by_keys:
        sides["q"] = (length, lambda head, block: (head, 0), plan.groups)
        limits, programs = _seeing_queries(plan, *bounds), heads // plan.groups
    else:
        sides["k"] = (length, lambda head, block: (head // plan.groups, 0), None)
        limits, programs = _seen_keys(plan, *bounds), heads

    def vectors(side: str) -> pl.BlockSpec:
        tokens, at, count = sides[side]
        shape = (tokens, count) if gpu else (count, tokens)
        order = -1 if gpu else 1
        return plan.spec(
            (None, *shape, width), lambda b, n, g: (b, *at(n, g)[::order], 0)
        )

    tokens, at, count = sides["q"]

    def numbers(one_head: bool) -> pl.BlockSpec:
        def index(b, n, g):
            head, block = at(n, g)
            return b, 0 if one_head else head, 0, block

        return plan.spec((None, None if one_head else count, 1, tokens), index)

    space: Any = {} if gpu else {"memory_space": tpu.SMEM}
    scalars = functools.partial(plan.spec, index=lambda b, n, g: (b, 0, 0), **space)
    specs = {"q": vectors("q"), "k": vectors("k"), "n": numbers(False)}
    in_specs = [scalars((None, blocks, 2)), scalars((None, 1, 3)), numbers(True)]
    names = "qkkqnn" if arrays.gradient is not None else "qkk"
    in_specs += [in_specs[-1], *(specs[name] for name in names)]
    number = jax.ShapeDtypeStruct((rows, heads, 1, length), jnp.float32)
    like = {"q": arrays.query, "k": arrays.key, "n": number}
    semantics = ("parallel", "parallel", "arbitrary")
    return pl.pallas_call(
        functools.partial(kernel, plan),
        grid=plan.ordered((rows, programs, blocks)),
        in_specs=in_specs,
        out_specs=[specs[name] for name in outs],
        out_shape=[jax.ShapeDtypeStruct(like[o].shape, like[o].dtype) for o in outs],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2)
        if gpu
        else tpu.CompilerParams(dimension_semantics=semantics),
        interpret=plan.interpret,
        name=kernel.__name__.strip("_"),
    )(limits, *arrays[1 : len(in_specs)])


def _seen_keys(plan: Plan, start_BL, end_BL):
    """Returns the steps of keys that each block of queries sees, int32 [B, G, 2]."""
    start_BGQ, end_BGQ = (x.reshape(len(x), -1, plan.block) for x in (start_BL, end_BL))
    begin_BG, end_BG = start_BGQ.min(2), end_BGQ.max(2)
    return jnp.stack([begin_BG // plan.step, -(-end_BG // plan.step)], axis=2)


def _seeing_queries(plan: Plan, start_BL, end_BL):
    """Returns the steps of queries that see each block of keys, int32 [B, G, 2]."""
    length = start_BL.shape[1]
    first_G1 = jnp.arange(0, length, plan.block, dtype=jnp.int32)[:, None]
    sees_BGL = end_BL[:, None] > first_G1
    sees_BGL &= start_BL[:, None] < first_G1 + plan.block
    step_L = jnp.arange(length, dtype=jnp.int32) // plan.step
    begin_BG = jnp.where(sees_BGL, step_L, length).min(2)
    return jnp.stack([begin_BG, jnp.where(sees_BGL, step_L, -1).max(2) + 1], axis=2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, arrays: Refs):
    """Returns attention, in the layout of Plan.moved."""
    return _forward(plan, arrays)[0]


def _forward(plan: Plan, arrays: Refs):
    mixed, log_sum = _call(plan, _forward_kernel, False, arrays, "qn")
    return mixed, (arrays._replace(log_sum=log_sum), mixed)


def _backward(plan: Plan, saved: tuple[Refs, jax.Array], gradient):
    arrays, mixed = saved
    along = jnp.sum(gradient.astype(jnp.float32) * mixed.astype(jnp.float32), -1)
    along = plan.moved(along[..., None]).swapaxes(2, 3)
    arrays = arrays._replace(gradient=gradient, along=along)
    [dquery] = _call(plan, _query_kernel, False, arrays, "q")
    dkey, dvalue = _call(plan, _key_kernel, True, arrays, "kk")
    return (Refs(query=dquery, key=dkey, value=dvalue),)


_attend.defvjp(_forward, _backward)


def flash(way: Way, query_BNLD, keys, bounds, noise: Noise | None):
    """Returns attention as attention.attend does, without further keys or slopes."""
    rows, heads, length, _ = query_BNLD.shape
    kv_heads = keys[0].shape[1]
    rate = 0.0 if noise is None else way.rate
    plan = Plan.of(way, rate, length, heads // kv_heads)
    words = (jnp.zeros(rows, jnp.uint32),) * 2
    if noise is not None:
        words = draws.words(noise, way.site)

    def local(query, key, value, start_BL, end_BL, words_B2, first_head):
        """Computes the rows and heads of a device."""
        fill = -length % plan.block
        vectors = (
            plan.moved(jnp.pad(x, ((0, 0), (0, 0), (0, fill), (0, 0))))
            for x in (query, key, value)
        )
        # What fills a row sees what its last token sees.
        numbers = (
            jnp.pad(x, ((0, 0), (0, fill)), "edge")[:, None, None]
            for x in (start_BL, end_BL)
        )
        head_B1 = jnp.broadcast_to(first_head, (len(words_B2), 1)).astype(jnp.uint32)
        words_B13 = jnp.concatenate([words_B2, head_B1], 1)[:, None]
        mixed: Any = _attend(plan, Refs(None, words_B13, *numbers, *vectors))
        return plan.moved(mixed)[:, :, :length]

    arrays = (query_BNLD, *keys, *bounds, jnp.stack(words, axis=1))
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
    head_axis = (
        HEAD_AXIS if kv_heads % sizes.get(HEAD_AXIS, kv_heads + 1) == 0 else None
    )
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
