"""Several processes save and load as one; any number of others reads what they did."""

import shutil
from pathlib import Path

import pytest
from checkpoint_common import assert_holds, mesh, shapes, state
from processes_common import start, succeed

from plmjax.train.checkpoint import Checkpoints

PROGRAM = Path(__file__).parent / "save_together.py"


@pytest.mark.parametrize(
    ("processes", "devices"),
    ((2, 2), pytest.param(4, 1, marks=pytest.mark.slow)),
)
def test_processes_save_and_load_together(tmp_path, processes, devices):
    """One process x 8 devices saves, n x m go on, this one reads on any mesh."""
    checkpoints = Checkpoints(tmp_path, 3)
    checkpoints.save(1, state(1, mesh(2, 4)), {})
    checkpoints.wait()
    said = succeed(processes, devices, PROGRAM, tmp_path)
    for output in said:
        assert "done" in output and f"no checkpoint of step 99 in {tmp_path}" in output
    assert said[0].count("WARNING: the checkpoint of step") == 4
    assert "WARNING" not in "".join(said[1:])
    assert checkpoints.good_step() == 8
    layout = checkpoints.meta(8)["layout"]
    assert (layout["processes"], layout["devices"]) == (processes, processes * devices)
    for place in (None, mesh(4, 1), mesh(2, 4), mesh(1, 2)):
        assert_holds(checkpoints.load(8, shapes(place)), 8)
    files = [p.relative_to(checkpoints.path(8)) for p in checkpoints.path(8).rglob("*")]
    for index in range(processes):  # Each has written its share.
        assert Path(f"state/process_{index}/manifest.ocdbt") in files


KILLED = """
import sys, time, jax
from checkpoint_common import mesh, state
from plmjax.train import arrays, processes
from plmjax.train.checkpoint import Checkpoints
processes.initialise()
checkpoints = Checkpoints(sys.argv[1], together=True)
place = mesh(2, 1)
checkpoints.save(1, state(1, place), {})
checkpoints.wait()
write = arrays.write
def slow(*arguments):
    print("writing", flush=True)
    if jax.process_index():
        time.sleep(60)
    write(*arguments)
arrays.write = slow
checkpoints.save(2, state(2, place), {})
checkpoints.wait()
"""


@pytest.mark.slow
def test_a_process_killed_in_a_save_leaves_the_step_before(tmp_path):
    common = str(Path(__file__).parent)
    program = tmp_path / "program.py"
    program.write_text(f"import sys; sys.path.insert(0, {common!r})" + KILLED)
    folder = tmp_path / "checkpoints"
    with start(2, 1, program, folder) as group:
        group.wait_for("writing", 1)
        group.kill(1)
        # The other one learns it by the heartbeat, and is ended by JAX.
        codes = [process.code for process in group.finish(60)]
    assert 0 not in codes
    checkpoints = Checkpoints(folder)
    checkpoints.remove_unfinished()
    assert checkpoints.good_step() == 1
    assert_holds(checkpoints.load(1, shapes(mesh(2, 4))), 1)
    shutil.rmtree(folder)
