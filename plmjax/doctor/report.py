"""All checks in order, as a table or JSON, and their exit code."""

import dataclasses
import os

from plmjax import Exit, counted
from plmjax.doctor.check import Check, isolated
from plmjax.doctor.processes import SECONDS

# Time limits of probes in seconds, generous for cold disks and busy machines.
_QUICK, _SLOW = 30.0, 120.0


def examine(workdir: str, processes: int) -> list[Check]:
    """Returns all checks; takes seconds, and never longer than the limits allow.

    Each probe runs in a separate process, so that a hang or crash is just its result.
    """
    cpus = {"JAX_PLATFORMS": "cpu"}  # An import must not take the accelerator.
    checks = isolated("versions", (), _QUICK, "Install plmjax again.")
    checks += isolated(
        "devices", (), _SLOW, "A device or a collective hangs: see the driver's log."
    )
    if processes > 1:
        arguments, seconds = (str(processes),), SECONDS + 10
        fix = "Set --num_processes=1 to skip this check."
        checks += isolated("processes", arguments, seconds, fix)
    checks += isolated(
        "environment",
        (),
        _QUICK,
        "A mounted file system hangs: see `df`.",
        os.environ | cpus,
    )
    fix = "The file system hangs (a dead server?): see `df`; choose another --workdir."
    checks += isolated("disk", (workdir,), _QUICK, fix)
    return checks + isolated("clock", (), _QUICK, "Set the machine's clock.")


def exit_code(checks: list[Check]) -> Exit:
    """Returns 0 without problems, 5 if only the disk has some, else 2."""
    problems = [check for check in checks if check.status == "problem"]
    if not problems:
        return Exit.OK
    return Exit.DISK if all(check.disk for check in problems) else Exit.USAGE


def as_text(checks: list[Check]) -> str:
    """Returns a line per check, each followed by its advice if it is not ok."""
    width, lines = max(len(check.name) for check in checks), []
    for check in checks:
        lines.append(f"{check.status:7}  {check.name:{width}}  {check.seen}")
        if check.fix:
            lines.append(f"{'':7}  {'':{width}}  -> {check.fix}")
    count = {s: sum(c.status == s for c in checks) for s in ("problem", "warning")}
    summary = [counted(n, status) for status, n in count.items() if n]
    return "\n".join([*lines, "", ", ".join(summary) or "No problems."])


def as_dict(checks: list[Check]) -> dict:
    """Returns the checks in the form of --json, where a fix has the key `mend`."""
    rows = [dataclasses.asdict(check) for check in checks]
    return {
        "checks": [{"mend" if k == "fix" else k: row[k] for k in row} for row in rows],
        "problems": sum(check.status == "problem" for check in checks),
        "warnings": sum(check.status == "warning" for check in checks),
    }
