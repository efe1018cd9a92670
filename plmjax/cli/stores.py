"""`plmjax data prepare`, `verify` and `merge`: stores of tokens."""

from pathlib import Path

from plmjax import Exit, PlmjaxError
from plmjax.cli.options import (
    at_least_one,
    json_option,
    load_config,
    log,
    paths_option,
    print_result,
    unchecked_option,
)
from plmjax.files import address, check_outside


def add_prepare(verb, of) -> None:
    """Adds the parser of `plmjax data prepare`."""
    added = verb(
        "prepare",
        _prepare,
        "turn text into tokens on disk, as `plmjax pretrain` does, also in tasks on "
        "several processes or machines; a second call does only what is missing",
        "plmjax data prepare texts/ --to=stores/mine --executor=local --tasks=16",
        config=True,
        of=of,
    )
    paths_option(added)
    added.add_argument("--to", required=True, metavar="DIR", help="folder of the store")
    added.add_argument(
        "--workers",
        type=int,
        metavar="M",
        help="processes, or tasks at a time (default: one per core; on a cluster all)",
    )
    executor_options(added)
    unchecked_option(added)


def executor_options(added) -> None:
    """Adds the options of `executor_of`."""
    added.add_argument(
        "--executor",
        choices=("local", "slurm", "ray"),
        help="run tasks by datatrove: as processes here, as an array of jobs, on Ray",
    )
    added.add_argument(
        "--tasks", type=int, metavar="N", help="parts of the text; each has whole files"
    )
    added.add_argument(
        "--sbatch",
        action="append",
        metavar="NAME=VALUE",
        help="[slurm] option of sbatch: partition=cpu, time=4:00:00 (may be repeated)",
    )


def add_verify(verb, of) -> None:
    """Adds the parser of `plmjax data verify`."""
    added = verb(
        "verify",
        _verify,
        "read all of a store: digests, counts, and ids of its vocabulary",
        "plmjax data verify stores/mine",
        of=of,
    )
    added.add_argument(
        "store", metavar="STORE", help="a store, a workdir, or gs://... or s3://..."
    )
    json_option(added)


def add_merge(verb, of) -> None:
    """Adds the parser of `plmjax data merge`."""
    added = verb(
        "merge",
        _merge,
        "join stores of one tokenizer, or copy one; also from and to gs:// and s3://",
        "plmjax data merge stores/a stores/b --to=stores/c",
        of=of,
    )
    added.add_argument(
        "stores", nargs="+", metavar="STORE", help="stores, in the order of the text"
    )
    added.add_argument(
        "--to", required=True, metavar="DIR", help="new folder, or gs://... or s3://..."
    )
    json_option(added)


def _prepare(args) -> int:
    at_least_one(args, "tasks", "workers")
    executor = executor_of(args)
    if args.workers is not None and executor is None:
        args.overrides.append(f"data.workers={args.workers}")
    _check_target(args.to)
    config = load_config(args, None)
    check_outside(Path(args.to), config.data.source.paths)
    from plmjax.data.parts import Tasks
    from plmjax.files import no_empty_directory
    from plmjax.pretrain.build import prepare_data
    from plmjax.workdir import Workdir

    workdir = Workdir(args.to)
    new, lock = workdir.create(), workdir / ".lock"
    first = not lock.exists()
    tasks = executor and Tasks(workdir / "data" / ".tasks", executor, args.tasks, log)
    with workdir.locked(), no_empty_directory(new):
        try:
            prepare_data(config, workdir, log, lambda tokenizer: None, tasks, keep=True)
        except BaseException:
            if first and [*workdir.path.iterdir()] == [lock]:
                lock.unlink()
            raise
    log(f"`plmjax pretrain --config.data.store={args.to}` trains on it.")
    return Exit.OK


def executor_of(args):
    """Returns the executor that the options name, or None."""
    if args.executor is None:
        if args.tasks is not None or args.sbatch:
            raise PlmjaxError(
                "--tasks and --sbatch need --executor.",
                hint="--executor=local runs the tasks on this machine.",
            )
        return None
    if args.tasks is None:
        raise PlmjaxError(
            f"--executor={args.executor} needs --tasks.",
            hint="For example --tasks=16, and at least so many files.",
        )
    from plmjax.data.stages import Executor

    for option in args.sbatch or ():
        if "=" not in option:
            raise PlmjaxError(
                f"--sbatch={option} is not NAME=VALUE.", hint="--sbatch=partition=cpu"
            )
    sbatch = dict(option.split("=", 1) for option in args.sbatch or ())
    executor = Executor(args.executor, args.workers, sbatch)
    executor.check()
    return executor


def _check_target(to: str) -> None:
    """Raises PlmjaxError if something else than a store, whole or not, is there."""
    if "://" in to or address(to) is not None:
        raise PlmjaxError(
            f"--to={to} must be a directory.",
            hint="`plmjax data merge DIR --to=s3://...` copies a store.",
        )
    path, known = Path(to), {"tokenizer", "data", "run.json", ".lock"}
    others = path.is_dir() and {each.name for each in path.iterdir()} - known
    if path.is_file() or others:
        what = f"holds {min(others)}, and is no store" if others else "is a file"
        raise PlmjaxError(f"--to={to} {what}.", hint="Choose another folder.")


def _verify(args) -> int:
    from plmjax.data import merging
    from plmjax.pretrain.stores import opened

    with opened(args.store) as (_, store):
        return print_result(args, merging.verify(store), _as_text)


def _merge(args) -> int:
    from plmjax.pretrain.stores import merge

    return print_result(args, merge(args.stores, args.to), _as_text)


def _as_text(result: dict) -> str:
    from plmjax.data.prepare import sizes

    return (
        f"Store {result['key']} is whole: {sizes(result['splits'])}; a vocabulary of "
        f"{result['vocab_size']:,}; {result['files']:,} files of "
        f"{result['bytes'] / 1e6:,.1f} MB."
    )
