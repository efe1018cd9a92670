"""`plmjax bench`; comparisons and estimates on paper are in benchmarks/."""

import argparse
import shlex
from pathlib import Path

from plmjax import PlmjaxError
from plmjax.cli.options import (
    at_least_one,
    check_plot,
    json_option,
    load_config,
    log,
    not_empty,
    numbers,
    paths_option,
    print_result,
    start_jax,
)


def add(verb) -> None:
    """Adds the parser of `plmjax bench` and its commands."""
    added = verb(
        "bench",
        None,
        "measure the speed of training, of preparing text or of a finished model",
        "plmjax bench train --config=my_config.py",
    )
    benches = added.add_subparsers(dest="what", metavar="WHAT", required=True)
    added = verb(
        "train",
        _bench_train,
        "time the training step of a config on its own data",
        "plmjax bench train my.txt --config=bert_mini --steps=50",
        config=True,
        of=benches,
    )
    paths_option(added)
    added.add_argument(
        "--steps", type=int, default=20, help="timed steps (default: 20)"
    )
    added.add_argument("--workdir", help="use the config and data of this run")
    added.add_argument(
        "--profile",
        action="store_true",
        help="and print the milliseconds of each part of the model",
    )
    json_option(added)

    added = verb(
        "prepare",
        _bench_prepare,
        "time how fast text becomes tokens",
        "plmjax bench prepare --paths='texts/*.txt' --workers=2",
        of=benches,
    )
    prepare_options(added)

    added = verb(
        "inference",
        _bench_inference,
        "time a model by batch, length, backend and threads, and say what many "
        "documents take",
        "plmjax bench inference --model=runs/mine --batch=1,32 --length=128,512\n"
        "  plmjax bench inference --model=runs/mine --input=papers.jsonl --length=long "
        "--documents=4000000 --price_per_hour=2.5",
        of=benches,
    )
    _inference_options(added.add_argument)
    json_option(added)


def _inference_options(add) -> None:
    add(
        "--model",
        type=not_empty("--model"),
        help="a run's workdir, a folder, or a preset of `--config.model.preset`",
    )
    add(
        "--preset",
        choices=("scibert",),
        help="the shapes of published figures, which are printed beside ours",
    )
    add("--batch", help="rows at once (default: 1,8,32)")
    add(
        "--length",
        help="tokens a row, such as 128,512; long: the model's longest (default: 128)",
    )
    add(
        "--backends",
        help="jax, bf16 (jax in bfloat16), onnx, int8, torch; and fp16, static of a "
        "folder of `plmjax compress` (default: all that is there but bf16)",
    )
    add("--threads", help="threads, such as 1,2 (default: the cores)")
    add(
        "--input",
        metavar="FILE",
        help="texts whose lengths count: .txt (one per line), .csv, .tsv, .jsonl or "
        ".parquet; longer ones are cut into chunks of --length (default: full rows)",
    )
    add("--column", default="text", help="column of the text (default: text)")
    add(
        "--texts", type=int, default=128, help="texts of --input to time (default: 128)"
    )
    add(
        "--seconds",
        type=float,
        default=3.0,
        help="most seconds of a figure, unless three rounds take longer (default: 3)",
    )
    add("--documents", type=int, help="estimate the hours of so many documents")
    add("--price_per_hour", type=float, help="and their price, in any currency")
    add("--plot", metavar="FILE.png", help="draw tokens a second by batch")


def prepare_options(added: argparse.ArgumentParser) -> None:
    """Adds the options of `bench prepare` and of benchmarks/prepare.py."""
    added.add_argument("--paths", required=True, help="text files, or a pattern")
    added.add_argument("--rounds", type=int, default=3, help="repetitions (default: 3)")
    added.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    json_option(added)


def moved(argv: list[str]) -> str:
    """Returns the hint for a verb that has become a program; "" for all others."""
    words = [word for word in argv if word != "--debug"]
    if words[:2] not in (["bench", "peer"], ["bench", "scaling"]):
        return ""
    what, *options = words[1:]
    command = shlex.join(["python", f"benchmarks/{what}.py", *options])
    return f"`plmjax bench {what}` has moved. In a checkout of plmjax run: {command}"


def _bench_train(args) -> int:
    from plmjax import config as config_lib
    from plmjax.workdir import RunConfig, Workdir

    at_least_one(args, "steps")
    if args.workdir and args.paths:
        raise PlmjaxError(
            f"--workdir={args.workdir} has its own text, so {args.paths[0]} has no "
            "effect.",
            hint="Give one of the two.",
        )
    workdir = Path(args.workdir) if args.workdir else None
    if workdir and args.config is None:
        base = config_lib.to_dict(Workdir(workdir).config())
        config = config_lib.load(RunConfig, None, args.overrides, base)
    else:
        config = load_config(args, workdir)
    start_jax()
    from plmjax.bench import train

    result = train.bench_train(config, args.steps, workdir, log, profile=args.profile)
    return print_result(args, result, train.as_text)


def _bench_prepare(args) -> int:
    from plmjax.bench import prepare

    at_least_one(args, "rounds", "workers")
    result = prepare.bench_prepare(args.paths, None, args.rounds, args.workers)
    return print_result(args, result, prepare.as_text)


def _bench_inference(args) -> int:
    import jax

    from plmjax.bench import inference

    at_least_one(args, "texts", "documents")
    check_plot(args.plot)
    model, batch, length = inference.SHAPES.get(args.preset, (None, "1,8,32", ""))
    args.model = args.model or model
    if args.model is None:
        raise PlmjaxError("--model is missing.", hint="Give a folder or a preset.")
    if args.price_per_hour is not None and not args.documents:
        raise PlmjaxError("--price_per_hour needs --documents.")
    if args.seconds <= 0 or (args.price_per_hour or 0) < 0:
        raise PlmjaxError("--seconds and --price_per_hour must be positive.")
    args.batch = numbers(args.batch or batch, "batch")
    args.threads = numbers(args.threads, "threads") if args.threads else ()
    if min(args.batch + args.threads) < 1:
        raise PlmjaxError("--batch and --threads must be at least 1.")
    given = (args.length or length).split(",")
    some = ",".join(each for each in given if each not in ("", "long"))
    args.length = numbers(some, "length") if some else ()
    args.length += (None,) * ("long" in given)
    args.backends = args.backends and args.backends.split(",")
    start_jax()
    # The devices are for the backends, which are processes of their own.
    jax.config.update("jax_platforms", "cpu")
    result = inference.bench_inference(args, log)
    if args.plot:
        inference.plot(result, Path(args.plot))
    return print_result(args, result, inference.as_text)
