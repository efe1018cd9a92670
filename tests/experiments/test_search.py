"""Searches by Optuna, with trials that take no time."""

import dataclasses
import json
import math
import os
import signal
import sys

import pytest
from fakes import BASE, RATE, SEARCH, Fakes, no_page, sweep_file

from plmjax import Exit, PlmjaxError
from plmjax.experiments import sweep as drive
from plmjax.experiments import sweep_plan as plan

optuna = pytest.importorskip("optuna")
from plmjax.experiments import search as search_lib  # noqa: E402

QUICK = drive.Options(parallel=2, share_text=False, poll_seconds=0.0)
STUDY = {"trials": 6, "seed": 3}


def loss(values: dict, step: int) -> float:
    """A valley at a rate of 1e-3; a batch of 16 is better."""
    return math.log10(values[RATE] / 1e-3) ** 2 + 8 / values["train.batch"] + 1 / step


class Search:
    def __init__(self, directory):
        self.directory, self.root = directory, directory / "sweep"
        self.fakes, self.said = Fakes(loss), []

    def run(self, options=QUICK, fixed=(), **study) -> int:
        text = SEARCH.replace("STUDY", repr(STUDY | study))
        found = plan.load(sweep_file(self.directory, text), fixed)
        return drive.sweep(found, self.root, options, self.said.append, self.fakes)

    def results(self) -> list[dict]:
        return json.loads((self.root / "results.json").read_text())["trials"]

    def states(self) -> dict[int, str]:
        return {t["trial"]: t["state"] for t in self.results()}

    def told(self):
        backend = optuna.storages.journal.JournalFileBackend(
            str(self.root / "journal.log")
        )
        storage = optuna.storages.JournalStorage(backend)
        return optuna.load_study(study_name="sweep", storage=storage).trials


@pytest.fixture
def search(tmp_path, monkeypatch):
    # Its plots take seconds, and are tested in test_page.py.
    monkeypatch.setattr(drive.page, "write", no_page)
    return Search(tmp_path)


def test_trials_are_drawn_run_and_told(search):
    assert search.run() == 0
    told = {trial.number: trial for trial in search.told()}
    assert set(told) == set(range(6)) == set(search.fakes.started)
    for trial in search.results():
        seen = told[trial["trial"]]
        assert seen.state.name == "COMPLETE" and seen.value == trial["value"]
        assert seen.params == trial["values"]
        assert seen.intermediate_values == {s: v for s, v in trial["evaluations"]}
        assert 1e-5 <= trial["values"][RATE] <= 1e-1
        assert trial["values"]["train.batch"] in (8, 16)
    values = [trial["value"] for trial in search.results()]
    assert values == sorted(values)


def test_what_has_been_seen_steers_what_is_drawn(search):
    """TPE's trials gather where the ones before them were good."""
    one = dataclasses.replace(QUICK, parallel=1)
    assert search.run(one, trials=40) == 0
    numbered = sorted(search.results(), key=lambda trial: trial["trial"])
    far = [abs(math.log10(trial["values"][RATE] / 1e-3)) for trial in numbered]
    assert sum(far[-15:]) / 15 < 0.5 * sum(far[:10]) / 10


def test_a_search_that_goes_on_draws_as_if_it_had_not_stopped(search, tmp_path):
    one = dataclasses.replace(QUICK, parallel=1)
    assert search.run(one, trials=3) == 0
    assert search.run(one, trials=6) == 0
    (tmp_path / "whole").mkdir()
    whole = Search(tmp_path / "whole")
    assert whole.run(one) == 0
    drawn = [[t["values"] for t in s.results()] for s in (search, whole)]
    assert drawn[0] == drawn[1]
    assert len({values[RATE] for values in drawn[0]}) == 6
    assert search.fakes.started == [0, 1, 2, 3, 4, 5]


def test_a_signal_stops_a_search_and_it_goes_on(search):
    polls = iter(range(1000))

    def at_poll():
        if next(polls) == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    search.fakes.at_poll = at_poll
    assert search.run() == Exit.RESUMABLE
    assert search.states() == {0: "finished", 1: "finished", 2: "stopped", 3: "stopped"}
    search.fakes.started.clear()
    assert search.run() == 0
    assert search.fakes.started == [2, 3, 4, 5]
    assert {t.state.name for t in search.told()} == {"COMPLETE"}


def test_a_killed_sweep_leaves_a_journal_that_opens(search):
    """With half a line, its lock, and a trial that was drawn and not written down."""
    assert search.run(trials=2) == 0
    journal = search.root / "journal.log"
    study = optuna.load_study(
        study_name="sweep",
        storage=optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(journal))
        ),
    )
    text = SEARCH.replace("STUDY", repr(STUDY))
    found = plan.load(sweep_file(search.directory, text))
    drawn = study.ask(search_lib.distributions(found.space))
    study.ask()  # of which nothing is known yet
    with open(journal, "a") as file:
        file.write('{"op_code":5,"worker')
    (search.root / "journal.log.lock").symlink_to(journal)
    search.fakes.started.clear()
    assert search.run(trials=4) == 0
    # 3 was given up: nobody knows what it would have been.
    assert search.fakes.started == [2, 4]
    told = {trial.number: trial.state.name for trial in search.told()}
    assert told == {
        0: "COMPLETE",
        1: "COMPLETE",
        2: "COMPLETE",
        3: "FAIL",
        4: "COMPLETE",
    }
    (second,) = (t for t in search.results() if t["trial"] == 2)
    assert second["values"] == drawn.params


def test_a_trial_that_ended_unheard_is_told(search):
    """The sweep was killed after the trial had finished, and before it heard."""
    assert search.run(drive.Options(runner="print", share_text=False)) == 0
    assert {trial.state.name for trial in search.told()} == {"RUNNING"}
    log, commands = search.directory / "log.txt", search.root / "trials" / "0001"
    process = search.fakes([f"--workdir={commands}"], log, None, {})
    while process.poll() is None:
        pass
    search.fakes.started.clear()
    assert search.run() == 0
    assert search.fakes.started == [0, 2, 3, 4, 5]
    assert {trial.state.name for trial in search.told()} == {"COMPLETE"}


def test_failures_are_forgotten_and_divergence_is_kept_away_from(search):
    search.fakes.fails = {1: Exit.DISK, 2: Exit.NUMERIC}
    assert search.run() == Exit.DISK
    told = {trial.number: trial.state.name for trial in search.told()}
    assert told[1] == "FAIL" and told[2] == "PRUNED"
    search.fakes.fails = {}
    again = dataclasses.replace(QUICK, retry_failed=True)
    for _ in range(2):
        assert search.run(again) == 0
    retried = [t for t in search.told() if "retried" in t.user_attrs]
    assert [t.user_attrs["retried"] for t in retried] == [1, 2]
    value = {t["trial"]: t["value"] for t in search.results()}
    assert [t.value for t in retried] == [value[1], value[2]]
    assert len(search.results()) == 6


def test_pruned_trials_are_told_as_such(search):
    assert search.run(trials=12, prune_from_step=20) == 0
    states = search.states()
    assert {"finished", "pruned"} == set(states.values())
    for trial in search.told():
        assert (trial.state.name == "PRUNED") == (states[trial.number] == "pruned")
        if trial.state.name == "PRUNED":
            assert max(trial.intermediate_values) in (20, 60)
    best = min(search.results(), key=lambda trial: trial["value"])
    assert best["state"] == "finished"


def test_values_that_cannot_work_together_are_left_out(search):
    text = SEARCH.replace("STUDY", repr(STUDY)).replace(
        '"train.batch": space.choice([8, 16])',
        '"train.batch": space.choice([8, 16]), "train.accumulation": '
        "space.choice([1, 16])",
    )
    with pytest.raises(PlmjaxError, match="train.accumulation=16 of get_space"):
        plan.load(sweep_file(search.directory, text))
    # The ends of each range are good with the first of the others; not all pairs are.
    text = text.replace("[8, 16]", "[16, 8]")
    found = plan.load(sweep_file(search.directory, text))
    assert drive.sweep(found, search.root, QUICK, search.said.append, search.fakes) == 0
    refused = [line for line in search.said if "is left out" in line]
    assert refused and "does not divide" in refused[0]
    assert len(search.results()) + len(refused) == 6


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("1e-5, 1e-1", "1e-5, 1", "(?s)another sweep.*high: 0.1 -> 1.0"),
        ('"steps": 80', '"steps": 90', "(?s)has been started.*train.steps: 80 -> 90"),
    ],
)
def test_a_search_cannot_change(search, old, new, message):
    assert search.run() == 0
    text = SEARCH.replace("STUDY", repr(STUDY)).replace(old, new)
    found = plan.load(sweep_file(search.directory, text))
    before = (search.root / "base.json").read_text()
    with pytest.raises(PlmjaxError, match=message):
        drive.sweep(found, search.root, QUICK, print, search.fakes)
    assert (search.root / "base.json").read_text() == before


def test_a_lost_journal_is_noticed(search):
    assert search.run() == 0
    (search.root / "journal.log").unlink()
    with pytest.raises(PlmjaxError, match="does not know"):
        search.run()


def test_without_optuna_a_search_says_so(search, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(PlmjaxError, match="pip install 'plmjax"):
        search.run()


def test_a_list_needs_no_optuna(search, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    text = BASE + "def get_hyper(hyper):\n    return hyper.seeds(2)\n"
    found = plan.load(sweep_file(search.directory, text))
    search.fakes.loss = lambda values, step: 1.0
    assert drive.sweep(found, search.root, QUICK, print, search.fakes) == 0
