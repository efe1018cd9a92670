"""`plmjax launch`."""

import argparse
import contextlib
import dataclasses
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plmjax import PlmjaxError

TARGETS = ("local", "slurm", "tpu-vm", "gke", "sky")
# Name, type (bool: a switch, list: may be given several times), placeholder and help.
_OPTIONS = (
    ("name", str, "NAME", "name of the job, the TPU and the files (plmjax)"),
    ("to", str, "DIR", "directory of the files and logs (plmjax-launch)"),
    ("python", str, "PATH", "Python of that machine (on this one: the running Python)"),
    ("restarts", int, "K", "restarts allowed, after codes 75, 134, 137 and 143"),
    ("grace_seconds", int, "S", "seconds from SIGTERM to SIGKILL"),
    ("num_processes", int, "N", "number of processes on this machine (1)"),
    ("devices_per_process", int, "M", "GPUs a process; without GPUs virtual CPUs"),
    ("nodes", int, "N", "number of machines; on gke the hosts of the slice (1)"),
    ("tasks_per_node", int, "N", "processes per node (1)"),
    ("gpus_per_task", int, "N", "GPUs per process"),
    ("cpus_per_task", int, "N", "cores per process"),
    ("time", str, "T", "time limit in sbatch's format: 12:00:00"),
    ("partition", str, "P", "Slurm partition"),
    ("account", str, "A", "Slurm account"),
    ("array", str, "A", "tasks of a job array: 8, 0-7, 0-99%%4"),
    ("commands", str, "FILE", "run each line of FILE as an array task; no -- VERB"),
    ("zone", str, "Z", "zone of Google Cloud: us-east5-b"),
    ("project", str, "P", "project of Google Cloud"),
    ("accelerator", str, "A", "tpu-vm v6e-16; gke tpu-v6e-slice; sky H100:8"),
    ("runtime", str, "R", "image of the TPU VM: v2-alpha-tpuv6e"),
    ("spot", bool, None, "use cheaper machines, which the cloud may stop"),
    ("copy", list, "PATH", "also copy PATH to every host (may be repeated)"),
    ("keep", bool, None, "do not delete the TPU at the end"),
    ("poll_seconds", int, "S", "seconds between two looks at the state (30)"),
    ("install", str, "CMD", "command that installs plmjax (default: this checkout)"),
    ("image", str, "IMAGE", "container image with plmjax"),
    ("topology", str, "T", "topology of the TPU slice: 4x4"),
    ("devices_per_node", int, "N", "GPUs or TPU chips per node"),
    ("namespace", str, "N", "Kubernetes namespace"),
    ("queue", str, "Q", "Kueue queue"),
    ("infra", str, "I", "gcp/us-central1, aws, k8s"),
    ("cpus", str, "N", "cores per machine: 16+"),
    ("extra", list, "FLAG", "further flag for sbatch or gcloud (may be repeated)"),
)


def add(verb) -> None:
    """Adds the parser of `plmjax launch`."""
    added = verb(
        "launch",
        _launch,
        "start a plmjax command, given after --, on a cluster or in a cloud, or as "
        "several processes on this machine",
        "plmjax launch --target=local --num_processes=4 -- pretrain --workdir=runs/a",
    )
    added.add_argument(
        "--target", choices=TARGETS, required=True, help="where to start it"
    )
    added.add_argument(
        "--dry_run", action="store_true", help="print the files and commands, and stop"
    )
    # A command without the "--" before it; _launch explains that better than argparse.
    added.add_argument("misplaced", nargs="*", help=argparse.SUPPRESS)
    known = {target: _names(target) for target in TARGETS}
    for name, kind, placeholder, help in _OPTIONS:
        of = ", ".join(target for target in TARGETS if name in known[target])
        if kind is bool:
            settings: dict = {"action": "store_true", "default": None}
        else:
            action = {"action": "append"} if kind is list else {"type": kind}
            settings = {"metavar": placeholder, **action}
        added.add_argument(f"--{name}", help=f"[{of}] {help}", **settings)


def _names(target: str) -> set[str]:
    return {field.name for field in dataclasses.fields(_target(target).Options)}


def _target(name: str):
    import importlib

    return importlib.import_module(f"plmjax.launch.{name.replace('-', '_')}")


def _launch(args) -> int:
    target = _target(args.target)
    given = {
        name: tuple(value) if kind is list else value
        for name, kind, _, _ in _OPTIONS
        if (value := getattr(args, name)) is not None
    }
    for name, value in given.items():
        if name not in _names(args.target):
            others = ", ".join(t for t in TARGETS if name in _names(t))
            raise PlmjaxError(
                f"--target={args.target} has no option --{name}.",
                hint=f"It belongs to {others}.",
            )
        least = 0 if name in ("restarts", "grace_seconds") else 1
        if isinstance(value, int) and value < least:
            raise PlmjaxError(f"--{name}={value} must be at least {least}.")
    options = target.Options(**given)
    check = functools.partial(check_arguments, args.parser)
    if args.target == "slurm" and options.commands:
        return target.launch(options, args.command, args.dry_run, check)
    if not args.command and args.misplaced:
        raise PlmjaxError(
            "the command must follow --.",
            hint=f"Write plmjax launch --target={args.target} -- "
            f"{' '.join(args.misplaced)}",
        )
    check(args.command)
    return target.launch(options, args.command, args.dry_run)


def check_arguments(parser: Any, arguments: Sequence[str]) -> None:
    """Checks the command here, before another machine rejects it hours later.

    Raises:
      PlmjaxError: the arguments are no command of plmjax that can be launched.
    """
    if not arguments:
        raise PlmjaxError(
            "no command follows --.",
            hint="Example: plmjax launch --target=local -- pretrain --workdir=runs/a",
        )
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            parsed = parser.read(arguments)
    except SystemExit as leaving:
        line = output.getvalue().strip().splitlines()[-1] if leaving.code else ""
        reason = line.partition("error: ")[2] or "it only prints its help or version"
        raise PlmjaxError(f"`plmjax {' '.join(arguments)}`: {reason}") from None
    if parsed.verb in (None, "launch"):
        raise PlmjaxError(f"`plmjax {' '.join(arguments)}` cannot be launched.")
    _check_config(parsed)


def _check_config(parsed: argparse.Namespace) -> None:
    """Raises for keys and values that a training would refuse, if its config is here.

    The config file may exist only on the other machine, and so may the workdir that a
    pretraining without a file resumes.
    """
    from plmjax import config as config_lib
    from plmjax.finetune.config import FinetuneConfig
    from plmjax.workdir import RunConfig

    schemas = {"pretrain": RunConfig, "finetune": FinetuneConfig}
    file = getattr(parsed, "config", None)
    if parsed.verb not in schemas or (not file and parsed.verb == "pretrain"):
        return
    name = (file or "").partition(":")[0]
    if not file or name in config_lib.recipes() or Path(name).is_file():
        config_lib.load(schemas[parsed.verb], file, parsed.overrides)
