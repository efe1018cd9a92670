"""Checks that the machine's clock runs evenly and has a plausible date."""

import time
from pathlib import Path

import plmjax
from plmjax.doctor.check import Check, ok, problem, warning

_WATCH_SECONDS = 0.5
_JUMP_SECONDS = 0.02


def checks() -> list[Check]:
    """Returns one check of the wall clock, which plmjax uses only to show dates."""
    wall, even = time.time(), time.monotonic()
    time.sleep(_WATCH_SECONDS)
    jump = (time.time() - wall) - (time.monotonic() - even)
    # plmjax's files cannot have been written in the future.
    newest = Path(plmjax.__file__).stat().st_mtime
    if newest > time.time() + 24 * 3600:
        date = time.strftime("%Y-%m-%d", time.gmtime(time.time()))
        seen = f"it shows {date} (UTC), which is before plmjax was installed"
        fix = "Set it (chrony, ntpd); on a wrong date, certificates are invalid."
        return [problem("clock", seen, fix)]
    if abs(jump) > _JUMP_SECONDS:
        seen = f"it jumped by {jump:+.3f} s within {_WATCH_SECONDS} s"
        fix = "Dates in records will be wrong; durations will be right."
        return [warning("clock", seen, fix)]
    date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(time.time()))
    return [ok("clock", f"{date}, even to {_JUMP_SECONDS * 1e3:.0f} ms")]
