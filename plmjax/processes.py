"""Several processes of one run: how they connect, share decisions, and end.

Each sees its local devices, and all run the same program (jax.distributed). Process 0
makes all decisions that depend on a disk or a clock: two processes that decided
differently would wait for each other for ever.
"""

import dataclasses
import functools
import importlib.util
import itertools
import json
import os
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from plmjax import DISK_ERRORS, Exit, PlmjaxError, disk_hint

# Processes may wait hours for work (one tokenises the text for all); a process that has
# died is detected by its heartbeat, not by this timeout.
_BARRIER_SECONDS = 24 * 3600
_names = itertools.count()
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Group:
    """How this process joins its run: arguments of jax.distributed.initialize.

    `source` names where they come from, for messages.
    """

    source: str
    arguments: dict[str, Any]


def _integer(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise PlmjaxError(f"{name}={text} is not an integer.") from None


def _given(
    environment: Mapping[str, str],
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
) -> Group | None:
    """Returns the group given by flags or PLMJAX_*, flags first; None without any.

    Raises:
      PlmjaxError: they are incomplete or invalid.
    """

    def number(value: int | None, name: str) -> int | None:
        if value is None and name in environment:
            return _integer(environment[name], name)
        return value

    alone = coordinator is None
    coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    num_processes = number(num_processes, "PLMJAX_NUM_PROCESSES")
    process_id = number(process_id, "PLMJAX_PROCESS_ID")
    if num_processes == 1:
        return Group("given", {})
    if num_processes is None and process_id is None and alone:
        return None
    if coordinator is None or num_processes is None or process_id is None:
        raise PlmjaxError(
            "a run of several processes needs --coordinator=HOST:PORT, "
            "--num_processes and --process_id.",
            hint="Give all three, or JAX_COORDINATOR_ADDRESS, PLMJAX_NUM_PROCESSES "
            "and PLMJAX_PROCESS_ID in the environment.",
        )
    if not 0 <= process_id < num_processes:
        raise PlmjaxError(
            f"--process_id={process_id} must be between 0 and "
            f"--num_processes={num_processes} minus 1."
        )
    if not coordinator.rpartition(":")[2].isdecimal() or ":" not in coordinator:
        raise PlmjaxError(f"--coordinator={coordinator} must be HOST:PORT.")
    return Group(
        "given",
        {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
            # Otherwise a surrounding Slurm job would choose the devices.
            "cluster_detection_method": "deactivate",
        },
    )


# A shell in an allocation has some of these variables; a task of srun has all.
SLURM = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)


def _slurm(environment: Mapping[str, str]) -> Group | None:
    if any(name not in environment for name in SLURM):
        return None
    # An interactive step has one task, even if its allocation has more.
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment["SLURM_NTASKS"])
    if int(tasks) == 1:
        return None
    per_task = int(environment.get("SLURM_GPUS_PER_TASK", "0").rpartition(":")[2])
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    arguments = {}
    if per_task and "JAX_LOCAL_DEVICE_IDS" not in environment:
        # By default jax takes one GPU per task, with the task's number: correct only if
        # every task sees all GPUs and wants one.
        first = 0
        if len(visible) > per_task:
            first = int(environment["SLURM_LOCALID"]) * per_task
        arguments["local_device_ids"] = list(range(first, first + per_task))
    return Group("Slurm", arguments)


def _open_mpi(environment: Mapping[str, str]) -> Group | None:
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) == 1:
        return None
    if "OMPI_MCA_orte_hnp_uri" in environment:  # up to Open MPI 4
        return Group("Open MPI", {})
    if importlib.util.find_spec("mpi4py") is not None:
        return Group("Open MPI", {"cluster_detection_method": "mpi4py"})
    raise PlmjaxError(
        "Open MPI 5 started this process, and without mpi4py the processes cannot "
        "find each other.",
        hint="pip install mpi4py, or give --coordinator, --num_processes and "
        "--process_id.",
    )


def _kubernetes(environment: Mapping[str, str]) -> Group | None:
    # Every pod has the first variable; only pods of an indexed job have an index.
    if not {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys():
        return None
    if importlib.util.find_spec("kubernetes") is None:
        return None
    return Group("Kubernetes", {})


def _tpu(environment: Mapping[str, str]) -> Group | None:
    if "tpu" not in environment.get("JAX_PLATFORMS", "tpu").split(","):
        return None
    if importlib.util.find_spec("libtpu") is None:
        return None
    if not any(Path(p).exists() for p in ("/dev/accel0", "/dev/vfio/0")):
        return None
    return Group("TPU", {})


def find_group(
    environment: Mapping[str, str],
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Group | None:
    """Returns the group that this process joins, or None if it is alone.

    Raises:
      PlmjaxError: the group is given incompletely, or Open MPI lacks mpi4py.
    """
    group = _given(environment, coordinator, num_processes, process_id)
    if group is not None:
        return group if group.arguments else None
    for find in (_open_mpi, _slurm, _tpu, _kubernetes):
        if (group := find(environment)) is not None:
            return group
    return None


def initialise(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> str | None:
    """Joins this process to its run, if it is one of several.

    Returns how the others were detected, or None if there are none. Must be called
    before any device is used.

    Raises:
      PlmjaxError: the others are unknown, or did not join in time (exit code 75).
    """
    group = find_group(os.environ, coordinator, num_processes, process_id)
    if group is None:
        return None
    seconds = os.environ.get("PLMJAX_HEARTBEAT_SECONDS", "100")
    heartbeat = _integer(seconds, "PLMJAX_HEARTBEAT_SECONDS")
    where = group.arguments.get("coordinator_address", group.source)
    waits = threading.Timer(
        10,
        print,
        [f"Waiting for the other processes of this run ({where}) ..."],
        {"file": sys.stderr, "flush": True},
    )
    waits.daemon = True
    waits.start()
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=60,
            **group.arguments,
        )
    except (ValueError, RuntimeError) as error:
        if group.source == "TPU" and isinstance(error, ValueError):
            return None  # the only host of its slice has no coordinator
        raise PlmjaxError(
            f"the processes of this run ({group.source}) did not find each other: "
            f"{str(error).splitlines()[0]}",
            hint="All must start within five minutes and reach the coordinator's port.",
            code=Exit.RESUMABLE,
        ) from error
    finally:
        waits.cancel()
    return group.source if jax.process_count() > 1 else None


def several() -> bool:
    """Returns True if the run has more than one process."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Returns True on process 0, which writes and decides."""
    return jax.process_index() == 0


def barrier(name: str, seconds: int = _BARRIER_SECONDS) -> None:
    """Waits for all processes; they must call their barriers in the same order."""
    from orbax.checkpoint import multihost

    # Uses the coordination service, not a collective: no device is busy or can run
    # operations in another order, and hours may pass.
    wait = multihost.get_barrier_sync_fn()
    wait(key=f"plmjax/{next(_names)}/{name}", timeout_ms=seconds * 1000)


def broadcast_from_first(value: Any) -> Any:
    """Returns process 0's value, which must be JSON-serialisable, on every process."""
    return run_on_first(lambda: value)


def run_on_first(f: Callable[[], Any]) -> Any:
    """Runs f on process 0 only, and returns its result (JSON) on every process.

    Raises:
      PlmjaxError: f raised one; on every process.
    """
    if not several():
        return f()
    value = run_on_all(lambda: json.dumps(f()) if is_first() else None)
    return json.loads(_broadcast(value.encode() if value else b""))


def run_on_all(f: Callable[[], T]) -> T:
    """Runs f on all processes; returns this one's result once all have succeeded.

    f must not wait for other processes.

    Raises:
      PlmjaxError: f raised one, or its disk failed (exit code 5), on some process; all
        raise the error of the first of these.
    """
    if not several():
        return f()
    value, failure = None, ""
    try:
        value = f()
    except PlmjaxError as error:
        failure = json.dumps([error.message, error.hint, int(error.code)])
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        failure = json.dumps([f"{error}.", disk_hint(error), int(Exit.DISK)])
    # f may take hours on one process, longer than collectives wait.
    barrier("run_on_all")
    if first := first_message(failure):
        message, hint, code = json.loads(first[1])
        # All processes end now, and shut down together: otherwise the first to exit
        # would kill the others.
        jax.distributed.shutdown()
        raise PlmjaxError(message, hint=hint, code=Exit(code))
    return cast(T, value)


def raise_on_all(error: PlmjaxError) -> NoReturn:
    """Raises an error that all processes have, and lets them shut down together."""

    def fail() -> NoReturn:
        raise error

    run_on_all(fail)
    raise error


def first_message(text: str) -> tuple[int, str] | None:
    """Returns (process, text) of the first process with a text, on every process.

    Returns None if the text is empty on all of them.
    """
    if not several():
        return (0, text) if text else None
    data = text.encode()
    lengths = multihost_utils.process_allgather(np.int32(len(data)))
    if not np.any(lengths):
        return None
    speaker = int(np.flatnonzero(lengths)[0])
    return speaker, _broadcast(data, speaker).decode()


def _broadcast(data: bytes, source: int = 0) -> bytes:
    speaks = jax.process_index() == source
    send = functools.partial(multihost_utils.broadcast_one_to_all, is_source=speaks)
    size = int(send(np.int32(len(data))))
    # Padded to few different shapes, since each is compiled once.
    padded = np.zeros(max(64, 1 << (size - 1).bit_length()), np.uint8)
    if speaks:
        padded[:size] = np.frombuffer(data, np.uint8)
    return np.asarray(send(padded), np.uint8)[:size].tobytes()


def leader(directory: Path) -> int:
    """Returns the first of the processes that see the same directory as this one.

    It prepares files that the others then read; 0 if all share a disk, this process if
    each has a separate one.
    """
    if not several():
        return 0
    mark = broadcast_from_first(uuid.uuid4().hex)
    process = jax.process_index()

    def path(index: int) -> Path:
        # New names, which a network file system cannot have cached as missing.
        return directory / f".process-{mark}-{index}"

    try:
        path(process).touch()
        barrier("marks are there")
        first = next(i for i in range(process + 1) if path(i).exists())
        barrier("marks were seen")
    finally:
        path(process).unlink(missing_ok=True)
    return first


def gather_to_host(arrays: Any) -> Any:
    """Returns a pytree of arrays as numpy, gathered from all processes."""
    if not several():
        return jax.device_get(arrays)
    gather = functools.partial(multihost_utils.process_allgather, tiled=True)
    return jax.tree.map(gather, arrays)


def peer_is_gone(error: BaseException) -> bool:
    """Returns True if an error of a collective means that another process has died."""
    if not isinstance(error, RuntimeError | ValueError):
        return False
    signs = ("gloo", "nccl", "connection closed", "coordination service", "barrier")
    return several() and any(sign in str(error).lower() for sign in signs)
