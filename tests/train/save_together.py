"""What every process of tests/train/test_checkpoint_processes.py does: (directory)."""

import sys
import time

import jax
import numpy as np
from checkpoint_common import assert_holds, mesh, shapes, state

from plmjax import PlmjaxError
from plmjax.train import arrays, checkpoint, processes, saving
from plmjax.train.checkpoint import Checkpoints


def trained(place) -> float:
    """A step's collective, which must go on beside every save."""
    return float(jax.jit(lambda x: (x * 2).sum())(state(3, place).params["kernel"]))


def main(directory: str) -> None:
    processes.initialise()
    count = jax.process_count()
    place = mesh(2, jax.device_count() // 2)
    log = print if processes.is_first() else lambda _: None
    checkpoints = Checkpoints(directory, 3, log, together=True)
    checkpoints.remove_unfinished()

    # What one process saved on another mesh.
    assert checkpoints.good_step(set_aside=True) == 1
    assert_holds(checkpoints.load(1, shapes(place)), 1)

    checkpoints.save(2, state(2, place), {"loss": 0.5})
    expected = trained(place)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2] and checkpoints.best() == (2, 0.5)
    for other in (place, mesh(jax.device_count(), 1)):
        assert_holds(checkpoints.load(2, shapes(other)), 2)

    # One process reads alone, while the others are elsewhere.
    if not processes.is_first():
        alone = Checkpoints(directory)
        assert alone.good_step() == 2
        assert_holds(alone.load(2, shapes()), 2)
        np.testing.assert_array_equal(
            alone.load_host(2)["params/table"],
            np.asarray(state(2).params["table"]),
        )
    processes.barrier("read alone")

    # A save that fails on one process fails on all, and training goes on on all.
    write, last = arrays.write, count - 1

    def failing(*arguments):
        if jax.process_index() == last:
            raise OSError(28, "No space left on device")
        write(*arguments)

    arrays.write = failing
    checkpoints.save(3, state(3, place), {})
    assert trained(place) == expected
    checkpoints.wait()
    told = f"step 3 could not be written: process {last}: [Errno 28] No space left"
    assert checkpoints.failure is not None and told in str(checkpoints.failure)
    assert checkpoints.steps() == [1, 2]

    # One that hangs is given up by all, and training goes on on all.
    def hanging(*arguments):
        if jax.process_index() == last:
            time.sleep(1.5)
        write(*arguments)

    arrays.write = hanging
    saving._SLACK_SECONDS = 0.4
    saving._LATE_SECONDS = 0.2
    checkpoints.save(4, state(4, place), {})
    assert trained(place) == expected
    checkpoints.wait()
    told = f"process {last} did not write its part in time"
    assert checkpoints.failure is not None and told in str(checkpoints.failure)
    # What it still writes is not part of the next step.
    checkpoints.save(5, state(5, place), {})
    checkpoints.wait()
    assert checkpoints.failure is not None
    assert "the save of step 4 is stuck" in str(checkpoints.failure)
    time.sleep(1.5)

    # Room again: all is well. What the straggler left behind goes with the next start.
    arrays.write, saving._SLACK_SECONDS = write, 60.0
    with checkpoints:
        for step in (5, 6, 7):
            checkpoints.save(step, state(step, place), {}, last=step == 7)
    checkpoints.wait()
    assert checkpoints.failure is None
    checkpoints.remove_unfinished()
    # The newest three, and the best.
    assert checkpoints.steps() == [2, 5, 6, 7]

    # A slow process 0 is waited for by none of the others.
    checkpoint._PATIENCE_SECONDS = 0.05
    join = arrays.join

    def slow(*arguments):
        time.sleep(1)
        join(*arguments)

    arrays.join = slow
    checkpoints.save(8, state(8, place), {})
    checkpoints.save(9, state(9, place), {})
    assert checkpoints.failure is not None
    assert "step 8 is still being written" in str(checkpoints.failure)
    checkpoints.wait()
    assert checkpoints.failure is None
    assert checkpoints.steps() == [2, 6, 7, 8]

    # All or none: what is no good for one is no good for any.
    try:
        checkpoints.good_step(99)
    except PlmjaxError as error:
        print("refused:", error.message)
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
