"""`plmjax pretrain`."""

from pathlib import Path

from plmjax import Exit, PlmjaxError
from plmjax.cli.options import load_config, start_jax


def add(verb) -> None:
    added = verb(
        "pretrain",
        _pretrain,
        "train a model from text, or go on with a run; without a config, on the "
        "documentation of the installed Python packages",
        "plmjax pretrain --config=configs/pretrain/bert_mini.py "
        "--config.data.source.paths='texts/*.txt' --workdir=runs/mine",
        config=True,
    )
    added.add_argument("--workdir", help="where the run lives (default: runs/NAME)")
    added.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="where process 0 of several is; --num_processes and --process_id go with "
        "it (found by itself on Slurm, Open MPI, TPU pods and Kubernetes)",
    )
    added.add_argument("--num_processes", type=int, metavar="N", help="of this run")
    added.add_argument("--process_id", type=int, metavar="I", help="0 to N - 1")
    added.add_argument(
        "--dry_run",
        nargs="?",
        const="compile",
        choices=("compile", "shapes"),
        help="build everything, print sizes, shardings, memory, steps and the first "
        "row, compile the step (shapes: do not), print what devices send; stop",
    )
    added.add_argument(
        "--show_config",
        action="store_true",
        help="print every key with its type and value, and stop",
    )


def _pretrain(args) -> int:
    from plmjax import config as config_lib

    workdir = Path(args.workdir) if args.workdir else None
    config = load_config(args, workdir)
    if args.show_config:
        from plmjax.train.workdir import RunConfig

        values = config_lib.flatten(config.to_dict())
        for key, kind in config_lib.fields(RunConfig):
            if key in values:  # others belong to another kind of objective
                print(f"{key} = {values[key]!r}  ({config_lib.describe(kind)})")
        return Exit.OK
    values = config.to_dict()
    name = values["name"] or values["data"]["source"]["kind"]
    workdir = workdir or Path("runs") / name
    start_jax(workdir)
    from plmjax.train import processes

    found = processes.initialise(args.coordinator, args.num_processes, args.process_id)
    if processes.is_first():
        print(f"Run directory: {workdir}", flush=True)
    if args.dry_run and found:
        raise PlmjaxError(
            "--dry_run looks at a run from one process.",
            hint="Leave the flags of several out; JAX_NUM_CPU_DEVICES=8 shows a mesh.",
        )
    if args.dry_run:
        from plmjax.dry_run import dry_run

        dry_run(config, workdir, compiles=args.dry_run == "compile")
        return Exit.OK
    if found and processes.is_first():
        import jax

        print(f"{jax.process_count()} processes, found by: {found}.", flush=True)
    from plmjax import pretrain

    result = pretrain.pretrain(config, workdir)
    if "stopped" in result:
        if processes.is_first():
            step = result["step"]
            saved = "nothing is" if step is None else f"step {step:,} is"
            print(
                f"Stopped by {result['stopped']}; {saved} saved. "
                "The same command goes on from there."
            )
        return Exit.RESUMABLE
    return Exit.OK
