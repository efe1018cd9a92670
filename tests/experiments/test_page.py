"""The page and the plots of a sweep."""

import ast
import base64
import dataclasses
import gzip
import json
import math
import re
import sys
from pathlib import Path

import pytest
from fakes import BASE, GRID, RATE, SEARCH, SEED, sweep_file

from plmjax import report
from plmjax.experiments import sweep_page as page
from plmjax.experiments import sweep_plan as plan
from plmjax.experiments import sweep_plots as plots
from plmjax.experiments import sweep_results as results
from plmjax.experiments import trials


def made(tmp_path: Path, text: str, values: list[dict], losses: list[float]):
    """Returns a plan and its outcome, as if the trials had run."""
    found = plan.load(sweep_file(tmp_path, text))
    done = []
    for number, (given, loss) in enumerate(zip(values, losses, strict=True)):
        trial = trials.new_trial(tmp_path, number, given, found.config(given))
        curve = ((10, loss + 1), (20, loss))
        figures = {"loss": loss, "accuracy": 0.5}
        result = trials.Result(trial, "finished", loss, 20, 75.0, figures, curve)
        done.append(result)
    done[-1] = dataclasses.replace(done[-1], state="pruned")
    done[-2] = dataclasses.replace(
        done[-2], state="failed", value=None, code=-9, log=("error: <no> memory",)
    )
    return found, results.outcome(done, "loss", False)


def figures_of(text: str) -> list[dict]:
    scripts = re.findall(r'<script type="application/json">(.*?)</script>', text)
    return [json.loads(script) for script in scripts]


def grid(tmp_path: Path):
    rates = [1e-4, 1e-3, 1e-2]
    values = [{RATE: rate, SEED: seed} for rate in rates for seed in (0, 1)]
    more = [{RATE: 1e-2, SEED: seed} for seed in (2, 3)]
    losses = [3.0, 3.1, 1.0, 1.1, 2.0, math.nan, 2.2, 2.3]
    return made(tmp_path, GRID, values + more, losses)


def test_the_page_has_everything_and_needs_nothing(tmp_path):
    found, end = grid(tmp_path)
    text = page.write(tmp_path, "rates & seeds", found, end).read_text()
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == [
        "Means over seeds",
        "Trials",
        "History",
        "Learning curves",
        "Loss by key",
        "Parallel coordinates",
        "Importance",
        "Failures",
    ]
    assert "Sweep rates &amp; seeds" in text and "error: &lt;no&gt; memory" in text
    assert "killed by SIGKILL" in text and "Best: trial 2" in text
    # Nothing is fetched: there is no address, and the browser would refuse.
    assert "://" not in text and "default-src 'none'" in text
    assert not re.search(r"<(link|img|iframe)|src=|@import|import\(", text)
    # The script of plotly is there once; each figure draws what it can hold.
    (packed,) = re.findall(r'id="plotly">(.*?)</script>', text)
    assert b"plotly.js v" in gzip.decompress(base64.b64decode(packed))[:100]
    drawn = figures_of(text)
    assert len(drawn) == 6 and text.count("<figcaption>") == 6
    assert all(figure["layout"].get("template") == {} for figure in drawn)
    assert 1.5e6 < len(text) < 2.5e6
    body = text.split("<tbody>")[2].split("</tbody>")[0]
    assert re.findall(r'trials/(\d+)/"', body)[:3] == ["0002", "0003", "0004"]
    assert '<a href="trials/0002/">' in body


def test_curves_are_named_by_what_differs(tmp_path):
    _, end = grid(tmp_path)
    figure = plots.curves(end)
    assert figure is not None
    named = {c.name: c.line.color for c in figure.data if c.showlegend is not False}
    # The seeds of a rate have its name and its colour.
    assert [*named] == [f"learning_rate {rate}" for rate in ("0.0001", "0.001", "0.01")]
    assert len({*named.values()}) == 3
    assert all(curve.line.color == named[curve.name] for curve in figure.data)
    assert figure.layout.yaxis.title.text == "loss (nats)"
    # The best is drawn last.
    assert figure.data[-1].line.width > max(c.line.width for c in figure.data[:-1])
    dashes = [curve.line.dash for curve in figure.data]
    assert dashes.count("dash") == 1


def test_of_many_curves_only_the_best_has_a_name(tmp_path):
    pytest.importorskip("optuna")
    text = SEARCH.replace("STUDY", "{'trials': 12}")
    _, end = made(tmp_path, text, *search_values(12))
    figure = plots.curves(end)
    assert figure is not None and end.best is not None
    named = [c.name for c in figure.data if c.showlegend is not False]
    assert named == ["other trials", f"trial {end.best.trial.number}, the best"]


def test_plotly_is_imported_by_what_draws_alone():
    """Nobody who asks for help waits for it."""
    for path in Path(report.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "plotly" not in ast.unparse(node), path
                assert "matplotlib" not in ast.unparse(node), path


def test_a_page_of_nothing_yet_is_a_page(tmp_path):
    found = plan.load(sweep_file(tmp_path, GRID))
    known = trials.listed_trials(tmp_path, found)
    waiting = [trials.read_result(trial, "loss") for trial in known]
    end = results.outcome(waiting, "loss", False)
    text = page.write(tmp_path, "new", found, end).read_text()
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Trials"] and "6 waiting" in text
    assert len(text) < 10_000


def test_main_effects_find_what_matters(tmp_path):
    rates, seeds = [1e-4, 1e-3, 1e-2], range(8)
    values = [{RATE: rate, SEED: seed} for rate in rates for seed in seeds]
    cost = {1e-4: 3.0, 1e-3: 1.0, 1e-2: 2.0}
    losses = [cost[v[RATE]] + 0.01 * (v[SEED] * 5 % 8) for v in values]
    found, end = made(tmp_path, GRID, values, losses)
    shares = plots.main_effects(end)
    assert shares[RATE] > 0.99 and shares[SEED] < 0.01
    assert found.space is None


def test_a_key_of_which_every_trial_has_its_own_value_explains_nothing(tmp_path):
    text = BASE + "def get_hyper(hyper):\n    return hyper.seeds(6)\n"
    _, end = made(tmp_path, text, [{SEED: n} for n in range(6)], [3.0, 1, 2, 5, 4, 6])
    assert plots.main_effects(end) == {}


def search_values(count: int):
    values = [
        {RATE: 10 ** (-5 + 4 * n / count), "train.batch": (8, 16)[n % 2], SEED: n % 10}
        for n in range(count)
    ]
    losses = [math.log10(v[RATE] / 1e-3) ** 2 + 0.01 * v[SEED] for v in values]
    return values, losses


def test_importance_of_a_search_is_optunas(tmp_path):
    pytest.importorskip("optuna")
    text = SEARCH.replace("STUDY", "{'trials': 40}")
    found, end = made(tmp_path, text, *search_values(40))
    page_text = page.write(tmp_path, "search", found, end).read_text()
    assert "PED-ANOVA" in page_text
    # History, curves, three keys, parallel coordinates, importance.
    assert len(drawn := figures_of(page_text)) == 7
    (bars,) = drawn[-1]["data"]
    assert bars["y"][-1] == "learning_rate"
    assert sum(bars["x"]) == pytest.approx(1)


def test_a_figure_a_key_shows_finished_trials_pruned_ones_and_the_best(tmp_path):
    text = SEARCH.replace("STUDY", "{'trials': 40}")
    _, end = made(tmp_path, text, *search_values(40))
    drawn = plots.by_key(end)
    assert drawn.keys() == {"learning_rate", "batch", "seed"}
    for figure in drawn.values():
        assert [len(trace.y) for trace in figure.data] == [38, 1, 1]
    assert drawn["batch"].layout.xaxis.ticktext == ("8", "16")
    history = plots.history(end)
    assert history is not None
    numbers = [r.trial.number for r in end.in_order() if r.state == "finished"]
    assert list(history.data[0].x) == numbers


def test_without_optuna_the_page_says_what_it_lacks(tmp_path, monkeypatch):
    text = SEARCH.replace("STUDY", "{'trials': 12}")
    found, end = made(tmp_path, text, *search_values(12))
    monkeypatch.setitem(sys.modules, "optuna", None)
    page_text = page.write(tmp_path, "search", found, end).read_text()
    assert "Not drawn: a search space needs Optuna" in page_text


@pytest.mark.parametrize(
    "values, positions, ticks",
    [
        ([1e-4, 1e-3, 1e-2], [0, 0.5, 1], ["0.0001", "0.001", "0.01"]),
        ([2, 4, 3], [0, 1, 0.5], ["2", "3", "4"]),
        (["b", "a"], [0, 1], ["b", "a"]),
        ([None, 0.5], [0, 1], ["none", "0.5"]),
        ([True, False], [0, 1], ["True", "False"]),
        ([7], [0.5], ["7"]),
        ([[1, 2], [3]], [0, 1], ["[1, 2]", "[3]"]),
    ],
)
def test_values_have_positions_on_an_axis(values, positions, ticks):
    axis = plots.make_axis("key", values)
    assert [axis.position(value) for value in values] == pytest.approx(positions)
    assert sorted(text for _, text in axis.ticks) == sorted(ticks)


@pytest.mark.parametrize(
    "values, ticks",
    [
        ([1e-4 * 10 ** (n / 6) for n in range(19)], ["0.0001", "0.001", "0.01", "0.1"]),
        ([*range(10)], ["0", "3", "6", "9"]),
        ([1.0, 1.1, 4.0], ["1", "2", "3", "4"]),
    ],
)
def test_labels_do_not_run_into_each_other(values, ticks):
    assert [text for _, text in plots.make_axis("key", values).ticks] == ticks


def test_what_diverged_does_not_hide_the_others():
    low, high = plots._limits([1.0, 1.1, 1.2, 1e6], maximise=False)
    assert low < 1.0 and 1.2 < high < 3
    low, high = plots._limits([-5.0, 0.8, 0.9], maximise=True)
    assert 0 < low < 0.8 and 0.9 < high < 1


@pytest.mark.parametrize("search", [False, True])
def test_importance_is_read_from_the_disk(tmp_path, search):
    """Of a list and of a search as `plmjax report` finds them."""
    assert page.saved_importance(tmp_path) is None
    space = {RATE: {"low": 1e-4, "high": 1e-2, "log": True, "whole": False}}
    space[SEED] = {"values": [0, 1]}
    definition = {"kind": "search", "space": space} if search else {"kind": "list"}
    found = plan.load(sweep_file(tmp_path, GRID))
    for number in range(8):
        values = {RATE: (1e-4, 1e-3, 5e-3, 1e-2)[number // 2], SEED: number % 2}
        trial = trials.new_trial(tmp_path, number, values, found.config(values))
        trial.save()
        scores = {"loss": 9.0 - number // 2, "step": 20}
        for name, content in (("scores", scores), ("config", trial.config)):
            (trial.directory / f"{name}.json").write_text(json.dumps(content))
    for name, content in (
        ("sweep", definition),
        ("results", {"objective": "loss", "maximise": False}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    part = page.saved_importance(tmp_path)
    assert part is not None and ("PED-ANOVA" in part.note) == search
    (first, (share, _)), *_ = sorted(part.rows, key=lambda row: -row[1][0])
    assert first == RATE and share > 0.8
