"""Several processes save and load as one; any number of others reads them."""

import shutil
from pathlib import Path

import pytest
from checkpoint_common import assert_holds, mesh, shapes, state
from processes_common import start, succeed
from tests_common import TINY, sentences

from plmjax.checkpoint.checkpoints import Checkpoints

PROGRAM = Path(__file__).parent / "save_together.py"


def saved_alone(tmp_path) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3)
    checkpoints.save(1, state(1, mesh(2, 4)), {})
    checkpoints.wait()
    return checkpoints


@pytest.mark.parametrize(
    ("processes", "devices"), ((2, 2), pytest.param(4, 1, marks=pytest.mark.campaign))
)
def test_processes_save_and_load_together(tmp_path, processes, devices):
    """One process x 8 devices saves, n x m go on, this one reads on any mesh."""
    checkpoints = saved_alone(tmp_path)
    parts = ("move", "refuse", "patience", "end")
    said = succeed(processes, devices, PROGRAM, checkpoints, *parts)
    for output in said:
        assert "done" in output and "has no checkpoint of step 99" in output
    assert said[0].count("WARNING: the checkpoint of step") == 2
    assert "WARNING" not in "".join(said[1:])
    assert checkpoints.good_step() == 8
    layout = checkpoints.meta(8)["layout"]
    assert (layout["processes"], layout["devices"]) == (processes, processes * devices)
    for place in (None, mesh(4, 1), mesh(2, 4)):
        assert_holds(checkpoints.load(8, shapes(place)), 8)
    files = [p.relative_to(checkpoints.path(8)) for p in checkpoints.path(8).rglob("*")]
    for index in range(processes):  # Each has written its share.
        assert Path(f"state/state/ocdbt.process_{index}/manifest.ocdbt") in files


@pytest.mark.campaign
def test_processes_write_together_what_orbax_cannot(tmp_path):
    checkpoints = saved_alone(tmp_path)
    said = succeed(2, 2, PROGRAM, checkpoints, "arrays", "move", "refuse", "end")
    assert all("done" in output for output in said)
    for index in range(2):
        path = checkpoints.path(5) / f"state/process_{index}/manifest.ocdbt"
        assert path.is_file()
    assert checkpoints.good_step() == 5
    assert_holds(checkpoints.load(5, shapes(mesh(2, 4))), 5)


@pytest.mark.campaign
def test_a_process_that_fails_or_hangs_in_a_save(tmp_path):
    checkpoints = saved_alone(tmp_path)
    said = succeed(2, 2, PROGRAM, checkpoints, "fail", "hang")
    assert all("done" in output for output in said)
    # Where one has failed, the other one waits in the background.
    assert "orbax waited for" in said[0]
    assert checkpoints.good_step() == 6
    assert_holds(checkpoints.load(6, shapes(mesh(8, 1))), 6)


@pytest.mark.campaign
def test_training_saves_at_every_other_step(tmp_path):
    """Orbax's barriers must not meet the collectives of the steps beside them."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(sentences(400)) + "\n")
    arguments = (
        *TINY,
        "--config.train.steps=24",
        "--config.train.evaluate_every_steps=24",
        "--config.train.checkpoint_every_steps=2",
        f"--config.data.source.paths={corpus}",
        f"--workdir={tmp_path / 'run'}",
    )
    said = succeed(2, 2, "-m", "plmjax", "pretrain", *arguments, timeout=270)
    assert "WARNING" not in "".join(said)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert checkpoints.good_step() == 24 and len(checkpoints.steps()) == 2


KILLED = """
import sys, time, jax
from checkpoint_common import mesh, state
from plmjax import processes
from plmjax.checkpoint import states
from plmjax.checkpoint.checkpoints import Checkpoints
processes.initialise()
checkpoints = Checkpoints(sys.argv[1], together=True)
place = mesh(2, 1)
checkpoints.save(1, state(1, place), {})
checkpoints.wait()
finish = states._Orbax.finish
def slow(*arguments):
    finish(*arguments)
    print("written", flush=True)
    if jax.process_index():
        time.sleep(60)
states._Orbax.finish = slow
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
        group.wait_for("written", 1)
        group.kill(1)
        # The other one learns it by the heartbeat, and is ended by JAX.
        codes = [process.code for process in group.finish(60)]
    assert 0 not in codes
    checkpoints = Checkpoints(folder)
    checkpoints.remove_unfinished()
    assert checkpoints.good_step() == 1
    assert_holds(checkpoints.load(1, shapes(mesh(2, 4))), 1)
    shutil.rmtree(folder)
