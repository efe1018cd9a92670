"""Results of checks, and probes run so that they can neither hang nor crash doctor."""

import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

from plmjax.children import kill_group

Status = Literal["ok", "warning", "problem"]


@dataclasses.dataclass(frozen=True)
class Check:
    """A check's name and status, the observation (`seen`) and the advice (`fix`).

    `disk` marks problems of the disk, which have a separate exit code.
    """

    name: str
    status: Status
    seen: str
    fix: str = ""
    disk: bool = False


def ok(name: str, seen: str) -> Check:
    """Returns a check that the machine passed; `seen` is what was measured."""
    return Check(name, "ok", seen)


def warning(name: str, seen: str, fix: str) -> Check:
    """Returns a check that a run can live with; `fix` says how to improve it."""
    return Check(name, "warning", seen, fix)


def problem(name: str, seen: str, fix: str, disk: bool = False) -> Check:
    """Returns a failed check; with `disk` it is the disk that fails."""
    return Check(name, "problem", seen, fix, disk)


def isolated(
    probe: str,
    arguments: Sequence[str],
    seconds: float,
    fix: str,
    environment: Mapping[str, str] | None = None,
) -> list[Check]:
    """Returns the checks of a probe that runs in a separate process.

    A library that cannot be imported, a crash or a hang is a problem of that probe;
    after `seconds` its process and all descendants are killed. `fix` is the advice for
    a hang.
    """
    result = output(
        [sys.executable, "-m", "plmjax.doctor", probe, *arguments], seconds, environment
    )
    if result is None:
        return [problem(probe, f"did not end within {seconds:.0f} s", fix)]
    code, out, err = result
    try:
        return [Check(**values) for values in json.loads(out.splitlines()[-1])]
    except (ValueError, TypeError, IndexError):
        ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else "failed"
        message = f": {last_line(err)}" if err.strip() else ""
        fix = "Install plmjax again (pip install), and read the message."
        return [problem(probe, ended + message, fix)]


def output(
    command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None
) -> tuple[int, str, str] | None:
    """Returns a command's (exit code, stdout, stderr); None if it took too long."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=None if environment is None else dict(environment),
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
        return process.returncode, out, err
    except subprocess.TimeoutExpired:
        return None
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """Kills a process and its descendants.

    A process that waits for a dead disk cannot be killed; it is left behind.
    """
    kill_group(process)
    try:
        process.communicate(timeout=2)
    except subprocess.TimeoutExpired:
        pass


def last_line(text: str) -> str:
    """Returns the last line that is not blank, shortened to one row of a table."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
