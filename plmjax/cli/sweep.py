"""`plmjax sweep`."""

from pathlib import Path

from plmjax import Exit, PlmjaxError
from plmjax.cli.options import at_least_one, log


def add(verb) -> None:
    """Adds the parser of `plmjax sweep`."""
    added = verb(
        "sweep",
        _sweep,
        "train the runs that a file lists, or a search draws, and compare them; they "
        "pretrain or fine-tune",
        "plmjax sweep --config=learning_rate --workdir=runs/rates --parallel=2",
        config=True,
    )
    add = added.add_argument
    add("--workdir", help="directory of the sweep (default: runs/NAME)")
    add(
        "--runner",
        choices=("local", "slurm", "print"),
        default="local",
        help="run the trials here, write a Slurm array's commands, or print them",
    )
    add(
        "--parallel",
        type=int,
        default=1,
        help="trials at a time here; cores and GPUs are divided among them",
    )
    add("--collect", action="store_true", help="only read and report the results")
    add("--retry_failed", action="store_true", help="start failed trials again")
    add(
        "--own_text",
        action="store_true",
        help="let each trial prepare its text; else it is tokenised once for all",
    )
    add("--dry_run", action="store_true", help="check and list the trials; stop")


def _sweep(args) -> int:
    from plmjax.console import console
    from plmjax.experiments import sweep as drive
    from plmjax.experiments import sweep_plan as plan

    at_least_one(args, "parallel")
    if args.config is None:
        raise PlmjaxError(
            "a sweep needs its file.",
            hint="For example --config=learning_rate; --list shows the recipes.",
        )
    sweep = plan.load(args.config, args.overrides)
    if args.dry_run:
        console().print(drive.show(sweep))
        return Exit.OK
    name = Path(args.config.partition(":")[0]).stem
    root = Path(args.workdir) if args.workdir else Path("runs") / name
    log(f"Sweep directory: {root}")
    if args.collect:
        return drive.collect(sweep, root, log)
    options = drive.Options(
        args.runner, args.parallel, args.retry_failed, not args.own_text
    )
    return drive.sweep(sweep, root, options, log)
