"""Shared code of the verbs: options, configs, and the start of jax."""

import argparse
import contextlib
import contextvars
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from plmjax import RESUME, Exit, PlmjaxError
from plmjax.cli import spelling
from plmjax.files import without_nan

DRY_RUNS = ("compile", "shapes")
# In Python (api.py): the records that a verb hands over in place of printing them.
COLLECTED: contextvars.ContextVar[list | None] = contextvars.ContextVar(
    "collected", default=None
)


def model_option(added: argparse.ArgumentParser) -> None:
    """Adds --model."""
    added.add_argument(
        "--model",
        required=True,
        type=not_empty("--model"),
        help="a run's workdir or a Hugging Face folder",
    )


def not_empty(option: str) -> Callable[[str], str]:
    """Returns the `type` of an option that refuses an empty value."""

    def check(value: str) -> str:
        if not value.strip():
            raise argparse.ArgumentTypeError(f"{option} is empty.")
        return value

    return check


def input_options(added: argparse.ArgumentParser, files: str, output: str) -> None:
    """Adds --input, --text and --output; `files` and `output` describe two of them."""
    added.add_argument(
        "--input",
        metavar="FILE",
        help=f"{files}; - for standard input: JSON lines, else a text a line",
    )
    added.add_argument(
        "--text", action="append", metavar="TEXT", help="a text, in place of --input"
    )
    added.add_argument(
        "--output",
        default="-",
        metavar="FILE",
        help=f"{output}; - for JSON lines on standard output (default)",
    )


@contextlib.contextmanager
def chosen_input(args) -> Iterator[str | list[str]]:
    """Yields the files of --input, or texts: those of --text or of standard input.

    Standard input is a text a line, unless its first line is a JSON object: then it is
    yielded as a file of JSON lines.

    Raises:
      PlmjaxError: neither or both options, or texts that are not UTF-8.
    """
    if (args.input is None) == (not args.text):
        raise PlmjaxError(
            "the input is missing or given twice.",
            hint="Give --input=FILE, --input=- for standard input, or --text=TEXT.",
        )
    if args.input is not None and args.input != "-":
        yield args.input
        return
    if args.text:
        yield [_checked_text(text, "--text") for text in args.text]
        return
    lines = standard_input()
    if not _is_json_object(next(filter(str.strip, lines))):
        log("Standard input is read as a text a line.")
        yield lines
        return
    log("Standard input is read as JSON lines.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8")
        with renamed(str(path), "standard input"):
            yield str(path)


@contextlib.contextmanager
def renamed(name: str, given: str) -> Iterator[None]:
    """Names what the user has `given` in the messages of errors, in place of `name`."""
    try:
        yield
    except PlmjaxError as error:
        error.message = error.message.replace(name, given)
        raise


def standard_input() -> list[str]:
    """Returns the lines of standard input.

    Raises:
      PlmjaxError: it holds no text, or is not UTF-8.
    """
    if sys.stdin.isatty():
        log("Reads standard input; Ctrl-D ends it.")
    raw = sys.stdin.buffer.read()
    try:
        lines = raw.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise PlmjaxError(
            f"standard input:{line}: byte {raw[error.start]:#04x} is not UTF-8.",
            hint="Convert the text to UTF-8.",
            code=Exit.DATA,
        ) from None
    if not lines[-1]:
        lines.pop()
    if not any(map(str.strip, lines)):
        raise PlmjaxError(
            "standard input holds no text.",
            hint="Give a text a line, or JSON lines.",
            code=Exit.DATA,
        )
    return lines


def _checked_text(text: str, option: str) -> str:
    """Returns a text of the command line; PlmjaxError if it is not UTF-8."""
    if text.encode(errors="replace").decode() != text:
        raise PlmjaxError(
            f"{option} is not UTF-8.", hint="Check the encoding of your terminal."
        )
    return text


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def print_json_line(record: dict) -> None:
    """Prints a record as one line of JSON on standard output; in Python, returns it."""
    if (collected := COLLECTED.get()) is not None:
        collected.append(record)
        return
    # Other encodings could not write all characters.
    encoding = sys.stdout.encoding or "utf8"  # a StringIO has none
    utf8 = encoding.lower().replace("-", "") == "utf8"
    print(json.dumps(record, ensure_ascii=not utf8))


def json_option(added: argparse.ArgumentParser) -> None:
    """Adds --json."""
    added.add_argument("--json", action="store_true", help="print only JSON")


def paths_option(added: argparse.ArgumentParser) -> None:
    """Adds PATHS."""
    added.add_argument(
        "paths",
        nargs="*",
        metavar="PATHS",
        help="files, folders and patterns of the text: my.txt more/ '*.jsonl.gz'",
    )


def unchecked_option(added: argparse.ArgumentParser) -> None:
    """Adds --yes, for verbs that only read text."""
    added.add_argument(
        "--yes",
        action="store_const",
        const=True,
        help="read as text what looks like records",
    )


def checkpoint_option(added: argparse.ArgumentParser) -> None:
    """Adds --checkpoint."""
    added.add_argument(
        "--checkpoint",
        default="newest",
        help="newest (default), best, or the number of a step",
    )


def group_options(added: argparse.ArgumentParser) -> None:
    """Adds the options by which the processes of a run connect."""
    added.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="address of process 0, for a run of several processes, with "
        "--num_processes and --process_id (not needed on Slurm, Open MPI, TPU pods and "
        "Kubernetes)",
    )
    added.add_argument(
        "--num_processes", type=int, metavar="N", help="number of processes"
    )
    added.add_argument(
        "--process_id",
        type=int,
        metavar="I",
        help="number of this process, from 0 to N - 1",
    )


def training_options(added: argparse.ArgumentParser, built: str) -> None:
    """Adds the options of all trainings; `built` describes the dry run in the help."""
    added.add_argument("--workdir", help="directory of the run (default: runs/NAME)")
    added.add_argument(
        "--steps",
        dest="train_steps",
        metavar="N",
        help="steps of training: short for --config.train.steps=N",
    )
    group_options(added)
    added.add_argument(
        "--dry_run",
        nargs="?",
        const="compile",
        choices=DRY_RUNS,
        help=f"{built}; compile the step (not with shapes), print the communication "
        "of the devices, and stop",
    )
    added.add_argument(
        "--show_config",
        action="store_true",
        help="print each config key with its type, range and value, and stop",
    )


def stopped(result: dict) -> Exit:
    """Prints the signal and saved step, if any; returns the exit code of a training."""
    from plmjax import processes

    if (collected := COLLECTED.get()) is not None:
        collected.append(result)
    if "stopped" not in result:
        return Exit.OK
    if processes.is_first():
        step = result["step"]
        saved = "nothing is" if step is None else f"step {step:,} is"
        print(f"Stopped by {result['stopped']}; {saved} saved. {RESUME}")
    return Exit.RESUMABLE


def start_jax(workdir: Path | None = None) -> None:
    """Silences the libraries, and caches compiled programs in the workdir."""
    import logging

    import jax

    # Orbax logs a failed save from several threads with tracebacks; plmjax reports it.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("jax").setLevel(logging.ERROR)
    if not Path("/dev/nvidiactl").exists():
        # XLA's compiler for GPUs may be installed without CUDA, which it then misses.
        bridge = logging.getLogger("jax._src.xla_bridge")
        bridge.addFilter(lambda record: "xla_cuda" not in record.getMessage())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if workdir is not None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(workdir / ".xla"))


def saved_config(workdir: Path | None, schema: type) -> dict:
    """Returns the config of the run in a directory, in the form of JSON; {} if none.

    Raises:
      PlmjaxError: the run is of another verb.
    """
    from plmjax.workdir import RunConfig, Workdir

    saved = workdir and Workdir(workdir, schema).read("config.json")
    if not saved or "model_type" in saved:
        return {}
    ours, theirs = "plmjax pretrain", "plmjax finetune"
    if schema is not RunConfig:
        ours, theirs = theirs, ours
    if ("task" in saved) == (schema is RunConfig):
        raise PlmjaxError(
            f"{workdir} holds a run of `{theirs}`, not of `{ours}`.",
            hint="Choose another --workdir.",
        )
    return saved


def run_printer(workdir: Path, keeps: bool) -> Callable[[str], None]:
    """Returns print_line for a training; before its first line it names the directory.

    And whether the run `keeps` the config there. A run that is refused prints neither.
    """
    kept = ["Config: the run's, changed by the options of this command."]
    first = [f"Run directory: {workdir}", *kept * keeps]

    def log(message: str) -> None:
        from plmjax.console import print_line

        while first:
            print_line(first.pop(0))
        print_line(message)

    return log


def load_config(args, workdir: Path | None, chosen: Mapping | None = None):
    """Returns the config of a pretraining.

    Of the run that is in the directory, an import into it, and the built-in default,
    the first that is there is its base. A file replaces the first and the last, and so
    do values `chosen` for a budget, which lie below an import and the file. Texts
    of the command have their own kind, unless the config's is of data sets.
    """
    from plmjax import config as config_lib
    from plmjax.pretrain.export import imported_layer
    from plmjax.pretrain.run import DEFAULT_CONFIG
    from plmjax.workdir import RunConfig, Workdir, names_texts

    saved = saved_config(workdir, RunConfig)
    base = {} if args.config else saved
    if not base and workdir:
        base = imported_layer(Workdir(workdir))
    if chosen is not None and (args.config or not saved):
        # An imported model is not mixed with the chosen one.
        both = [key for key in chosen if key != "model" and key in base]
        base = {**chosen, **base} | {k: {**chosen[k], **base[k]} for k in both}
    elif args.config is None and not base:
        base = DEFAULT_CONFIG
    texts: dict = _texts(args)

    def load():
        given = {"data": {"source": texts}}
        return config_lib.load(RunConfig, args.config, args.overrides, base, given)

    config = load()
    before = saved.get("data", {}).get("source", {}).get("kind")
    named = [*args.overrides, *(f"data.source.{key}=" for key in texts)]
    if names_texts(named, config) and config.data.source.kind != before:
        texts["kind"] = None  # under an override of the command
        config = load()
    if getattr(args, "train_steps", None) and config.data.phases:
        # --steps, unlike train.steps, shortens or stretches a recipe's phases.
        train = dataclasses.replace(config.train, steps=None)
        data = config.data.shortened(int(args.train_steps))
        config = dataclasses.replace(config, data=data, train=train)
    return config


def _texts(args) -> dict:
    """Returns the values of data.source for the PATHS of a command.

    Raises:
      PlmjaxError: there is data.source.paths, too; a path is an option without --.
    """
    paths = getattr(args, "paths", [])
    for path in paths:
        if "=" in path and not Path(path).exists():
            keys = spelling.keys_of(args.verb)
            hint = spelling.option(path, "", ["--workdir", "--steps"], keys)
            raise PlmjaxError(f"there is no file {path!r}.", hint=hint)
    for override in args.overrides:
        if paths and override.startswith("data.source.paths="):
            raise PlmjaxError(
                f"the texts are given twice: as {paths[0]} and by --config.{override}.",
                hint=f"Give them once: plmjax {args.verb} FILE FOLDER 'texts/*.txt'.",
            )
    return {"paths": tuple(paths)} if paths else {}


def at_least_one(args, *names: str) -> None:
    """Raises PlmjaxError for the first option below 1; None is allowed."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise PlmjaxError(f"--{name}={value} must be at least 1.")


def numbers(text: str, name: str) -> tuple[int, ...]:
    """Returns the integers of an option such as --devices=8,64, ascending."""
    try:
        return tuple(sorted(int(item) for item in text.split(",")))
    except ValueError:
        raise PlmjaxError(
            f"--{name}={text} must be numbers, joined by commas."
        ) from None


def print_result(args, result: dict, as_text: Callable[[dict], str]) -> Exit:
    """Prints a result, as JSON (NaN: null) with --json; returns the exit code."""
    if args.json:
        print_json_line(without_nan(result))
    else:
        print(as_text(result))
    return Exit.OK


def check_plot(plot: str | None) -> None:
    """Raises PlmjaxError for a --plot that could not be written, before the work."""
    if plot is None:
        return
    folder = Path(plot).absolute().parent
    if not plot.endswith(".png"):
        raise PlmjaxError(
            f"--plot={plot} must end with .png.",
            hint="For example --plot=plot.png.",
        )
    if not folder.is_dir():
        raise PlmjaxError(
            f"--plot={plot}: there is no such folder.", hint="Create it first."
        )
    if not os.access(folder, os.W_OK) or Path(plot).is_dir():
        raise PlmjaxError(
            f"--plot={plot} cannot be written.",
            hint="Choose another file, or change the permissions of its folder.",
            code=Exit.DISK,
        )


def log(message: str) -> None:
    """Prints a message to stderr, so that stdout holds the result alone."""
    print(message, file=sys.stderr, flush=True)
