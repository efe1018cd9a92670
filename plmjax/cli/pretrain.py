"""`plmjax pretrain`."""

import argparse
import contextlib
import functools
import json
import math
import re
import time
from pathlib import Path

from plmjax import Exit, PlmjaxError
from plmjax.cli.options import (
    COLLECTED,
    load_config,
    paths_option,
    run_printer,
    saved_config,
    start_jax,
    stopped,
    training_options,
)


def add(verb) -> None:
    """Adds the parser of `plmjax pretrain`."""
    added = verb(
        "pretrain",
        _pretrain,
        "train a model on text, or resume the run in --workdir; without PATHS, the "
        "text is the documentation of the installed Python packages",
        "plmjax pretrain texts/ --config=bert_mini --workdir=runs/mine",
        config=True,
    )
    paths_option(added)
    training_options(
        added,
        "prepare the data, then print sizes, shardings, memory, steps and the first "
        "row",
    )
    for unit, seconds in (("minutes", 60.0), ("hours", 3600.0)):
        added.add_argument(
            f"--{unit}",
            type=functools.partial(_seconds, f"--{unit}", seconds),
            metavar="N",
            help=f"{unit} for the whole command: measures, chooses what the config "
            "does not set, and ends in time; of a resumed run, those of all its starts",
        )
    added.add_argument(
        "--topology",
        metavar="NAME",
        help="with --dry_run: compile for devices that need not be there: v5e:4x4 "
        "(also v5p, v6e; needs plmjax[tpu]), h100, h200:8 (plmjax[topology])",
    )
    added.add_argument(
        "--device",
        metavar="NAME",
        help="with --dry_run: the time on these devices, too: h100, v5e:16, a100,v4",
    )
    added.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        help="the share of the peak that --device reaches (default: 0.4)",
    )
    added.add_argument(
        "--price_per_hour",
        type=float,
        metavar="N",
        help="with --dry_run: what one device costs an hour, in any currency; the run "
        "costs hours x devices x N",
    )
    added.add_argument(
        "--yes",
        action="store_const",
        const=True,
        help="train although the text looks wrong: short for "
        "--config.data.accept_warnings=True",
    )
    added.set_defaults(own_objective=None)  # plmjax.fit sets it


def _seconds(option: str, unit: float, text: str) -> float:
    """Returns the seconds of --minutes or --hours."""
    with contextlib.suppress(ValueError):
        if 0 < (seconds := unit * float(text)) < math.inf:
            return seconds
    raise argparse.ArgumentTypeError(f"{option}={text} must be a number above 0.")


def _clock(args, began: float):
    """Returns the clock of --minutes or --hours, or None.

    Raises:
      PlmjaxError: another option sets the length of training.
    """
    from plmjax.train.clock import Clock

    if args.minutes is None and args.hours is None:
        return None
    option = "--hours" if args.minutes is None else "--minutes"
    keys = ("train.steps", "train.epochs", "train.schedule.kind", "train.schedule.ends")
    linear = "train.schedule.kind=linear"
    given = [o for o in args.overrides if o.startswith(keys) and o != linear]
    given = [f"--config.{o}" for o in given]
    if args.train_steps is not None:
        given = [f"--steps={args.train_steps}"]
    if args.minutes and args.hours:
        given = ["--hours"]
    for name in ("show_config", "coordinator", "num_processes"):
        given += [f"--{name}"] * (getattr(args, name) not in (None, False))
    if given:
        raise PlmjaxError(
            f"{option} cannot be combined with {given[0]}.",
            hint=f"{option} measures what this machine can do, and sets the steps; the "
            "schedule is linear, as its end can be moved. --dry_run shows the choices.",
        )
    return Clock(args.minutes or args.hours, began)


def _config(args):
    """Returns the config and the directory of the run.

    Raises:
      PlmjaxError: the directory follows from the config, and holds another text.
    """
    from plmjax import config as config_lib
    from plmjax.workdir import RunConfig

    given = Path(args.workdir) if args.workdir else None
    config = load_config(args, given)
    if given is not None:
        return config, given
    workdir = Path("runs") / run_name(config)
    # As it would be read back: a tuple becomes a list.
    data = config_lib.flatten(json.loads(json.dumps(config_lib.to_dict(config.data))))
    saved = config_lib.flatten(saved_config(workdir, RunConfig).get("data", data))
    for key in ("source.paths", "source.dataset", "mixture"):
        old, new = saved.get(key, [] if key == "mixture" else None), data[key]
        if old != new:
            raise PlmjaxError(
                f"{workdir} holds a run on another text: its data.{key} is "
                f"{old!r}, not {new!r}.",
                hint="Choose another directory with --workdir.",
            )
    return load_config(args, workdir), workdir


def run_name(config) -> str:
    """Returns the name of a run's default directory.

    That is the config's name, else the names of a mixture's sources, else its first
    path without suffixes and wildcards, else its data set or kind of source.
    """
    paths, kind = config.data.source.paths or (), config.data.source.kind
    kind = (config.data.source.dataset or "").rpartition("/")[2] or kind
    mixed = "-".join(source.name for source in config.data.sources[:3])
    first = paths.split(",")[0] if isinstance(paths, str) else next(iter(paths), "")
    parts = Path(first).absolute().parts if first else ()
    stems = [re.sub(r"[*?\[\]]", "", part.split(".")[0]) for part in reversed(parts)]
    named = [stem for stem in stems if re.search(r"\w", stem)]
    return config.name or mixed or next(iter(named), None) or kind or "docstrings"


def _pretrain(args) -> int:
    from plmjax import config as config_lib
    from plmjax.workdir import RunConfig, Workdir

    # What Python's start has taken at least; not what a notebook did before.
    began = time.monotonic() - (COLLECTED.get() is None) * time.process_time()
    clock = _clock(args, began)
    config, workdir = _config(args)
    if args.show_config:
        config_lib.show(config)
        return Exit.OK
    for option in ("device", "price_per_hour"):
        if getattr(args, option) is not None and not args.dry_run:
            raise PlmjaxError(f"--{option} needs --dry_run.", hint="Add --dry_run.")
    if args.topology and args.dry_run != "compile":
        raise PlmjaxError(
            f"--topology={args.topology} has an effect only if the step is compiled "
            "and not run.",
            hint="Add --dry_run.",
        )
    start_jax(workdir)
    if args.topology:
        import jax

        jax.config.update("jax_platforms", "cpu")  # a device here may be in use
    from plmjax import processes

    group = processes.initialise(args.coordinator, args.num_processes, args.process_id)
    keeps = not args.config and bool(saved_config(workdir, RunConfig))
    log = run_printer(workdir, keeps)
    if group and (args.dry_run or clock is not None):
        what, hint = "--dry_run describes", "To see a mesh, set JAX_NUM_CPU_DEVICES=8"
        if clock is not None:
            what, hint = "--minutes and --hours plan", "Give --steps"
        raise PlmjaxError(
            f"{what} a run in one process, and this is one of several ({group}).",
            hint=f"{hint}, or start one process.",
        )
    from plmjax.experiments.runs import check_directory

    check_directory(workdir, "config.json")
    if clock is not None:
        config = _planned(args, Workdir(workdir), clock)
        if Workdir(workdir).is_finished(config.train.steps):
            clock = None
    if args.dry_run:
        from plmjax.pretrain.dry_run import dry_run
        from plmjax.report.cost import Asked

        devices = tuple(args.device.split(",")) if args.device else ()
        asked = Asked(devices, args.mfu, args.price_per_hour)
        compiles = args.dry_run == "compile"
        dry_run(config, workdir, compiles, args.topology, asked, log=log)
        return Exit.OK
    if group and processes.is_first():
        import jax

        print(f"{jax.process_count()} processes, found by: {group}.", flush=True)
    from plmjax.pretrain.run import pretrain

    result = pretrain(config, workdir, clock, args.own_objective, log)
    code = stopped(result)
    if clock is not None:
        if code == Exit.OK:
            print("\nThe same run again, without a clock:")
            print(f"  plmjax pretrain --config={workdir / 'config.json'} --workdir=DIR")
        print(clock.used(Workdir(workdir).done))
    return code


def _planned(args, workdir, clock):
    """Returns the config of a budget; that of a run that has begun stays.

    So it does of one that was stopped before its first checkpoint, if this command asks
    for the same.

    Raises:
      PlmjaxError: the run began with a number of steps.
    """
    from plmjax import config as config_lib
    from plmjax.pretrain import budget
    from plmjax.workdir import RunConfig

    def load(layer: dict):
        return load_config(args, workdir.path, layer)

    own = [override.partition("=")[0] for override in args.overrides]
    saved = config_lib.build(RunConfig, saved_config(workdir.path, RunConfig))
    record = workdir.read("budget.json", **dict.fromkeys(clock.record(), float))
    if record and saved.train.schedule.ends:
        config = budget.resumed(load, saved, own)
        if workdir.begun or workdir.continues(config):
            clock.resume(record)
            print(clock.used(workdir.done), flush=True)
            return config
    if workdir.begun:
        raise PlmjaxError(
            f"{workdir.path} holds a run that began without --minutes or --hours.",
            hint="Resume it without them, or choose another --workdir.",
        )
    return budget.plan(load, workdir, clock, own, args.own_objective)
