"""A run as a managed job of SkyPilot."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from plmjax import PlmjaxError
from plmjax.launch import command, templates


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of --target=sky."""

    name: str = "plmjax"
    to: str = "plmjax-launch"
    nodes: int = 1
    accelerator: str | None = None
    cpus: str | None = None
    infra: str | None = None
    spot: bool = False
    install: str | None = None
    python: str = "python3"


def launch(options: Options, arguments: Sequence[str], dry_run: bool) -> int:
    """Writes the task and launches it with sky.

    Raises:
      PlmjaxError: an option is wrong, or sky is missing.
    """
    planned = plan(options, arguments, Path.cwd(), command.checkout())
    return command.perform(planned, dry_run)


def plan(
    options: Options, arguments: Sequence[str], directory: Path, checkout: Path | None
) -> command.Plan:
    """Returns the task file and the call of sky; SkyPilot copies `directory`.

    Raises:
      PlmjaxError: an option is wrong.
    """
    name, accelerator = command.check_name(options.name), options.accelerator
    if accelerator is not None and accelerator.startswith("tpu"):
        raise PlmjaxError(
            f"--accelerator={accelerator}: TPU slices are not for --target=sky.",
            hint="Take --target=tpu-vm or --target=gke.",
        )
    install = options.install
    if install is None:
        if checkout is None or checkout.resolve() != directory.resolve():
            raise PlmjaxError(
                "the machines need plmjax, and this directory is not its source.",
                hint="Give --install='pip install ...', or launch from a checkout.",
            )
        source = "." if accelerator is None else ".[cuda]"
        install = f"{options.python} -m pip install '{source}'"
    path = Path(options.to) / f"{name}.yaml"
    line = templates.shell_line(command.module(options.python, arguments))
    task = templates.fill(
        "sky.yaml",
        {
            "name": templates.yaml(name),
            "directory": templates.yaml(str(directory)),
            "nodes": options.nodes,
            "infra": templates.yaml_or_none(options.infra),
            "accelerator": templates.yaml_or_none(accelerator),
            "cpus": templates.yaml_or_none(options.cpus),
            "spot": templates.yaml(options.spot),
            "install": templates.yaml(install),
            "port": command.PORT,
            "command": line,
        },
    )
    call = ("sky", "jobs", "launch", "--yes", "--name", name, str(path))
    return command.Plan({path: task}, (call,))
