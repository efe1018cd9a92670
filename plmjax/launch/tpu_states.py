"""The next action for a queued TPU, as a function of its state and the progress.

Create it, wait until it is ready, install, run; after a preemption delete it and begin
again; delete it at the end.
"""

import dataclasses
import enum
from collections.abc import Sequence

from plmjax import Exit
from plmjax.launch.command import RESTARTABLE

# States of the queued resource (gcloud compute tpus queued-resources).
COMING = (
    "CREATING",
    "ACCEPTED",
    "WAITING_FOR_RESOURCES",
    "PROVISIONING",
    "DELETING",
    "SUSPENDING",
)
LOST = ("SUSPENDED", "FAILED")
# States of the TPU VM, which may show a preemption before its queued resource does.
VM_LOST = ("PREEMPTED", "TERMINATED", "STOPPED", "STOPPING", "DELETING")


class Action(enum.Enum):
    """Actions of the launcher on a queued TPU."""

    CREATE = "create"
    WAIT = "wait"
    INSTALL = "install"
    RUN = "run"
    DELETE = "delete"
    END = "end"


@dataclasses.dataclass(frozen=True)
class Seen:
    """The states of the queued resource and of its TPU VM; None if missing."""

    resource: str | None
    vm: str | None = None


@dataclasses.dataclass(frozen=True)
class Progress:
    """Progress so far: `code` is the exit code once no run will follow."""

    installed: bool = False
    failures: int = 0
    # Wait before the next action, so that the cloud can notice what happened.
    pause: bool = False
    code: int | None = None


def decide(seen: Seen, progress: Progress, keep: bool = False) -> Action:
    """Returns the next action; with `keep`, the TPU is not deleted at the end."""
    if progress.pause:
        return Action.WAIT
    if progress.code is not None:
        if seen.resource is None or keep:
            return Action.END
        return Action.WAIT if seen.resource == "DELETING" else Action.DELETE
    if seen.resource is None:
        return Action.CREATE
    if seen.resource in LOST:
        return Action.DELETE
    if seen.resource == "ACTIVE":
        if seen.vm in VM_LOST:
            return Action.DELETE
        if seen.vm == "READY":
            return Action.RUN if progress.installed else Action.INSTALL
    # In preparation, or in a state that this file does not know.
    return Action.WAIT


def after(
    progress: Progress,
    action: Action,
    ok: bool,
    codes: Sequence[int | None] = (),
    restarts: int = 0,
) -> Progress:
    """Returns the progress after an action that succeeded (`ok`) or failed.

    `codes` are those of a run's processes, None for those that are unknown.
    """
    if action is Action.WAIT:
        return dataclasses.replace(progress, pause=False)
    if action is Action.DELETE:
        lost = dataclasses.replace(progress, installed=False, pause=not ok)
        # A run that lost its TPU has been counted; requests that fail each time must
        # be counted, too, so that they end.
        counted = progress.installed or progress.code is not None
        return lost if counted else _failed(lost, restarts)
    if action is Action.INSTALL and ok:
        return dataclasses.replace(progress, installed=True)
    if action is Action.RUN:
        if ok and codes and not any(codes) and None not in codes:
            return dataclasses.replace(progress, code=int(Exit.OK))
        for code in codes:
            if code and code not in RESTARTABLE:
                return dataclasses.replace(progress, code=code)
    if action is Action.RUN or not ok:
        return dataclasses.replace(_failed(progress, restarts), pause=True)
    return progress


def _failed(progress: Progress, restarts: int) -> Progress:
    failures = progress.failures + 1
    code = int(Exit.RESUMABLE) if failures > restarts else None
    return dataclasses.replace(progress, failures=failures, code=code)
