"""plmjax trains encoder language models in JAX and hands them to Hugging Face."""

import enum
import errno

__version__ = "0.1.0"


class Exit(enum.IntEnum):
    """What the process's exit code says to scripts and schedulers."""

    OK = 0
    USAGE = 2
    DATA = 3
    MODEL = 4
    DISK = 5
    NUMERIC = 6
    INTERNAL = 70
    RESUMABLE = 75


# What a disk answers when it is not the caller's fault.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def disk_hint(error: OSError) -> str:
    """Returns how to mend what a disk answered."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free some space and run again."
    if error.errno == errno.EIO:
        return "The disk fails; the system's log may say why."
    return "Choose a place where you may write."


class PlmjaxError(ValueError):
    """Something a user can mend: what was wrong, how to mend it, and the exit code.

    Anything else that reaches the top is a bug of ours.
    """

    def __init__(self, message: str, *, hint: str = "", code: Exit = Exit.USAGE):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()

    def __reduce__(self):
        # Keyword-only arguments are lost by the default; worker processes send errors.
        return (_rebuild, (type(self), self.message, self.hint, self.code))


def _rebuild(kind, message, hint, code):
    return kind(message, hint=hint, code=code)
