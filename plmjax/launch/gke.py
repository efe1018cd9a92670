"""A run as a JobSet of Kubernetes."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from plmjax import PlmjaxError
from plmjax.launch import command, templates

_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of --target=gke."""

    name: str = "plmjax"
    to: str = "plmjax-launch"
    image: str | None = None
    nodes: int = 1
    accelerator: str | None = None
    topology: str | None = None
    devices_per_node: int | None = None
    namespace: str | None = None
    queue: str | None = None
    restarts: int = 50
    grace_seconds: int = 120
    python: str = "python"


def launch(options: Options, arguments: Sequence[str], dry_run: bool) -> int:
    """Writes the JobSet and creates it with kubectl.

    Raises:
      PlmjaxError: an option is wrong, or kubectl is missing.
    """
    return command.perform(plan(options, arguments), dry_run)


def _check_topology(options: Options) -> None:
    """Raises PlmjaxError unless the hosts have exactly the chips of the slice."""
    assert options.topology is not None and options.devices_per_node is not None
    sizes = options.topology.split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise PlmjaxError(f"--topology={options.topology} must be like 4x4 or 2x2x4.")
    chips = math.prod(map(int, sizes))
    if chips != options.nodes * options.devices_per_node:
        raise PlmjaxError(
            f"--topology={options.topology} has {chips:,} chips, but --nodes="
            f"{options.nodes} with --devices_per_node={options.devices_per_node} are "
            f"{options.nodes * options.devices_per_node:,}.",
            hint="One of the three is wrong; GKE would wait for ever.",
        )


def plan(options: Options, arguments: Sequence[str]) -> command.Plan:
    """Returns the JobSet file to write and the call of kubectl.

    Raises:
      PlmjaxError: an option is wrong or missing.
    """
    name = command.check_name(options.name)
    if options.image is None:
        raise PlmjaxError(
            "--target=gke needs --image, a container with plmjax in it.",
            hint="docs/launch.md has a Dockerfile.",
        )
    if (options.accelerator is None) != (options.devices_per_node is None):
        raise PlmjaxError("--accelerator and --devices_per_node go together.")
    on_tpu = options.topology is not None
    if on_tpu and options.accelerator is None:
        raise PlmjaxError("--topology needs --accelerator and --devices_per_node.")
    if on_tpu:
        _check_topology(options)
    # Pods of a JobSet are named NAME-JOB-INDEX-POD, in a domain named as the JobSet.
    coordinator = f"{name}-workers-0-0.{name}:{command.PORT}"
    given, text = templates.yaml_or_none, templates.yaml
    path = Path(options.to) / f"{name}.yaml"
    manifest = templates.fill(
        "gke.yaml",
        {
            "name": templates.yaml(name),
            "namespace": given(options.namespace),
            "queue": given(options.queue),
            "node_pool_key": "cloud.google.com/gke-nodepool" if on_tpu else None,
            "restarts": options.restarts,
            "nodes": options.nodes,
            "grace_seconds": options.grace_seconds,
            "gpu": None if on_tpu else given(options.accelerator),
            "tpu": given(options.accelerator) if on_tpu else None,
            "topology": given(options.topology),
            "image": text(options.image),
            "command": text(command.module(options.python, arguments)),
            "coordinator": None if on_tpu else text(coordinator),
            "num_processes": None if on_tpu else text(str(options.nodes)),
            "process_id_field": None if on_tpu else text(_INDEX),
            "gpus_per_node": None if on_tpu else options.devices_per_node,
            "chips_per_node": options.devices_per_node if on_tpu else None,
        },
    )
    return command.Plan({path: manifest}, (("kubectl", "create", "-f", str(path)),))
