"""Rounds of pseudo-labels: whole, gone on with, and honest in folds."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from finetune_common import config_of, make_folder, records, write
from tests_common import WORDS

from plmjax import Exit, PlmjaxError
from plmjax.cli import main
from plmjax.evaluate import predictions
from plmjax.experiments import pseudo as pseudo_study
from plmjax.experiments import pseudo_results
from plmjax.experiments.pseudo import Plan, pseudo
from plmjax.experiments.pseudo_labels import PseudoConfig
from plmjax.experiments.pseudo_results import Round, gains
from plmjax.finetune.added import Added
from plmjax.finetune.predict import Predictor, read_input
from plmjax.finetune.run import finetune
from plmjax.stop import Stop


@pytest.fixture
def place(tmp_path):
    make_folder(tmp_path / "bert")
    write(tmp_path / "train.jsonl", records("classes", 40))
    write(tmp_path / "held_out.jsonl", records("classes", 16, seed=1))
    many = records("classes", 60, seed=2)
    # Two that must not be learned from: one is scored, one is labelled already.
    many += [records("classes", 1, seed=1)[0], records("classes", 1)[0]]
    texts = [{"text": record["text"]} for record in many]
    write(tmp_path / "many.jsonl", texts)
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_rounds_go_on_where_they_were_stopped(place, monkeypatch):
    values = config_of(place / "bert", place, "train.steps=4")
    settings = PseudoConfig(threshold=0.0, proportions="kept")
    plan = Plan(str(place / "many.jsonl"), settings, rates=(0.5,), rounds=1)
    said: list[str] = []
    whole = pseudo(values, plan, place / "whole", said.append)
    left_out = {"test": 0, "held_out": 1, "train": 1, "repeated": 0}
    assert [r["left_out"] for r in whole["rounds"]] == [{}, left_out]
    drawn = (place / "whole" / "rate-0.5" / "round-1.jsonl").read_text().splitlines()
    assert 28 <= len(drawn) <= 32
    for line in map(json.loads, drawn):
        assert {"text", "label", "confidence"} <= line.keys()
    due, turns = Stop.due, []

    def later(self, turn):
        turns.append(turn)
        if len(turns) == 7:  # in the second fine-tuning
            self.received = "SIGTERM"
        return due(self, turn)

    with monkeypatch.context() as patched:
        patched.setattr(Stop, "due", later)
        stopped = pseudo(values, plan, place / "run", said.append)
    assert stopped["stopped"] == "SIGTERM"
    # As begun by a plmjax that did not have this key yet.
    note = json.loads((place / "run" / "pseudo.json").read_text())
    del note["config"]["cache_features"]
    (place / "run" / "pseudo.json").write_text(json.dumps(note))
    assert pseudo(values, plan, place / "run", said.append) == whole
    assert (place / "run" / "plots" / "score_by_rate.png").stat().st_size > 1000
    assert len((place / "run" / "results.csv").read_text().splitlines()) >= 3
    # Another threshold is another study.
    other = Plan(plan.unlabelled, PseudoConfig(threshold=0.8), (0.5,), 1)
    with pytest.raises(PlmjaxError, match="(?s)other rounds.*threshold"):
        pseudo(values, other, place / "run", said.append)
    (place / "sweep").mkdir()
    (place / "sweep" / "sweep.json").write_text("{}")
    with pytest.raises(PlmjaxError, match="a sweep, not rounds of pseudo-labels"):
        pseudo(values, plan, place / "sweep", said.append)


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_a_leak_is_seen_and_folds_have_none(tmp_path):
    """Labels are pure chance, but texts can be learned by heart."""
    folder = make_folder(tmp_path / "bert", width=32, dropout=0.0)
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, 4, replace=False)) for _ in range(60)]
    labels = random.permutation(["heads", "tails"] * 30)
    lines = [{"text": t, "label": n} for t, n in zip(texts, labels, strict=True)]
    write(tmp_path / "train.jsonl", lines)
    write(tmp_path / "held_out.jsonl", lines[:8])
    # Nearly the same, as in many a crawl: too little for them to be left out.
    write(tmp_path / "many.jsonl", [{"text": f"{text}."} for text in texts])
    more = ("start.from_scratch=True", "train.optimizer.learning_rate=0.005")
    more += ("train.steps=100", "train.evaluate_every_steps=100", "select.keep=last")
    more += ("train.checkpoint_every_steps=100",)

    # The leak: one model has learned all folds, and labels the texts for each.
    everything = config_of(folder, tmp_path, *more)
    finetune(everything, tmp_path / "teacher", lambda line: None)
    teacher = Predictor([str(tmp_path / "teacher")], batch=16)
    pool = read_input(teacher.config, str(tmp_path / "many.jsonl"))
    said = predictions.read(teacher.config, teacher.labels, pool, teacher.predict(pool))
    leak = Added(
        tuple(
            dataclasses.replace(example, label=label)
            for example, label in zip(pool, said, strict=True)
        )
    )
    folded = (*more, "task.held_out=none")
    theirs = []
    for fold in range(2):
        own = (*folded, "folds.count=2", f"folds.fold={fold}")
        config, place = config_of(folder, tmp_path, *own), tmp_path / f"leaky-{fold}"
        leaky = finetune(config, place, lambda line: None, leak)
        theirs.append(leaky["held_out"]["accuracy"])

    plan = Plan(str(tmp_path / "many.jsonl"), PseudoConfig(threshold=0.5), folds=2)
    honest = pseudo(
        config_of(folder, tmp_path, *folded),
        plan,
        tmp_path / "honest",
        lambda line: None,
    )
    last = [r for r in honest["rounds"] if r["round"] == 1]
    assert [r["kept"] for r in last] == [60, 60] and all(r["drawn"] > 30 for r in last)
    ours = [r["held_out"]["accuracy"] for r in last]
    # Chance is .5; the mean of 60 texts has a standard deviation of .065.
    assert np.mean(theirs) > 0.8 and abs(np.mean(ours) - 0.5) < 0.2, (theirs, ours)


def test_commands_say_what_they_lack(place, capsys):
    def told(*arguments) -> str:
        given = [f"--workdir={place / 'w'}", f"--config.model={place / 'bert'}"]
        given.append(f"--config.task.train={place / 'train.jsonl'}")
        assert main(["pseudo", *given, *map(str, arguments)]) not in (0, Exit.INTERNAL)
        return capsys.readouterr().err

    many = f"--unlabelled={place / 'many.jsonl'}"
    assert "--threshold=2.0" in told(many, "--threshold=2")
    assert "--rates=a" in told(many, "--rates=a")
    assert "--folds=1" in told(many, "--folds=1")
    assert "no pseudo-labels" in told(many, "--config.task.kind=regression")
    assert "nowhere" in told(f"--unlabelled={place}/nowhere.txt")


def test_rounds_have_the_scores_of_their_fine_tunings(monkeypatch, tmp_path):
    """Driven to its end by fine-tunings that take no time; more examples are better."""
    for seed, (name, count) in enumerate({"train": 20, "held_out": 8}.items()):
        write(tmp_path / f"{name}.jsonl", records("classes", count, seed))
    texts = [{"text": one["text"]} for one in records("classes", 40, 2)]
    many = write(tmp_path / "many.jsonl", texts)
    scores = {}

    def finetune(config, workdir, log, added):
        better = len(added.examples) / 100 * (1 + config.train.seed / 50)
        own = {"loss": 1 - better, "accuracy": 0.5 + better}
        scores[workdir.relative_to(tmp_path / "run")] = own
        return {"held_out": own, "step": 6, "metric": "accuracy"}

    def predict(self, teacher, pool):
        chance = np.random.default_rng(len(teacher.parts))
        sure = chance.uniform(0.6, 0.9, len(pool.examples))
        return [np.array([a, 1 - a]) for a in np.where(sure < 0.75, sure, 1 - sure)]

    monkeypatch.setattr(pseudo_study, "finetune", finetune)
    monkeypatch.setattr(pseudo_study._Chain, "_predict", predict)
    monkeypatch.setattr(pseudo_results, "plot_rates", lambda *_: None)
    options = PseudoConfig(threshold=0.0, proportions="kept")
    asked = pseudo_study.Plan(str(many), options, (0.5, 1.0), rounds=2, seeds=3)
    config = config_of("none", tmp_path)
    said = []
    found = pseudo_study.pseudo(config, asked, tmp_path / "run", said.append)
    assert len(found["rounds"]) == 15 and len(scores) == 15
    chains = [own["chain"] for own in found["rounds"]]
    assert chains == [f"seed-{n // 5}" for n in range(15)]
    for own in found["rounds"]:
        place = Path(own["chain"], f"rate-{own['rate']:g}") if own["rate"] else None
        place = (place or Path(own["chain"])) / f"round-{own['round']}"
        assert own["held_out"] == scores[place]
        if own["round"]:
            lines = (tmp_path / "run" / f"{place}.jsonl").read_text().splitlines()
            assert own["drawn"] == len(lines)
            assert own["drawn"] == pytest.approx(own["kept"] * own["rate"], abs=1)
    assert {g["rate"]: g["verdict"] for g in found["gains"]} == {
        0.5: "better",
        1.0: "better",
    }
    assert any("Rate 1 against round 0, held-out accuracy: +0.4080" in s for s in said)


@pytest.mark.parametrize("metric, sign", [("accuracy", 1), ("loss", -1)])
def test_a_gain_is_what_gets_better(metric, sign):
    """Of a loss, less is more."""
    rounds = [
        Round(
            str(chain), rate, number, metric, 9, {metric: score + 0.003 * chain * rate}
        )
        for chain in range(3)
        for rate, number, score in ((0.0, 0, 0.4), (0.5, 1, 0.2), (1.0, 1, 0.6))
    ]
    verdicts = {gain["rate"]: gain["verdict"] for gain in gains(rounds, None)}
    assert verdicts == {
        0.5: "worse" if sign > 0 else "better",
        1.0: "better" if sign > 0 else "worse",
    }
