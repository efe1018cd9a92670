"""Lists of trials from start to end, with trials that take no time."""

import csv
import dataclasses
import json
import os
import re
import shlex
import signal
from pathlib import Path

import pytest
from fakes import BASE, GRID, RATE, SEED, Fakes, no_page, sweep_file

from plmjax import Exit, PlmjaxError
from plmjax.cli import main
from plmjax.experiments import runs, trials
from plmjax.experiments import sweep as drive
from plmjax.experiments import sweep_plan as plan
from plmjax.workdir import Workdir

QUICK = drive.Options(parallel=2, share_text=False, poll_seconds=0.0)


def loss(values: dict, step: int) -> float:
    """Falls with the steps; the middle rate is the best, seed 0 better than 1."""
    at = {1e-4: 3.0, 1e-3: 1.0, 1e-2: 2.0}[values[RATE]]
    return at + 0.1 * values.get(SEED, 0) + 1 / step


class Sweep:
    """A sweep in a temporary directory, run as often as a test likes."""

    def __init__(self, directory: Path, text: str = GRID):
        self.directory, self.root = directory, directory / "sweep"
        self.fakes, self.said = Fakes(loss), []
        self.write(text)

    def write(self, text: str) -> None:
        self.path = sweep_file(self.directory, text)

    def run(self, options=QUICK, fixed=()) -> int:
        found = plan.load(self.path, fixed)
        return drive.sweep(found, self.root, options, self.said.append, self.fakes)

    def collect(self) -> int:
        return drive.collect(plan.load(self.path), self.root, self.said.append)

    def results(self) -> dict:
        return json.loads((self.root / "results.json").read_text())

    def states(self) -> dict[int, str]:
        found = {t["trial"]: t["state"] for t in self.results()["trials"]}
        return dict(sorted(found.items()))


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    # Its plots take seconds, and are tested in test_page.py.
    monkeypatch.setattr(drive.page, "write", no_page)
    return Sweep(tmp_path)


def test_a_list_runs_to_its_end_and_is_sorted(sweep, capsys):
    assert sweep.run() == 0
    found = sweep.results()
    assert [t["trial"] for t in found["trials"]] == [2, 3, 4, 5, 0, 1]
    assert found["best"] == 2
    assert found["trials"][0]["value"] == loss({RATE: 1e-3, SEED: 0}, 80)
    assert len(found["trials"][0]["evaluations"]) == 8
    best = found["settings"][0]
    assert best["values"] == {RATE: 1e-3} and best["trials"] == 2
    assert best["mean"] == pytest.approx(1.0625) and 0.07 < best["deviation"] < 0.071
    assert sweep.fakes.most_at_once == 2
    assert sweep.fakes.started == [0, 1, 2, 3, 4, 5]
    with open(sweep.root / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["2", "3", "4", "5", "0", "1"]
    assert rows[0][RATE] == "0.001" and float(rows[0]["accuracy"]) > 0.9
    shown = capsys.readouterr().out
    assert "6 finished" in shown and "training" in shown
    # The two clocks are named: from start to end, and of the training steps.
    ended = [line for line in sweep.said if "finished in" in line]
    words = re.compile(r"Trial . finished in \S+ \(training: 0:02\): loss \S+")
    assert len(ended) == 6 and all(map(words.fullmatch, ended))


def test_the_best_is_the_highest_where_that_is_asked_for(sweep):
    study = "def get_study():\n    return {'objective': 'accuracy', 'maximise': True}\n"
    assert sweep.run() == 0
    sweep.write(GRID + study)
    assert sweep.collect() == 0
    found = sweep.results()
    assert found["best"] == 2 and found["objective"] == "accuracy"
    assert found["trials"][0]["value"] > found["trials"][-1]["value"]


def test_what_has_finished_is_not_run_again(sweep):
    assert sweep.run() == 0
    before = sweep.results()
    sweep.fakes.started.clear()
    assert sweep.run() == 0
    assert sweep.fakes.started == [] and sweep.results() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_trials_and_the_same_command_goes_on(sweep, number):
    polls = iter(range(1000))

    def at_poll():
        if next(polls) == 20:
            os.kill(os.getpid(), number)

    sweep.fakes.at_poll = at_poll
    assert sweep.run() == Exit.RESUMABLE
    assert not sweep.fakes.running
    states = sweep.states()
    assert [*states.values()].count("finished") == 2
    assert [*states.values()].count("stopped") == 2
    assert [*states.values()].count("waiting") == 2
    sweep.fakes.started.clear()
    assert sweep.run() == 0
    assert sweep.fakes.started == [2, 3, 4, 5]
    assert set(sweep.states().values()) == {"finished"}


def test_a_failure_is_reported_and_stops_nobody_else(sweep):
    sweep.fakes.fails = {1: Exit.DATA, 4: 1}
    assert sweep.run() == Exit.DATA
    states = sweep.states()
    assert states == {n: "failed" if n in (1, 4) else "finished" for n in range(6)}
    (told,) = (t for t in sweep.results()["trials"] if t["trial"] == 1)
    assert told["code"] == 3 and "error: there is no text." in told["log"]
    assert any("Trial 1 FAILED (exit code 3)" in line for line in sweep.said)
    assert any("error: there is no text." in line for line in sweep.said)
    # Again only if that is asked for.
    sweep.fakes.started.clear()
    assert sweep.run() == Exit.DATA and sweep.fakes.started == []
    sweep.fakes.fails = {}
    assert sweep.run(dataclasses.replace(QUICK, retry_failed=True)) == 0
    assert sweep.fakes.started == [1, 4]
    assert set(sweep.states().values()) == {"finished"}


@pytest.mark.parametrize("code, ends", [(6, 6), (137, 70), (-9, 70), (1, 70), (2, 2)])
def test_the_first_failure_gives_the_exit_code(sweep, code, ends):
    """But never one on which a scheduler would start the same sweep for ever."""
    sweep.fakes.fails = dict.fromkeys(range(6), code)
    assert sweep.run() == ends


def test_a_trial_that_stopped_by_itself_is_to_go_on(sweep):
    sweep.fakes.fails = {3: Exit.RESUMABLE}
    assert sweep.run() == Exit.RESUMABLE
    assert sweep.states()[3] == "stopped"
    sweep.fakes.fails = {}
    assert sweep.run() == 0


def test_a_list_may_grow_anywhere(sweep):
    assert sweep.run() == 0
    sweep.write(GRID.replace("hyper.seeds(2)", "hyper.seeds(3)"))
    sweep.fakes.started.clear()
    assert sweep.run() == 0
    assert sweep.fakes.started == [6, 7, 8]
    values = {t["trial"]: t["values"] for t in sweep.results()["trials"]}
    assert values[3] == {RATE: 1e-3, SEED: 1} and values[7] == {RATE: 1e-3, SEED: 2}


def test_a_trial_is_recognised_however_its_numbers_are_written(sweep):
    text = BASE + "def get_hyper(hyper):\n    return hyper.fixed('KEY', 10)\n"
    sweep.write(text.replace("KEY", "data.held_out_percent"))
    sweep.fakes.loss = lambda values, step: 1.0
    assert sweep.run() == 0 and sweep.run() == 0
    assert sweep.fakes.started == [0]


@pytest.mark.parametrize(
    "old, new, difference",
    [
        ("[1e-4, 1e-3, 1e-2]", "[1e-3, 1e-2]", "learning_rate: 0.0001 -> 0.001"),
        ('"steps": 80', '"steps": 90', "train.steps: 80 -> 90"),
    ],
)
def test_a_trial_that_was_started_cannot_change(sweep, old, new, difference):
    sweep.run()
    sweep.write(GRID.replace(old, new))
    with pytest.raises(PlmjaxError, match=f"(?s)has been started.*{difference}"):
        sweep.run()


def test_a_search_is_not_taken_for_a_list(sweep):
    sweep.run()
    text = (
        BASE + f"def get_space(space):\n    return {{'{RATE}': space.log(1e-4, 1)}}\n"
    )
    sweep.write(text + "def get_study():\n    return {'trials': 2}\n")
    with pytest.raises(PlmjaxError) as caught:
        sweep.run()
    # The one key in which the two differ as kinds, and none of a search's own.
    assert caught.value.message.split(" holds ")[1] == (
        "another sweep:\n  kind: 'list' -> 'search'"
    )


@pytest.mark.parametrize("name", ["study.json", "pseudo.json", "config.json"])
def test_a_sweep_refuses_the_directory_of_another_verb(sweep, name):
    """It would overwrite results.json and report.html."""
    sweep.root.mkdir(parents=True)
    (sweep.root / name).write_text("{}")
    with pytest.raises(PlmjaxError, match="not a sweep. Choose another --workdir"):
        sweep.run()
    assert [path.name for path in sweep.root.glob("[!.]*")] == [name]


def test_a_run_of_another_config_is_not_taken_for_a_trial(sweep):
    sweep.run()
    config = sweep.root / "trials" / "0002" / "config.json"
    config.write_text(config.read_text().replace('"batch": 8', '"batch": 4'))
    with pytest.raises(PlmjaxError, match="not the sweep's trial 2"):
        sweep.run()


def test_an_objective_that_no_run_has_ends_the_sweep_at_once(sweep):
    sweep.write(GRID + "def get_study():\n    return {'objective': 'los'}\n")
    with pytest.raises(PlmjaxError, match="'los'.*Did you mean loss"):
        sweep.run()
    assert not sweep.fakes.running and len(sweep.fakes.started) == 2


def test_trials_that_fall_behind_are_pruned(sweep):
    sweep.write(GRID + "def get_study():\n    return {'prune_from_step': 20}\n")
    assert sweep.run() == 0
    states = sweep.states()
    # Nobody is pruned before three have been at step 20; rate 1e-2 comes last.
    assert states == {
        0: "finished",
        1: "finished",
        2: "finished",
        3: "pruned",
        4: "pruned",
        5: "pruned",
    }
    (pruned,) = (t for t in sweep.results()["trials"] if t["trial"] == 5)
    assert pruned["step"] == 20 and pruned["value"] == loss({RATE: 1e-2, SEED: 1}, 20)
    sweep.fakes.started.clear()
    assert sweep.run() == 0 and sweep.fakes.started == []


def test_a_sweep_in_use_is_refused(sweep):
    found = plan.load(sweep.path)
    sweep.fakes.at_poll = lambda: seen.append(second())
    seen: list[str] = []

    def second() -> str:
        with pytest.raises(PlmjaxError) as caught:
            drive.sweep(found, sweep.root, QUICK, print, sweep.fakes)
        return str(caught.value)

    assert sweep.run() == 0
    assert all("is in use by process" in message for message in seen)


def test_collecting_starts_nothing(sweep):
    with pytest.raises(PlmjaxError, match="holds no sweep"):
        sweep.collect()
    polls = iter(range(1000))
    sweep.fakes.at_poll = lambda: next(polls) == 20 and sweep.collect()
    assert sweep.run() == 0
    sweep.fakes.started.clear()
    assert sweep.collect() == 0 and sweep.fakes.started == []


@pytest.mark.parametrize("runner", ["print", "slurm"])
def test_trials_are_handed_out_and_collected(sweep, runner, capsys):
    options = drive.Options(runner=runner)
    assert sweep.run(options, ["train.keep_checkpoints=3"]) == 0
    out = capsys.readouterr().out.splitlines()
    if runner == "print":
        lines = [line.removeprefix("python -m plmjax ") for line in out]
    else:
        (command,) = out
        assert command.startswith("plmjax launch --target=slurm --commands=")
        lines = Path(command.rpartition("=")[2]).read_text().splitlines()
        # What launch takes: its own tests begin each line so, too.
        assert all(line.startswith("plmjax pretrain ") for line in lines)
        lines = [line.removeprefix("plmjax ") for line in lines]
    assert len(lines) == 6
    assert shlex.split(lines[3]) == [
        "pretrain",
        f"--config={sweep.root}/base.json",
        "--config.train.keep_checkpoints=3",
        f"--config.{RATE}=0.001",
        "--config.train.seed=1",
        f"--workdir={sweep.root}/trials/0003",
    ]
    assert sweep.fakes.started == []
    sweep.write(GRID.replace('"batch": 8', '"batch": 8, "keep_checkpoints": 3'))
    assert sweep.collect() == Exit.RESUMABLE
    # Somebody runs two of them.
    for line in lines[2:4]:
        log = sweep.directory / "log.txt"
        process = sweep.fakes(shlex.split(line), log, None, {})
        while process.poll() is None:
            pass
    assert sweep.collect() == Exit.RESUMABLE
    assert [*sweep.states().values()] == ["waiting"] * 2 + ["finished"] * 2 + [
        "waiting"
    ] * 2
    capsys.readouterr()
    assert sweep.run(options) == 0
    out = capsys.readouterr().out
    if runner == "slurm":
        out = Path(out.strip().rpartition("=")[2]).read_text()
    assert "trials/0003" not in out and len(out.splitlines()) == 4


def test_text_is_prepared_once_for_those_who_share_it(sweep):
    """Four trials of two texts, and one of its own."""
    paths = "hyper.sweep('data.source.paths', ['a', 'b'])"
    alone = "hyper.fixed('data.source.paths', 'c')"
    pair = f"hyper.product([{paths}, hyper.seeds(2)])"
    text = "hyper.fixed('data.source.kind', 'text')"
    rate = f"hyper.fixed('{RATE}', 1e-3)"
    both = f"[{rate}, {text}, hyper.chainit([{pair}, {alone}])]"
    sweep.write(BASE + f"def get_hyper(hyper):\n    return hyper.product({both})\n")
    prepared, fakes = [], sweep.fakes

    def start(arguments, log, slot, environment):
        if "--dry_run" not in arguments:
            return fakes(arguments, log, slot, environment)
        (workdir,) = (a for a in arguments if a.startswith("--workdir="))
        directory = Path(workdir.removeprefix("--workdir="))
        prepared.append(next(a for a in arguments if "paths=" in a))
        (directory / "tokenizer").mkdir()
        (directory / "tokenizer" / "vocab.txt").write_text(prepared[-1])
        (directory / "data").mkdir()
        (directory / "run.json").write_text("{}")
        log.write_text("error: b cannot be read.\n")
        return Ended(3 if prepared[-1].endswith("b") else 0)

    sweep.fakes = start
    options = drive.Options(parallel=2, poll_seconds=0)
    assert sweep.run(options) == 0
    assert prepared == [f"--config.data.source.paths={name}" for name in "ab"]
    for number, name in enumerate("aabb"):
        own = sweep.root / "trials" / f"{number:04d}"
        assert (own / "tokenizer" / "vocab.txt").read_text().endswith(name)
        assert (own / "data").is_dir() and not os.readlink(own / "data").startswith("/")
    assert not (sweep.root / "trials" / "0004" / "data").exists()


class Ended:
    """A process that has ended."""

    def __init__(self, code: int):
        self.code = code

    def poll(self) -> int:
        return self.code

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


def test_text_that_cannot_be_prepared_fails_its_trials(sweep):
    def start(arguments, log, slot, environment):
        assert "--dry_run" in arguments
        log.write_text("error: it cannot be read.\n")
        return Ended(3)

    sweep.fakes = start
    assert sweep.run(drive.Options(poll_seconds=0)) == Exit.DATA
    assert set(sweep.states().values()) == {"failed"}
    assert sweep.results()["trials"][0]["log"] == ["error: it cannot be read."]


def test_a_trial_that_a_dead_sweep_left_is_waited_for(sweep, tmp_path):
    found = plan.load(sweep.path)
    (trial, *_) = trials.listed_trials(sweep.root, found)
    trial.save()
    assert runs.locked_by(trial.directory) is None
    with Workdir(trial.directory).locked():
        assert f"process {os.getpid()}" in (runs.locked_by(trial.directory) or "")
        with pytest.raises(PlmjaxError, match="is in use by process"):
            runs.wait_until_free(
                [trial.directory], sweep.said.append, limit_seconds=0.0
            )
    runs.wait_until_free([trial.directory], sweep.said.append)
    assert len(sweep.said) == 1 and "Waiting for process" in sweep.said[0]


def test_the_command_line_checks_and_lists(sweep, capsys):
    assert main(["sweep", f"--config={sweep.path}", "--dry_run"]) == 0
    assert "learning_rate" in capsys.readouterr().out
    wrong = [f"--config={sweep.path}", "--config.train.stepz=3"]
    assert main(["sweep", *wrong, "--dry_run"]) == Exit.USAGE
    assert "Did you mean train.steps" in capsys.readouterr().err
    assert main(["sweep"]) == Exit.USAGE
    assert "needs its file" in capsys.readouterr().err
    assert main(["sweep", *wrong[:1], "--parallel=0"]) == Exit.USAGE
