"""The memory that a training needs on a device, compared with what there is."""

from collections.abc import Callable
from typing import Any

import jax

from plmjax import Exit, PlmjaxError
from plmjax.machine import out_of_memory, usable_memory
from plmjax.train import sharding
from plmjax.train.job import Training
from plmjax.train.step import State
from plmjax.train.topologies import absent_chip

# An estimate of activations this many times too large is an error beyond doubt: most
# of the arrays that it counts are kept by every compiler.
_BEYOND_DOUBT = 3
_SMALLER = "Use a smaller model, or more devices with --config.mesh.fsdp."


def device_memory(mesh: jax.sharding.Mesh) -> int:
    """Returns the bytes of memory that one of this process's devices may use.

    Of a mesh whose devices are not there, those of its chips.
    """
    if (chip := absent_chip(mesh)) is not None:
        return chip.memory
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    # Devices of the kind cpu share the memory of the process.
    return limit or usable_memory() // jax.local_device_count()


def check_activations(training: Training) -> None:
    """Raises PlmjaxError if the activations of a step are far too large for a device.

    Needs no batch, which may be too large, too.
    """
    if not _trains_all(training):
        return
    needed = training.activations()
    if needed > _BEYOND_DOUBT * device_memory(training.mesh):
        what = f"a step of {training.config.batch:,} rows (activations alone)"
        raise too_large(training.mesh, what, needed, training.less_memory)


def check_state(training: Training, shapes: State, log: Callable[[str], Any]) -> None:
    """Compares the memory of a training with that of a device; warns if unsure.

    Weights, gradients and the optimizer's state are certain, activations estimated.

    Raises:
      PlmjaxError: what is certain cannot fit (exit code 7).
    """
    mesh, activations = training.mesh, 0
    memory = device_memory(mesh)
    certain = sharding.bytes_per_device(mesh, shapes, training.zero1)
    if _trains_all(training):
        certain += sharding.bytes_per_device(mesh, shapes.params)  # the gradients
        activations = training.activations()
    if certain > memory:
        what = "the training's state (weights, gradients, optimizer)"
        raise too_large(mesh, what, certain, _SMALLER)
    if (needed := certain + activations) > memory:
        what = f"a step of {training.config.batch:,} rows"
        log(f"WARNING: {too_large(mesh, what, needed, training.less_memory)}")


def _trains_all(training: Training) -> bool:
    """Returns False if layers are frozen, which need no gradients or activations."""
    optimizer = training.config.optimizer
    return optimizer.freeze is None and optimizer.unfreeze_every_steps is None


def too_large(
    mesh: jax.sharding.Mesh, what: str, needed: int, hint: str
) -> PlmjaxError:
    """Returns the error for what needs more bytes than a device has."""
    kind, there = mesh.devices.flat[0].device_kind, device_memory(mesh)
    return PlmjaxError(
        f"{what} needs about {needed / 1e9:,.1f} GB on a device; a {kind} has "
        f"{there / 1e9:,.1f} GB.",
        hint=hint,
        code=Exit.MEMORY,
    )


def step_error(
    training: Training, shape: Any, error: BaseException
) -> PlmjaxError | None:
    """Returns the error of a step whose memory is exhausted; None for other errors.

    `shape` is that of the batch; None before the first step.
    """
    message = out_of_memory(error)
    if message is None:
        return None
    if shape is None:
        return PlmjaxError(
            f"{message}, before the first step.",
            hint=_SMALLER,
            code=Exit.MEMORY,
        )
    rows, *_, length = shape
    split, devices = training.config.accumulation, training.mesh.size
    where = f"{message}, in a step of {rows:,} rows of {length:,} tokens"
    where += f" in {split} micro-batches" if split > 1 else ""
    where += f" on {devices} {training.mesh.devices.flat[0].device_kind}."
    return PlmjaxError(where, hint=training.less_memory, code=Exit.MEMORY)
