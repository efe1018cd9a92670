"""Which of several is the best, by every metric: one table, and each place that ranks.

A training that gets worse on purpose keeps its first step, one that gets better its
last; sweeps, studies, pseudo-labels and simple models judge alike.
"""

import dataclasses
import functools
import gc
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from fakes import BASE, RATE, Fakes, no_page, sweep_file

from plmjax.baselines import linear
from plmjax.baselines.run import Baseline, best_of, gain_lines
from plmjax.baselines.watch import Watch
from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.data.examples import Example
from plmjax.evaluate import predictions
from plmjax.evaluate.model import _wanted_step
from plmjax.experiments import cells as study_results
from plmjax.experiments import compare_tables as tables
from plmjax.experiments import ensembles, halving, search, verbs
from plmjax.experiments import sweep as drive
from plmjax.experiments import sweep_page as page
from plmjax.experiments import sweep_plan as plan
from plmjax.experiments import sweep_plots as plots
from plmjax.experiments import sweep_results as results
from plmjax.experiments.compare_plan import Repetition
from plmjax.experiments.outcomes import Outcome
from plmjax.experiments.pseudo_results import Round, gains
from plmjax.experiments.space import uniform
from plmjax.experiments.trials import Result, Trial
from plmjax.finetune import run as finetuning
from plmjax.finetune.config import SelectConfig
from plmjax.metrics.comparison import compare, compare_by
from plmjax.pretrain import run as pretrain
from plmjax.report import figures
from plmjax.stop import Stop
from plmjax.tasks import KINDS
from plmjax.tasks import scores as gain_lib
from plmjax.tasks.config import TaskConfig
from plmjax.tasks.scores import cost, gain
from plmjax.train import job, loop
from plmjax.train.config import MeshConfig, TrainConfig
from plmjax.train.sharding import make_mesh
from plmjax.train.step import State
from plmjax.workdir import RunConfig, Workdir

# Whether more of it is better, written by hand.
HIGHER = {
    "loss": False,
    "mse": False,
    "accuracy": True,
    "f1": True,
    "f1_micro": True,
    "f1_macro": True,
    "mcc": True,
    "pearson": True,
    "spearman": True,
    "tag_accuracy": True,
    "tag_f1_micro": True,
    "tag_f1_macro": True,
    "entity_precision": True,
    "entity_recall": True,
    "entity_f1": True,
    "entity_f1_strict": True,
    "exact_match": True,
    "has_answer_exact_match": True,
    "has_answer_f1": True,
    "no_answer_exact_match": True,
    "no_answer_f1": True,
    "accuracy_at_1": True,
    "mrr": True,
}
EVERY = pytest.mark.parametrize("metric", HIGHER)
WAYS = pytest.mark.parametrize("higher", [True, False], ids=["higher", "lower"])

# Truth, what a good model says of it, and a bad one, of each kind of task.
SAID = {
    "classes": (["a", "b"] * 20, ["a", "b"] * 18 + ["a", "a"] * 2, ["a", "a"] * 20),
    "multilabel": (
        [("a",), ("a", "b")] * 20,
        [("a",), ("a", "b")] * 18 + [("b",), ()] * 2,
        [("b",), ()] * 20,
    ),
    "regression": (
        [float(n % 7) for n in range(40)],
        [n % 7 + 0.1 * (n % 2) for n in range(40)],
        [float(6 - n % 7 + n % 3) for n in range(40)],
    ),
    "tags": (
        [("B-x", "I-x", "O")] * 40,
        [("B-x", "I-x", "O")] * 36 + [("O", "O", "O")] * 4,
        [("O", "B-x", "B-x")] * 30 + [("B-x", "I-x", "I-x")] * 10,
    ),
    "answers": (
        [(("a cat", 0),), ()] * 20,
        ["cat", ""] * 18 + ["dog", "dog"] * 2,
        ["dog", "dog"] * 20,
    ),
    "choices": ([0, 1] * 20, [0, 1] * 18 + [1, 0] * 2, [1, 0] * 20),
    "embeddings": ([1] * 40, [1, 2] * 20, [7, 9] * 20),
}
LABELS = {"tags": ("B-x", "I-x", "O"), "classes": ("a", "b"), "multilabel": ("a", "b")}


def ordered(higher: bool, *values: float) -> list[float]:
    """The values from the worst to the best."""
    return sorted(values, reverse=not higher)


def test_the_table_has_every_metric_of_every_kind():
    assert SAID.keys() == KINDS.keys()
    found = set()
    for kind, (truth, _, _) in SAID.items():
        labels = LABELS.get(kind, ())
        found |= {*predictions.metrics_of(TaskConfig(kind=kind), labels, truth)}
    assert found == HIGHER.keys()


@EVERY
def test_a_lower_cost_is_better(metric):
    worse, better = ordered(HIGHER[metric], 0.25, 0.75)
    assert cost(metric, better) < cost(metric, worse)


# --- trainings


@pytest.fixture
def taken(monkeypatch, tmp_path):
    """Returns metric -> what pretraining (none) or fine-tuning hands to fit."""

    def take(metric: str | None = None, keep: str = "best") -> job.Training:
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        own = {
            "mesh": mesh,
            "encoder": SimpleNamespace(layers=1, width=1, dtype="float32"),
            "objective": SimpleNamespace(scores=dict, weights={}),
            "steps": 4,
        }
        if metric is None:
            for name in ("make_evaluation", "frozen_arrays"):
                monkeypatch.setattr(pretrain, name, lambda *_: {})
            made = SimpleNamespace(
                workdir=Workdir(tmp_path / "run"),
                config=RunConfig(),
                loader=SimpleNamespace(batch=None, rows=None),
                held_out=dict,
                origin={},
                flops=None,
                objective_at=None,
                **own,
            )
            return pretrain.training_of(made, {}, print)
        else:
            config = SimpleNamespace(
                mesh=MeshConfig(), select=SelectConfig(metric, keep)
            )
            parts = SimpleNamespace(
                config=config,
                task=None,
                merge=None,
                frozen={},
                train=TrainConfig(),
                metric=metric,
                origin={},
                batches=None,
                **own,
            )
            return finetuning.training_of(parts, Workdir(tmp_path / "run"), None)

    return take


@EVERY
def test_a_fine_tuning_ranks_and_tells_by_the_metric_it_selects(taken, metric):
    found = taken(metric)
    worse, better = (
        {"loss": 0.5, metric: v} for v in ordered(HIGHER[metric], 0.25, 0.75)
    )
    assert found.rank(better) < found.rank(worse)
    name = "held-out loss" if metric == "loss" else metric.replace("_", " ")
    for scores in (worse, better):
        assert f"{name} {scores[metric]:.3f}" in found.describe(scores)
        assert f"held-out loss {scores['loss']:.3f}" in found.describe(scores)
    assert found.keep_best and not taken(metric, "last").keep_best


def trained(taken_job, monkeypatch, values, metric, path, said=None, **more):
    """Runs a job whose step n has values[n - 1] and the weight n.

    The loss of a fine-tuning goes the other way than its metric. `more` are keys of the
    config, `step` another step, and `changes` of the job.
    """
    state = State(
        np.zeros((), np.int32),
        {"w": np.zeros((), np.float32)},
        {},
        None,
        np.zeros((), np.int32),
        np.zeros((), np.int32),
    )
    state = jax.device_put(state)

    def count(state, frozen, rows):
        counted = {"objective": (1.0, 1.0), "bad_steps": (0.0, 1.0)}
        new = jax.device_put({"w": np.float32(state.step + 1)})
        moved = state._replace(step=state.step + 1, params=new)
        return moved, counted | {"tokens": (4.0, 1.0)}

    def score(weights, watched, done):
        value = values[int(weights["w"]) - 1]
        opposite = -value if HIGHER[metric] else value
        return {"loss": 5.0 - opposite * 0.1, metric: value}

    def abstract(*_):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )

    step, further = more.pop("step", count), more.pop("changes", {})
    monkeypatch.setattr(loop, "step_for", lambda *_: step)
    monkeypatch.setattr(loop, "shapes_of", abstract)
    train = TrainConfig(
        steps=len(values),
        evaluate_every_steps=1,
        checkpoint_every_steps=len(values),
        tensorboard=False,
        hang_after_seconds=None,
        **more,
    )
    changes = {
        "directory": path,
        "checkpoints": path / "checkpoints",
        "config": train,
        "steps": len(values),
        "batch": lambda step, ahead: {"segments": np.ones((1, 4), np.int32)},
        "rows": lambda step, ahead: np.zeros(1, int),
        "flops": lambda step: 1.0,
        "first_state": lambda shapes: state,
        "score": score,
        "check_meta": lambda meta: None,
        "origin": {},
        "activations": lambda: 0,
    } | further
    path.mkdir(parents=True, exist_ok=True)
    said = [] if said is None else said
    return loop.fit(dataclasses.replace(taken_job, **changes), said.append)


@pytest.mark.parametrize(
    "metric, places, best",
    [
        ("loss", [3, 2, 1], 1),  # it gets worse on purpose
        ("loss", [1, 2, 3], 3),
        ("loss", [1, None, 3, 3], 3),  # of equals the first; never what is not finite
        ("mse", [1, 3, 2], 2),
        ("accuracy", [3, 2, 1], 1),
        ("accuracy", [1, None, 3, 3], 3),
    ],
)
def test_a_training_keeps_and_takes_its_best_step(
    taken, monkeypatch, tmp_path, metric, places, best
):
    """Pretraining by its loss, which goes on from its last step all the same."""
    sign = 1 if HIGHER[metric] else -1
    values = [np.nan if p is None else 2 + sign * 0.2 * p for p in places]
    given = taken(None if metric == "loss" else metric)
    ended = trained(given, monkeypatch, values, metric, tmp_path / "run")
    checkpoints = Checkpoints(Workdir(tmp_path / "run").checkpoints)
    assert checkpoints.best()[0] == best
    last = len(places)
    assert checkpoints.steps()[-1] == last and best in checkpoints.steps()
    assert _wanted_step(checkpoints, "best") == best
    out = last if metric == "loss" else best
    assert ended.step == out and float(ended.weights["w"]) == out
    assert ended.scores[metric] == values[out - 1]


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
@pytest.mark.parametrize("places, end", [([4, 3, 2, 1], 3), ([1, 3, 2, 4], None)])
def test_patience_counts_from_the_best(
    taken, monkeypatch, tmp_path, metric, places, end
):
    sign = 1 if HIGHER[metric] else -1
    values = [2 + sign * 0.2 * p for p in places]
    given = taken(None if metric == "loss" else metric)
    trained(
        given, monkeypatch, values, metric, tmp_path / "run", patience_evaluations=2
    )
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == (end or 4)


def test_a_signal_in_an_evaluation_does_not_hide_the_best(taken, monkeypatch, tmp_path):
    """Scored by the next start, a step is kept as if nothing had come between."""
    stops = []
    monkeypatch.setattr(loop, "Stop", lambda: stops.append(Stop()) or stops[-1])

    class Interrupted(list):
        def __getitem__(self, place):
            if place == 1 and len(stops) == 1:
                stops[0].received = "SIGTERM"
            return super().__getitem__(place)

    values = Interrupted([2.0, 3.0, 2.5, 2.2])
    given, path = taken("accuracy"), tmp_path / "run"
    assert trained(given, monkeypatch, values, "accuracy", path).stopped == "SIGTERM"
    ended = trained(given, monkeypatch, values, "accuracy", path)
    assert ended.step == 2 and ended.scores["accuracy"] == 3.0
    assert Checkpoints(Workdir(path).checkpoints).best() == (2, -3.0)


def test_a_training_lets_go_of_its_state(taken, monkeypatch, tmp_path):
    """What follows, an export on the same device, must not stand beside it."""
    gc.collect()
    gc.disable()
    try:
        ended = trained(
            taken("accuracy"), monkeypatch, [1.0, 2.0], "accuracy", tmp_path
        )
        held = [vars(o) for o in gc.get_objects() if isinstance(o, loop.Fit)]
    finally:
        gc.enable()
    assert ended.step == 2 and not any(held)


# --- sweeps


def results_of(values, state="finished", first=0):
    return [
        Result(
            Trial(n, {RATE: n // 2, "train.seed": n % 2}, {}, Path("nowhere")),
            state,
            value,
        )
        for n, value in enumerate(values, first)
    ]


@WAYS
def test_a_sweep_has_its_best_first(higher, monkeypatch, tmp_path):
    values = [*ordered(higher, 0.1, 0.2, 0.5, 0.6), np.nan]
    pruned = results_of(ordered(higher, 0.05, 0.9), "pruned", 5)
    monkeypatch.setattr(
        results, "value_of", lambda result, key: result.trial.values[key]
    )
    found = results.outcome([*pruned, *results_of(values)], "x", higher)
    assert [r.trial.number for r in found.results] == [3, 2, 1, 0, 4, 6, 5]
    assert found.best.trial.number == 3
    means = results.settings(found)
    assert [s.values[RATE] for s in means] == [1, 0]
    assert [s.mean for s in means] == pytest.approx(
        ordered(not higher, np.mean(values[:2]), np.mean(values[2:4]))
    )
    results.write(tmp_path, found)
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    written = json.loads(text)
    assert written["best"] == 3 and written["maximise"] is higher
    assert [t["trial"] for t in written["trials"]] == [3, 2, 1, 0, 4, 6, 5]
    rows = (tmp_path / "results.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == [3, 2, 1, 0, 4, 6, 5]
    told = page._headline(found)
    assert f"The {'highest' if higher else 'lowest'} x is the best" in told
    assert "Best: trial 3" in told and f"{values[3]:.4f}" in told


@WAYS
def test_the_line_of_the_best_so_far_never_gets_worse(higher):
    values = [0.5, 0.3, 0.7, 0.6, 0.2]
    keyed = [
        Result(
            Trial(n, {"a": n, "b": -n}, {"a": n, "b": -n}, Path("nowhere")),
            "finished",
            value,
        )
        for n, value in enumerate(values)
    ]
    outcome = results.outcome(keyed, "x", higher)
    best = [0.5, 0.5, 0.7, 0.7, 0.7] if higher else [0.5, 0.3, 0.3, 0.3, 0.2]
    figure = plots.history(outcome)
    assert figure is not None
    lines = {line.name: line for line in figure.data}
    assert list(lines["finished"].y) == values
    assert list(lines["best so far"].y) == best
    low, high = figure.layout.yaxis.range
    assert low < min(best) and max(best) < high
    # Of lines through the values of trials the best is the thickest, and drawn last.
    best = 2 if higher else 4
    figure = plots.parallel(outcome)
    assert figure is not None
    widths = [line.line.width for line in figure.data]
    assert widths.index(max(widths)) == len(values) - 1
    # The axes are the objective and the two keys.
    places = 1.0 if higher else 0.0, best / 4, 1 - best / 4
    assert figure.data[-1].y == pytest.approx(places)
    assert figure.data[-1].line.color == figures.blend(1.0)


@WAYS
@pytest.mark.parametrize("place, ends", [(5, False), (4, False), (3, True), (0, True)])
def test_halving_ends_what_is_not_among_the_best(higher, place, ends):
    """Of six at the rung, two go on."""
    values = ordered(higher, *range(6))
    others = [{10: v} for n, v in enumerate(values) if n != place]
    assert halving.falls_behind({10: values[place]}, others, 10, 3, higher) is ends


STUDY = """
def get_hyper(hyper):
    return hyper.sweep("config.RATE", [1e-4, 1e-3, 1e-2])

def get_study():
    return {"objective": "NAME", "maximise": HIGHER, "prune_from_step": 20}
"""


@WAYS
def test_a_sweep_goes_to_the_end_with_its_best_trials(higher, tmp_path, monkeypatch):
    """The later a trial is, the worse; with three, those that are not best end."""
    monkeypatch.setattr(drive.page, "write", no_page)
    text = BASE + STUDY.replace("RATE", RATE).replace("HIGHER", str(higher))
    text = text.replace("NAME", "accuracy" if higher else "loss")
    found = plan.load(sweep_file(tmp_path, text))
    fakes = Fakes(lambda values, step: 2 + np.log10(values[RATE]) + 4)
    options = drive.Options(parallel=3, share_text=False, poll_seconds=0.0)
    assert drive.sweep(found, tmp_path / "s", options, lambda line: None, fakes) == 0
    written = json.loads((tmp_path / "s" / "results.json").read_text())
    assert written["best"] == 0
    states = {t["trial"]: t["state"] for t in written["trials"]}
    assert states == {0: "finished", 1: "finished", 2: "pruned"}
    assert [t["trial"] for t in written["trials"]] == [0, 1, 2]


SPACE = """
def get_space(space):
    return {"RATE": space.log(1e-5, 1e-1)}

def get_study():
    return {
        "trials": 5, "sampler": "random", "objective": "loss", "maximise": HIGHER
    }
"""


@WAYS
def test_a_search_tells_optuna_which_way_is_better(higher, tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    monkeypatch.setattr(drive.page, "write", no_page)
    text = BASE + SPACE.replace("RATE", RATE).replace("HIGHER", str(higher))
    found = plan.load(sweep_file(tmp_path, text))
    fakes = Fakes(lambda values, step: 10 + np.log10(values[RATE]), steps=10)
    options = drive.Options(parallel=1, share_text=False, poll_seconds=0.0)
    assert drive.sweep(found, tmp_path / "s", options, lambda line: None, fakes) == 0
    written = json.loads((tmp_path / "s" / "results.json").read_text())
    rates = {t["trial"]: t["values"][RATE] for t in written["trials"]}
    best = (max if higher else min)(rates, key=rates.__getitem__)
    assert written["best"] == best
    backend = optuna.storages.journal.JournalFileBackend(
        str(tmp_path / "s" / "journal.log")
    )
    storage = optuna.storages.JournalStorage(backend)
    told = optuna.load_study(study_name="sweep", storage=storage)
    assert told.best_trial.number == best


@WAYS
def test_importance_is_that_of_the_best_trials(higher):
    """`up` decides which trials are highest, `down` which are lowest."""
    pytest.importorskip("optuna")
    chance = np.random.default_rng(0)
    made = []
    for n, (up, down) in enumerate(chance.uniform(0.1, 1, (60, 2)).tolist()):
        value = 9.0 if up > 0.9 else -9.0 if down > 0.9 else chance.normal() / 9
        trial = Trial(n, {"up": up, "down": down}, {}, Path("nowhere"))
        made.append(Result(trial, "finished", value))
    space = {"up": uniform(0.1, 1), "down": uniform(0.1, 1)}
    study = search.study_of(made, space, higher)
    shares = plots.importance(study, results.outcome(made, "x", higher))
    assert max(shares, key=shares.__getitem__) == ("up" if higher else "down")
    figure = plots.bars(shares)
    assert figure is not None
    (bars,) = figure.data
    # The largest is on top, which is the last.
    assert max(bars.x) == bars.x[-1]
    assert bars.y[-1] == ("up" if higher else "down")


@EVERY
def test_a_sweep_of_fine_tunings_knows_which_way_is_better(metric, monkeypatch):
    monkeypatch.setattr(verbs, "_read", lambda config: (metric, [*HIGHER]))
    assert verbs.choose_objective({}, {}) == (metric, HIGHER[metric])
    for asked in (True, False):
        given = {"objective": metric, "maximise": asked}
        assert verbs.choose_objective({}, given) == (metric, asked)


# --- studies


def cell_of(scores, metric, setting="plain"):
    made = []
    for seed, score in enumerate(scores):
        run = Repetition("task", "model", setting, seed, None, Path("nowhere"), {})
        made.append(Outcome(run, "finished", {"test": {metric: score}}, metric, 9))
    return study_results.make_cell("task", "model", setting, made, 0.0)


@EVERY
def test_a_study_says_what_is_better(metric):
    higher = HIGHER[metric]
    worse, better = ordered(higher, 0.2, 0.6)
    good, bad = (cell_of([v, v + 0.01, v + 0.02], metric) for v in (better, worse))
    shifted = [value + 0.3 * (1 if higher else -1) for value in (0.5, 0.52, 0.51)]
    first, other = cell_of([0.5, 0.53, 0.51], metric), cell_of(shifted, metric, "other")
    assert study_results.compare_cells(other, first, 0.0).verdict == "better"
    assert study_results.compare_cells(first, other, 0.0).verdict == "worse"
    assert good.best == pytest.approx(better + (0.02 if higher else 0))
    best_first = dataclasses.replace(good, setting="other")
    (line,) = tables._worst(best_first, bad, "plain")
    worst = better + (0 if higher else 0.02)
    assert line == f"the worst run, {worst:.4f}, is better than the mean of plain."
    (line,) = tables._worst(bad, good, "plain")
    worst = worse + (0 if higher else 0.02)
    assert line == f"the worst run, {worst:.4f}, is no better than the mean of plain."
    assert tables.as_json(good)["best"] == good.best


@pytest.mark.parametrize("kind", SAID)
def test_a_run_has_learned_if_it_beats_the_best_single_answer(kind, monkeypatch):
    """The best of all answers that occur, by every metric of the kind."""
    truth, good, bad = SAID[kind]
    labels = LABELS.get(kind, ())
    lines = ensembles.Lines(TaskConfig(kind=kind), labels, truth, [])
    monkeypatch.setattr(ensembles, "read_lines", lambda outcome: lines)
    told = {
        "classes": [["a"] * 40, ["b"] * 40],
        "multilabel": [[("a",)] * 40, [("a", "b")] * 40],
        "regression": [[float(np.mean(truth))] * 40] if kind == "regression" else [],
        "tags": [[(tag,) * 3] * 40 for tag in LABELS["tags"]],
        "answers": [[""] * 40],
        "choices": [[0] * 40, [1] * 40],
        "embeddings": [[*range(1, 41)]],
    }[kind]
    for metric in KINDS[kind].scores(truth, good, labels):
        best = (max if HIGHER[metric] else min)(
            KINDS[kind].scores(truth, one, labels)[metric] for one in told
        )
        if metric in ("pearson", "spearman"):
            best = 0.0
        assert ensembles.constant_score(lines, metric) == pytest.approx(best), metric
        sign = 1 if HIGHER[metric] else -1
        for score, learned in ((best + 0.01 * sign, True), (best - 0.01 * sign, False)):
            (outcome,) = cell_of([score], metric).outcomes
            assert ensembles.has_learned(outcome) is learned, metric
        (outcome,) = cell_of([best], metric).outcomes
        assert ensembles.has_learned(outcome) is False
    assert ensembles.constant_score(lines, "loss") is None


# --- pseudo-labels


@EVERY
def test_pseudo_labels_gain_where_the_score_gets_better(metric):
    worse, better = ordered(HIGHER[metric], 0.2, 0.6)
    rounds = []
    for chain in range(3):
        for rate, number, value in ((0.0, 0, 0.4), (0.5, 1, worse), (1.0, 1, better)):
            score = {metric: value + 0.003 * chain * (1 + rate)}
            rounds.append(Round(str(chain), rate, number, metric, 9, score))
    found = {one["rate"]: one for one in gains(rounds, None)}
    assert {rate: one["verdict"] for rate, one in found.items()} == {
        0.5: "worse",
        1.0: "better",
    }
    for rate, value in ((0.5, worse), (1.0, better)):
        difference = value - 0.4 + 0.003 * rate
        assert found[rate]["difference"] == pytest.approx(difference)


# --- simple models, and what is gained over them


@pytest.mark.parametrize("kind", SAID)
def test_a_gain_is_positive_where_ours_is_better(kind, monkeypatch):
    for compared in (compare, compare_by):
        few = functools.partial(compared, draws=60)
        monkeypatch.setattr(gain_lib, compared.__name__, few)
    truth, good, bad = SAID[kind]
    labels = LABELS.get(kind, ())
    known = KINDS[kind].scores(truth, good, labels)
    other = KINDS[kind].scores(truth, bad, labels)
    for metric, ours in known.items():
        ahead = ours - other[metric] if HIGHER[metric] else other[metric] - ours
        assert ahead > 0, (metric, "the good one is better")
        pair = [
            Baseline("good", good, known, 1.0),
            Baseline("bad", bad, other, 1.0),
        ]
        for several in (pair, pair[::-1]):
            assert best_of(several, metric).name == "good"
        if metric.startswith(("has_answer", "no_answer")):
            continue  # a drawing may have none of them
        found = gain(kind, metric, truth, good, bad, labels)
        assert found.difference == pytest.approx(ahead), metric
        assert 0 < found.low <= found.difference <= found.high
        found = gain(kind, metric, truth, bad, good, labels)
        assert found.difference == pytest.approx(-ahead) and found.high < 0, metric
        # Beside both, ours is held against the good one.
        told = gain_lines(kind, metric, truth, bad, pair[::-1], labels)[-1]
        assert "WORSE" in told and f"(good, {ours:.4f})" in told


@pytest.mark.parametrize(
    "kind, metric", [("regression", "mse"), ("classes", "accuracy")]
)
def test_a_simple_model_is_held_back_as_does_best(kind, metric, monkeypatch):
    """Strengths are tried from the least on until one does worse than the best."""
    wrong = dict(zip(linear.DENSE, (3, 1, 2, 0), strict=True))
    labels = ("a", "b") if kind == "classes" else ()
    train = [
        Example(str(n), "", (str(n),), "a" if kind == "classes" else 1.0, str(n))
        for n in range(40)
    ]

    def fit(kind, x, y, outputs, strength):
        """A model that is wrong about so many of the four texts of each group."""

        def scores(x):
            bad = np.arange(len(x)) % 4 < wrong[strength]
            if kind is KINDS["regression"]:
                return np.where(bad, 9.0, 1.0)[:, None]
            return np.stack([~bad, bad], 1).astype(float)

        return scores, True

    monkeypatch.setattr(linear, "_fit", fit)
    x, y = np.zeros((40, 1)), np.zeros(40)
    assert (
        linear._choose(KINDS[kind], labels, train, x, y, watch=Watch())
        == linear.DENSE[1]
    )
