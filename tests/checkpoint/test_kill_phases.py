"""A process killed in any phase of a save leaves what the next start goes on from."""

from pathlib import Path

import pytest
from checkpoint_common import assert_holds, save, shapes
from kill_phases import PHASES
from processes_common import succeed

from plmjax.checkpoint.checkpoints import Checkpoints

FEW = ("in the state", "in the digests", "in the removal")


@pytest.mark.parametrize(
    "phases", (FEW, pytest.param(PHASES, marks=pytest.mark.campaign))
)
def test_a_kill_in_every_phase_of_a_save(tmp_path, phases):
    program = Path(__file__).parent / "kill_phases.py"
    (said,) = succeed(1, 1, program, tmp_path, *phases)
    assert [f"{phase}: 9" for phase in phases] == said.splitlines()
    for phase in phases:
        _, steps = PHASES[phase]
        checkpoints = Checkpoints(tmp_path / phase, 2, lambda _: None)
        checkpoints.remove_unfinished()
        assert checkpoints.steps() == steps, phase
        newest = checkpoints.good_step(set_aside=True)
        assert newest == steps[-1], phase
        assert_holds(checkpoints.load(newest, shapes()), newest)
        # Nothing is left over, and the step is saved this time.
        folders = {f"step_{step:08d}" for step in steps}
        assert {path.name for path in (tmp_path / phase).iterdir()} == folders, phase
        hidden = [p for p in (tmp_path / phase).rglob("*") if "tmp" in p.name]
        assert not hidden, phase
        save(checkpoints, 3, 4)
        assert checkpoints.steps() == [3, 4], phase
