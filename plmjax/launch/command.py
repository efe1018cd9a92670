"""Code shared by all targets: the plan of files and commands, and checks of options."""

import contextlib
import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import plmjax
from plmjax import Exit, PlmjaxError

# Exit codes after which a scheduler restarts: saved and stopped; aborted by JAX because
# a peer died (SIGABRT); killed (SIGKILL); ended by SIGTERM before it could save.
RESTARTABLE = (int(Exit.RESUMABLE), 128 + 6, 128 + 9, 128 + 15)

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
# Values that a comment line for sbatch can hold without quotes.
_PLAIN = re.compile(r"[\w@%+=:,./\[\]-]+", re.ASCII)
PORT = 12355


@dataclasses.dataclass(frozen=True)
class Plan:
    """Files to write, by path, and the commands to call afterwards."""

    files: dict[Path, str]
    calls: tuple[tuple[str, ...], ...]


def as_text(plan: Plan) -> str:
    """Returns the actions of `perform` as readable text."""
    files = [f"# would write {path}:\n{text}" for path, text in plan.files.items()]
    calls = "\n".join(shlex.join(call) for call in plan.calls)
    return "\n".join([*files, f"# would run:\n{calls}"])


def write(plan: Plan) -> None:
    """Writes the files of a plan.

    Raises:
      PlmjaxError: a folder cannot be written to.
    """
    for path, text in plan.files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as error:
            hint = "Choose another folder with --to."
            raise PlmjaxError(f"cannot write {path}: {error}.", hint=hint) from error
        print(f"Wrote {path}", flush=True)


def need(tool: str, plan: Plan) -> None:
    """Raises PlmjaxError if a tool is missing; the hint has the commands to type."""
    if shutil.which(tool) is None:
        by_hand = "; ".join(shlex.join(call) for call in plan.calls)
        raise PlmjaxError(
            f"`{tool}` is not on this machine's PATH.",
            hint=f"Where it is, run by hand: {by_hand}",
        )


def perform(plan: Plan, dry_run: bool) -> int:
    """Writes the files and calls the commands, or prints both; returns exit code 0.

    Raises:
      PlmjaxError: a tool is missing or failed.
    """
    if dry_run:
        print(as_text(plan))
        return Exit.OK
    write(plan)
    for call in plan.calls:
        need(call[0], plan)
        print(shlex.join(call), flush=True)
        code = subprocess.run(call).returncode
        if code:
            message = f"`{shlex.join(call[:2])} ...` failed with exit code {code}."
            raise PlmjaxError(message, hint="Its message is above.")
    return Exit.OK


def module(python: str, arguments: Sequence[str]) -> tuple[str, ...]:
    """Returns the command that runs plmjax with the arguments."""
    return (python, "-m", "plmjax", *arguments)


def check_name(name: str) -> str:
    """Returns the name if it is valid for Kubernetes, Google Cloud and Slurm."""
    if not _NAME.fullmatch(name):
        raise PlmjaxError(
            f"--name={name} must be lower-case letters, digits and hyphens, at most "
            "40 of them, the first a letter and the last no hyphen."
        )
    return name


def check_plain(option: str, value: str | None) -> str | None:
    """Returns the value if a line for sbatch can hold it without quotes."""
    if value is not None and not _PLAIN.fullmatch(value):
        raise PlmjaxError(
            f"--{option}={value} may hold letters, digits and @%+=:,./[]-_ alone."
        )
    return value


def checkout() -> Path | None:
    """Returns the source folder that this plmjax runs from; None if installed."""
    root = Path(plmjax.__file__).parents[1]
    return root if (root / "pyproject.toml").is_file() else None


def log(message: str) -> None:
    """Prints a line of the launcher to stderr."""
    # The reader of stderr may be gone; the launcher's work must continue all the same.
    with contextlib.suppress(BrokenPipeError):
        print(f"[launch] {message}", file=sys.stderr, flush=True)
