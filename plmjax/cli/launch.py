"""`plmjax launch`."""

import argparse
import contextlib
import dataclasses
import functools
import io
from collections.abc import Sequence
from pathlib import Path

from plmjax import PlmjaxError

TARGETS = ("local", "slurm", "tpu-vm", "gke", "sky")
# Name, type (bool: a switch, list: may be given several times), placeholder and help.
_OPTIONS = (
    ("name", str, "NAME", "of the job, the TPU, and the files (plmjax)"),
    ("to", str, "DIR", "where files and logs go (plmjax-launch)"),
    ("python", str, "PATH", "the Python there (here the one that runs this)"),
    ("restarts", int, "K", "start again after 75, 134, 137, 143, so many times"),
    ("grace_seconds", int, "S", "from SIGTERM to SIGKILL"),
    ("num_processes", int, "N", "processes on this machine (1)"),
    ("devices_per_process", int, "M", "GPUs, or virtual CPU devices without any"),
    ("nodes", int, "N", "machines of the run; on gke hosts of the slice (1)"),
    ("tasks_per_node", int, "N", "processes a node (1)"),
    ("gpus_per_task", int, "N", "GPUs a process"),
    ("cpus_per_task", int, "N", "cores a process"),
    ("time", str, "T", "limit, as sbatch takes it: 12:00:00"),
    ("partition", str, "P", "where to queue"),
    ("account", str, "A", "who pays"),
    ("array", str, "A", "tasks of a job array: 8, 0-7, 0-99%%4"),
    ("commands", str, "FILE", "an array of its lines, in the place of -- VERB"),
    ("zone", str, "Z", "of Google Cloud: us-east5-b"),
    ("project", str, "P", "of Google Cloud"),
    ("accelerator", str, "A", "tpu-vm v6e-16; gke tpu-v6e-slice; sky H100:8"),
    ("runtime", str, "R", "the TPU VM's image: v2-alpha-tpuv6e"),
    ("spot", bool, None, "cheaper machines that may be taken away"),
    ("copy", list, "PATH", "copied to every host, too (several times)"),
    ("keep", bool, None, "leave the TPU there at the end"),
    ("poll_seconds", int, "S", "how often to look (30)"),
    ("install", str, "CMD", "how plmjax gets there (default: this checkout)"),
    ("image", str, "IMAGE", "the container, with plmjax in it"),
    ("topology", str, "T", "of a TPU slice: 4x4"),
    ("devices_per_node", int, "N", "GPUs or chips a node"),
    ("namespace", str, "N", "of Kubernetes"),
    ("queue", str, "Q", "of Kueue"),
    ("infra", str, "I", "gcp/us-central1, aws, k8s"),
    ("cpus", str, "N", "cores a machine: 16+"),
    ("extra", list, "FLAG", "one more flag for sbatch or for gcloud's create"),
)


def add(verb) -> None:
    added = verb(
        "launch",
        _launch,
        "start a run elsewhere, or as several processes here: what stands behind -- is "
        "a command of plmjax",
        "plmjax launch --target=local --num_processes=4 -- pretrain --workdir=runs/a",
    )
    added.add_argument("--target", choices=TARGETS, required=True, help="where")
    added.add_argument(
        "--dry_run", action="store_true", help="print what would be written and called"
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
                f"--{name} is no option of --target={args.target}.",
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
            "the command stands behind --: "
            f"plmjax launch --target={args.target} -- {' '.join(args.misplaced)}"
        )
    check(args.command)
    return target.launch(options, args.command, args.dry_run)


def check_arguments(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Checks the command now, before the other machine would refuse it hours later.

    Raises:
      PlmjaxError: the arguments are no command of plmjax that can be launched.
    """
    if not arguments:
        raise PlmjaxError(
            "no command stands behind --.",
            hint="Example: plmjax launch --target=local -- pretrain --workdir=runs/a",
        )
    overrides = [a for a in arguments if a.startswith("--config.")]
    pretraining = [a for a in arguments if a.startswith("--pretrain.")]
    rest = [a for a in arguments if a not in (*overrides, *pretraining)]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parsed = parser.parse_args(rest)
    except SystemExit as leaving:
        line = said.getvalue().strip().splitlines()[-1] if leaving.code else ""
        reason = line.partition("error: ")[2] or "it only prints something"
        raise PlmjaxError(f"`plmjax {' '.join(rest)}`: {reason}.") from None
    if parsed.verb in (None, "launch"):
        raise PlmjaxError(f"`plmjax {' '.join(rest)}` cannot be launched.")
    if overrides and not hasattr(parsed, "config"):
        raise PlmjaxError(f"`plmjax {parsed.verb}` takes no --config.")
    if pretraining and getattr(parsed, "pretrain", None) is None:
        raise PlmjaxError(
            f"{pretraining[0]} is of no use.",
            hint="It goes with `plmjax compare --pretrain=FILE`.",
        )
    if "://" in (getattr(parsed, "workdir", None) or ""):
        raise PlmjaxError(
            f"--workdir={parsed.workdir} must be a directory.",
            hint=f"Checkpoints go to --config.train.checkpoints={parsed.workdir}.",
        )
    _check_config(parsed, [o.removeprefix("--config.") for o in overrides])


def _check_config(parsed: argparse.Namespace, overrides: Sequence[str]) -> None:
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
    if not file or Path(file.partition(":")[0]).is_file():
        config_lib.load(schemas[parsed.verb], file, overrides)
