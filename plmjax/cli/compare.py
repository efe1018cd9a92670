"""`plmjax compare`, and the part of `plmjax finetune` for several seeds or folds."""

from pathlib import Path

from plmjax import Exit, PlmjaxError
from plmjax.cli import recipes
from plmjax.cli.options import (
    at_least_one,
    log,
    start_jax,
    stopped,
)


def add(verb) -> None:
    """Adds the parser of `plmjax compare`."""
    added = verb(
        "compare",
        _compare,
        "fine-tune several models by one protocol, and report which differences "
        "exceed chance",
        "plmjax compare runs/mine bert-base --tasks=classes,topics.py --seeds=5 "
        "--workdir=runs/compared",
        config=True,
    )
    add = added.add_argument
    add("models", nargs="*", metavar="MODEL", help="runs' workdirs or folders")
    add(
        "--pretrain",
        metavar="FILE",
        help="instead of models: a recipe or file of `plmjax sweep` with settings of "
        "pretraining, each trained by every seed at equal compute first; "
        "--pretrain.KEY=VALUE sets a key of all",
    )
    add("--parallel", type=int, metavar="N", help="pretrainings at a time (default: 1)")
    add("--tasks", metavar="FILE,...", help="recipes or configs of `plmjax finetune`")
    add(
        "--setting",
        action="append",
        metavar="NAME[:KEY=VALUE,...]",
        help="plain (default), safe, or a name and the keys it sets; may be repeated",
    )
    add("--workdir", help="directory of the study")
    repeat_options(added)


def repeat_options(added) -> None:
    """Adds the options for repeated runs: seeds, folds, and which seeds differ."""
    add = added.add_argument
    add("--seeds", type=int, metavar="N", help="run N seeds, and compare them")
    add(
        "--folds", type=int, metavar="K", help="run each of K folds of the training set"
    )
    add(
        "--vary",
        metavar="data,init,dropout",
        help="which of the seeds differ; the others stay (default: all three)",
    )


def is_repeated(args) -> bool:
    """Whether --seeds or --folds ask for several runs of one config."""
    given = args.seeds is not None or args.folds is not None
    if args.vary is not None and not given:
        raise PlmjaxError(
            f"--vary={args.vary} sets which seeds differ, but there is only one run.",
            hint="Give --seeds=N, too.",
        )
    return given


def repeats_of(args):
    """Returns the repetitions that --seeds, --folds and --vary ask for."""
    from plmjax.experiments.compare_plan import VARY, Repeats

    vary = VARY if args.vary is None else tuple(args.vary.split(","))
    seeds = 1 if args.seeds is None else args.seeds
    return Repeats(seeds, args.folds, vary)


def finetune_config(args, safe: bool):
    """Returns the config of `plmjax finetune`, with the safe recipe if asked for."""
    from plmjax.experiments.compare import encoders
    from plmjax.experiments.compare_plan import config_of, parse_setting

    setting = parse_setting("safe" if safe else "plain")
    return config_of(args.config, args.overrides, setting, encoders())


def finetune_repeated(args, config, workdir: Path) -> int:
    """Runs `plmjax finetune` with several seeds or folds; returns the exit code."""
    from plmjax.experiments import compare_plan
    from plmjax.finetune.config import FinetuneConfig

    if config.model is None:
        raise PlmjaxError(
            "no model is named to start from.",
            hint="Set --config.model to a run's workdir or a Hugging Face folder.",
        )
    file = args.config or config.task.train or FinetuneConfig.__name__
    task = compare_plan.distinct([file], "task file")[file]
    setting = compare_plan.parse_setting("safe" if args.safe else "plain")
    repeats = repeats_of(args)
    study = compare_plan.finetune_plan(workdir, task, setting, config, repeats)
    return _run(study, f"Run directory: {workdir}\n")


def _compare(args) -> int:
    for given, name in (
        (args.models or args.pretrain, "models: plmjax compare MODEL MODEL"),
        (args.tasks, "task files: --tasks=FILE.py,FILE.py"),
        (args.workdir, "directory: --workdir=DIR"),
    ):
        if not given:
            raise PlmjaxError("a comparison is not complete.", hint=f"Give its {name}.")
    if args.config is not None:
        raise PlmjaxError(
            f"--config={args.config}: the configs of a comparison are its tasks.",
            hint=f"Give --tasks={args.config}.",
        )
    if args.pretrain is not None:
        return _pretrain_and_compare(args)
    if args.parallel is not None:
        raise PlmjaxError(
            f"--parallel={args.parallel} is of pretrainings, and there are none.",
            hint="Give --pretrain=FILE, or leave it out.",
        )
    from plmjax.experiments import compare, compare_plan

    root = Path(args.workdir)
    repeats = repeats_of(args)
    settings = [compare_plan.parse_setting(text) for text in args.setting or ["plain"]]
    start_jax(root)
    study = compare_plan.compare_plan(
        root,
        compare_plan.named_models(args.models),
        _tasks(args),
        settings=settings,
        repeats=repeats,
        overrides=args.overrides,
        encoders=compare.encoders(),
    )
    return _run(study, f"Study directory: {root}\n")


def _tasks(args) -> list[str]:
    return [recipes.resolve(task, "finetune") for task in args.tasks.split(",")]


def _pretrain_and_compare(args) -> int:
    if args.models:
        raise PlmjaxError(
            f"{args.models[0]} and the models of --pretrain={args.pretrain} did not "
            "cost the same.",
            hint="Compare finished models without --pretrain.",
        )
    if args.vary is not None:
        raise PlmjaxError(
            f"--vary={args.vary}, but each seed has a pretraining of its own.",
            hint="Leave it out: everything differs between seeds.",
        )
    at_least_one(args, "parallel", "seeds")
    from plmjax.console import console
    from plmjax.experiments import budget, compare_plan, pretrained, sweep_plan

    root = Path(args.workdir)
    start_jax(root)
    file = recipes.resolve(args.pretrain, "sweep")
    sweep = sweep_plan.load(file, args.pretrain_overrides, args.seeds)
    settings = [compare_plan.parse_setting(text) for text in args.setting or ["plain"]]
    study = pretrained.pretrained_plan(
        root,
        sweep,
        _tasks(args),
        settings=settings,
        folds=args.folds,
        overrides=args.overrides,
    )
    pretrained.check_data(study)
    print(f"Study directory: {root}", flush=True)
    console().print(budget.screen(study.budgets))
    code, study = pretrained.pretrain(study, sweep, args.parallel or 1, log)
    return _run(study) if code == Exit.OK else code


def _run(study, first: str = "") -> Exit:
    from plmjax import processes
    from plmjax.experiments import compare
    from plmjax.files import missing, no_empty_directory

    def show(text: str) -> None:
        if processes.is_first():
            print(text, end="", flush=True)

    show(first)
    with no_empty_directory(missing(study.root)):
        return stopped(compare.study(study, show))
