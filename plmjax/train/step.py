"""One training step: corrupt, differentiate, update; jitted and sharded.

Legend: A micro-batches (accumulation), B rows.
"""

import dataclasses
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

# Each device of these has rows of its own.
ROW_AXES = ("data", "fsdp")
# Evaluation draws the same masks for a row at every step and in every run.
EVALUATION_SEED = 0x5EED


class State(NamedTuple):
    """Everything a run must remember; a pytree."""

    step: jax.Array  # int32: batches seen, skipped ones included
    params: dict
    moments: Any  # the optimizer's state
    average: dict | None  # of params over steps, exponential or plain
    bad_steps: jax.Array  # int32: updates skipped in a row
    skipped: jax.Array  # int32: updates skipped in all


class _Moments(NamedTuple):
    """Names a tree of parameters' shape as the moments that follow it."""

    moments: Any


def init_state(objective: Objective, optimizer, seed: int, batch, ema: bool) -> State:
    """Returns the state before the first step."""
    params = objective.init(jax.random.key(seed), batch)
    # A copy: one buffer cannot be donated twice.
    average = jax.tree.map(jnp.copy, params) if ema else None
    moments = optimizer.init(params)
    counts = [jnp.array(0, jnp.int32) for _ in range(3)]
    return State(counts[0], params, moments, average, *counts[1:])


def micro_batch(batch, index, count: int):
    """Returns rows index::count, which keeps each row on its device."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(
            x.reshape(x.shape[0] // count, count, *x.shape[1:]), index, 1, False
        ),
        batch,
    )


def gradients(objective: Objective, accumulation: int) -> Callable:
    """Returns (params, frozen, batch, key) -> (loss, metrics, grads), summed over A."""

    def one(params, frozen, batch, key):
        f = jax.value_and_grad(objective.loss, has_aux=True)
        (loss, metrics), grads = f(params, frozen, batch, key, True)
        # Counted here, it takes part in the one reduction that there is.
        seen = jnp.sum(batch["segments"] > 0, dtype=jnp.float32)
        return loss, metrics | {"tokens": (seen, jnp.float32(1))}, grads

    def accumulated(params, frozen, batch, key):
        if accumulation == 1:
            return one(params, frozen, batch, key)

        def part(i):
            return one(params, frozen, micro_batch(batch, i, accumulation), key)

        # Starting from zeros, not from the first part, the model is compiled once.
        shapes = jax.eval_shape(part, 0)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.fori_loop(
            0, accumulation, lambda i, sums: jax.tree.map(jnp.add, sums, part(i)), zeros
        )

    return accumulated


def row_parallel(f: Callable, mesh: Mesh, places) -> Callable:
    """Runs f on each device's rows and sums what it returns: one reduction, at the end.

    Weights that are divided over fsdp are put together before. Left to itself, the
    compiler puts an all-reduce into the accumulation loop, and under fsdp it multiplies
    by the parts of a weight: then it sends activations, of all rows. `places` are the
    shardings of the gradients; where one divides over an axis of rows (fsdp; data under
    ZeRO-1), each device gets its part of the sum alone, which is half the bytes.
    """
    grad_specs = jax.tree.map(lambda place: place.spec, places)

    def whole(x, place):
        for at, axis in enumerate(place.spec):
            if axis == "fsdp":
                x = jax.lax.all_gather(x, axis, axis=at, tiled=True)
        return x

    def reduced(grad, spec):
        # fsdp first: the slower links between copies then carry its part alone.
        for axis in reversed([axis for axis in ROW_AXES if axis in spec]):
            at = tuple(spec).index(axis)
            grad = jax.lax.psum_scatter(grad, axis, scatter_dimension=at, tiled=True)
        return jax.lax.psum(grad, tuple(a for a in ROW_AXES if a not in spec))

    def summed(params, frozen, batch, key):
        given = [sharding.shardings(mesh, arrays) for arrays in (params, frozen)]

        def local(params, frozen, batch, key):
            params, frozen = (
                jax.tree.map(whole, arrays, held)
                for arrays, held in zip((params, frozen), given, strict=True)
            )
            loss, metrics, grads = f(params, frozen, batch, key)
            loss, metrics = jax.lax.psum((loss, metrics), ROW_AXES)
            return loss, metrics, jax.tree.map(reduced, grads, grad_specs)

        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(
                *(jax.tree.map(lambda place: place.spec, held) for held in given),
                sharding.ROWS,
                P(),
            ),
            out_specs=(P(), P(), grad_specs),
            check_vma=False,
        )(params, frozen, batch, key)

    return summed


@dataclasses.dataclass(frozen=True)
class Step:
    """A jitted step with its seed, an argument: runs by several seeds compile once."""

    jitted: Any
    seed: np.uint32

    def __call__(self, state: State, frozen, batch) -> tuple[State, dict]:
        return self.jitted(state, frozen, batch, self.seed)

    def lower(self, state, frozen, batch) -> jax.stages.Lowered:
        return self.jitted.lower(state, frozen, batch, self.seed)

    def compiled(self, state, frozen, batch) -> "Step":
        """Returns it compiled for these shapes or arrays."""
        compiled = self.lower(state, frozen, batch).compile()
        return dataclasses.replace(self, jitted=compiled)


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
    zero1: bool = False,
) -> Step:
    """Returns the jitted (state, frozen, batch) -> (state, metrics); state is donated.

    The average is exponential by `ema_decay`, or the plain mean of the weights after
    each step from `average_from` on.

    An update whose loss or gradient is not finite is skipped and counted. With `zero1`
    the gradients, too, are divided over the data axis, as the moments are.
    """
    loss_and_gradients = gradients(objective, accumulation)
    explicit = sharding.is_row_parallel(mesh) and mesh.size > 1

    def summed(params, frozen, batch, key):
        # What an update divides, as the moments of these parameters are.
        (places,) = sharding.shardings(mesh, _Moments(params), zero1)
        if explicit:
            f = row_parallel(loss_and_gradients, mesh, places)
            return f(params, frozen, batch, key)
        # Weights are put together over fsdp first, for row_parallel's reason, and their
        # gradients made whole before they are divided: an embedding's gradient that is
        # made in parts wants the activations of all rows.
        whole, still = (sharding.whole_layers(mesh, tree) for tree in (params, frozen))
        constrain = jax.lax.with_sharding_constraint
        params, frozen = constrain(params, whole), constrain(frozen, still)
        loss, metrics, grads = loss_and_gradients(params, frozen, batch, key)
        grads = constrain(grads, whole)
        return loss, metrics, constrain(grads, places)

    def _share(now):
        """Returns what share of the average the newest weights are."""
        if ema_decay is not None:
            return 1 - ema_decay
        assert average_from is not None
        return 1 / jnp.maximum(now - average_from + 1, 1).astype(jnp.float32)

    def step(state: State, frozen, batch, seed) -> tuple[State, dict]:
        key = Key(seed, state.step.astype(jnp.uint32))
        batch = objective.corrupt(batch, key, state.step / steps)
        loss, metrics, grads = summed(state.params, frozen, batch, key)
        norm = optax.tree.norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        rate = schedule(state.step)

        direction, moments = optimizer.update(grads, state.moments, state.params)
        params = jax.tree.map(lambda p, d: p - rate * d, state.params, direction)
        old, new = (state.params, state.moments), (params, moments)
        new = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
        params, moments = new
        average: Any = state.average
        if average is not None:
            share = _share(state.step)
            if ema_decay is not None:
                share = jnp.where(good, share, 0)
            # In the plain mean, the weights that a skipped update leaves count again.
            average = optax.incremental_update(params, average, share)
        bad_steps = jnp.where(good, 0, state.bad_steps + 1)
        metrics |= {
            "objective": (loss, jnp.float32(1)),
            "gradient_norm": (norm, jnp.float32(1)),
            "learning_rate": (rate, jnp.float32(1)),
            "bad_steps": (bad_steps.astype(jnp.float32), jnp.float32(1)),
        }
        skipped = state.skipped + jnp.where(good, 0, 1)
        metrics["skipped"] = (skipped.astype(jnp.float32), jnp.float32(1))
        state = State(state.step + 1, params, moments, average, bad_steps, skipped)
        # Left to itself, the compiler splits what a rule keeps whole, and then has to
        # compile for that, too.
        places = sharding.shardings(mesh, state, zero1)
        return jax.lax.with_sharding_constraint(state, places), metrics

    return Step(jax.jit(step, donate_argnums=0), np.uint32(seed))


def evaluation_key() -> Key:
    """Returns the key of evaluation: a row's masks are the same at every step."""
    return Key(jnp.uint32(EVALUATION_SEED), jnp.uint32(0))


def make_evaluation(objective: Objective) -> Callable:
    """Returns the jitted (params, frozen, batch) -> metrics; masks fixed by row."""

    def evaluate(params, frozen, batch):
        key = evaluation_key()
        batch = objective.corrupt(batch, key, jnp.float32(1))
        return objective.loss(params, frozen, batch, key, False)[1]

    return jax.jit(evaluate)
