"""`plmjax finetune` and `plmjax predict`."""

from pathlib import Path

from plmjax import Exit, PlmjaxError
from plmjax.cli import compare
from plmjax.cli.options import (
    at_least_one,
    chosen_input,
    input_options,
    log,
    not_empty,
    print_json_line,
    run_printer,
    saved_config,
    start_jax,
    stopped,
    training_options,
)


def add(verb) -> None:
    """Adds the parser of `plmjax finetune` and `predict`."""
    added = verb(
        "finetune",
        _finetune,
        "put a head on a pretrained model and train both on labelled data",
        "plmjax finetune --config=classes:small --config.model=runs/mine "
        "--config.task.train=train.csv --workdir=runs/sentiment",
        config=True,
    )
    training_options(
        added,
        "read and check all data, then print sizes, memory, steps, labels and the "
        "first row",
    )
    compare.repeat_options(added)
    added.add_argument(
        "--safe",
        action="store_true",
        help="use a recipe that avoids seeds that do not learn (docs/studies.md)",
    )

    added = verb(
        "predict",
        _predict,
        "predict the labels of new texts with a fine-tuned model, or with the average "
        "of several models",
        "plmjax predict --model=runs/sentiment --input=new.csv "
        "--output=predictions.jsonl\n"
        "  plmjax predict --model=runs/sentiment --text='A fine film.'",
        config=True,
    )
    added.add_argument(
        "--model",
        required=True,
        type=not_empty("--model"),
        help="workdir or folder of a fine-tuned model; commas separate several",
    )
    input_options(added, "texts, with or without labels", "FILE.jsonl, .csv or .tsv")
    added.add_argument(
        "--batch", type=int, default=32, help="rows per batch (default: 32)"
    )


def _finetune(args) -> int:
    from plmjax import config as config_lib
    from plmjax.finetune.config import FinetuneConfig

    workdir = Path(args.workdir) if args.workdir else None
    keeps = args.config is None and not args.safe

    def load(directory: Path | None) -> FinetuneConfig:
        base = saved_config(directory, FinetuneConfig) if keeps else {}
        return config_lib.load(FinetuneConfig, args.config, args.overrides, base)

    config = load(workdir)
    if workdir is None and config.name is not None:
        workdir = Path("runs") / str(config.name)
        config = load(workdir)
    several = compare.is_repeated(args)
    if args.show_config:
        if args.safe:
            start_jax()
            config = compare.finetune_config(args, safe=True)
        config_lib.show(config)
        return Exit.OK
    if workdir is None:
        raise PlmjaxError(
            "the run has no directory.",
            hint="Set --workdir=DIR or --config.name=NAME.",
        )
    start_jax(workdir)
    from plmjax import processes

    processes.initialise(args.coordinator, args.num_processes, args.process_id)
    log = run_printer(workdir, keeps and bool(saved_config(workdir, FinetuneConfig)))
    from plmjax.experiments.runs import check_directory
    from plmjax.finetune.run import finetune

    if not several:
        check_directory(workdir, "config.json")
    if args.dry_run:
        return _dry_run(args, config, workdir, log)
    if args.safe:
        config = processes.run_on_all(lambda: compare.finetune_config(args, safe=True))
    if several:
        return compare.finetune_repeated(args, config, workdir)
    return stopped(finetune(config, workdir, log))


def _dry_run(args, config, workdir: Path, log) -> int:
    from plmjax.finetune.dry_run import dry_run
    from plmjax.processes import several

    if several() or compare.is_repeated(args):
        raise PlmjaxError(
            "--dry_run describes one fine-tuning in one process.",
            hint="Remove --seeds, --folds and the options of several processes.",
        )
    if args.safe:
        config = compare.finetune_config(args, safe=True)
    dry_run(config, workdir, args.dry_run == "compile", log)
    return Exit.OK


def _predict(args) -> int:
    start_jax()
    from plmjax.finetune.predict import predict

    at_least_one(args, "batch")
    with chosen_input(args) as source:
        done = predict(
            args.model.split(","),
            source,
            print_json_line if args.output == "-" else Path(args.output),
            overrides=args.overrides,
            file=args.config,
            batch=args.batch,
            log=log,
        )
    if args.output != "-":
        print(f"{done:,} predictions in {args.output}.")
    return Exit.OK
