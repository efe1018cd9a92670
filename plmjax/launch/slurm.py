"""A run, or an array of runs, as a batch job of Slurm."""

import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from plmjax import PlmjaxError
from plmjax.launch import command, templates


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of --target=slurm."""

    name: str = "plmjax"
    to: str = "plmjax-launch"
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_task: int | None = None
    cpus_per_task: int | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    array: str | None = None
    commands: str | None = None
    extra: tuple[str, ...] = ()
    restarts: int = 50
    grace_seconds: int = 120
    python: str = sys.executable


def launch(
    options: Options,
    arguments: Sequence[str],
    dry_run: bool,
    check: Callable[[Sequence[str]], None] = lambda arguments: None,
) -> int:
    """Writes the batch file and submits it; `check` raises for wrong arguments.

    Raises:
      PlmjaxError: an option or a command is wrong, or sbatch is missing.
    """
    return command.perform(plan(options, arguments, Path.cwd(), check), dry_run)


def plan(
    options: Options,
    arguments: Sequence[str],
    directory: Path,
    check: Callable[[Sequence[str]], None] = lambda arguments: None,
) -> command.Plan:
    """Returns the files to write and the call of sbatch.

    Raises:
      PlmjaxError: an option or a command is wrong.
    """
    name, folder = command.check_name(options.name), Path(options.to)
    command.check_plain("to", options.to)
    if bool(options.commands) == bool(arguments):
        raise PlmjaxError(
            "give either a command after -- or a file of them with --commands.",
            hint="Example: plmjax launch --target=slurm -- pretrain --workdir=runs/a",
        )
    array, files, line, listed = options.array, {}, None, None
    if options.commands:
        lines = _read(Path(options.commands), options.python, check)
        listed = folder / f"{name}.commands"
        files[listed] = "".join(line + "\n" for line in lines)
        # "%4" alone, the number of jobs at a time, is allowed.
        if array is None or array.startswith("%"):
            array = f"0-{len(lines) - 1}{array or ''}"
    else:
        line = templates.shell_line(command.module(options.python, arguments))
        if array is not None and array.startswith("%"):
            raise PlmjaxError(
                f"--array={array} needs --commands.",
                hint=f"Without it, give a number: --array=8{array}.",
            )
        if array is not None and array.isdecimal():
            if int(array) < 1:
                raise PlmjaxError(f"--array={array} must be at least 1.")
            array = f"0-{int(array) - 1}"
    gpus = options.gpus_per_task
    log = "%x-%A_%a.log" if array else "%x-%j.log"
    note = f'{name}-"$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}".failure'
    script = folder / f"{name}.sbatch"
    files[script] = templates.fill(
        "slurm.sh",
        {
            "name": name,
            "nodes": options.nodes,
            "tasks_per_node": options.tasks_per_node,
            "cpus_per_task": options.cpus_per_task,
            "gpus_per_node": gpus and gpus * options.tasks_per_node,
            "gpus_per_task": gpus,
            "time": command.check_plain("time", options.time),
            "partition": command.check_plain("partition", options.partition),
            "account": command.check_plain("account", options.account),
            "array": command.check_plain("array", array),
            "extra": [templates.writable(extra) for extra in options.extra],
            "log": str(folder / log),
            "grace_seconds": options.grace_seconds,
            "directory": templates.shell(str(directory)),
            "commands": listed and templates.shell(str(listed)),
            "command": line,
            "failure_file": f"{templates.shell(str(folder))}/{note}",
            "restarts": options.restarts,
        },
    )
    return command.Plan(files, (("sbatch", str(script)),))


def _read(path: Path, python: str, check: Callable[[Sequence[str]], None]) -> list[str]:
    """Returns the lines of a file of commands, changed to run plmjax with `python`.

    Raises:
      PlmjaxError: the file is unreadable or empty, or a line does not run plmjax.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PlmjaxError(f"--commands={path}: {error}.") from error
    commands = []
    for number, line in enumerate(lines, 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise PlmjaxError(f"{path}:{number}: {error}.") from error
        if not words:
            continue
        if words[0] == "plmjax":
            arguments = words[1:]
        elif words[1:3] == ["-m", "plmjax"]:
            arguments = words[3:]
        else:
            raise PlmjaxError(
                f"{path}:{number}: a line must begin with plmjax, not {words[0]!r}."
            )
        try:
            check(arguments)
        except PlmjaxError as error:
            message = f"{path}:{number}: {error.message}"
            raise PlmjaxError(message, hint=error.hint) from error
        commands.append(templates.shell_line(command.module(python, arguments)))
    if not commands:
        raise PlmjaxError(f"--commands={path} holds no command.")
    return commands
