"""What a sweep file may say, and what is refused before anything starts."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import BASE, GRID, RATE, SEARCH, SEED, sweep_file
from finetune_common import records, write

from plmjax import PlmjaxError
from plmjax import config as config_lib
from plmjax.cli.options import load_config
from plmjax.experiments import hyper, space
from plmjax.experiments import sweep_plan as plan
from plmjax.experiments.runs import as_json

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.py"))


def test_a_product_is_every_combination_the_last_turning_fastest():
    trials = hyper.product(
        [hyper.sweep("config.a", [1, 2]), hyper.sweep("b", "xy".split() + ["z"])]
    )
    assert trials == [
        {"a": 1, "b": "xy"},
        {"a": 1, "b": "z"},
        {"a": 2, "b": "xy"},
        {"a": 2, "b": "z"},
    ]
    assert hyper.product([]) == [{}]


def test_a_zip_goes_in_step_and_repeats_what_is_fixed():
    zipped = hyper.zipit(
        [hyper.sweep("a", [1, 2]), hyper.sweep("b", [3, 4]), hyper.fixed("c", 5)]
    )
    assert zipped == [{"a": 1, "b": 3, "c": 5}, {"a": 2, "b": 4, "c": 5}]
    with pytest.raises(PlmjaxError, match="2 and 3 trials"):
        hyper.zipit([hyper.sweep("a", [1, 2]), hyper.sweep("b", [1, 2, 3])])


def test_a_chain_is_one_after_the_other_and_seeds_count():
    chained = hyper.chainit([hyper.seeds(2), hyper.fixed("a", 1)])
    assert chained == [{SEED: 0}, {SEED: 1}, {"a": 1}]


@pytest.mark.parametrize("join", [hyper.product, hyper.zipit])
def test_a_key_is_set_once_in_a_trial(join):
    with pytest.raises(PlmjaxError, match="set a"):
        join([hyper.sweep("a", [1]), hyper.sweep("config.a", [2])])


def test_the_config_of_a_run_is_no_sweep_but_may_be_its_base(tmp_path):
    run = plan.load(sweep_file(tmp_path, GRID)).configs[0]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(run))
    with pytest.raises(PlmjaxError, match="config of one run; .* get_config.*"):
        plan.load(str(path))
    hyper = GRID[GRID.index("def get_hyper") :]
    text = f"def get_config():\n    return {str(path)!r}\n\n" + hyper
    again = plan.load(sweep_file(tmp_path, text))
    assert len(again.configs) == 6 and again.configs[0] == run


def test_a_string_is_no_list_of_values():
    with pytest.raises(PlmjaxError, match="one string"):
        hyper.sweep("a", "abc")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: space.uniform(2, 1), "nothing to choose"),
        (lambda: space.uniform(0, float("inf")), "nothing to choose"),
        (lambda: space.log(0, 1), "above 0"),
        (lambda: space.integers(1, 8, step=2, log=True), "cannot have steps"),
        (lambda: space.integers(1.5, 8), "whole numbers"),
        (lambda: space.choice([]), "give each once"),
        (lambda: space.choice([1, 1]), "give each once"),
        (lambda: space.choice([(1, 2)]), "cannot hold"),
    ],
)
def test_a_range_that_cannot_be_is_refused(make, message):
    with pytest.raises(PlmjaxError, match=message):
        make()


def test_a_grid_is_read_and_its_configs_are_whole(tmp_path):
    found = plan.load(sweep_file(tmp_path, GRID), ["train.steps=40"])
    assert found.listed is not None and len(found.listed) == 6
    config = found.config(found.listed[3])
    assert config["train"]["steps"] == 40 and config["train"]["seed"] == 1
    assert config["train"]["optimizer"]["learning_rate"] == 1e-3
    assert config["model"]["preset"] == "bert-tiny"


def test_values_come_through_the_command_line_as_they_are():
    values = {
        RATE: 0.1 + 0.2,
        "train.ema_decay": None,
        "train.tensorboard": False,
        "data.source.kind": "text",
        "data.source.paths": "a b's.txt",
        "objective.pairs": "none",
        "data.phases": [[5, 32, 8], [5, 64, 8]],
    }
    made = plan.Plan({}, (), plan.StudyConfig(), (values,), None)
    config = made.config(values)
    assert config["train"]["optimizer"]["learning_rate"] == 0.1 + 0.2
    assert config["train"]["ema_decay"] is None
    assert config["data"]["source"]["paths"] == "a b's.txt"
    assert config["data"]["phases"] == values["data.phases"]


@pytest.mark.parametrize(
    "base, values, kind",
    [
        ("text", {"train.seed": 1}, "text"),
        ("text", {"data.source.paths": "a.jsonl"}, None),
        ("docstrings", {"data.source.paths": "a.jsonl"}, None),
        ("text", {"data.source.paths": "a", "data.source.kind": "tsv"}, "tsv"),
        ("hf", {"data.source.paths": "saved"}, "hf"),
    ],
)
def test_a_trial_has_the_config_of_its_command(tmp_path, base, values, kind):
    below = {"data": {"source": {"kind": base}}}
    (tmp_path / "base.json").write_text(json.dumps(below))
    made = plan.Plan(below, ("train.steps=3",), plan.StudyConfig(), (values,), None)
    overrides = [*made.fixed, *plan.overrides_of(values)]
    args = SimpleNamespace(config=str(tmp_path / "base.json"), overrides=overrides)
    config = made.config(values)
    assert config == as_json(config_lib.to_dict(load_config(args, None)))
    assert config["data"]["source"]["kind"] == kind


def test_the_base_may_be_a_recipe_with_an_argument(tmp_path):
    (tmp_path / "recipes").mkdir()
    recipe = "def get_config(n='3'):\n    return {'train': {'steps': int(n)}}\n"
    (tmp_path / "recipes" / "recipe.py").write_text(recipe)
    text = "def get_config():\n    return 'recipes/recipe.py:7'\n"
    text += "def get_hyper(hyper):\n    return hyper.seeds(2)\n"
    assert plan.load(sweep_file(tmp_path, text)).base == {"train": {"steps": 7}}
    pair = "return 'recipes/recipe.py', {'config.train.batch': 4, 'train.steps': 5}"
    text = text.replace("return 'recipes/recipe.py:7'", pair)
    found = plan.load(sweep_file(tmp_path, text), ["train.steps=6"])
    assert found.fixed == ("train.batch=4", "train.steps=5", "train.steps=6")
    config = found.configs[1]["train"]
    assert (config["batch"], config["steps"], config["seed"]) == (4, 6, 1)


def test_numbers_of_numpy_are_taken_for_what_they_are(tmp_path):
    text = BASE + "import numpy as np\n"
    text += "def get_hyper(hyper):\n"
    text += f"    return hyper.sweep('{RATE}', np.logspace(-4, -3, 3))\n"
    found = plan.load(sweep_file(tmp_path, text))
    assert found.listed is not None
    rates = [trial[RATE] for trial in found.listed]
    assert rates == np.logspace(-4, -3, 3).tolist()
    assert all(type(rate) is float for rate in rates)


def listed(trials: str) -> str:
    return f"{BASE}\ndef get_hyper(hyper):\n    return {trials}\n"


@pytest.mark.parametrize(
    "text, message",
    [
        (listed("[{'train.sed': 1}]"), r"trial 0 \(sed 1\).*Did you mean train.seed"),
        (
            listed("hyper.sweep('train.batch', [8, 'many'])"),
            r"trial 1 \(batch many\).*must be: int",
        ),
        (
            listed("hyper.sweep('train.accumulation', [1, 2, 3])"),
            r"trial 2 \(accumulation 3\).*does not divide",
        ),
        (
            listed("[{'data.length': 4096}]"),
            r"trial 0 \(length 4096\).*longer than the model's",
        ),
        (listed(f"[{{'{RATE}': '1e-4'}}]"), "given as '1e-4' and read as 0.0001"),
        (listed("hyper.sweep('train.seed', [1, 2, 1])"), r"trial 2 .* trial 0 again"),
        (listed("[]"), "lists no trials"),
        (listed("[3]"), "3 is no {key: value}"),
        (listed("1 / 0"), "ZeroDivisionError"),
        (BASE, "it has no get_hyper"),
        (BASE + "def get_space(space):\n    return {}\n", "names no key"),
        (SEARCH.replace("STUDY", "{}"), "how many trials"),
        (SEARCH.replace("STUDY", "{'trails': 3}"), "Did you mean trials"),
        (SEARCH.replace("STUDY", "{'trials': 0}"), "at least 1"),
        (
            SEARCH.replace("STUDY", "{'trials': 3}").replace("[8, 16]", "[8, 0]"),
            "train.batch=0 of get_space.*at least 1",
        ),
        (
            SEARCH.replace("STUDY", "{'trials': 3}").replace(
                "train.batch", "train.bat"
            ),
            "Did you mean train.batch",
        ),
        (
            SEARCH.replace("STUDY", "{'trials': 3}").replace(
                "space.log(1e-5, 1e-1)", "3"
            ),
            "is 3, which is no range",
        ),
    ],
)
def test_what_is_wrong_is_named(text, message, tmp_path):
    with pytest.raises(PlmjaxError, match=f"(?s){message}"):
        plan.load(sweep_file(tmp_path, text))


def test_what_is_varied_cannot_be_fixed(tmp_path):
    with pytest.raises(
        PlmjaxError, match="train.seed is what the sweep varies, and fixed"
    ):
        plan.load(sweep_file(tmp_path, GRID), ["train.seed=1"])


def test_short_names_are_the_last_parts_that_differ():
    keys = ["train.optimizer.kind", "objective.kind", "train.seed"]
    assert [*plan.short_names(keys).values()] == [
        "optimizer.kind",
        "objective.kind",
        "seed",
    ]


def test_every_sweep_is_here():
    assert len(SWEEPS) >= 3


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_a_shipped_sweep_is_valid_and_opens_with_its_command(file, tmp_path):
    given = []
    if file.stem.startswith("finetune"):
        train = write(tmp_path / "train.jsonl", records("classes", 40))
        given = [f"model={tmp_path}", f"task.train={train}"]
    found = plan.load(str(file), given)
    assert (found.listed or found.space) and found.base
    text = " ".join(file.read_text().split('"""')[1].split())
    start = "compare --pretrain" if found.settings else "sweep --config"
    assert f"plmjax {start}={file.stem}" in text
    assert "core" in text or "GPU" in text
