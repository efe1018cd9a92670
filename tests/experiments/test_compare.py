"""Studies: what runs, what may not be compared, and what is more than chance."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from finetune_common import make_folder, records, write
from scipy import stats
from study_common import LABELS, TRUTH, Pretended, probabilities
from tests_common import TINY, run_cli

from plmjax import Exit, PlmjaxError
from plmjax import config as config_lib
from plmjax.cli import main
from plmjax.evaluate import predictions
from plmjax.experiments import cells as results
from plmjax.experiments import compare as drive
from plmjax.experiments import compare_plots as plots
from plmjax.experiments import repeats
from plmjax.experiments.compare_plan import (
    Repeats,
    Repetition,
    Setting,
    compare_plan,
    config_of,
    distinct,
    finetune_plan,
    named_models,
    parse_setting,
)
from plmjax.experiments.outcomes import Outcome
from plmjax.finetune.config import FinetuneConfig
from plmjax.finetune.predict import Predictor, read_input
from plmjax.finetune.safe import SAFE, safe_for
from plmjax.metrics.comparison import SAME
from plmjax.models import EncoderConfig
from plmjax.tasks import KINDS

ENCODER = EncoderConfig(
    vocab_size=9, layers=4, width=4, heads=2, ffn_width=4, max_positions=8
)


MODELS = named_models(["m"])


def encoders(path, checkpoint):
    return ENCODER


def outcomes(scores, setting="plain", metric="accuracy", folds=False):
    """Finished runs with these test scores, as by seed or by fold."""
    found = []
    for n, score in enumerate(scores):
        seed, fold = (0, n) if folds else (n, None)
        run = Repetition("task", "model", setting, seed, fold, Path("nowhere"), {})
        values = {"test": {"loss": 1.0, metric: score}}
        found.append(Outcome(run, "finished", values, metric, 10))
    return found


def cell(scores, setting="plain", share=0.0, **more):
    made = outcomes(scores, setting, **more)
    return results.make_cell("task", "model", setting, made, share)


# --- statistics


def test_a_summary_has_students_interval():
    values = [0.61, 0.65, 0.58, 0.7]
    found = repeats.summary(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.deviation == pytest.approx(np.std(values, ddof=1))
    assert (found.n, found.least, found.most) == (4, 0.58, 0.7)
    wider = repeats.summary(values, test_share=0.25)  # Nadeau and Bengio: 1/4 + 1/4
    assert wider.high - wider.mean == pytest.approx((high - found.mean) * 2**0.5)
    alone = repeats.summary([0.5])
    assert alone.deviation is None and alone.low is None
    assert repeats.summary([]) is None


def test_the_same_seeds_are_compared():
    first = cell([0.60, 0.70, 0.65, 0.62])
    better = cell([0.64, 0.745, 0.69, 0.66], "other")
    found = results.compare_cells(better, first, 0.0)
    reference = stats.ttest_rel([0.64, 0.745, 0.69, 0.66], [0.60, 0.70, 0.65, 0.62])
    interval = reference.confidence_interval(0.95)
    assert found.against.low == pytest.approx(interval.low)
    assert found.against.high == pytest.approx(interval.high)
    # Unpaired, these would not differ: they spread more than they are apart.
    assert found.verdict == "better" and found.pairs == 4
    apart = stats.ttest_ind([0.64, 0.745, 0.69, 0.66], [0.60, 0.70, 0.65, 0.62])
    assert apart.pvalue > 0.05
    noise = results.compare_cells(cell([0.7, 0.6, 0.65, 0.62], "o"), first, 0.0)
    assert noise.verdict == SAME


def test_of_a_loss_lower_is_better():
    first = cell([1.0, 1.1, 1.2], metric="loss")
    lower = cell([0.8, 0.9, 1.01], "other", metric="loss")
    assert results.compare_cells(lower, first, 0.0).verdict == "better"
    assert lower.best == 0.8


def test_one_pair_says_nothing():
    found = results.compare_cells(cell([0.9], "other"), cell([0.1, 0.2]), 0.0)
    assert found.against is None and found.pairs == 1 and found.verdict == ""


# --- plans


def test_seeds_differ_where_they_are_to(tmp_path):
    config = config_lib.load(FinetuneConfig, None, ["model=x", "train.seed=5"])
    repeats = Repeats(3, None, ("dropout",))
    plan = finetune_plan(tmp_path, "task", Setting(), config, repeats)
    seeds = [run.config["seeds"] for run in plan.runs]
    assert [s["dropout"] for s in seeds] == [5, 6, 7]
    assert {(s["data"], s["init"]) for s in seeds} == {(5, 5)}
    assert [run.directory.name for run in plan.runs] == ["seed-0", "seed-1", "seed-2"]
    # Simple models are the same for all.
    assert [run.config["baselines"] for run in plan.runs] == [True, False, False]


def test_folds_and_seeds_combine(tmp_path):
    config = config_lib.load(FinetuneConfig, None, ["model=x"])
    repeats = Repeats(2, 3)
    plan = finetune_plan(tmp_path, "task", Setting(), config, repeats)
    assert len(plan.runs) == 6 and len({run.directory for run in plan.runs}) == 6
    folds = [run.config["folds"] for run in plan.runs]
    assert [f["fold"] for f in folds] == [0, 1, 2] * 2
    assert {f["count"] for f in folds} == {3}


def test_names_tell_models_apart():
    assert distinct(["runs/a/export", "runs/b/export"], "model") == {
        "runs/a/export": "a",
        "runs/b/export": "b",
    }
    assert [*distinct(["x.py:a", "x.py:b"], "task file").values()] == ["x-a", "x-b"]
    with pytest.raises(PlmjaxError, match="there twice"):
        distinct(["runs/a", "./runs/a"], "model")


@pytest.mark.parametrize(
    "text, setting",
    [
        ("plain", Setting()),
        ("safe", Setting("safe", True)),
        ("own:mixout=0.1,task.buckets=(8,16)", None),
        ("own:safe,train.epochs=2", Setting("own", True, ("train.epochs=2",))),
    ],
)
def test_settings_are_read(text, setting):
    own = Setting("own", False, ("mixout=0.1", "task.buckets=(8,16)"))
    assert parse_setting(text) == (setting or own)


def test_the_safe_recipe_fits_every_model():
    config = config_lib.build(FinetuneConfig, {"model": "x"})
    assert safe_for(ENCODER, config) == SAFE
    few = safe_for(dataclasses.replace(ENCODER, layers=2), config)
    assert "start.reinit_layers" not in few
    for more in ({"lora": {"rank": 2}}, {"train": {"epochs": 20.0}}):
        base = config_lib.load(FinetuneConfig, None, [], {"model": "x"} | more)
        recipe = safe_for(ENCODER, base)
        overrides = [f"{key}={value}" for key, value in recipe.items()]
        config_lib.load(FinetuneConfig, None, overrides, config_lib.to_dict(base))


def test_what_a_user_sets_wins_over_the_safe_recipe():
    told = ["model=x", "train.epochs=2", "train.ema_decay=0.9"]
    train = config_of(None, told, Setting("safe", True), encoders).train
    assert train.epochs == 2
    assert train.ema_decay == 0.9
    assert train.average_from_percent is None
    assert train.optimizer.layer_decay == 0.9
    told = ["model=x", "train.steps=7"]
    train = config_of(None, told, Setting("s", True), encoders).train
    assert train.steps == 7 and train.epochs is None


# --- what is refused


@pytest.fixture
def task(tmp_path) -> Path:
    path = tmp_path / "task.py"
    values = {"task": {"train": "nowhere.jsonl"}}
    path.write_text(f"def get_config():\n    return {values}\n")
    return path


@pytest.mark.parametrize(
    "settings, says",
    [
        (("own:mixuot=0.1",), "mixuot"),
        (("own:task.train=x",), "the same for all settings"),
        (("own:mixout=0.1", "too:mixout=0.1"), "come to the same config"),
        (("plain", "plain"), "there twice"),
        (("odd",), "no setting that plmjax has"),
    ],
)
def test_settings_that_compare_nothing(settings, says, task, tmp_path):
    with pytest.raises(PlmjaxError) as told:
        found = [parse_setting(text) for text in settings]
        compare_plan(
            tmp_path / "s", MODELS, [str(task)], found, Repeats(2), (), encoders
        )
    assert says in str(told.value)


def test_commands_say_what_they_lack(task, tmp_path, capsys):
    def told(*arguments) -> str:
        assert main([*map(str, arguments)]) == Exit.USAGE
        return capsys.readouterr().err

    where = f"--workdir={tmp_path / 'w'}"
    assert "Give its models" in told("compare", f"--tasks={task}", where)
    assert "Give its task files" in told("compare", "x", where)
    assert "--seeds=0" in told("compare", "x", f"--tasks={task}", where, "--seeds=0")
    assert "--vary=dropout" in told(
        "finetune", "--config.model=x", where, "--vary=dropout"
    )


# --- driving


@pytest.fixture
def driven(task, tmp_path, monkeypatch):
    """Returns (right answers, settings, seeds) -> (end, screen, runs), not training.

    The checks before it are left out, too: they open a model; and so are the plots.
    """

    def drive_it(right, settings=("plain",), seeds=3, plotted=False, **more):
        for name in () if plotted else ("boxes", "curves"):
            monkeypatch.setattr(plots, name, lambda cells: {})
        found = [parse_setting(text) for text in settings]
        repeats = Repeats(seeds, more.get("folds"))
        plan = compare_plan(
            tmp_path / "s", MODELS, [str(task)], found, repeats, (), encoders
        )
        pretended, said = Pretended(right), []
        monkeypatch.setattr(drive, "finetune", pretended)
        monkeypatch.setattr(drive, "check", lambda runs, say: None)
        ended = drive.study(plan, said.append)
        return ended, "".join(said), pretended.seen

    return drive_it


def read_results(tmp_path) -> list[dict]:
    return json.loads((tmp_path / "s" / "results.json").read_text())["cells"]


def test_a_run_that_fails_is_a_row(driven, tmp_path):
    right = {"plain/seed-1": "nan", "others": 8}
    ended, text, seen = driven(right)
    assert ended == {} and len(seen) == 3
    assert "1 of 3 runs failed" in text
    (cell,) = read_results(tmp_path)
    assert cell["summary"]["n"] == 2 and cell["failed"] == 1
    failed = cell["runs"][1]
    assert failed["state"] == "failed" and "not finite" in failed["message"]
    assert "not finite" in (tmp_path / "s" / "report.html").read_text()
    # It would fail again.
    assert driven(right)[2] == []


def test_another_error_ends_the_study(driven):
    with pytest.raises(PlmjaxError, match="the disk"):
        driven({"plain/seed-1": PlmjaxError("the disk is full.", code=Exit.DISK)})


def test_a_signal_ends_it_and_the_same_command_goes_on(driven, tmp_path):
    ended, text, seen = driven({"plain/seed-1": "stop"})
    assert ended == {"stopped": "SIGTERM", "step": 10}
    assert "Run 2 of 3" in text and "Run 3 of 3" not in text
    assert not (tmp_path / "s" / "results.json").exists()
    ended, text, seen = driven({})
    assert ended == {} and seen == ["plain/seed-1", "plain/seed-2"]
    assert "Done already: 1 of 3 runs." in text
    log = tmp_path / "s" / "task" / "m" / "plain" / "seed-1" / "log.txt"
    assert log.read_text().count("what a run says") == 2
    assert "what a run says" not in text
    assert not [*(tmp_path / "s").rglob("checkpoints")]


def test_a_run_of_another_config_is_not_taken(driven, task):
    driven({})
    values = {"task": {"train": "nowhere.jsonl"}, "train": {"epochs": 7.0}}
    task.write_text(f"def get_config():\n    return {values}\n")
    with pytest.raises(PlmjaxError, match=r"train.epochs: 3.0 -> 7.0"):
        driven({})


def test_runs_that_did_not_learn_are_counted(driven, tmp_path):
    # Half of the answers are "no": one answer for all has 5 of 10.
    _, text, _ = driven({"plain/seed-0": 5, "plain/seed-1": 4, "plain/seed-2": 6})
    (cell,) = read_results(tmp_path)
    assert [run["learned"] for run in cell["runs"]] == [False, False, True]
    assert "2 of 3 runs did not learn" in text


def test_an_ensemble_is_the_mean_of_probabilities(driven, tmp_path):
    _, text, _ = driven({"plain/seed-0": 6, "plain/seed-1": 7, "plain/seed-2": 6})
    said = [probabilities(right, seed) for seed, right in enumerate((6, 7, 6))]
    top = np.mean(said, axis=0).argmax(1)
    expected = np.mean([LABELS[n] == t for n, t in zip(top, TRUTH, strict=True)])
    (cell,) = read_results(tmp_path)
    assert cell["ensemble"] == pytest.approx(expected)
    assert expected != pytest.approx(cell["summary"]["mean"])
    assert f"ensemble of 3: {expected:.4f}" in text and cell["best"] == 0.7


@pytest.mark.slow
def test_settings_are_compared_by_seed(driven, tmp_path):
    worse = {f"slow/seed-{n}": right for n, right in enumerate((7, 6, 7, 6))}
    better = {f"plain/seed-{n}": right for n, right in enumerate((9, 9, 9, 9))}
    settings = ("plain", "slow:train.epochs=9")
    _, text, seen = driven(worse | better, settings, seeds=4, plotted=True)
    assert len(seen) == 8
    first, second = read_results(tmp_path)
    assert first["against_first"] is None
    found = second["against_first"]
    reference = stats.ttest_rel([0.7, 0.6, 0.7, 0.6], [0.9] * 4)
    assert found["low"] == pytest.approx(reference.confidence_interval(0.95).low)
    assert found["verdict"] == "worse" and found["pairs"] == 4
    assert "slow: worse than plain: -0.2500" in text
    assert "slow: the worst run, 0.6000, is no better than the mean of plain" in text
    page = (tmp_path / "s" / "report.html").read_text()
    assert "worse than plain" in page and page.count("<figure>") == 2
    assert "<b>slow</b>: train.epochs=9<" in page
    assert "://" not in page
    assert {path.name for path in (tmp_path / "s" / "plots").iterdir()} == {
        "boxes.png",
        "curves.png",
    }


def test_of_folds_the_interval_is_wider(driven, tmp_path):
    right = {f"plain/seed-0-fold-{n}": v for n, v in enumerate((7, 8, 9, 8))}
    driven(right, seeds=1, folds=4)
    (cell,) = read_results(tmp_path)
    values = [0.7, 0.8, 0.9, 0.8]
    reach = stats.t.ppf(0.975, 3) * np.std(values, ddof=1) * np.sqrt(1 / 4 + 1 / 3)
    assert cell["summary"]["high"] == pytest.approx(np.mean(values) + reach)


def test_one_wrong_task_stops_all_before_any_training(task, tmp_path, monkeypatch):
    pretended = Pretended({})
    monkeypatch.setattr(drive, "finetune", pretended)
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def get_config():\n    return {'tsak': {}}\n")
    files = [str(task), str(wrong)]
    with pytest.raises(PlmjaxError, match=r"wrong\.py.*no key tsak"):
        compare_plan(
            tmp_path / "s", MODELS, files, [Setting()], Repeats(2), (), encoders
        )
    # Data that is not there is found by the check, which nothing replaces here.
    plan = compare_plan(
        tmp_path / "s", MODELS, [str(task)], [Setting()], Repeats(2), (), encoders
    )
    with pytest.raises(PlmjaxError, match=r"^task, m, plain: .*nowhere\.jsonl"):
        drive.study(plan, lambda text: None)
    assert pretended.seen == [] and not (tmp_path / "s" / "study.json").exists()


def test_a_single_run_and_a_study_keep_apart(task, tmp_path):
    root = tmp_path / "s"
    root.mkdir()
    (root / "config.json").write_text("{}")
    plan = compare_plan(
        root, MODELS, [str(task)], [Setting()], Repeats(2), (), encoders
    )
    with pytest.raises(PlmjaxError, match="holds a single run"):
        drive.study(plan, lambda text: None)


# --- a whole one


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_runs_reports_grows_and_goes_on(tmp_path, capsys, on_one_device):
    folder = make_folder(tmp_path / "bert")
    for name, count, seed in (("train", 60, 0), ("held_out", 20, 1), ("test", 20, 2)):
        write(tmp_path / f"{name}.jsonl", records("tags", count, seed))
    values = {
        "task": {
            "kind": "tags",
            "length": 16,
            **{n: f"{tmp_path}/{n}.jsonl" for n in ("train", "held_out", "test")},
        },
        "baselines": False,
        "train": {
            "steps": 2,
            "batch": 16,
            "evaluate_every_steps": 1,
            "checkpoint_every_steps": 2,
            "tensorboard": False,
        },
    }
    (tmp_path / "words.py").write_text(f"def get_config():\n    return {values}\n")
    root = tmp_path / "study"
    command = ["compare", str(folder), f"--tasks={tmp_path}/words.py"]
    command += ["--setting=plain", "--setting=still:train.optimizer.freeze=encoder"]
    command += [f"--workdir={root}"]
    assert main([*command, "--seeds=2"]) == Exit.OK
    text = capsys.readouterr().out
    assert "Run 4 of 4" in text and "still" in text
    for name in ("results.json", "results.csv", "report.html", "plots/boxes.png"):
        assert (root / name).stat().st_size > 300, name
    assert (root / "plots" / "curves.png").is_file()
    scores = [*root.rglob("scores.json")]
    assert len(scores) == 4
    before = {path: path.stat().st_mtime_ns for path in scores}
    found = json.loads((root / "results.json").read_text())
    csv = (root / "results.csv").read_text().splitlines()
    assert len(csv) == 5 and "test entity_f1" in csv[0]
    # Of tags the models are asked again, together.
    first = found["cells"][0]
    asked = Predictor([run["workdir"] for run in first["runs"]], batch=16)
    examples = read_input(asked.config, f"{tmp_path}/test.jsonl", labelled=True)
    tags = predictions.read(
        asked.config, asked.labels, examples, asked.predict(examples)
    )
    truth = [example.label for example in examples]
    expected = KINDS["tags"].scores(truth, tags, asked.labels, asked.config)
    assert first["ensemble"] == pytest.approx(expected["entity_f1"])
    # One seed more: the others stand.
    assert main([*command, "--seeds=3"]) == Exit.OK
    assert "Done already: 4 of 6 runs." in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # Another study does not.
    changed = [*command[:-1], f"--workdir={root}", "--seeds=3", "--vary=data"]
    assert main(changed) == Exit.USAGE
    assert "another study" in capsys.readouterr().err


@pytest.mark.campaign
@pytest.mark.timeout(600)
def test_two_processes_share_the_runs_of_a_study(corpus, tmp_path):
    """They start from a run's checkpoint, which each must read onto a device of its."""
    run, root = tmp_path / "run", tmp_path / "study"
    paths = f"--config.data.source.paths={corpus}"
    ended = run_cli("pretrain", *TINY, paths, f"--workdir={run}")
    assert ended.returncode == Exit.OK, ended.stderr
    for name, count in (("train", 60), ("test", 20)):
        write(tmp_path / f"{name}.jsonl", records("classes", count, len(name)))
    ended = run_cli(
        *("launch", "--target=local", "--num_processes=2", "--", "finetune"),
        *(f"--config.task.{n}={tmp_path}/{n}.jsonl" for n in ("train", "test")),
        *(f"--config.model={run}", "--config.task.length=16"),
        *("--config.train.steps=2", "--config.train.batch=16"),
        *("--config.baselines=False", "--seeds=2", f"--workdir={root}"),
    )
    assert ended.returncode == Exit.OK, ended.stdout + ended.stderr
    (cell,) = json.loads((root / "results.json").read_text())["cells"]
    assert cell["summary"]["n"] == 2 and cell["ensemble"] is not None
    assert ended.stdout.count("Run 2 of 2") == 1
    assert (root / "seed-1" / "log-1.txt").is_file()
