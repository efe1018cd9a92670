"""Sweeps of fine-tunings: what is checked, what they are judged by, what comes out."""

import csv
import json
from pathlib import Path

import pytest
from fakes import RATE, sweep_file
from finetune_common import make_folder, records, write
from tests_common import run_cli

from plmjax import Exit, PlmjaxError
from plmjax.experiments import sweep_plan as plan
from plmjax.experiments import trials

BASE = """
def get_config():
    return {
        "model": "PLACE/folder", "baselines": False,
        "task": {
            "kind": "KIND", "train": "PLACE/train.jsonl", "test": "PLACE/test.jsonl",
            "length": 16,
        },
        "train": {
            "steps": 4, "batch": 8, "evaluate_every_steps": 2,
            "checkpoint_every_steps": 2, "tensorboard": False,
        },
    }
"""
RATES = f"def get_hyper(hyper):\n    return hyper.sweep('{RATE}', [1e-4, 1e-2])\n"


@pytest.fixture
def place(tmp_path):
    """A directory with a model."""
    make_folder(tmp_path / "folder")
    return tmp_path


def text(place, wants=RATES, kind="classes"):
    for seed, name in enumerate(("train", "test")):
        write(place / f"{name}.jsonl", records(kind, 40, seed))
    base = BASE.replace("PLACE", str(place)).replace("KIND", kind)
    return sweep_file(place, base + wants)


def test_a_block_of_a_task_makes_a_fine_tuning(place):
    found = plan.load(text(place), ["train.steps=6"])
    first, second = (config["train"] for config in found.configs)
    assert first["steps"] == second["steps"] == 6
    assert [c["optimizer"]["learning_rate"] for c in (first, second)] == [1e-4, 1e-2]
    trial = trials.listed_trials(place / "sweep", found)[1]
    verb, *_, rate, workdir = trial.command(found.fixed)
    assert (verb, rate) == ("finetune", f"--config.{RATE}=0.01")
    assert workdir.endswith("trials/0001")


@pytest.mark.parametrize(
    "kind, judged",
    [
        ("classes", ("accuracy", True)),
        ("tags", ("entity_f1", True)),
        ("regression", ("pearson", True)),
    ],
)
def test_it_is_judged_by_the_score_that_chooses_the_step(place, kind, judged):
    study = plan.load(text(place, kind=kind)).study
    assert (study.objective, study.maximise) == judged


def test_what_a_file_is_judged_by_is_its_own_say(place):
    own = RATES + "def get_study():\n    return {'objective': 'loss'}\n"
    study = plan.load(text(place, own)).study
    assert (study.objective, study.maximise) == ("loss", False)
    chosen = plan.load(text(place), ["select.metric=loss"]).study
    assert (chosen.objective, chosen.maximise) == ("loss", False)
    other = RATES + "def get_study():\n    return {'objective': 'f1_macro'}\n"
    study = plan.load(text(place, other)).study
    assert (study.objective, study.maximise) == ("f1_macro", True)


@pytest.mark.parametrize(
    "study, message",
    [
        ({"objective": "test accuracy"}, "test accuracy.*looks better there than it"),
        ({"objective": "acuracy"}, "'acuracy' is no held-out score.*It has accuracy"),
        ({"prune_from_step": 2}, "nobody knows how many train.epochs"),
    ],
)
def test_what_it_cannot_be_judged_by_is_refused(place, study, message):
    own = RATES + f"def get_study():\n    return {study!r}\n"
    given = ["train.steps=none", "train.epochs=1"]
    with pytest.raises(PlmjaxError, match=message):
        plan.load(text(place, own), given)


@pytest.mark.parametrize(
    "given, message",
    [
        ("model=nowhere", "trial 0 .*nowhere is not a folder"),
        ("task.train=nowhere.jsonl", "trial 0 .*nowhere.jsonl' matches no file"),
        ("task.columns.label=lable", "trial 0 .*lable"),
        ("select.metric=pearson", "trial 0 .*pearson is no score"),
        ("train.batch=0", "trial 0 .*batch"),
        ("data.length=64", "trial 0 .*no key data.length"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(place, given, message):
    with pytest.raises(PlmjaxError, match=f"(?s){message}"):
        plan.load(text(place), [given])


def test_settings_at_equal_compute_are_of_pretraining(place):
    wants = "def get_settings():\n    return {'a': {'mixout': 0.1}}\n"
    with pytest.raises(PlmjaxError, match="get_settings is for pretraining"):
        plan.load(text(place, wants))


def test_a_directory_of_pretrainings_takes_no_fine_tunings(place):
    found = plan.load(text(place))
    (place / "sweep").mkdir()
    (place / "sweep" / "sweep.json").write_text(json.dumps({"kind": "list"}))
    with pytest.raises(PlmjaxError, match="holds another sweep"):
        trials.check_definition(place / "sweep", found)


@pytest.mark.slow
def test_a_sweep_of_fine_tunings_from_its_file_to_its_results(place):
    where = place / "sweep"
    command = ["sweep", f"--config={text(place)}", f"--workdir={where}", "--parallel=2"]
    ended = run_cli(*command, timeout=300)
    assert ended.returncode == Exit.OK, ended.stderr
    assert "accuracy" in ended.stdout and "2 finished" in ended.stdout
    table = (where / "results.csv").read_text().splitlines()
    rows = [*csv.DictReader(table)]
    assert len(rows) == 2
    assert float(rows[0]["accuracy"]) >= float(rows[1]["accuracy"])
    for row in rows:
        scores = json.loads(Path(row["workdir"], "scores.json").read_text())
        assert float(row["accuracy"]) == scores["held_out"]["accuracy"]
        assert float(row["test accuracy"]) == scores["test"]["accuracy"]
    before = (where / "trials" / "0000" / "scores.json").stat().st_mtime_ns
    again = run_cli(*command, timeout=300)
    assert again.returncode == Exit.OK, again.stderr
    assert (where / "trials" / "0000" / "scores.json").stat().st_mtime_ns == before
