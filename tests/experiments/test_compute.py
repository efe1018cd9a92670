"""Settings of pretraining at equal compute: steps, seeds, and what is refused."""

from pathlib import Path

import pytest
from fakes import BASE, sweep_file

from plmjax import PlmjaxError
from plmjax import config as config_lib
from plmjax.experiments import budget
from plmjax.experiments import sweep_plan as plan
from plmjax.models import flops
from plmjax.objectives import ElectraConfig
from plmjax.workdir import RunConfig

SWEEPS = Path(__file__).parents[2] / "configs" / "sweeps"
COMPARED = sorted(
    file for file in SWEEPS.glob("*.py") if "def get_settings" in file.read_text()
)


def settings_file(tmp_path: Path, settings: str, base: str = BASE) -> str:
    text = f"{base}\ndef get_settings():\n    return {settings}\n"
    return sweep_file(tmp_path, text)


def built(values: dict) -> RunConfig:
    return config_lib.build(RunConfig, values)


def test_a_masked_model_costs_what_one_counts_by_hand():
    values = {
        "model.layers": 2,
        "model.width": 8,
        "model.heads": 2,
        "model.ffn_width": 32,
        "tokenizer.vocab_size": 100,
        "data.length": 22,
        "train.batch": 4,
        "train.steps": 5,
    }
    overrides = [f"{key}={value}" for key, value in values.items()]
    config = built(config_lib.to_dict(config_lib.load(RunConfig, None, overrides)))
    length, width, masked = 22, 8, 3  # 15 % of 20
    # Multiply and add, a token: four of attention, up and down, scores and values.
    layer = 2 * (4 * width * width + 2 * width * 32 + 2 * length * width)
    head = 2 * (width * width + width * 100)
    once = 2 * length * layer + masked * head
    found = budget.cost_of(config)
    assert found == budget.Cost(5, 5 * 4 * 22, 3.0 * 5 * 4 * once)
    assert budget.cost_of(config, 50).flops < found.flops
    assert budget.steps_for(config, 2 * found.flops) == 10


def test_electra_pays_for_its_generator():
    told = ["model.preset=electra-tiny", "objective.kind=electra", "train.steps=10"]
    config = built(config_lib.to_dict(config_lib.load(RunConfig, None, told)))
    encoder = budget.encoder_of(config)
    assert isinstance(config.objective, ElectraConfig)
    generator = config.objective.generator_encoder(encoder)
    assert generator is not None and generator.width < encoder.width
    row = flops.encoder_flops(encoder, 128) + flops.detector_flops(encoder, 128)
    row += flops.encoder_flops(generator, 128)
    row += flops.vocabulary_flops(generator, 19)  # 15 % of 126, rounded up
    found = budget.cost_of(config)
    assert found.flops == pytest.approx(10 * config.train.batch * row)


@pytest.mark.parametrize("size", ["small", "gpu"])
@pytest.mark.parametrize("file", COMPARED, ids=lambda file: file.stem)
def test_settings_of_a_paper_cost_the_same(file, size):
    found = plan.load(f"{file}:{size}")
    costs = [budget.cost_of(built(values)).flops for values in found.configs]
    assert len(costs) == 3 * len(found.settings) >= 9
    assert max(costs) < 1.01 * min(costs)
    steps = {values["train"]["steps"] for values in found.configs}
    same = file.stem in ("static_masks", "nsp")
    assert (len(steps) == 1) == same


def test_there_are_the_papers_comparisons():
    names = {file.stem for file in COMPARED}
    assert names == {"electra_ablation", "albert", "depth_width", "static_masks", "nsp"}


def test_each_setting_is_trained_by_the_same_seeds(tmp_path):
    wide = "{'a': {}, 'b': {'config.model.ffn_width': 2048}}"
    file = settings_file(tmp_path, wide)
    found = plan.load(file, ["train.seed=5", "train.steps=100"], seeds=2)
    assert found.listed is not None and len(found.listed) == 4
    assert [trial["train.seed"] for trial in found.listed] == [5, 6, 5, 6]
    steps = [trial["train.steps"] for trial in found.listed]
    assert steps[:2] == [100, 100] and steps[2] == steps[3] < 80
    assert found.settings["b"]["train.steps"] == steps[2]
    # More seeds are more trials; the others stay what they were.
    more = plan.load(file, ["train.seed=5", "train.steps=100"], seeds=3)
    assert all(config in more.configs for config in found.configs)


@pytest.mark.parametrize(
    "settings, message",
    [
        ("{'a b': {}}", "setting a b: this cannot be its name"),
        ("{'a': {'train.steps': 3}}", "setting a: it sets train.steps"),
        ("{'a': {'train.epochs': 3.0}}", "setting a: .* train.epochs"),
        ("{'a': {'data.phases': ((5, 32, 8),)}}", "setting a: .*both set how long"),
        ("{'a': {'train.sed': 3}}", "setting a: .*Did you mean train.seed"),
        ("{'a': {}, 'b': {}}", "trial 3 .* it is trial 0 again"),
        ("{}", "lists no trials"),
    ],
)
def test_what_is_wrong_is_said_of_its_setting(settings, message, tmp_path):
    with pytest.raises(PlmjaxError, match=f"(?s){message}"):
        plan.load(settings_file(tmp_path, settings))


def test_a_teacher_is_not_counted(tmp_path):
    base = 'def get_config():\n    return {"objective": {"kind": "distill"}, '
    base += '"train": {"steps": 5}}\n'
    told = ["objective.teacher=nowhere"]
    with pytest.raises(PlmjaxError, match="a teacher, whose cost"):
        plan.load(settings_file(tmp_path, "{'a': {}}", base), told)
