"""One training step: corrupt, differentiate, update; jitted and sharded.

Legend: A micro-batches (accumulation), B rows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from plmjax.objectives import Key, Objective
from plmjax.train import sharding
from plmjax.train.pruning import hold_zeros

# Mesh axes that split the rows of a batch.
ROW_AXES = ("data", "fsdp")
# Fixed, so that a row has the same masks in every evaluation of every run.
EVALUATION_SEED = 0x5EED


# In float32, so that the scaled loss stays finite.
_LARGEST_SCALE = 2.0**24


class LossScale(NamedTuple):
    """The factor of a float16 loss, whose small gradients would otherwise vanish."""

    value: jax.Array  # float32
    steps: jax.Array  # int32: good steps since it changed

    def after(self, good, overflows, growth_steps: int) -> "LossScale":
        """Returns the next step's: doubled after enough good steps in a row, halved
        where the gradient of a finite loss overflows (arXiv:1710.03740)."""
        steps = jnp.where(good, self.steps + 1, 0)
        grows = steps >= growth_steps
        value = jnp.where(grows, self.value * 2, self.value)
        value = jnp.where(overflows, jnp.maximum(self.value / 2, 1.0), value)
        return LossScale(jnp.minimum(value, _LARGEST_SCALE), jnp.where(grows, 0, steps))

    def figures(self, norm, overflows) -> dict:
        """Returns the metrics of a step: an overflow's norm would make means infinite.

        `norm` is that of the gradient.
        """
        one = jnp.float32(1)
        counted = (jnp.where(overflows, 0, number) for number in (norm, one))
        return {"loss_scale": (self.value, one), "gradient_norm": tuple(counted)}


class State(NamedTuple):
    """The state of a training that checkpoints store; a pytree."""

    step: jax.Array  # int32: batches seen, skipped ones included
    params: dict
    moments: Any  # the optimizer's state
    average: dict | None  # of params over steps, exponential or plain
    bad_steps: jax.Array  # int32: updates skipped in a row
    skipped: jax.Array  # int32: updates skipped in all
    loss_scale: LossScale | None = None  # where a model computes in float16


class _Moments(NamedTuple):
    """Wraps parameters so that their names, and so their shardings, are of moments."""

    moments: Any


def init_state(
    objective: Objective,
    optimizer,
    seed: int,
    batch,
    ema: bool,
    *,
    loss_scale: float = 1.0,
) -> State:
    """Returns the state before the first step."""
    params = objective.init(jax.random.key(seed), batch)
    # A copy: one buffer cannot be donated twice.
    average = jax.tree.map(jnp.copy, params) if ema else None
    moments = optimizer.init(params)
    counts = [jnp.array(0, jnp.int32) for _ in range(4)]
    scale = None
    if any(view.encoder.dtype == "float16" for view in objective.models.values()):
        scale = LossScale(jnp.array(loss_scale, jnp.float32), counts[3])
    more = {"bad_steps": counts[1], "skipped": counts[2], "loss_scale": scale}
    return State(counts[0], params, moments, average, **more)


def micro_batch(batch, index, count: int):
    """Returns rows index::count; strided, so that each row stays on its device."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(
            x.reshape(x.shape[0] // count, count, *x.shape[1:]), index, 1, False
        ),
        batch,
    )


def gradients(
    objective: Objective,
    mesh: Mesh,
    params: dict,
    frozen,
    *,
    accumulation: int = 1,
    zero1: bool = False,
) -> Callable:
    """Returns (params, frozen, batch, key, scale) -> (loss, metrics, grads) of all.

    The scale, or None, multiplies the loss that is differentiated; the results are
    divided by it.

    `params` and `frozen`, arrays or shapes, give the sharding of each leaf; gradients
    are sharded like the moments of these parameters. A batch is split into
    `accumulation` micro-batches.

    If only rows are split, shard_map computes each device's rows and reduces once, at
    the end: by default the compiler puts an all-reduce into the accumulation loop, and
    under fsdp it multiplies by shards of a weight, which sends activations of all rows.
    """
    (divided,) = sharding.shardings(mesh, _Moments(params), zero1)
    by_hand = sharding.is_row_parallel(mesh) and mesh.size > 1
    collect = _collectives if by_hand else _constraints
    gather, reduce = collect(mesh, (params, frozen), divided)

    def scaled(params, frozen, batch, key, scale):
        loss, metrics = objective.loss(params, frozen, batch, key, True)
        return loss * scale, metrics

    def summed(params, frozen, batch, key, scale):
        params, frozen = gather((params, frozen))
        function, last = (objective.loss, True) if scale is None else (scaled, scale)
        loss_and_grads = jax.value_and_grad(function, has_aux=True)
        if accumulation == 1:
            (loss, metrics), grads = loss_and_grads(params, frozen, batch, key, last)
        else:

            def part(i):
                rows = micro_batch(batch, i, accumulation)
                return loss_and_grads(params, frozen, rows, key, last)

            # The sum starts from zeros, not part(0), so the model is compiled once.
            shapes = jax.eval_shape(part, 0)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            (loss, metrics), grads = jax.lax.fori_loop(
                0, accumulation, lambda i, s: jax.tree.map(jnp.add, s, part(i)), zeros
            )
        if scale is not None:
            loss, grads = jax.tree.map(lambda x: x / scale, (loss, grads))
        # Counted here, so that it is part of the only reduction.
        seen = jnp.sum(batch["segments"] > 0, dtype=jnp.float32)
        metrics |= {"tokens": (seen, jnp.float32(accumulation))}
        return reduce(loss, metrics, grads)

    if not by_hand:
        return summed
    specs = jax.tree.map(
        lambda s: s.spec, (*_shardings(mesh, (params, frozen)), divided)
    )
    return jax.shard_map(
        summed,
        mesh=mesh,
        in_specs=(*specs[:2], sharding.ROWS, P(), P()),
        out_specs=(P(), P(), specs[2]),
        check_vma=False,
    )


def _shardings(mesh: Mesh, trees: tuple) -> list:
    return [sharding.shardings(mesh, arrays) for arrays in trees]


def _collectives(mesh: Mesh, trees: tuple, divided) -> tuple[Callable, Callable]:
    """Returns gather and reduce for use inside shard_map.

    `gather` gathers weights over fsdp. `reduce` sums gradients; where a gradient is
    split over an axis of rows (fsdp; data under ZeRO-1), by a reduce-scatter, which
    sends half the bytes.
    """
    held = tuple(_shardings(mesh, trees))

    def reduced(grad, leaf_sharding):
        spec = tuple(leaf_sharding.spec)
        # fsdp first: then the slower links between copies carry only shards.
        for axis in reversed([axis for axis in ROW_AXES if axis in spec]):
            for groups in sharding.stages(mesh, axis):
                how = {"axis_index_groups": groups, "tiled": True}
                at = spec.index(axis)
                grad = jax.lax.psum_scatter(grad, axis, scatter_dimension=at, **how)
        return jax.lax.psum(grad, tuple(a for a in ROW_AXES if a not in spec))

    def gather(trees):
        return _gathered(mesh, trees, held, "fsdp")

    def reduce(loss, metrics, grads):
        loss, metrics = jax.lax.psum((loss, metrics), ROW_AXES)
        return loss, metrics, jax.tree.map(reduced, grads, divided)

    return gather, reduce


def _gathered(mesh: Mesh, arrays, shardings, axis: str):
    """Returns the arrays not split over an axis; for use inside shard_map."""

    def gathered(x, leaf_sharding):
        spec = tuple(leaf_sharding.spec)
        for groups in reversed(sharding.stages(mesh, axis)) if axis in spec else ():
            how = {"axis_index_groups": groups, "tiled": True}
            x = jax.lax.all_gather(x, axis, axis=spec.index(axis), **how)
        return x

    return jax.tree.map(gathered, arrays, shardings)


def _gather_copies(mesh: Mesh, params: dict) -> dict:
    """Returns parameters that each device of the data axis updated a part of."""
    if not sharding.is_row_parallel(mesh):
        return params  # The compiler does.
    parts, copies = (
        sharding.shardings(mesh, _Moments(params), zero1)[0] for zero1 in (True, False)
    )
    specs = [jax.tree.map(lambda s: s.spec, tree) for tree in (parts, copies)]
    return jax.shard_map(
        lambda params: _gathered(mesh, params, parts, "data"),
        mesh=mesh,
        in_specs=(specs[0],),
        out_specs=specs[1],
        check_vma=False,
    )(params)


def _constraints(mesh: Mesh, trees: tuple, divided) -> tuple[Callable, Callable]:
    """Returns gather and reduce for use where the compiler partitions the program.

    Weights are gathered over fsdp first, for the reason in `gradients`. Gradients are
    computed unsharded before they are split: to compute shards of an embedding's
    gradient, the compiler would gather the activations of all rows.
    """
    without_fsdp = tuple(
        sharding.shardings_without_fsdp(mesh, arrays) for arrays in trees
    )
    constrain = jax.lax.with_sharding_constraint

    def gather(trees):
        return constrain(trees, without_fsdp)

    def reduce(loss, metrics, grads):
        return loss, metrics, constrain(constrain(grads, without_fsdp[0]), divided)

    return gather, reduce


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: Callable,
    mesh: Mesh,
    *,
    seed: int,
    steps: int,
    accumulation: int = 1,
    ema_decay: float | None = None,
    average_from: int | None = None,
    loss_scale_steps: int = 2000,
    zero1: bool = False,
    prune: Callable | None = None,
) -> functools.partial:
    """Returns the jitted (state, frozen, batch) -> (state, metrics); state is donated.

    The seed is an argument of the program, so that runs of several seeds compile once;
    so may be the `rate`, which then replaces the schedule's. The average is exponential
    with `ema_decay`, or the plain mean of the weights after each step from
    `average_from` on. An update is skipped and counted if its loss or gradient is not
    finite; where only a float16 loss is scaled too far, it is skipped alone. With
    `zero1` the gradients, like the moments, are also divided over the data axis.
    prune(params, step) prunes after a step; with it, zeros of kernels stay.
    """

    how = {"accumulation": accumulation, "zero1": zero1}

    def step(state: State, frozen, batch, seed, rate=None) -> tuple[State, dict]:
        key = Key(seed, state.step.astype(jnp.uint32))
        batch = objective.corrupt(frozen, batch, key, state.step / steps)
        summed = gradients(objective, mesh, state.params, frozen, **how)
        scale, given = state.loss_scale, (state.params, frozen, batch, key)
        loss, metrics, grads = summed(*given, scale and scale.value)
        if prune is not None:
            grads = hold_zeros(state.params, grads)
        norm = optax.tree.norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        # Not bad: only the scale was too large.
        overflows = scale is not None and jnp.isfinite(loss) & ~good & (scale.value > 1)
        rate = schedule(state.step) if rate is None else rate
        direction, moments = optimizer.update(grads, state.moments, state.params)
        params = jax.tree.map(lambda p, d: p - rate * d, state.params, direction)
        if prune is not None:
            params = hold_zeros(state.params, params)
        old, new = (state.params, state.moments), (params, moments)
        params, moments = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
        params = _gather_copies(mesh, params) if zero1 else params
        if prune is not None:  # after a skipped update, too: its stage may be the last
            params = prune(params, state.step)
        average: Any = state.average
        if average is not None:
            share = _share_of_newest(state.step, good, ema_decay, average_from)
            average = optax.incremental_update(params, average, share)
        bad_steps = jnp.where(good | overflows, 0, state.bad_steps + 1)
        skipped = state.skipped + jnp.where(good | overflows, 0, 1)
        figures = {
            "objective": loss,
            "gradient_norm": norm,
            "learning_rate": rate,
            "bad_steps": bad_steps.astype(jnp.float32),
            "skipped": skipped.astype(jnp.float32),
        }
        metrics |= {name: (value, jnp.float32(1)) for name, value in figures.items()}
        if scale is not None:
            metrics |= scale.figures(norm, overflows)
            scale = scale.after(good, overflows, loss_scale_steps)
        last = {"bad_steps": bad_steps, "skipped": skipped, "loss_scale": scale}
        state = State(state.step + 1, params, moments, average, **last)
        # Else the compiler may shard replicated leaves; the next call compiles again.
        shardings = sharding.shardings(mesh, state, zero1)
        return jax.lax.with_sharding_constraint(state, shardings), metrics

    # On accelerators XLA otherwise skips roundings to bf16, and writes float32.
    exact = mesh.devices.flat[0].platform != "cpu"
    options = {"xla_allow_excess_precision": False} if exact else None
    jitted = jax.jit(step, donate_argnums=0, compiler_options=options)
    return functools.partial(jitted, seed=np.uint32(seed))


def _share_of_newest(step, good, ema_decay: float | None, average_from: int | None):
    """Returns the share of the weights after a step in their average."""
    if ema_decay is not None:
        return jnp.where(good, 1 - ema_decay, 0)
    # In the plain mean, unchanged weights after a skipped update count again.
    assert average_from is not None
    return 1 / jnp.maximum(step - average_from + 1, 1).astype(jnp.float32)


def lower(step: functools.partial, state, frozen, batch) -> jax.stages.Lowered:
    """Returns the program of a step for arrays, or shapes with shardings."""
    return step.func.lower(state, frozen, batch, **step.keywords)


def evaluation_key() -> Key:
    """Returns the key of evaluation: a row's masks are the same at every step."""
    return Key(jnp.uint32(EVALUATION_SEED), jnp.uint32(0))


def make_evaluation(objective: Objective) -> Callable:
    """Returns the jitted (params, frozen, batch) -> metrics; masks fixed by row."""

    def evaluate(params, frozen, batch):
        key = evaluation_key()
        batch = objective.corrupt(frozen, batch, key, jnp.float32(1))
        return objective.loss(params, frozen, batch, key, False)[1]

    return jax.jit(evaluate)
