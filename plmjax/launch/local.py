"""Several processes of one run on this machine."""

import dataclasses
import importlib.util
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from plmjax import RESUME, Exit, PlmjaxError, counted
from plmjax.children import free_port
from plmjax.launch import command, group, templates


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of --target=local."""

    num_processes: int = 1
    devices_per_process: int | None = None
    restarts: int = 0
    grace_seconds: int = 30
    python: str = sys.executable


def launch(options: Options, arguments: Sequence[str], dry_run: bool) -> int:
    """Runs `plmjax ARGUMENTS` in several processes; returns the launcher's exit code.

    Raises:
      PlmjaxError: the machine has too few devices, or the Python does not exist.
    """
    argv = command.module(options.python, arguments)
    gpus = visible_gpus(os.environ, Path("/dev"))
    # Other devices have such files, too, so libtpu is also required.
    tpus = importlib.util.find_spec("libtpu") and has_tpus(Path("/dev"))
    if tpus and options.num_processes > 1 and _platform_may_be(os.environ, "tpu"):
        raise PlmjaxError(
            "one process uses all chips of a TPU host.",
            hint="Leave out --num_processes; for the other hosts, --target=tpu-vm.",
        )

    def processes() -> list[group.Process]:
        port = free_port()
        added = [
            variables(options, index, port, os.environ, gpus)
            for index in range(options.num_processes)
        ]
        return [group.Process(argv, environment) for environment in added]

    if dry_run:
        print(_script(processes()), end="")
        return Exit.OK
    if shutil.which(options.python) is None:
        raise PlmjaxError(f"--python={options.python} is not a program.")
    for restart in range(options.restarts + 1):
        started = [
            group.Process(p.argv, os.environ | p.environment) for p in processes()
        ]
        ended = group.run_group(started, options.grace_seconds)
        code = exit_code(ended)
        if code == Exit.OK:
            return code
        if ended.first is not None:
            outcome = group.describe(ended.codes[ended.first])
            command.log(f"Process {ended.first} {outcome}, the first of the failures.")
        if code != Exit.RESUMABLE or ended.stopped or restart == options.restarts:
            break
        command.log(f"Starting again, {restart + 1} of {options.restarts} times.")
    if code == Exit.RESUMABLE:
        command.log(RESUME)
    return code


def exit_code(ended: group.Ended) -> int:
    """Returns 0, 75 if the same command can resume, or the first failure's code."""
    if ended.first is None:
        return Exit.OK
    code = ended.code
    if ended.stopped:
        # After a stop request all of them fail; a code that cannot resume matters most.
        failures = [c for c in ended.codes if c and c not in command.RESTARTABLE]
        code = failures[0] if failures else int(Exit.RESUMABLE)
    return Exit.RESUMABLE if code in command.RESTARTABLE else code


def variables(
    options: Options,
    index: int,
    port: int,
    environment: Mapping[str, str],
    gpus: Sequence[str],
) -> dict[str, str]:
    """Returns the environment variables that one process gets in addition.

    Raises:
      PlmjaxError: there are fewer GPUs than processes need.
    """
    # When writing to a pipe, Python would buffer blocks instead of lines.
    added = {"PYTHONUNBUFFERED": "1"}
    if options.num_processes > 1:
        added |= {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "PLMJAX_NUM_PROCESSES": str(options.num_processes),
            "PLMJAX_PROCESS_ID": str(index),
        }
    if gpus and _platform_may_be(environment, "cuda"):
        share = options.devices_per_process or len(gpus) // options.num_processes
        needed = share * options.num_processes
        if not share or needed > len(gpus):
            raise PlmjaxError(
                f"{options.num_processes} processes with "
                f"{counted(share or 1, 'GPU')} each need more than the "
                f"{len(gpus)} that are visible here.",
                hint="Set JAX_PLATFORMS=cpu to use virtual CPU devices instead.",
            )
        mine = gpus[index * share : (index + 1) * share]
        return added | {
            "CUDA_VISIBLE_DEVICES": ",".join(mine),
            "JAX_LOCAL_DEVICE_IDS": ",".join(map(str, range(share))),
        }
    if options.devices_per_process is not None:
        added["JAX_NUM_CPU_DEVICES"] = str(options.devices_per_process)
    devices = int(added.get("JAX_NUM_CPU_DEVICES", _number(environment)))
    # A collective on CPUs blocks a thread for each device and process; with too few
    # threads they would deadlock.
    threads = max(os.cpu_count() or 1, 4 * devices, 8)
    given = environment.get("NPROC", "")
    added["NPROC"] = str(max(threads, int(given) if given.isdecimal() else 0))
    return added


def _number(environment: Mapping[str, str]) -> str:
    given = environment.get("JAX_NUM_CPU_DEVICES", "1")
    return given if given.isdecimal() else "1"


def visible_gpus(environment: Mapping[str, str], devices: Path) -> list[str]:
    """Returns the GPUs that a process started here would see, by their CUDA names."""
    if (chosen := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        names = [name.strip() for name in chosen.split(",")]
        # CUDA stops at the first unknown name, usually -1.
        end = next((i for i, n in enumerate(names) if n in ("", "-1")), len(names))
        return names[:end]
    # In a container a node may be named nvidia3, but CUDA still calls it 0.
    count = sum(bool(re.fullmatch(r"nvidia\d+", p.name)) for p in devices.iterdir())
    return [str(number) for number in range(count)]


def has_tpus(devices: Path) -> bool:
    """Whether the folder has device files like those of TPU chips."""
    return (devices / "accel0").exists() or (devices / "vfio/0").exists()


def _platform_may_be(environment: Mapping[str, str], platform: str) -> bool:
    chosen = environment.get("JAX_PLATFORMS", "")
    return not chosen or platform in chosen or (platform == "cuda" and "gpu" in chosen)


def _script(processes: Sequence[group.Process]) -> str:
    lines = []
    for process in processes:
        settings = [f"{k}={shlex.quote(v)}" for k, v in process.environment.items()]
        lines.append(f"{' '.join(settings)} {templates.shell_line(process.argv)} &")
    directory = templates.shell(str(Path.cwd()))
    return templates.fill("local.sh", {"directory": directory, "process": lines})
