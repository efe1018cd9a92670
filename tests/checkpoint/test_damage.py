"""R7, R8: whatever happens to a file of a checkpoint is found, named, and survived."""

import random
import shutil
from pathlib import Path

import pytest
from checkpoint_common import assert_holds, save, shapes

from plmjax import Exit, PlmjaxError
from plmjax.checkpoint import digests
from plmjax.checkpoint.checkpoints import Checkpoints


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of steps 2 and 3, what they have said, a copy of step 3."""
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3, said.append)
    save(checkpoints, 2, 3)
    shutil.copytree(checkpoints.path(3), tmp_path / "whole")
    return checkpoints, said, tmp_path / "whole"


def restore(checkpoints: Checkpoints, whole: Path) -> Path:
    """Puts step 3 back as it was saved; returns its directory."""
    shutil.rmtree(checkpoints.path(3), ignore_errors=True)
    shutil.copytree(whole, checkpoints.path(3))
    return checkpoints.path(3)


def flip(path: Path, at: int | None = None, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1 << bit
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zero(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def test_every_kind_of_damage_to_every_file_is_found(saved):
    checkpoints, said, whole = saved
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    assert {"meta.json", "DIGESTS.json"} < {file.name for file in files}
    assert len(files) >= 12
    found = 0
    for name in files:
        # One of orbax's is empty by itself: a mark.
        changes = (flip, truncate, empty, zero) if (whole / name).stat().st_size else ()
        for damage in (*changes, lengthen, Path.unlink):
            damage(restore(checkpoints, whole) / name)
            said.clear()
            assert checkpoints.good_step() == 2, (name, damage)
            if (name.name, damage) == ("DIGESTS.json", Path.unlink):
                assert not said  # That is a step that was never finished.
            else:
                assert f"step 3: {name.as_posix()}" in said[0], (name, damage, said)
            found += 1
    assert found == 6 * len(files) - 4
    assert_holds(checkpoints.load(2, shapes()), 2)
    restore(checkpoints, whole)
    assert checkpoints.good_step() == 3


@pytest.mark.parametrize("stride", (9, pytest.param(1, marks=pytest.mark.campaign)))
def test_every_byte_of_the_digests_counts(saved, stride):
    checkpoints, _, whole = saved
    path = restore(checkpoints, whole) / digests.FILE
    content = path.read_bytes()
    chance = random.Random(0)
    for at in range(0, len(content), stride):
        flip(path, at, chance.randrange(8))
        assert checkpoints.damage(3) is not None, at
        path.write_bytes(content)
    assert checkpoints.damage(3) is None


def random_flips(saved, count: int) -> None:
    checkpoints, _, whole = saved
    files = sorted(p for p in whole.rglob("*") if p.is_file() and p.stat().st_size)
    chance = random.Random(1)
    for _ in range(count):
        path = restore(checkpoints, whole) / chance.choice(files).relative_to(whole)
        flip(path, chance.randrange(path.stat().st_size), chance.randrange(8))
        assert checkpoints.good_step() == 2, path


def test_random_flips_are_found(saved):
    random_flips(saved, 20)


@pytest.mark.campaign
def test_many_random_flips_are_found(saved):
    random_flips(saved, 500)


def test_a_file_that_appears_is_damage_unless_it_is_hidden(saved):
    checkpoints, said, _ = saved
    state = checkpoints.path(3) / "state"
    (state / ".nfs0001").write_bytes(b"of the file server")
    (state / ".snapshot").mkdir()
    (state / ".snapshot/copy").write_bytes(b"of a backup")
    assert checkpoints.good_step() == 3
    (state / "more").write_bytes(b"")
    assert checkpoints.good_step() == 2
    assert "step 3: state/more was not there when it was saved" in said[-1]


@pytest.mark.parametrize(
    "content",
    (b"[]", b"3", b"null", b'"files"', b'{"files": 3}', b'{"files": {"a": 3}}')
    + (b'{"files": {}}', b"\xff\xfe", b'{"a": 3}', b"[" * 100_000),
)
def test_digests_that_are_none(saved, content):
    checkpoints, said, _ = saved
    (checkpoints.path(3) / digests.FILE).write_bytes(content)
    assert checkpoints.good_step() == 2
    assert "step 3" in said[-1]


def test_damaged_steps_are_set_aside_until_none_is_left(saved):
    checkpoints, _, _ = saved
    save(checkpoints, 4)
    for step in (4, 3):
        (checkpoints.path(step) / "meta.json").write_text("{}")
    assert checkpoints.good_step() == 2 and checkpoints.steps() == [2, 3, 4]
    assert checkpoints.good_step(set_aside=True) == 2
    assert checkpoints.steps() == [2]
    aside = checkpoints.path(4).parent / "damaged"
    assert sorted(p.name for p in aside.iterdir()) == ["step_00000003", "step_00000004"]
    checkpoints.remove_unfinished()
    assert len(list(aside.iterdir())) == 2

    (checkpoints.path(2) / "meta.json").write_text("{}")
    for set_aside in (False, True):  # The last ones stay where they are.
        with pytest.raises(
            PlmjaxError, match="no readable checkpoint in .*step 2: met"
        ) as caught:
            checkpoints.good_step(set_aside=set_aside)
        assert caught.value.code == Exit.MODEL
        assert "Restore one from a copy" in caught.value.hint
        assert checkpoints.steps() == [2]


def test_a_step_that_was_set_aside_twice_is_kept_once(saved):
    checkpoints, _, _ = saved
    for _ in range(2):
        (checkpoints.path(3) / "meta.json").write_text("{}")
        assert checkpoints.good_step(set_aside=True) == 2
        save(checkpoints, 3)
    assert checkpoints.steps() == [2, 3] and checkpoints.good_step() == 3
