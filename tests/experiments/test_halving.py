"""When a trial is given up, and how evaluations are read while they are written."""

import json
import os

import pytest

from plmjax.experiments.halving import Follower, falls_behind

OTHERS = [{10: 1.0, 20: 0.9}, {10: 2.0}, {10: 3.0}, {10: 4.0}, {10: 5.0}]


@pytest.mark.parametrize(
    "own, ends",
    [
        ({10: 0.5}, False),
        ({10: 1.5}, False),  # of six, the best two go on
        ({10: 2.5}, True),
        ({5: 9.0}, False),  # no rung yet
        ({10: 9.0, 20: 9.0}, False),  # judged at 10; the next rung is 30
        ({10: 9.0, 35: 9.0}, False),  # two others are needed there
        ({5: 1.0, 10: float("nan")}, True),
    ],
)
def test_the_best_part_of_those_at_a_rung_goes_on(own, ends):
    assert falls_behind(own, OTHERS, 10, 3, maximise=False) is ends


def test_evaluations_need_not_fall_on_the_rungs():
    others = [{7: 1.0, 14: 1.0, 33: 0.1}, {14: 2.0, 31: 0.2}]
    assert falls_behind({7: 5.0, 14: 3.0}, others, 10, 3, False)
    assert falls_behind({7: 5.0, 14: 3.0, 30: 0.3}, others, 10, 3, False)
    assert not falls_behind({7: 5.0, 14: 3.0, 30: 0.05}, others, 10, 3, False)


def test_maximising_turns_it_round():
    assert falls_behind({10: 1.5}, OTHERS, 10, 3, maximise=True)
    assert not falls_behind({10: 4.5}, OTHERS, 10, 3, maximise=True)


def test_nobody_ends_before_there_are_enough_to_compare():
    assert not falls_behind({10: 9.0}, OTHERS[:1], 10, 3, False)
    assert falls_behind({10: 9.0}, OTHERS[:2], 10, 3, False)


def test_a_trial_that_diverged_counts_as_one_that_is_beaten():
    lost = [{10: float("inf")}, {10: float("nan")}]
    assert not falls_behind({10: 9.0}, lost, 10, 3, False)


def line(step: int, kind: str = "evaluation") -> str:
    return json.dumps({"kind": kind, "step": step, "loss": 1.0}) + "\n"


def test_a_follower_reads_each_whole_line_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    assert follower.read() == []
    whole, half = line(10), line(20)
    path.write_text(line(5, "train") + whole + half[:12])
    assert [r["step"] for r in follower.read()] == [10]
    with open(path, "a") as file:
        file.write(half[12:])
    assert [r["step"] for r in follower.read()] == [20]
    assert follower.read() == []


def test_a_follower_begins_again_where_the_file_was_written_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(10) + line(20))
    follower = Follower(path)
    assert len(follower.read()) == 2
    (tmp_path / "new").write_text(line(10) + line(30) + line(40))
    os.replace(tmp_path / "new", path)
    assert [r["step"] for r in follower.read()] == [10, 30, 40]
