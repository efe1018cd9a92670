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
        seen = f"it says {date} (UTC), which is before plmjax was installed"
        mend = "Set it (chrony, ntpd); certificates are refused on a wrong day."
        return [problem("clock", seen, mend)]
    if abs(jump) > _JUMP_SECONDS:
        seen = f"it jumped by {jump:+.3f} s within {_WATCH_SECONDS} s"
        mend = "Dates in records will be off; durations will not."
        return [warning("clock", seen, mend)]
    date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(time.time()))
    return [ok("clock", f"{date}, even to {_JUMP_SECONDS * 1e3:.0f} ms")]
