"""Compiles steps for devices that are not there, and reads them.

Nothing is executed, and no parameter is allocated. scaling.py starts it as a process.
"""

import dataclasses
import json
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from plmjax import tree
from plmjax.models.config import PRESETS, EncoderConfig
from plmjax.models.platform import ANY, Platform
from plmjax.objectives import (
    OBJECTIVES,
    CLMConfig,
    ElectraConfig,
    MLMConfig,
    Objective,
    Pieces,
)
from plmjax.train import collectives, sharding
from plmjax.train.config import MeshConfig, OptimizerConfig, ScheduleConfig
from plmjax.train.optimizer import make_optimizer
from plmjax.train.schedule import make_schedule
from plmjax.train.step import init_state, lower, make_step
from plmjax.train.topologies import absent_devices
from scaling import FEW, ROWS, ScalingConfig, slice_of


def objective_of(encoder: EncoderConfig, platform: Platform = ANY) -> Objective:
    """Returns the pretraining objective of a model's family."""
    config = {"electra": ElectraConfig(), "gpt2": CLMConfig()}.get(
        encoder.family, MLMConfig()
    )
    pieces = Pieces(4, (0, 1, 2, 3, 4), (1,) * encoder.vocab_size)
    return OBJECTIVES[config.kind](config, encoder, pieces, platform=platform)


def shapes(rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch of the loader."""
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    row = jax.ShapeDtypeStruct((rows,), jnp.int32)
    batch = dict.fromkeys(("tokens", "segments", "positions", "types"), tokens)
    start = jax.ShapeDtypeStruct((rows, length), jnp.bool_)
    return batch | {"word_start": start, "cut": start, "row": row, "copy": row}


def compile_all(config: ScalingConfig, devices: int, rows_twice: bool) -> list[dict]:
    """Returns the traffic and memory of the step on each mesh, in bytes."""
    encoder = dataclasses.replace(PRESETS[config.preset], dtype=config.dtype)
    topology = config.topology and slice_of(config.topology, devices)
    absent = absent_devices(topology) if topology else jax.devices()
    layers = {encoder.layers} if config.full else {min(n, encoder.layers) for n in FEW}
    # Without a tensor axis each device computes full layers, and no traffic grows with
    # the rows (tests/train/test_collectives.py).
    rows: dict[str, tuple[int, ...]] = {kind: (ROWS,) for kind in config.meshes}
    if rows_twice and "tensor" in rows:
        rows["tensor"] = (ROWS, 2 * ROWS)
    objective = objective_of(encoder)
    params = jax.eval_shape(objective.init, jax.random.key(0), shapes(1, config.length))
    facts = {
        "layers": encoder.layers,
        "parameters": tree.count(params),
        "flops_per_token": objective.flops(config.length) / config.length,
    }
    return [
        _compile(config, kind, absent, dataclasses.replace(encoder, layers=few), many)
        | {"model": facts}
        for kind in config.meshes
        for few in sorted(layers)
        for many in rows[kind]
    ]


def compile_step(
    objective: Objective, mesh: Mesh, batch: dict, *, zero1: bool = False, frozen=None
) -> jax.stages.Compiled:
    """Returns the compiled step of an objective for the shapes of a global batch.

    `frozen` are inputs of the loss beside the objective's tables.
    """
    optimizer = make_optimizer(OptimizerConfig())
    state = jax.eval_shape(
        lambda batch: init_state(objective, optimizer, 0, batch, False), batch
    )
    step = make_step(
        objective,
        optimizer,
        make_schedule(ScheduleConfig(), 1e-3, 100),
        mesh,
        seed=0,
        steps=100,
        zero1=zero1,
    )
    state = _placed(state, sharding.shardings(mesh, state, zero1))
    batch = _placed(batch, dict.fromkeys(batch, sharding.rows(mesh)))
    frozen = objective.tables() | (frozen or {})
    frozen = _placed(frozen, sharding.shardings(mesh, frozen))
    with jax.set_mesh(mesh):
        return lower(step, state, frozen, batch).compile()


def _compile(
    config: ScalingConfig,
    kind: str,
    devices: list,
    encoder: EncoderConfig,
    rows: int,
) -> dict[str, Any]:
    sizes = config.mesh(kind, len(devices))
    zero1 = kind == "zero1"
    block = MeshConfig(sizes["data"], sizes["fsdp"], sizes["tensor"], zero1)
    mesh = sharding.make_mesh(block, devices)
    objective = objective_of(encoder, Platform.of(devices))
    batch = shapes(rows * sizes["data"] * sizes["fsdp"], config.length)
    compiled = compile_step(objective, mesh, batch, zero1=zero1)
    operations = collectives.collectives(compiled.as_text() or "")
    assert all(operation.known for operation in operations)
    totals: dict[tuple[str, str], float] = {}
    for operation in operations:
        axes = operation.axes(sizes)
        key, size = (" x ".join(axes), operation.kind), operation.bytes
        if operation.kind in collectives.RING:  # lines of chips send less than an axis
            ring = 1 - 1 / math.prod(sizes[axis] for axis in axes)
            size *= (1 - 1 / operation.size) / ring
        totals[key] = totals.get(key, 0.0) + size * operation.times
    memory = compiled.memory_analysis()
    assert memory is not None
    return {
        "mesh": kind,
        "devices": len(devices),
        "layers": encoder.layers,
        "rows": rows,
        "traffic": [(*key, total) for key, total in sorted(totals.items())],
        "state": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
    }


def _placed(arrays, shardings):
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        arrays,
        shardings,
    )


def _main(text: str) -> None:
    values, devices, rows_twice = json.loads(text)
    print(json.dumps(compile_all(ScalingConfig.of(values), devices, rows_twice)))


if __name__ == "__main__":
    _main(sys.argv[1])
