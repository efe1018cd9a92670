"""Trials that run elsewhere: a list of commands, printed or for a Slurm array."""

import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path

from plmjax.experiments.trials import Trial
from plmjax.files import write_file


def command_lines(trials: Sequence[Trial], fixed: Sequence[str]) -> list[str]:
    """Returns the arguments of `plmjax` for each trial, quoted for a shell."""
    return [shlex.join(trial.command(fixed)) for trial in trials]


def write_commands(root: Path, lines: Sequence[str]) -> Path:
    """Writes the lines for `plmjax launch --commands`, and returns the file.

    Another list gets another file: a Slurm array reads its lines when its tasks start.
    """
    text = "".join(f"plmjax {line}\n" for line in lines)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    path = root / f"commands-{digest}.txt"
    write_file(path, text.encode())
    return path
