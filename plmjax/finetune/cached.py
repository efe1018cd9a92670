"""Cached features: a frozen encoder's states of the training rows, computed once.

The head is then trained on these states, and a step costs only the head. The encoder
runs without dropout, as its states are the same in every epoch.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from plmjax import PlmjaxError, processes
from plmjax.data.features import Features
from plmjax.evaluate.predictions import score_rows
from plmjax.finetune.build import FinetuneSetup, with_arrays
from plmjax.machine import usable_memory
from plmjax.models import Platform
from plmjax.models.task_heads import POOLERS, STATES, encode
from plmjax.tasks.task import Task
from plmjax.train import sharding


def with_states(
    setup: FinetuneSetup, log: Callable[[str], Any], reads: bool = True
) -> FinetuneSetup:
    """Returns a setup whose training batches hold the encoder's states of their rows.

    Without cache_features in the config, it is unchanged. With `reads` False
    the states are all 0, which is enough to check shapes.

    Raises:
      PlmjaxError: this machine has too little memory for them.
    """
    if not setup.config.cache_features:
        return setup
    features = setup.features["train"]
    params = {"encoder": setup.params["encoder"]}
    task, encoder, mesh = setup.task, setup.encoder, setup.mesh
    platform = Platform.of(mesh.devices.flat)

    def states(params: dict, batch: dict) -> jax.Array:
        return encode(encoder, task, params, batch, None, platform=platform)

    one = jax.eval_shape(states, params, _first(features))
    processes.run_on_all(lambda: _check_memory(task, features.rows, one))
    if not reads:
        zero = np.zeros((1, *one.shape[1:]), one.dtype)
        states_N = np.broadcast_to(zero, (features.rows, *one.shape[1:]))
        return with_arrays(setup, {STATES: states_N})
    params = jax.device_put(params, sharding.shardings(mesh, params))
    read = jax.jit(states, out_shardings=sharding.replicated(mesh))
    kept = np.zeros((features.rows, *one.shape[1:]), one.dtype)
    train = setup.config.train
    batch = train.batch // train.accumulation
    for rows, read_states in score_rows(
        functools.partial(read, params), mesh, features, batch, setup.data.config
    ):
        kept[rows, ..., : read_states.shape[-2], :] = read_states
    log(
        f"Features of {features.rows:,} rows, read once: {kept.nbytes / 1e6:,.1f} MB. "
        "The encoder is not run again in training."
    )
    return with_arrays(setup, {STATES: kept})


def _first(features: Features) -> dict[str, np.ndarray]:
    return {name: array[:1] for name, array in features.arrays.items()}


def _check_memory(task: Task, rows: int, one: jax.ShapeDtypeStruct) -> None:
    wanted = rows * one.size * one.dtype.itemsize
    memory = usable_memory()
    if wanted > 0.8 * memory:
        shorter = "" if task.head in POOLERS else " A smaller task.length keeps less."
        raise PlmjaxError(
            f"cache_features would keep {wanted / 1e9:,.0f} GB of states, and this "
            f"process may use {memory / 1e9:,.0f} GB of memory.",
            hint="Leave it out: the encoder then reads every row in every epoch."
            + shorter,
        )
