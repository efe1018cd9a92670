"""What every process of tests/checkpoint/test_checkpoint_processes.py does.

Arguments: a directory with a step 1 of one process, and what to do in it.
"""

import asyncio
import sys
import time

import jax
from checkpoint_common import assert_holds, mesh, shapes, state
from orbax.checkpoint.experimental.v1._src.synchronization import compatibility

from plmjax import PlmjaxError, processes
from plmjax.checkpoint import checkpoints as checkpoint
from plmjax.checkpoint import saving, states, storage
from plmjax.checkpoint.checkpoints import Checkpoints

COMMIT = compatibility.async_futures


def trained(place) -> float:
    """A step's collective, which must go on beside every save."""
    return float(jax.jit(lambda x: (x * 2).sum())(state(3, place).params["kernel"]))


def is_last() -> bool:
    return jax.process_index() == jax.process_count() - 1


def failure(checkpoints: Checkpoints) -> str:
    assert checkpoints.failure is not None
    return checkpoints.failure.message


def arrays(*_) -> None:
    """From here on, states are written as they are on s3://."""
    states.writer = lambda _: states.ARRAYS


def move(checkpoints: Checkpoints, directory: str, place) -> None:
    """Loads what one process saved on another mesh; saves; loads on any."""
    assert checkpoints.good_step(set_aside=True) == 1
    assert_holds(checkpoints.load(1, shapes(place)), 1)
    checkpoints.save(2, state(2, place), {"loss": 0.5})
    expected = trained(place)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2] and checkpoints.best() == (2, 0.5)
    for other in (place, mesh(jax.device_count(), 1)):
        assert_holds(checkpoints.load(2, shapes(other)), 2)

    # One process reads alone, while the others are elsewhere; then all save again.
    if is_last():
        alone = Checkpoints(directory)
        assert alone.good_step() == 2
        assert_holds(alone.load(2, shapes()), 2)
    processes.barrier("read alone")
    with checkpoints:
        for step in (3, 4, 5):
            checkpoints.save(step, state(step, place), {}, last=step == 5)
            assert trained(place) == expected
    checkpoints.wait()
    assert checkpoints.failure is None
    # The newest three, and the best.
    assert checkpoints.steps() == [2, 3, 4, 5]


def refuse(checkpoints: Checkpoints, directory: str, place) -> None:
    """One process cannot write: all know before any begins, and do without the save."""
    write = storage.Local.write

    def read_only(*_):
        raise OSError(30, "Read-only file system")

    if is_last():
        storage.Local.write = read_only
    checkpoints.save(6, state(6, place), {})
    storage.Local.write = write
    told = f"step 6 could not be written: process {jax.process_count() - 1}: [Errno 30]"
    assert told in failure(checkpoints)
    assert not checkpoints._saves._leftover and checkpoints._saves.current is None


def patience(checkpoints: Checkpoints, directory: str, place) -> None:
    """A slow process 0 is waited for by none of the others."""
    checkpoint._PATIENCE_SECONDS = 0.05
    join = states._Orbax.join

    def slow(*arguments):
        time.sleep(1)
        join(*arguments)

    states._Orbax.join = slow
    checkpoints.save(8, state(8, place), {})
    checkpoints.save(9, state(9, place), {})
    assert "step 8 is still being written" in failure(checkpoints)
    checkpoints.wait()
    assert checkpoints.failure is None and checkpoints.steps()[-1] == 8


def end(checkpoints: Checkpoints, directory: str, place) -> None:
    """All or none: what is no good for one is no good for any, and all end in order."""
    try:
        checkpoints.good_step(99)
    except PlmjaxError as error:
        print("refused:", error.message, flush=True)


def fail(checkpoints: Checkpoints, directory: str, place) -> None:
    """One process fails in the midst of orbax's work, which waits on the others."""
    expected = trained(place)

    async def failing(*arguments, **more):
        await COMMIT(*arguments, **more)
        raise OSError(28, "No space left on device")

    saving._SLACK_SECONDS = 20.0
    compatibility.async_futures = failing if is_last() else COMMIT
    begun = time.monotonic()
    checkpoints.save(3, state(3, place), {})
    held = time.monotonic()
    checkpoints.wait(patient=False)
    known = time.monotonic()
    compatibility.async_futures = COMMIT
    told = f"step 3 could not be written: process {jax.process_count() - 1}: [Errno 28]"
    assert told in failure(checkpoints)
    # Orbax waits in the others, beside training and other saves.
    running = [saving.running for saving in checkpoints._saves._leftover]
    assert running == [] if is_last() else [True]
    assert trained(place) == expected
    # Not in the same place, where something could still be written.
    checkpoints.save(3, state(3, place), {})
    assert "the save of step 3 is stuck" in failure(checkpoints)
    checkpoints.save(4, state(4, place), {})
    checkpoints.wait(patient=False)
    assert checkpoints.failure is None and checkpoints.steps() == [1, 4]
    checkpoints.wait()
    rested = time.monotonic()
    assert not any(saving.running for saving in checkpoints._saves._leftover)
    print(
        f"save returned after {held - begun:.1f} s, its failure was known after "
        f"{known - begun:.1f} s, orbax waited for {rested - begun:.1f} s",
        flush=True,
    )
    checkpoints.save(3, state(3, place), {})
    checkpoints.wait()
    assert checkpoints.failure is None and checkpoints.steps() == [1, 3, 4]


def hang(checkpoints: Checkpoints, directory: str, place) -> None:
    """One process hangs: all give it up, and the step is not vouched for."""
    expected = trained(place)

    async def hanging(*arguments, **more):
        await asyncio.sleep(8)
        await COMMIT(*arguments, **more)

    saving._SLACK_SECONDS = 2.0
    compatibility.async_futures = hanging if is_last() else COMMIT
    checkpoints.save(5, state(5, place), {})
    assert trained(place) == expected
    checkpoints.wait()
    assert "step 5 could not be written" in failure(checkpoints)
    assert checkpoints.steps() == [1, 3, 4]
    compatibility.async_futures, saving._SLACK_SECONDS = COMMIT, 60.0
    checkpoints.save(6, state(6, place), {})
    checkpoints.wait()
    assert checkpoints.failure is None and checkpoints.steps() == [3, 4, 6]
    checkpoints.remove_unfinished()


def main(directory: str, *parts: str) -> None:
    processes.initialise()
    log = print if processes.is_first() else lambda _: None
    checkpoints = Checkpoints(directory, 3, log, together=True)
    checkpoints.remove_unfinished()
    place = mesh(2, jax.device_count() // 2)
    for part in parts:
        globals()[part](checkpoints, directory, place)
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
