"""Fine-tuning from a folder to a folder: every kind, every remedy, and going on."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from finetune_common import MESH, make_folder, records, run, write
from tests_common import WORDS, campaign, once

from plmjax import Exit, PlmjaxError, tree
from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.cli import main
from plmjax.evaluate.model import open_models
from plmjax.finetune.predict import Predictor, evaluate, predict, read_input
from plmjax.interop.huggingface import read_folder
from plmjax.stop import Stop
from plmjax.tasks import KINDS
from plmjax.train import sharding
from plmjax.train.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("module_on_one_device")


@pytest.fixture
def all_devices(monkeypatch):
    monkeypatch.setattr(sharding, "make_mesh", MESH)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder with a model, files of classes, and a run that nobody touched."""

    def make(root):
        said = []
        (root / "data").mkdir()
        write(root / "data" / "train.jsonl", records("classes", 120))
        write(root / "data" / "held_out.jsonl", records("classes", 30, seed=1))
        folder = make_folder(root / "bert")
        result = run(root / "plain", folder, root / "data", said=said)
        (root / "done.json").write_text(json.dumps([result, said]))

    return once(tmp_path_factory, "finetuning", make)


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "bert"


@pytest.fixture(scope="module")
def data(shared):
    return shared / "data"


@pytest.fixture(scope="module")
def done(shared):
    """The run's directory, its result, and what it said."""
    return shared / "plain", *json.loads((shared / "done.json").read_text())


def params_of(place):
    return tree.flatten(read_folder(place / "export").params)


def losses_of(place):
    found = read_metrics(place / "metrics.jsonl")
    return [(r["step"], r["loss"]) for r in found if r["kind"] == "train"]


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name, leaf in a.items():
        np.testing.assert_array_equal(leaf, b[name], err_msg=name)


PACKED = ("classes", "regression", "tags")
# Numbers and sets go the way of classes. Embeddings, which predict nothing, are in
# test_embeddings.
MARKS = {
    "tags": (),
    "multilabel": pytest.mark.campaign,
    "regression": pytest.mark.campaign,
}
PREDICTING = [kind for kind in KINDS if kind != "embeddings"]


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=MARKS.get(k, pytest.mark.slow)) for k in PREDICTING],
)
def test_every_kind_is_trained_scored_exported_and_predicts(kind, tmp_path, folder):
    write(tmp_path / "train.jsonl", records(kind, 40))
    test = write(tmp_path / "held_out.jsonl", records(kind, 10, seed=1))
    rows = "task.rows=packed" if kind in PACKED else "task.buckets=(12,)"
    place, steps = tmp_path / "run", ("train.steps=2", rows)
    result = run(place, folder, tmp_path, f"task.kind={kind}", *steps)
    scores = result["held_out"]
    assert np.isfinite(scores["loss"]) and result["metric"] in scores
    assert json.loads((place / "scores.json").read_text()) == result
    lines = (place / "predictions-held_out.jsonl").read_text().splitlines()
    assert len(lines) == 10 and all("truth" in json.loads(line) for line in lines)
    # The exported folder alone says the same, and so does a file of predictions.
    shutil.copytree(place / "export", tmp_path / "copy")
    found = evaluate(str(tmp_path / "copy"), str(test), batch=8)
    for name, value in found.items():
        # Of numbers that are nearly alike, correlations hang on the last digit.
        if name not in ("examples", "pearson", "spearman"):
            assert value == pytest.approx(scores[name], abs=1e-6, nan_ok=True), name
    for ending in ("jsonl", "csv"):
        to = tmp_path / f"said.{ending}"
        assert predict([str(tmp_path / "copy")], str(test), to, batch=8) == 10
    text = (tmp_path / "said.jsonl").read_text()
    said = [json.loads(line) for line in text.splitlines()]
    for ours, line in zip(said, map(json.loads, lines), strict=True):
        assert ours.keys() == line.keys() - {"truth"}
    assert len((tmp_path / "said.csv").read_text().splitlines()) == 11


@pytest.mark.slow
def test_what_can_be_learned_is_learned(tmp_path, folder, data):
    steps = ("train.steps=60", "train.evaluate_every_steps=20", "start.dropout=0.0")
    fresh = ("start.from_scratch=True", "train.optimizer.learning_rate=0.005")
    result = run(tmp_path / "run", folder, data, *steps, *fresh)
    assert result["held_out"]["accuracy"] > 0.9
    losses = [loss for _, loss in losses_of(tmp_path / "run")]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_the_best_step_is_exported(done, folder, data):
    place, result, said = done
    records_ = read_metrics(place / "metrics.jsonl")
    held_out = {r["step"]: r for r in records_ if r["kind"] == "evaluation"}
    best = max(held_out, key=lambda step: (held_out[step]["accuracy"], -step))
    assert result["step"] == best and {*held_out} == {2, 4, 6}
    for name, value in result["held_out"].items():
        assert value == pytest.approx(held_out[best][name], abs=1e-6)
    told = f"Step {best} was the best one; its weights are used."
    assert (told in said) == (best != 6)
    for name in ("loss_by_step", "accuracy_by_step", "confusion"):
        assert (place / "plots" / f"{name}.png").stat().st_size > 1000


def stop_at(monkeypatch, turn: int) -> None:
    """Stops a training before a step, as a signal does."""
    due = Stop.due

    def signalled(self, now):
        if now == turn:
            self.received = "SIGTERM"
        return due(self, now)

    monkeypatch.setattr(Stop, "due", signalled)


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_bit_equal(
    done, tmp_path, folder, data, monkeypatch
):
    stop_at(monkeypatch, 3)
    place = tmp_path / "run"
    assert run(place, folder, data) == {"stopped": "SIGTERM", "step": 3}
    assert not (place / "export").exists()
    monkeypatch.undo()
    said = []
    assert run(place, folder, data, said=said) == done[1]
    assert any("Going on from step 3" in line for line in said)
    assert_equal(params_of(place), params_of(done[0]))
    assert losses_of(place) == losses_of(done[0])
    # And a finished one says so.
    said.clear()
    assert run(place, folder, data, said=said) == done[1]
    assert any("is finished" in line for line in said)


@pytest.mark.slow
def test_chance_enters_at_three_places(tmp_path, folder, data, done):
    again = run(tmp_path / "again", folder, data)
    assert again == done[1]
    assert_equal(params_of(tmp_path / "again"), params_of(done[0]))
    found = {"none": losses_of(done[0])}
    for name in ("data", "init", "dropout"):
        place = tmp_path / name
        run(place, folder, data, f"seeds.{name}=7", "train.steps=2")
        found[name] = losses_of(place)
    firsts = {name: losses[0] for name, losses in found.items()}
    assert len(set(firsts.values())) == 4, firsts


def test_frozen_parameters_stay_bit_equal(tmp_path, folder, data):
    start = tree.flatten(read_folder(folder).params)
    run(tmp_path / "run", folder, data, "train.optimizer.freeze=encoder")
    found = params_of(tmp_path / "run")
    kept = [name for name in found if name.startswith("encoder/")]
    assert len(kept) > 10
    for name in kept:
        np.testing.assert_array_equal(found[name], start[name], err_msg=name)
    head = "sequence/classifier/kernel"
    assert np.abs(found[head]).max() > 0


REMEDIES = (
    "lora.rank=2",
    "train.average_from_percent=50",
    "mixout=0.5",
    "objective.rdrop_weight=1.0 objective.label_smoothing=0.1",
    "train.optimizer.layer_decay=0.5 start.reinit_layers=1",
    "train.optimizer.unfreeze_every_steps=2",
    "start.from_scratch=True",
)


@pytest.mark.slow
@pytest.mark.parametrize("remedy", campaign(REMEDIES, *REMEDIES[:2]))
def test_a_remedy_goes_on_bit_equal(remedy, tmp_path, folder, data, monkeypatch):
    remedy = (*remedy.split(), "train.steps=4")
    whole = run(tmp_path / "whole", folder, data, *remedy)
    with monkeypatch.context() as patched:
        stop_at(patched, 1)
        stopped = run(tmp_path / "run", folder, data, *remedy)
    assert stopped["stopped"] == "SIGTERM"
    assert run(tmp_path / "run", folder, data, *remedy) == whole
    assert_equal(params_of(tmp_path / "run"), params_of(tmp_path / "whole"))


def test_lora_changes_its_targets_alone(tmp_path, folder, data):
    start = tree.flatten(read_folder(folder).params)
    run(tmp_path / "run", folder, data, "lora.rank=2", "select.keep=last")
    found = params_of(tmp_path / "run")
    changed = {
        name
        for name, leaf in found.items()
        if name in start and not np.array_equal(leaf, start[name])
    }
    attention = "encoder/layer_0/attention"
    targets = {f"{attention}/{name}/kernel" for name in ("query", "value")}
    assert {name for name in changed if name.startswith("encoder/")} == targets


@pytest.mark.slow
def test_eight_devices_train_as_one(done, tmp_path, folder, data, all_devices):
    place = tmp_path / "run"
    result = run(place, folder, data, "train.accumulation=2")
    assert result["step"] == done[1]["step"]
    pairs = zip(losses_of(place), losses_of(done[0]), strict=True)
    for (_, ours), (_, theirs) in pairs:
        assert ours == pytest.approx(theirs, rel=1e-5)
    for name, value in result["held_out"].items():
        assert value == pytest.approx(done[1]["held_out"][name], rel=1e-4)


@pytest.mark.slow
def test_training_ends_where_nothing_gets_better(tmp_path, folder, data):
    place, said = tmp_path / "run", []
    more = ("train.steps=40", "train.patience_evaluations=2", "select.metric=loss")
    # So fast that it soon gets worse.
    fast = "train.optimizer.learning_rate=0.3"
    result = run(place, folder, data, *more, fast, said=said)
    evaluated = [
        r for r in read_metrics(place / "metrics.jsonl") if r["kind"] == "evaluation"
    ]
    best = min(evaluated, key=lambda record: record["loss"])["step"]
    last = evaluated[-1]["step"]
    assert last < 40 and last == best + 4 and result["step"] == best
    # The same command does not train on.
    assert run(place, folder, data, *more, fast) == result
    assert Checkpoints(place / "checkpoints").steps()[-1] == last


def test_predictions_depend_on_neither_batch_nor_bucket_nor_packing(done, data):
    place, _, _ = done
    found = []
    ways = ((8, "buckets=()"), (24, "buckets=(8,10)"), (16, "rows=packed"))
    for batch, way in ways:
        asked = Predictor([str(place)], [way], batch=batch)
        examples = read_input(asked.config, str(data / "held_out.jsonl"))
        found.append(np.stack(asked.predict(examples)))
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], atol=1e-5)
    several = Predictor([str(place), str(place)], batch=8).predict(examples)
    np.testing.assert_allclose(np.stack(several), found[0], atol=1e-5)


def test_windows_are_put_together(done, data, tmp_path):
    place, _, _ = done
    text = " ".join(record["text"] for record in records("classes", 6))
    write(tmp_path / "long.jsonl", [{"text": text}, {"text": "the model"}])
    said = {}
    for pooling in ("mean", "max", "first"):
        more = [f"pooling={pooling}", "stride=8"]
        asked = Predictor([str(place)], more, batch=8)
        examples = read_input(asked.config, str(tmp_path / "long.jsonl"))
        said[pooling] = asked.predict(examples)
    cut = Predictor([str(place)], ["long=truncate"], batch=8).predict(examples)
    np.testing.assert_allclose(said["first"][0], cut[0], atol=1e-5)
    assert (said["max"][0] >= said["mean"][0]).all()
    assert (said["max"][0] > said["first"][0]).any()
    for pooling in said:  # one window, one answer
        np.testing.assert_allclose(said[pooling][1], cut[1], atol=1e-5)


@pytest.mark.slow
def test_a_task_is_the_start_of_another(done, tmp_path, folder):
    place, _, _ = done
    write(tmp_path / "train.jsonl", records("tags", 40))
    write(tmp_path / "held_out.jsonl", records("tags", 10, seed=1))
    more = ("task.kind=tags", "train.steps=2", "start.layers=1")
    result = run(tmp_path / "run", place, tmp_path, *more)
    assert "entity_f1" in result["held_out"]
    (model,) = open_models(str(tmp_path / "run")).values()
    assert model.task.kind == "tags" and model.name == "run"


def test_folds_part_train(tmp_path, folder, data):
    more = ("folds.count=3", "folds.fold=1", "folds.stratified=True", "train.steps=2")
    run(tmp_path / "run", folder, data, *more)
    lines = (tmp_path / "run" / "predictions-held_out.jsonl").read_text().splitlines()
    assert len(lines) == 40  # a third of train; the held-out file stays out of it


def test_an_export_is_a_copy(done, tmp_path):
    to = tmp_path / "folder"
    assert main(["export", f"--workdir={done[0]}", f"--to={to}"]) == Exit.OK
    assert_equal(tree.flatten(read_folder(to).params), params_of(done[0]))
    assert (to / "plmjax_task.json").is_file()


@pytest.mark.parametrize(
    "overrides, says",
    [
        (("select.metric=f1_marco",), "select.metric=f1_marco is no score"),
        (("start.reinit_layers=2",), "only 1 layers"),
        (("task.length=64",), "positions for 32"),
        (("train.accumulation=5",), "does not divide"),
        (("task.columns.label=lable",), "lable"),
        (("task.kind=regression",), "label"),
        (("folds.count=3", "folds.fold=3"), "there are 3 folds"),
        (("mixout=0.1", "lora.rank=2"), "Give one of them"),
        (("model=",), "no model is named"),
        (("lora.rank=2", "lora.targets=nothing"), "matches no kernel"),
        (("train.init_from=x",), "key of pretraining"),
    ],
)
def test_mistakes_are_told_before_training(overrides, says, tmp_path, folder, data):
    with pytest.raises(PlmjaxError) as told:
        run(tmp_path / "run", folder, data, *overrides)
    assert says in str(told.value)
    left = [path.name for path in (tmp_path / "run").glob("[!.]*")]
    assert not left, "a run that could not begin leaves nothing"


def test_pretraining_refuses_the_directory_of_a_fine_tuning(done, capsys):
    assert main(["pretrain", f"--workdir={done[0]}"]) == Exit.USAGE
    assert "holds a run of `plmjax finetune`, not of `plmjax" in capsys.readouterr().err


def test_another_start_or_text_is_not_gone_on_with(done, tmp_path, folder, data):
    place = tmp_path / "run"
    shutil.copytree(done[0], place)
    other = make_folder(tmp_path / "bert", layers=2)
    with pytest.raises(PlmjaxError, match="another config"):
        run(place, other, data)
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(folder, tmp_path / "same")
    moved = json.loads((place / "config.json").read_text())
    moved["task"]["train"] = str(tmp_path / "data" / "train.jsonl")
    moved["task"]["held_out"] = str(tmp_path / "data" / "held_out.jsonl")
    (place / "config.json").write_text(json.dumps(moved))
    write(tmp_path / "data" / "train.jsonl", records("classes", 120, seed=5))
    with pytest.raises(PlmjaxError, match="another labelled data"):
        run(place, folder, tmp_path / "data")


def test_verbs_say_what_they_lack(done, tmp_path, folder, capsys):
    def told(*arguments) -> str:
        assert main([*map(str, arguments)]) not in (Exit.OK, Exit.INTERNAL)
        return capsys.readouterr().err

    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "empty.csv").write_text("text\n")
    where = f"--model={done[0]}"
    to = f"--output={tmp_path / 'x.jsonl'}"
    assert "no head of a task" in told("predict", f"--model={folder}", "--input=a", to)
    assert "--input" in told("predict", where, "--input=nowhere.csv", to)
    assert "is empty" in told("predict", where, f"--input={tmp_path}/empty.txt", to)
    empty = told("predict", where, f"--input={tmp_path}/empty.csv", to)
    assert "--input (" in empty and "holds no examples" in empty
    (tmp_path / "a.doc").write_text("a")
    assert "--input: a.doc has" in told(
        "predict", where, f"--input={tmp_path}/a.doc", to
    )
    assert "unknown ending" in told("predict", where, "--input=a", "--output=x.doc")
    assert "--config.name" in told("finetune", f"--config.model={folder}")
    assert "without labelled data" in told("evaluate", f"--workdir={done[0]}/export")
    assert "those of the model" in told(
        "predict", where, "--input=a", to, "--config.kind=tags"
    )
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(done[0] / "config.json", half)
    assert "is not finished" in told("predict", f"--model={half}", "--input=a", to)


def test_a_dry_run_shows_the_task_and_leaves_no_run(folder, data, tmp_path, capsys):
    values = [
        f"--config.{key}={value}"
        for key, value in (
            ("model", folder),
            ("task.train", data / "train.jsonl"),
            ("task.length", 16),
            ("train.batch", 16),
            ("train.epochs", 2),
        )
    ]
    where = f"--workdir={tmp_path / 'run'}"
    assert main(["finetune", *values, where, "--dry_run=shapes"]) == Exit.OK
    told = capsys.readouterr().out
    first = json.loads((data / "train.jsonl").read_text().splitlines()[0])
    assert re.search(rf"labels of train .*{first['label']} [0-9.]+ ?%", told)
    assert re.search(r"steps +│ 14 ", told) and "sequence " in told
    shown = told[told.index("as the model sees it") :].splitlines()[1:3]
    assert shown[0].startswith("[CLS] ") and shown[0].endswith(" [SEP]")
    label = "with" if " the " in shown[0] else "without"
    assert shown[1] == f"Label: {label}"
    left = [path.name for path in (tmp_path / "run").glob("[!.]*")]
    assert not left
    again = ["finetune", *values, where, "--dry_run", "--seeds=2"]
    assert main(again) == Exit.USAGE


def test_the_config_is_shown(capsys):
    assert main(["finetune", "--show_config"]) == Exit.OK
    text = capsys.readouterr().out
    assert "train.optimizer.learning_rate = 5e-05" in text
    assert "start.reinit_layers = 0  (int, at least 0)" in text


@pytest.mark.campaign
def test_relations_are_learned_by_the_places_of_entities(tmp_path, folder, capsys):
    """Which of the two comes first is the label: the texts alone do not tell."""
    random, lines = np.random.default_rng(0), []
    for _ in range(200):
        words = random.choice(WORDS, 3).tolist()
        text, first = " ".join([*words, "row", *words, "list"]), random.integers(2)
        places = [(text.rindex(word), len(word)) for word in ("row", "list")]
        (a, m), (c, n) = places if first else places[::-1]
        place = {"a": a, "b": a + m, "c": c, "d": c + n}
        lines.append({"text": text, "label": ["later", "first"][first], **place})
    write(tmp_path / "train.jsonl", lines[:160])
    held = write(tmp_path / "held_out.jsonl", lines[160:])
    signs = ("task.columns.entities=a,b,c,d", "task.markers=('.','or')")
    long = ("train.steps=200", "train.evaluate_every_steps=100", "task.length=32")
    long += ("train.optimizer.learning_rate=3e-3", "start.dropout=0.0")
    start = make_folder(tmp_path / "start", layers=2, width=32)
    result = run(tmp_path / "run", start, tmp_path, *signs, *long)
    assert result["held_out"]["accuracy"] > 0.9
    out = tmp_path / "said.jsonl"
    given = (f"--model={tmp_path}/run", f"--input={held}")
    assert main(["predict", *given, f"--output={out}"]) == Exit.OK
    said = [json.loads(line)["label"] for line in out.read_text().splitlines()]
    right = [a == line["label"] for a, line in zip(said, lines[160:], strict=True)]
    assert np.mean(right) == pytest.approx(result["held_out"]["accuracy"])
    (tmp_path / "a.txt").write_text("a text")
    plain = (f"--model={tmp_path}/run", f"--input={tmp_path}/a.txt")
    assert main(["predict", *plain, f"--output={out}"]) == Exit.USAGE
    assert "places of its entities" in capsys.readouterr().err
    with pytest.raises(PlmjaxError, match="no piece for '@'"):
        run(tmp_path / "other", folder, tmp_path, signs[0])


@pytest.mark.slow
def test_the_average_is_the_mean_of_the_last_weights(tmp_path, folder, data):
    """Of four steps, the mean over the last two is what is exported."""
    last = ("train.steps=4", "select.keep=last", "train.checkpoint_every_steps=1")
    run(tmp_path / "plain", folder, data, *last, "train.keep_checkpoints=9")
    run(tmp_path / "mean", folder, data, *last, "train.average_from_percent=50")
    checkpoints = Checkpoints(tmp_path / "plain" / "checkpoints")
    found = params_of(tmp_path / "mean")
    wanted = {
        step: tree.flatten(_saved(checkpoints, step, tmp_path / "plain"))
        for step in (3, 4)
    }
    for name, leaf in found.items():
        mean = (wanted[3][name] + wanted[4][name]) / 2
        np.testing.assert_allclose(leaf, mean, rtol=1e-6, atol=1e-7, err_msg=name)


def _saved(checkpoints, step, place):
    """Returns the parameters of a checkpoint of a plain run."""
    from plmjax.objectives.supervised import Supervised, SupervisedConfig
    from plmjax.tasks.task import Task
    from plmjax.train.config import OptimizerConfig
    from plmjax.train.optimizer import make_optimizer
    from plmjax.train.step import init_state

    encoder = read_folder(place / "export").config
    task = Task("classes", ("with", "without"))
    objective = Supervised(SupervisedConfig(), encoder, task)
    ids = jax.ShapeDtypeStruct((1, 8), "int32")
    batch = dict.fromkeys(("tokens", "segments", "positions", "types"), ids)
    state = jax.eval_shape(
        lambda batch: init_state(
            objective, make_optimizer(OptimizerConfig()), 0, batch, False
        ),
        batch,
    )
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state
    )
    return jax.device_get(checkpoints.load(step, abstract, only="params").params)
