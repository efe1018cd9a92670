"""The command line: verbs in the order in which people use them.

Heavy modules are imported only when a verb needs them, so that --help is quick.
"""

import argparse
import contextlib
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

from plmjax import (
    DISK_ERRORS,
    LESS_MEMORY,
    RESUME,
    Exit,
    PlmjaxError,
    children,
    disk_hint,
    machine,
)
from plmjax.cli import bench
from plmjax.cli.parser import make_parser


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; returns the process's exit code (docs/cli.md lists them)."""
    program = argv is None
    # As it was started: -m would put the current folder before the installed packages.
    restart = sys.orig_argv[1:] if argv is None else ["-m", "plmjax", *argv]
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = _parse(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # plmjax --help | head
        _close_output()
        return Exit.OK
    if isinstance(args, int):
        return args
    _prepare(args, restart)
    try:
        # With several processes, all run the same verb. None means that it is done.
        code = args.run(args) or Exit.OK
        sys.stdout.flush()  # raises here, not at the exit, if the reader has gone
    except BaseException as error:
        code = _leave(error, args)
    if program:  # a signal while Python ends would change the exit code
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    return code


def run_program(
    parser: argparse.ArgumentParser, file: str, argv: list[str] | None = None
) -> int:
    """Runs a separate program, for example one of benchmarks/, like a verb."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = parser.parse_args(argv)
    except PlmjaxError as error:
        return _fail(error.message, error.hint, error.code)
    _prepare(args, [file, *argv])
    try:
        return args.run(args)
    except BaseException as error:
        return _leave(error, args)


def _parse(argv: list[str]) -> argparse.Namespace | int:
    """Returns the arguments of a verb; the exit code if there is nothing to run."""
    # The command that `plmjax launch` starts follows "--".
    end = argv.index("--") if "--" in argv else len(argv)
    arguments, command = argv[:end], argv[end + 1 :]
    if message := bench.moved(arguments):
        return _fail(message, "", Exit.USAGE)
    parser = make_parser()
    try:
        args = parser.read(arguments)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    except PlmjaxError as error:
        return _fail(error.message, error.hint, error.code)
    args.command, args.parser = command, parser
    if args.verb is None:
        parser.print_help()
        return Exit.USAGE
    if command and args.verb != "launch":
        hint = "Remove the -- and all that follows it."
        return _fail(f"`plmjax {args.verb}` runs no command.", hint, Exit.USAGE)
    return args


def _prepare(args, argv: list[str]) -> None:
    """Prepares the process for a verb or program.

    `argv` are Python's arguments: the process restarts with them to get huge pages.
    """
    _prepare_process(argv, args.debug)
    # A text may hold characters that the terminal's encoding lacks.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    # Ctrl-C and SIGTERM have the same effect here; training handles both itself.
    _received.clear()
    for number in _SIGNALS:
        if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    sys.unraisablehook = _interrupt_again


def _leave(error: BaseException, args) -> int:
    """Prints the error; returns the exit code, or exits at once if one of several."""
    code = _explain(error, args)
    if _is_one_of_several():
        # A normal exit would wait for the others, which wait for this process.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    return code


def _close_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: BaseException, args) -> int:
    """Prints the error that ended a verb; returns the exit code."""
    try:
        raise error
    except PlmjaxError as error:
        if args.debug:
            traceback.print_exc()
        if _received and args.verb == "serve":  # as below
            return _interrupted(args)
        return _fail(error.message, error.hint, error.code)
    except KeyboardInterrupt as error:
        return _interrupted(args, str(error))
    except BrokenPipeError:
        # The reader of stdout has closed it (| head), so nothing more is written to it.
        _close_output()
        shows = getattr(args, "show_config", False) or getattr(args, "dry_run", None)
        if getattr(args, "verb", None) not in _RESUMED or shows:
            return Exit.OK
        message = "the reader of the output has gone, so the run stopped."
        return _fail(message, RESUME, Exit.RESUMABLE)
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        if _received:
            # A signal during the import of compiled code looks like a failed import.
            return _interrupted(args)
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return _fail(f"{error}.", disk_hint(error), Exit.DISK)
        if (message := machine.out_of_memory(error)) is not None:
            return _fail(f"{message}.", _less_memory(args), Exit.MEMORY)
        platforms = os.environ.get("JAX_PLATFORMS")
        if platforms and _starts_devices(error):
            message = f"jax cannot use the devices of JAX_PLATFORMS={platforms}."
            hint = "Unset it. A GPU needs the extra: pip install 'plmjax[cuda]'."
            return _fail(message, hint, Exit.USAGE)
        if _is_one_of_several() and _peer_is_gone(error):
            reason = str(error).strip().partition("\n")[0]
            message = f"another process of this run has ended ({reason})."
            return _fail(message, RESUME, Exit.RESUMABLE)
        return _fail(
            f"a bug in plmjax: {type(error).__name__}: {error}",
            "Please report it, with the output of --debug.",
            Exit.INTERNAL,
        )


# Verbs that continue what was interrupted.
_RESUMED = ("pretrain", "finetune", "compare", "pseudo", "sweep", "launch")
_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
_received: list[int] = []  # signals that have interrupted the verb


def _interrupt(number: int, _frame) -> None:
    _received.append(number)
    raise KeyboardInterrupt


def _interrupt_again(unraisable) -> None:
    """Repeats a signal that came during a callback, where Python ignores exceptions."""
    if _received and isinstance(unraisable.exc_value, KeyboardInterrupt):
        again = threading.Timer(0.05, os.kill, (os.getpid(), _received[-1]))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(unraisable)


def _interrupted(args, saved: str = "") -> int:
    # An interrupt in code run by exec (as dataclasses use it) leaves a mark that makes
    # `python -m` end by SIGINT with any exit code. The next exec clears the mark.
    exec("")
    if getattr(args, "verb", None) == "serve":  # a server ends by a signal
        print("Ended before it answered.", file=sys.stderr)
        return Exit.OK
    resumes = getattr(args, "verb", None) in _RESUMED
    hint = RESUME if resumes else "Run the same command again."
    print("\n" + " ".join(filter(None, ("Interrupted.", saved, hint))), file=sys.stderr)
    return Exit.RESUMABLE


def _less_memory(args) -> str:
    """Returns a hint with the options of a verb that lower its memory."""
    for name in ("batch", "batch_tokens"):
        if hasattr(args, name):
            value = getattr(args, name)
            return f"Lower --{name}{f' (it is {value:,})' if value else ''}."
    if hasattr(args, "config"):
        return LESS_MEMORY
    return "Close other programs, or use a machine with more memory."


def _is_one_of_several() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _starts_devices(error: Exception) -> bool:
    """Whether it is jax's search for devices that failed, by whatever error."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return last.filename.endswith("jax/_src/xla_bridge.py")


def _peer_is_gone(error: Exception) -> bool:
    from plmjax.processes import peer_is_gone

    return peer_is_gone(error)


def _fail(message: str, hint: str, code: Exit) -> int:
    print(f"error: {message} {hint}".rstrip(), file=sys.stderr)
    note = os.environ.get("PLMJAX_FAILURE_FILE")
    if note and code != Exit.RESUMABLE:
        # Tells launch/slurm.sh not to restart: this failure is no dead peer.
        try:
            Path(note).write_text(f"{int(code)}\n")
        except OSError as error:
            print(f"{note}: {error}", file=sys.stderr)
    return int(code)


def _prepare_process(argv: list[str], debug: bool) -> None:
    """Sets variables that jax reads at import, or the C library at process start."""
    devices = os.environ.get("JAX_NUM_CPU_DEVICES", "1")
    given = ("PLMJAX_NUM_PROCESSES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
    several = "--num_processes" in " ".join(argv) or any(n in os.environ for n in given)
    if devices.isdigit() and (int(devices) > 1 or several):
        # Collectives on CPUs, between virtual devices or processes, block a thread
        # each; with too few threads they would deadlock.
        threads = max(os.cpu_count() or 1, 4 * int(devices), 8)
        os.environ.setdefault("NPROC", str(threads))
    machine.hide_absent_tpu()
    tunables = os.environ.get("GLIBC_TUNABLES")
    if (
        sys.platform != "linux"
        or tunables is not None
        or os.environ.get("PLMJAX_HUGE_PAGES") == "0"
        or Path("/dev/nvidiactl").exists()
        or machine.has_tpu()
    ):
        return
    # On a CPU, page faults cost a fifth of a training step; malloc reads this at start.
    if debug:
        print("Restarting with huge pages (PLMJAX_HUGE_PAGES=0 turns this off).")
    sys.stdout.flush()
    environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    with children.interrupted_later():  # when the new process can answer it
        os.execve(sys.executable, [sys.executable, *argv], environment)
