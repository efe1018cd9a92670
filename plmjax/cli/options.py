"""Shared code of the verbs: options, configs, and the start of jax."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from plmjax import RESUME, Exit, PlmjaxError


def model_option(added: argparse.ArgumentParser) -> None:
    """Adds --model."""
    added.add_argument(
        "--model", required=True, help="a run's workdir or a Hugging Face folder"
    )


def json_option(added: argparse.ArgumentParser) -> None:
    """Adds --json."""
    added.add_argument("--json", action="store_true", help="print only JSON")


def checkpoint_option(added: argparse.ArgumentParser) -> None:
    """Adds --checkpoint."""
    added.add_argument(
        "--checkpoint",
        default="newest",
        help="newest (default), best, or the number of a step",
    )


def group_options(added: argparse.ArgumentParser) -> None:
    """Adds the options by which the processes of a run connect."""
    added.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="address of process 0, for a run of several processes, with "
        "--num_processes and --process_id (not needed on Slurm, Open MPI, TPU pods and "
        "Kubernetes)",
    )
    added.add_argument(
        "--num_processes", type=int, metavar="N", help="number of processes"
    )
    added.add_argument(
        "--process_id",
        type=int,
        metavar="I",
        help="number of this process, from 0 to N - 1",
    )


def training_options(added: argparse.ArgumentParser, built: str) -> None:
    """Adds the options of all trainings; `built` describes the dry run in the help."""
    added.add_argument("--workdir", help="directory of the run (default: runs/NAME)")
    group_options(added)
    added.add_argument(
        "--dry_run",
        nargs="?",
        const="compile",
        choices=("compile", "shapes"),
        help=f"{built}; compile the step (not with shapes), print the communication "
        "of the devices, and stop",
    )
    added.add_argument(
        "--show_config",
        action="store_true",
        help="print each config key with its type, range and value, and stop",
    )


def stopped(result: dict) -> Exit:
    """Prints the signal and saved step, if any; returns the exit code of a training."""
    from plmjax import processes

    if "stopped" not in result:
        return Exit.OK
    if processes.is_first():
        step = result["step"]
        saved = "nothing is" if step is None else f"step {step:,} is"
        print(f"Stopped by {result['stopped']}; {saved} saved. {RESUME}")
    return Exit.RESUMABLE


def start_jax(workdir: Path | None = None) -> None:
    """Silences the libraries, and caches compiled programs in the workdir."""
    import logging

    import jax

    # Orbax logs a failed save from several threads with tracebacks; plmjax reports it.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("jax").setLevel(logging.ERROR)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if workdir is not None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(workdir / ".xla"))


def load_config(args, workdir: Path | None):
    """Returns the config of a pretraining: imported layer, file, overrides."""
    from plmjax import config as config_lib
    from plmjax.pretrain.export import imported_layer
    from plmjax.pretrain.run import DEFAULT_CONFIG
    from plmjax.workdir import RunConfig, Workdir

    base = imported_layer(Workdir(workdir)) if workdir else {}
    if args.config is None and not base:
        base = DEFAULT_CONFIG
    return config_lib.load(RunConfig, args.config, args.overrides, base)


def at_least_one(args, *names: str) -> None:
    """Raises PlmjaxError for the first option below 1; None is allowed."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise PlmjaxError(f"--{name}={value} must be at least 1.")


def numbers(text: str, name: str) -> tuple[int, ...]:
    """Returns the integers of an option such as --devices=8,64, ascending."""
    try:
        return tuple(sorted(int(item) for item in text.split(",")))
    except ValueError:
        raise PlmjaxError(
            f"--{name}={text} must be numbers, joined by commas."
        ) from None


def print_result(args, result: dict, as_text: Callable[[dict], str]) -> Exit:
    """Prints a benchmark's result, as JSON with --json; returns the exit code."""
    import json

    print(json.dumps(result) if args.json else as_text(result))
    return Exit.OK


def log(message: str) -> None:
    """Prints a message to stderr, so that stdout holds the result alone."""
    print(message, file=sys.stderr, flush=True)
