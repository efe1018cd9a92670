"""plmjax trains encoder language models in JAX and hands them to Hugging Face."""

import enum
import errno
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plmjax.api import embed as embed
    from plmjax.api import evaluate as evaluate
    from plmjax.api import export as export
    from plmjax.api import finetune as finetune
    from plmjax.api import fit as fit
    from plmjax.api import import_ as import_
    from plmjax.api import load as load
    from plmjax.api import predict as predict
    from plmjax.api import pretrain as pretrain

__version__ = "0.1.0"


# onnxruntime would send events to its maker, and keep an id in a file; it reads this
# when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


class Exit(enum.IntEnum):
    """The exit codes of the process, for scripts and schedulers."""

    OK = 0
    USAGE = 2
    DATA = 3
    MODEL = 4
    DISK = 5
    NUMERIC = 6
    MEMORY = 7
    INTERNAL = 70
    RESUMABLE = 75


# What a user does after code 75.
RESUME = "Run the same command again to resume it."


# How a training needs less memory.
LESS_MEMORY = (
    "Lower --config.train.batch, or raise --config.train.accumulation: its micro-"
    "batches share one update, with the same result."
)


# Errors of a disk that are not the caller's fault.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def disk_hint(error: OSError) -> str:
    """Returns a hint on how to fix an error of a disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free some space and run again."
    if error.errno == errno.EIO:
        return "The disk fails; the system's log may have the cause."
    return "Choose a directory where you may write."


def counted(number: int, noun: str, ending: str = "s") -> str:
    """Returns a number and its noun, "1 step" or "1,200 steps"."""
    return f"{number:,} {noun}{ending if number != 1 else ''}"


def with_article(noun: str) -> str:
    """Returns a noun after "a" or "an", as the name of a family is spoken."""
    vowel = noun.lower().startswith(("a", "e", "i", "o", "x"))
    return f"a{'n' * (vowel and noun[:2].lower() != 'eu')} {noun}"


class PlmjaxError(ValueError):
    """An error that a user can fix: the message, a hint how, and the exit code.

    Any other exception that reaches the top is a bug of ours.
    """

    def __init__(self, message: str, *, hint: str = "", code: Exit = Exit.USAGE):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()

    def __reduce__(self):
        # Worker processes pickle errors; the default would lose keyword-only arguments.
        return (_rebuild, (type(self), self.message, self.hint, self.code))


class DataError(PlmjaxError):
    """An error in the data that a user gives."""

    def __init__(self, message: str, *, hint: str = "", code: Exit = Exit.DATA):
        super().__init__(message, hint=hint, code=code)


def _rebuild(kind, message, hint, code):
    return kind(message, hint=hint, code=code)


# The verbs of the command line, each a function of plmjax (api.py); also load and fit.
VERBS = """bench compare compress config data detect doctor embed evaluate export extend
fill finetune fit import_ launch load next predict pretrain pseudo report repro serve
sweep tokenizer""".split()


class _Verb(types.ModuleType):
    """A module that has the name of a verb, such as plmjax.pretrain: it is called."""

    def _function(self) -> Any:
        api = importlib.import_module("plmjax.api")
        return getattr(api, self.__name__.partition(".")[2])

    def __call__(self, *given: Any, **options: Any) -> Any:
        return self._function()(*given, **options)

    __doc__ = property(lambda self: self._function().__doc__)  # type: ignore


class _Package(types.ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Python sets each submodule here, whoever imports it first.
        if name in VERBS and isinstance(value, types.ModuleType):
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def unknown(module: str, name: str, names: Iterable[str]) -> AttributeError:
    """Returns the error of a module that has no such name, with the nearest one."""
    import difflib

    near = difflib.get_close_matches(name, names, 1)
    hint = f". Did you mean: {near[0]!r}?" if near else ""
    # With a name and without an object, Python has nothing to add a second hint from.
    return AttributeError(
        f"module {module!r} has no attribute {name!r}{hint}", name=name, obj=None
    )


def __getattr__(name: str) -> Any:
    if name not in VERBS:
        raise unknown(__name__, name, __dir__())
    if importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    return getattr(importlib.import_module("plmjax.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *VERBS})
