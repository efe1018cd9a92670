"""What to do next with a queued TPU, as a function of what is seen and what was done.

Create it, wait until it is there, install, run; when it was preempted, delete it and
begin again; delete it at the end.
"""

import dataclasses
import enum
from collections.abc import Sequence

from plmjax import Exit
from plmjax.launch.command import RESTARTABLE

# Of the queued resource (gcloud compute tpus queued-resources).
COMING = (
    "CREATING",
    "ACCEPTED",
    "WAITING_FOR_RESOURCES",
    "PROVISIONING",
    "DELETING",
    "SUSPENDING",
)
LOST = ("SUSPENDED", "FAILED")
# Of the TPU VM itself; a preempted one may be seen before its queued resource changes.
VM_LOST = ("PREEMPTED", "TERMINATED", "STOPPED", "STOPPING", "DELETING")


class Action(enum.Enum):
    CREATE = "create"
    WAIT = "wait"
    INSTALL = "install"
    RUN = "run"
    DELETE = "delete"
    END = "end"


@dataclasses.dataclass(frozen=True)
class Seen:
    """The states of the queued resource and of its TPU VM; None where there is none."""

    resource: str | None
    vm: str | None = None


@dataclasses.dataclass(frozen=True)
class Progress:
    """What was done: `code` is that of the run once it is over, for good or not."""

    installed: bool = False
    failures: int = 0
    # Let the cloud notice what happened before anything is tried again.
    pause: bool = False
    code: int | None = None


def decide(seen: Seen, progress: Progress, keep: bool = False) -> Action:
    """Returns the next action; `keep` leaves the TPU there at the end."""
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
    # On its way, or in a state that this file does not know.
    return Action.WAIT


def after(
    progress: Progress,
    action: Action,
    ok: bool,
    codes: Sequence[int | None] = (),
    restarts: int = 0,
) -> Progress:
    """Returns the progress after an action that went well or not.

    `codes` are those of a run's processes, None where nobody could be asked.
    """
    if action is Action.WAIT:
        return dataclasses.replace(progress, pause=False)
    if action is Action.DELETE:
        lost = dataclasses.replace(progress, installed=False, pause=not ok)
        # A run that lost its TPU has been counted; a request that fails each time must
        # come to an end, too.
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
