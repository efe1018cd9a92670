"""`plmjax pretrain`."""

import json
import re
from pathlib import Path

from plmjax import Exit, PlmjaxError
from plmjax.cli.options import (
    load_config,
    paths_option,
    print_run,
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
    added.add_argument(
        "--topology",
        metavar="NAME",
        help="with --dry_run: compile for devices that need not be there: v5e:4x4 "
        "(also v5p, v6e; needs plmjax[tpu]), h100, h200:8 (plmjax[topology])",
    )
    added.add_argument(
        "--yes",
        action="store_const",
        const=True,
        help="train although the text looks wrong: short for "
        "--config.data.accept_warnings=True",
    )
    added.set_defaults(own_objective=None)  # plmjax.fit sets it


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
    from plmjax.workdir import RunConfig

    config, workdir = _config(args)
    if args.show_config:
        config_lib.show(config)
        return Exit.OK
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
    if processes.is_first():
        print_run(workdir, not args.config and bool(saved_config(workdir, RunConfig)))
    if args.dry_run and group:
        raise PlmjaxError(
            "--dry_run describes a run in one process.",
            hint="Remove the options of several processes; to see a mesh, set "
            "JAX_NUM_CPU_DEVICES=8.",
        )
    from plmjax.experiments.runs import check_directory

    check_directory(workdir, "config.json")
    if args.dry_run:
        from plmjax.pretrain.dry_run import dry_run

        dry_run(config, workdir, args.dry_run == "compile", args.topology)
        return Exit.OK
    if group and processes.is_first():
        import jax

        print(f"{jax.process_count()} processes, found by: {group}.", flush=True)
    from plmjax.pretrain.run import pretrain

    return stopped(pretrain(config, workdir, args.own_objective))
