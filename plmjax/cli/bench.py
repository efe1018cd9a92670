"""`plmjax bench`; comparisons and estimates on paper are in benchmarks/."""

import argparse
import shlex
from pathlib import Path

from plmjax.cli.options import (
    at_least_one,
    json_option,
    load_config,
    log,
    print_result,
    start_jax,
)


def add(verb) -> None:
    """Adds the parser of `plmjax bench` and its commands."""
    added = verb(
        "bench",
        None,
        "measure the speed of training or of preparing text",
        "plmjax bench train --config=my_config.py",
    )
    benches = added.add_subparsers(dest="what", metavar="WHAT", required=True)
    added = verb(
        "train",
        _bench_train,
        "time the training step of a config on its own data",
        "plmjax bench train --config=bert_mini --steps=50",
        config=True,
        of=benches,
    )
    added.add_argument(
        "--steps", type=int, default=20, help="timed steps (default: 20)"
    )
    added.add_argument("--workdir", help="use the config and data of this run")
    json_option(added)

    added = verb(
        "prepare",
        _bench_prepare,
        "time how fast text becomes tokens",
        "plmjax bench prepare --paths='texts/*.txt' --workers=2",
        of=benches,
    )
    prepare_options(added)


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
    workdir = Path(args.workdir) if args.workdir else None
    if workdir and args.config is None:
        base = config_lib.to_dict(Workdir(workdir).config())
        config = config_lib.load(RunConfig, None, args.overrides, base)
    else:
        config = load_config(args, workdir)
    start_jax()
    from plmjax.bench import train

    result = train.bench_train(config, args.steps, workdir, log)
    return print_result(args, result, train.as_text)


def _bench_prepare(args) -> int:
    from plmjax.bench import prepare

    at_least_one(args, "rounds", "workers")
    result = prepare.bench_prepare(args.paths, None, args.rounds, args.workers)
    return print_result(args, result, prepare.as_text)
