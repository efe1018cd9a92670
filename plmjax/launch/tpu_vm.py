"""A run on a TPU slice of Google Cloud, by gcloud: queue, install, run, restart.

There is no daemon: the launcher watches while it runs, and a restarted launcher
continues from the state that gcloud reports.
"""

import dataclasses
import shlex
import subprocess
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from plmjax import RESUME, Exit, PlmjaxError
from plmjax.launch import command, templates
from plmjax.launch.tpu_states import Action, Progress, Seen, after, decide

# The images of TPU VMs have an older Python than plmjax needs; uv installs one.
_INSTALL = (
    "python3 -m pip install --quiet --user uv && "
    "python3 -m uv venv --quiet --allow-existing --python 3.12 venv && "
    "python3 -m uv pip install --quiet --python venv/bin/python '.[tpu,gs]'"
)
# How often in a row gcloud may fail to report the state.
_BLIND = 20
_SOURCE = ("pyproject.toml", "README.md", "LICENSE", "plmjax", "launch", "configs")

# gcloud(arguments, quiet) -> (exit code, output if quiet, else "" as it is shown).
Gcloud = Callable[[Sequence[str], bool], tuple[int, str]]


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of --target=tpu-vm."""

    name: str = "plmjax"
    to: str = "plmjax-launch"
    zone: str | None = None
    project: str | None = None
    accelerator: str | None = None
    runtime: str | None = None
    spot: bool = False
    install: str | None = None
    copy: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    keep: bool = False
    restarts: int = 50
    poll_seconds: int = 30
    grace_seconds: int = 120
    python: str | None = None


def launch(options: Options, arguments: Sequence[str], dry_run: bool) -> int:
    """Queues a TPU and runs plmjax on all its hosts; returns the run's exit code.

    Raises:
      PlmjaxError: an option is wrong, gcloud is missing or refuses the request.
    """
    planned = plan(options, arguments, command.checkout())
    if dry_run:
        print(command.as_text(planned))
        return Exit.OK
    command.write(planned)
    command.need("gcloud", planned)
    _pack(options, command.checkout())
    try:
        return watch(options, gcloud, time.sleep, str(int(time.time())))
    except KeyboardInterrupt:
        command.log(
            "The TPU still exists and costs money; its run continues. The same "
            f"command watches it again; {shlex.join(calls(options)['delete'])} ends it."
        )
        raise


def plan(
    options: Options, arguments: Sequence[str], checkout: Path | None
) -> command.Plan:
    """Returns the script to write, and the calls of a run that nothing interrupts.

    Raises:
      PlmjaxError: an option is wrong or missing.
    """
    name = command.check_name(options.name)
    for option in ("zone", "accelerator", "runtime"):
        if getattr(options, option) is None:
            raise PlmjaxError(
                f"--target=tpu-vm needs --{option}.",
                hint="`gcloud compute tpus tpu-vm versions list` and `... "
                "accelerator-types list` list what a zone has.",
            )
    if options.install is None and checkout is None:
        raise PlmjaxError(
            "the hosts need plmjax, and this one does not run from its source.",
            hint="Give --install='pip install ...', or launch from a checkout.",
        )
    for path in options.copy:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise PlmjaxError(f"--copy={path} must lie in this directory.")
        if not Path(path).exists():
            raise PlmjaxError(f"--copy={path} does not exist.")
    default_python = "python3" if options.install else "venv/bin/python"
    script = templates.fill(
        "tpu_vm.sh",
        {
            "name": name,
            "install": templates.writable(options.install or _INSTALL),
            "grace_seconds": options.grace_seconds,
            "command": templates.shell_line(
                command.module(options.python or default_python, arguments)
            ),
        },
    )
    steps = calls(options, "1")
    order = ("create", "resources", "vms", "copy", "install", "run", "code", "delete")
    files = {Path(options.to) / f"{name}.sh": script}
    return command.Plan(files, tuple(steps[step] for step in order))


def calls(options: Options, attempt: str = "1") -> dict[str, tuple[str, ...]]:
    """Returns the calls of gcloud by their purpose."""
    name, folder = options.name, Path(options.to)
    location = (f"--zone={options.zone}",)
    if options.project is not None:
        location += (f"--project={options.project}",)
    resources = ("gcloud", "compute", "tpus", "queued-resources")
    vm = ("gcloud", "compute", "tpus", "tpu-vm")

    def ssh(line: str) -> tuple[str, ...]:
        return (*vm, "ssh", name, *location, "--worker=all", f"--command={line}")

    files = [str(folder / f"{name}{suffix}") for suffix in (".sh", ".tar.gz")]
    state = "--format=value(name.basename(),state{})".format
    return {
        "create": (
            *resources,
            "create",
            name,
            f"--node-id={name}",
            *location,
            f"--accelerator-type={options.accelerator}",
            f"--runtime-version={options.runtime}",
            *(["--spot"] if options.spot else []),
            *options.extra,
            "--quiet",
        ),
        "resources": (*resources, "list", *location, state(".state")),
        "vms": (*vm, "list", *location, state("")),
        "copy": (*vm, "scp", *files, f"{name}:", *location, "--worker=all"),
        "install": ssh(f"bash {name}.sh install"),
        "run": ssh(f"bash {name}.sh run {attempt}"),
        "code": ssh(f"bash {name}.sh code {attempt}"),
        "delete": (*resources, "delete", name, *location, "--force", "--quiet"),
    }


def gcloud(arguments: Sequence[str], quiet: bool) -> tuple[int, str]:
    """Calls gcloud; returns its exit code, and its output if `quiet`, else ""."""
    if not quiet:
        command.log(shlex.join(arguments))
    pipe = subprocess.PIPE if quiet else None
    done = subprocess.run(arguments, stdout=pipe, text=True, errors="replace")
    return done.returncode, done.stdout or ""


def watch(
    options: Options, call: Gcloud, sleep: Callable[[float], None], session: str
) -> int:
    """Performs actions until the run is over; returns its exit code.

    `session` distinguishes the attempts of this launcher from those of others.

    Raises:
      PlmjaxError: the request for a TPU failed, or its state cannot be read.
    """
    progress, shown, created, blind = Progress(), None, False, 0
    while True:
        steps = calls(options, f"{session}-{progress.failures}")
        try:
            seen, blind = look(options.name, steps, call), 0
        except PlmjaxError as error:
            blind += 1
            if blind > (_BLIND if shown else 0):
                raise
            command.log(f"{error.message} Trying again.")
            sleep(options.poll_seconds)
            continue
        if seen != shown:
            vm = f", VM {seen.vm}" if seen.vm else ""
            command.log(f"TPU {options.name}: {seen.resource or 'not there'}{vm}.")
            shown = seen
        action = decide(seen, progress, options.keep)
        ok, codes = True, ()
        match action:
            case Action.END:
                assert progress.code is not None
                return progress.code
            case Action.WAIT:
                sleep(options.poll_seconds)
            case Action.CREATE:
                ok = call(steps["create"], False)[0] == 0
                if not ok and not created:
                    raise PlmjaxError(
                        "gcloud did not accept the request for a TPU.",
                        hint="Its message is above.",
                    )
                created = True
            case Action.DELETE:
                ok = call(steps["delete"], False)[0] == 0
            case Action.INSTALL:
                ok = all(
                    call(steps[step], False)[0] == 0 for step in ("copy", "install")
                )
            case Action.RUN:
                ok = call(steps["run"], False)[0] == 0
                codes = (0,) if ok else exit_codes(*call(steps["code"], True))
                listed = ", ".join("unknown" if c is None else str(c) for c in codes)
                command.log(
                    f"Exit codes of the hosts' processes: {listed or 'unknown'}."
                )
        progress = after(progress, action, ok, codes, options.restarts)


def look(name: str, steps: dict[str, tuple[str, ...]], call: Gcloud) -> Seen:
    """Returns the states of the queued resource and its VM.

    Raises:
      PlmjaxError: gcloud failed.
    """
    states = []
    for step in ("resources", "vms"):
        code, text = call(steps[step], True)
        if code:
            raise PlmjaxError(
                f"gcloud failed with exit code {code}: {shlex.join(steps[step])}",
                hint=f"Its message is above. {RESUME}",
                code=Exit.RESUMABLE,
            )
        rows = [line.split() for line in text.splitlines()]
        matching = [row[1] for row in rows if len(row) == 2 and row[0] == name]
        states.append(matching[0] if matching else None)
        if states[0] is None:
            return Seen(None)
    return Seen(*states)


def exit_codes(code: int, text: str) -> tuple[int | None, ...]:
    """Returns the exit codes that the hosts printed, and None if the call failed."""
    codes = [int(line) for line in text.split() if line.isdecimal()]
    return (*codes, *([None] if code else []))


def _pack(options: Options, checkout: Path | None) -> None:
    """Writes the tarball that is copied to every host.

    Raises:
      PlmjaxError: the file cannot be written.
    """
    target = Path(options.to) / f"{options.name}.tar.gz"

    def without_caches(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if "__pycache__" in Path(member.name).parts else member

    try:
        with tarfile.open(target, "w:gz") as tar:
            if options.install is None and checkout is not None:
                for name in _SOURCE:
                    tar.add(checkout / name, arcname=name, filter=without_caches)
            for path in options.copy:
                tar.add(path, arcname=path, filter=without_caches)
    except OSError as error:
        raise PlmjaxError(f"cannot write {target}: {error}.") from error
    print(f"Wrote {target}", flush=True)
