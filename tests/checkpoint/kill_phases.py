"""Saves three steps and dies in the midst of the third: the test of SIGKILL runs it.

Arguments: a directory, and the phases; each gets a process and a subdirectory. A
process that has died like this has run no `finally` and no handler.
"""

import os
import sys
from pathlib import Path

import tensorstore as ts
from checkpoint_common import state

from plmjax.checkpoint import digests, saving, states, storage
from plmjax.checkpoint.checkpoints import Checkpoints


def die(*_, **__):
    os._exit(9)


def before(owner, name: str) -> None:
    setattr(owner, name, die)


def after(owner, name: str) -> None:
    f = getattr(owner, name)

    def then_die(*arguments):
        f(*arguments)
        os._exit(9)

    setattr(owner, name, then_die)


def before_the_rename_of(name: str) -> None:
    replace = Path.replace

    def maybe(path, target):
        if Path(target).name == name:
            os._exit(9)
        return replace(path, target)

    Path.replace = maybe  # type: ignore


def at(event: str, name: str) -> None:
    """Dies when Python is about to do this to a path that ends like that."""

    def hook(happening: str, arguments: tuple) -> None:
        if happening == event and any(str(a).endswith(name) for a in arguments):
            os._exit(9)

    sys.addaudithook(hook)


def during_the_removal() -> None:
    delete = storage.Local.delete

    def half(self, name):
        delete(self, name)
        if name.startswith("step_00000001"):
            os._exit(9)  # Its digests are gone, the rest is there.

    storage.Local.delete = half


# What dies, and the steps that a start must find.
PHASES = {
    "before the folder": (lambda: before(storage.Local, "make"), [1, 2]),
    "before the state": (lambda: at("os.mkdir", "state.orbax-checkpoint-tmp"), [1, 2]),
    "in the state": (lambda: at("open", "/_METADATA"), [1, 2]),
    "at the end of the state": (lambda: at("open", "/_CHECKPOINT_METADATA"), [1, 2]),
    "in the rename of the state": (lambda: at("os.rename", "/state"), [1, 2]),
    "after the state": (lambda: before(states._Orbax, "join"), [1, 2]),
    "in meta.json": (lambda: before_the_rename_of(saving.META), [1, 2]),
    "after meta.json": (lambda: before(storage.Local, "fsync"), [1, 2]),
    "before the digests": (lambda: before(digests, "render"), [1, 2]),
    "in the digests": (lambda: before_the_rename_of(digests.FILE), [1, 2]),
    "before the removal": (lambda: before(Checkpoints, "_prune"), [1, 2, 3]),
    "in the removal": (during_the_removal, [2, 3]),
    "after the removal": (lambda: after(Checkpoints, "_prune"), [2, 3]),
}


def main(root: str, *phases: str) -> None:
    assert ts is not None  # Imported once, before the processes part.
    for phase in phases:
        arm, _ = PHASES[phase]
        # jax has not touched a device yet, so that a fork is one process in full.
        child = os.fork()
        if child == 0:
            checkpoints = Checkpoints(Path(root, phase), 2)
            for step in (1, 2):
                checkpoints.save(step, state(step), {})
            checkpoints.wait()
            arm()
            checkpoints.save(3, state(3), {})
            checkpoints.wait()
            os._exit(1)  # Nobody died.
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(f"{phase}: {code}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
