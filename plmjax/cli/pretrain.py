"""`plmjax pretrain`."""

from pathlib import Path

from plmjax import Exit, PlmjaxError
from plmjax.cli.options import load_config, start_jax, stopped, training_options


def add(verb) -> None:
    """Adds the parser of `plmjax pretrain`."""
    added = verb(
        "pretrain",
        _pretrain,
        "train a model on text, or resume a run; without a config, the text is the "
        "documentation of the installed Python packages",
        "plmjax pretrain --config=configs/pretrain/bert_mini.py "
        "--config.data.source.paths='texts/*.txt' --workdir=runs/mine",
        config=True,
    )
    training_options(
        added,
        "prepare the data, then print sizes, shardings, memory, steps and the first "
        "row",
    )


def _pretrain(args) -> int:
    from plmjax import config as config_lib

    workdir = Path(args.workdir) if args.workdir else None
    config = load_config(args, workdir)
    if args.show_config:
        config_lib.show(config)
        return Exit.OK
    name = config.name or config.data.source.kind
    workdir = workdir or Path("runs") / name
    start_jax(workdir)
    from plmjax import processes

    group = processes.initialise(args.coordinator, args.num_processes, args.process_id)
    if processes.is_first():
        print(f"Run directory: {workdir}", flush=True)
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

        dry_run(config, workdir, compiles=args.dry_run == "compile")
        return Exit.OK
    if group and processes.is_first():
        import jax

        print(f"{jax.process_count()} processes, found by: {group}.", flush=True)
    from plmjax.pretrain.run import pretrain

    return stopped(pretrain(config, workdir))
