"""Rounds of pseudo-labels: whole, gone on with, and honest in folds."""

import dataclasses
import json

import numpy as np
import pytest
from finetune_common import config_of, make_folder, records, write
from tests_common import WORDS

from plmjax import Exit, PlmjaxError
from plmjax.cli import main
from plmjax.evaluate import predictions
from plmjax.finetune.added import Added
from plmjax.finetune.predict import Predictor, read_input
from plmjax.finetune.pseudo import PseudoConfig
from plmjax.finetuning import finetune
from plmjax.pseudo.study import Plan, pseudo
from plmjax.train.stop import Stop


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
    with pytest.raises(PlmjaxError, match="another study"):
        pseudo(values, other, place / "run", said.append)


@pytest.mark.slow
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
    said = predictions.read(teacher.config, teacher.labels, pool, teacher.say(pool))
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
