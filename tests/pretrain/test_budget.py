"""A budget of time: the choices for given speeds, and a schedule whose end moves."""

import contextlib
import itertools
import json
import re
import shutil
import time
from types import SimpleNamespace

import pytest
from test_resume import assert_same_run, flat_state
from tests_common import TINY, run_cli, sentences

from plmjax import PlmjaxError, processes
from plmjax import config as config_lib
from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.cli import main
from plmjax.cli import pretrain as cli_pretrain
from plmjax.cli.options import load_config
from plmjax.cli.parser import make_parser
from plmjax.data.store import SPLITS
from plmjax.models.config import resolve
from plmjax.objectives import MLM
from plmjax.pretrain import budget
from plmjax.pretrain.run import pretrain
from plmjax.train import sharding
from plmjax.train.clock import Clock
from plmjax.train.config import MeshConfig, ScheduleConfig
from plmjax.train.schedule import make_schedule, moved_share
from plmjax.workdir import RunConfig, Workdir


def test_a_corpus_is_read_until_its_end_or_the_limit():
    assert budget.look(["abc", "ä"], 99) == (5, 2, 4, False)
    assert budget.look(itertools.repeat("abcd"), 9) == (12, 3, 4, True)


@pytest.mark.parametrize(
    ("size", "characters", "pieces"),
    [
        (10**7, 90, 8192),
        (10**8, 90, 16384),
        (10**5, 90, 2048),
        (4 * 10**6, 5000, 8192),
    ],
)
def test_the_vocabulary_follows_the_text(size, characters, pieces):
    assert budget.vocabulary(budget.Corpus(size, 1, characters, False)) == pieces


def test_what_is_held_out_is_enough_and_not_much():
    sizes = (10**5, 10**7, 10**12)
    assert [budget.held_out_percent(size) for size in sizes] == [5.0, 1.0, 0.1]


@pytest.mark.parametrize(
    ("tokens", "devices", "rows"),
    [
        *((1e5, 1, 8), (2e6, 1, 8), (3.2e7, 1, 32), (2e6, 8, 8), (3.2e7, 3, 24)),
        (2e6, 32, 32),  # micro-batches of one row
    ],
)
def test_the_batch_grows_with_the_root_of_the_tokens(tokens, devices, rows):
    assert budget.rows_for(tokens, 128, devices) == rows


def test_the_largest_model_with_tokens_enough_is_chosen():
    def rung(weights, tokens):
        return budget.Rung((2, 128), RunConfig(), weights, 1.0, 1.0, tokens)

    small, middle, large = rung(100, 900.0), rung(200, 1000.0), rung(400, 1500.0)
    assert budget.chosen([small, middle, large]) is middle
    assert budget.chosen([rung(100, 3.0)]).tokens == 3.0


def test_weights_are_those_of_the_layers():
    block = budget.model_of(3, 128)
    model = config_lib.load(RunConfig, base={"model": block}).model
    matrices = 4 * 128 * 128 + 3 * 128 * 192
    assert budget.weights_of(resolve(model, vocab_size=99, pad_id=0)) == 3 * matrices


def test_every_model_of_the_ladder_can_be_built():
    for layers, width in budget.LADDER:
        block = {"model": budget.model_of(layers, width)}
        model = config_lib.load(RunConfig, base=block).model
        assert resolve(model, vocab_size=99, pad_id=0).width == width


def test_a_schedule_with_one_end_is_the_linear_one():
    config = ScheduleConfig(warmup_steps=5, final_percent=10.0)
    rate = make_schedule(config, 1.0, 40)
    for step in range(40):
        share = moved_share(config, ((5, 40),), step)
        assert share == pytest.approx(float(rate(step)), abs=1e-6)


def test_a_moved_end_changes_no_step_before_and_is_reached():
    config = ScheduleConfig(warmup_steps=4)
    first, moved = ((4, 44),), ((4, 44), (14, 24))
    for step in range(15):
        assert moved_share(config, first, step) == moved_share(config, moved, step)
    assert moved_share(config, moved, 14) == pytest.approx(0.75)
    assert moved_share(config, moved, 19) == pytest.approx(0.375)
    assert moved_share(config, moved, 24) == 0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ends": ((3, 9),), "kind": "cosine", "warmup_steps": 3}, "kind=linear"),
        ({"ends": ((3, 9),)}, "ascending"),
        ({"ends": ((3, 9), (2, 9)), "warmup_steps": 3}, "ascending"),
        ({"ends": ((3, 3),), "warmup_steps": 3}, "ascending"),
        ({"ends": (3, 9), "warmup_steps": 3}, "ascending"),
    ],
)
def test_ends_that_are_none_are_refused(keys, message):
    with pytest.raises(PlmjaxError, match=message):
        ScheduleConfig(**keys)


def test_a_clock_leaves_time_for_pauses_and_the_export(monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 130.0)
    clock = Clock(seconds=100.0, began=100.0, after=10.0, step=2.0)
    clock.measured(8.0, 8)
    clock.pause, clock.save = 5.0, 4.0
    assert clock.step == 1.5 and clock.left() == 60.0
    # 55 seconds, each step 1.5 and shares of an evaluation and a checkpoint
    assert clock.steps_left(10, 10**9) == 27
    assert clock.steps_left(10, 4) == 18
    again = Clock(seconds=200.0, began=120.0)
    again.resume(clock.record())
    assert again.spent() == 40.0 and again.steps_left(10, 4) == 48
    clock.planned = 1234.0
    used = "The budget: 0:30 of 1:40 are used; 1,001 steps done, 1,234 planned."
    assert clock.used(1001) == used
    clock.seconds = 20.0
    assert clock.steps_left(10, 4) == 1


class Scripted(Clock):
    """A clock that says in turn how many steps are left: after 1, 5, 8, 10, 11 ..."""

    script = itertools.chain([39, 31, 16], range(14, 0, -1))

    def steps_left(self, evaluate_every: int, save_every: int) -> int:
        return next(self.script)


def config_of(folder):
    (folder / "corpus.txt").write_text("\n".join(sentences(400)) + "\n")
    keys = [option.removeprefix("--config.") for option in TINY]
    keys += [f"data.source.paths={folder / 'corpus.txt'}", "model.layers=1"]
    config = config_lib.load(RunConfig, None, keys)
    return budget.with_steps(config, 40, (9, 13, 1))


def test_a_run_that_ends_in_time_is_repeated_by_its_config(tmp_path):
    """And one that was stopped on the way goes on to the same weights."""
    run, again, resumed = (tmp_path / name for name in ("run", "again", "resumed"))
    pretrain(config_of(tmp_path), run, Scripted(99.0, 0.0))
    saved = json.loads((run / "config.json").read_text())
    ends = saved["train"]["schedule"]["ends"]
    assert saved["train"]["steps"] == ends[-1][1] == 24
    assert ends[:3] == [[2, 40], [5, 36], [8, 24]]
    assert json.loads((run / "budget.json").read_text())["spent"] > 0
    assert json.loads((run / "scores.json").read_text())["step"] == 24
    config = config_lib.build(RunConfig, saved)
    pretrain(config, again)
    assert_same_run(run, again)
    shutil.copytree(run, resumed)
    steps = Checkpoints(resumed / "checkpoints").steps()
    for step in steps[1:]:
        shutil.rmtree(Checkpoints(resumed / "checkpoints").path(step))
    assert steps[0] < 24
    pretrain(config, resumed)
    assert flat_state(resumed).keys() == flat_state(run).keys()
    assert_same_run(run, resumed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--minutes=0"], "error: --minutes=0 must be a number above 0"),
        (["--hours=-1"], "--hours=-1 must be a number above 0"),
        (["--minutes=nan"], "must be a number above 0"),
        (["--minutes=5", "--steps=3"], "cannot be combined with --steps=3"),
        (["--minutes=5", "--hours=1"], "--minutes cannot be combined with --hours"),
        (["--minutes=5", "--show_config"], "combined with --show_config"),
        (["--minutes=5", "--config.train.schedule.kind=wsd"], "schedule is linear"),
        (["--device=h100"], "--device needs --dry_run"),
        (["--dry_run", "--device=h99"], "--device=h99 is not known"),
        (["--dry_run", "--price_per_hour=0"], "--price_per_hour=0 must be above 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message, capsys, tmp_path):
    where = f"--workdir={tmp_path / 'run'}"
    assert main(["pretrain", *options, where]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["average_from_percent=50", "prune.sparsity=.5"])
def test_keys_that_need_the_number_of_steps_are_refused(key):
    config = config_lib.load(RunConfig, None, [f"train.{key}"])
    with pytest.raises(PlmjaxError, match=f"{key.partition('=')[0]} divides"):
        budget.plan(lambda layer: config, None, Clock(60.0, 0.0))  # type: ignore


def load_with(*keys, **recipe):
    """Returns a function from choices to the config, below a recipe and keys."""

    def load(layer):
        return config_lib.load(RunConfig, None, keys, layer, {"train": recipe})

    return load


def own_of(*keys):
    return [key.partition("=")[0] for key in keys]


@pytest.mark.parametrize(
    ("keys", "row", "batch", "seconds"),
    [
        ((), 128.0, 8, 1.024),
        ((), 64.0, 16, 1.024),  # half of a row is padding
        (("train.accumulation=16",), 128.0, 16, 2.048),
    ],
)
def test_padding_and_micro_batches_are_counted(monkeypatch, keys, row, batch, seconds):
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    load, clock = load_with(*keys), Clock(1000.0, 0.0, pause=10.0)
    rung = budget.Rung((2, 128), RunConfig(), 1, 1.0, 1000.0, 1e6, row, 20.0)
    least = load({}).train.accumulation
    more = {"least": least, "clock": clock, "own": own_of(*keys)}
    train = budget._finished(load, {}, rung, **more).train
    assert train.batch == batch and clock.step == pytest.approx(seconds)
    # 980 seconds after the first step; six evaluations
    assert train.steps == int((980 - 60) / seconds)
    assert train.evaluate_every_steps == int(920 / seconds) // 6 + 1


def test_own_intervals_are_kept_and_count(monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    keys = ("train.evaluate_every_steps=10", "train.log_every_steps=3")
    load, clock = load_with(*keys), Clock(1000.0, 0.0, pause=10.0)
    rung = budget.Rung((2, 128), RunConfig(), 1, 1.0, 1000.0, 1e6, 125.0)
    more = {"least": 1, "clock": clock, "own": own_of(*keys)}
    train = budget._finished(load, {}, rung, **more).train
    assert train.steps == (1000 - 10) // 2  # a second, and a tenth of ten
    assert (train.evaluate_every_steps, train.log_every_steps) == (10, 3)


def test_keys_of_a_recipe_that_the_budget_replaces_are_named():
    recipe = {"epochs": 3.0, "evaluate_every_steps": 250, "schedule": {"kind": "wsd"}}
    keys = ("train.log_every_steps=10",)
    load = load_with(*keys, **recipe)
    base = load({"train": dict.fromkeys(budget.INTERVALS, budget._UNSET)})
    config = budget.with_steps(load({}), 40, (9, 13, 1), own_of(*keys))
    assert budget._replaced(base, config) == (
        "train.epochs=3.0, train.schedule.kind=wsd, train.evaluate_every_steps=250"
    )
    train = config.train
    assert (train.epochs, train.schedule.kind, train.log_every_steps) == (
        *(None, "linear"),
        10,
    )


@pytest.mark.parametrize(("seconds", "timed"), [(290.0, 1), (310.0, 2)])
def test_a_small_budget_times_only_what_it_would_choose(monkeypatch, seconds, timed):
    """At the first model's speed the second would see .7 of the tokens that it wants.

    In more than five minutes it is timed, since larger models make more of a device.
    """
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    monkeypatch.setattr(budget, "training_session", lambda *_: contextlib.nullcontext())
    second = 2 * (4 * 256**2 + 3 * 256 * 384)
    a_second = 0.7 * 5 * second * 6 * second / 300  # FLOPs

    def build(config, workdir, mesh, log, make):
        assert make is MLM
        encoder, tokens = resolve(config.model, vocab_size=99, pad_id=0), {"tokens": 9}
        plan = SimpleNamespace(length=128, fill=1.0)
        phase = SimpleNamespace(batch=config.train.batch, plan=plan)
        return SimpleNamespace(
            loader=SimpleNamespace(phases=[phase]),
            encoder=encoder,
            flops=lambda step: 6 * budget.weights_of(encoder) * 128 * phase.batch,
            store=SimpleNamespace(manifest={"splits": dict.fromkeys(SPLITS, tokens)}),
        )

    monkeypatch.setattr(budget, "build", build)
    monkeypatch.setattr(
        budget, "time_steps", lambda made: (1.0, made.flops(0) / a_second)
    )
    more = {"mesh": sharding.make_mesh(MeshConfig()), "make": MLM}
    clock = Clock(seconds, 0.0)
    rungs = budget._climb(load_with(), {}, None, clock=clock, **more)  # type: ignore
    assert [rung.shape for rung in rungs] == [(2, 128), (2, 256)][:timed]


RECIPE = """
def get_config():
    schedule = {"kind": "cosine"}
    return {"model": {"layers": 3}, "train": {"steps": 10**6, "schedule": schedule}}
"""


@pytest.mark.parametrize("recipe", [False, True])
def test_a_run_without_checkpoint_keeps_its_choices_and_budget(
    recipe, tmp_path, monkeypatch
):
    (tmp_path / "recipe.py").write_text(RECIPE)
    options = [f"--config={tmp_path / 'recipe.py'}"] * recipe
    words = ["pretrain", "x.txt", f"--workdir={tmp_path}", "--minutes=5", *options]
    parser = make_parser()
    monkeypatch.setattr(budget, "plan", lambda *given: "planned again")

    def planned(*more):
        clock = Clock(300.0, time.monotonic())
        made = cli_pretrain._planned(
            parser.read([*words, *more]), Workdir(tmp_path), clock
        )
        return made, clock

    assert planned()[0] == "planned again"
    choices = {"model": budget.model_of(4, 256), "train": {"batch": 32}}
    config = load_config(parser.read(words), tmp_path, choices)
    config = budget.with_steps(config, 800, (90, 130, 7))
    assert config.model.layers == (3 if recipe else 4) and config.train.batch == 32
    Workdir(tmp_path).write_config(config)
    spent = Clock(300.0, time.monotonic() - 70, planned=800.0)
    (tmp_path / "budget.json").write_text(json.dumps(spent.record()))
    again, clock = planned()
    assert config_lib.to_dict(again) == config_lib.to_dict(config)
    assert 70 < clock.spent() < 90 and clock.planned == 800
    logged, _ = planned("--config.train.log_every_steps=1")
    assert logged.train.log_every_steps == 1 and logged.train.steps == 800
    assert planned("--config.model.layers=2")[0] == "planned again"


def test_a_budget_of_several_processes_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(processes, "initialise", lambda *_: "Slurm")
    where = f"--workdir={tmp_path / 'run'}"
    assert main(["pretrain", "--minutes=1", where]) == 2
    assert "plan a run in one process" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.alone
def test_a_command_with_minutes_trains_and_exports(tmp_path):
    (tmp_path / "corpus.txt").write_text("\n".join(sentences(400)) + "\n")
    run = tmp_path / "run"
    paths, where = str(tmp_path / "corpus.txt"), f"--workdir={run}"
    short = run_cli("pretrain", paths, "--minutes=0.001", where)
    assert short.returncode == 2 and "make sense" in short.stderr, short.stderr
    assert not (run / "config.json").exists()
    keys = ("--config.model.layers=1", "--config.model.width=64")
    least = re.search(r"At least ([0-9.]+) minutes make sense", short.stderr)
    minutes = f"--minutes={1.5 * float(least[1])}"  # type: ignore[index]
    given = run_cli("pretrain", paths, minutes, where, *keys)
    assert given.returncode == 0, given.stderr
    config = json.loads((run / "config.json").read_text())
    assert (config["model"]["layers"], config["model"]["width"]) == (1, 64)
    assert config["tokenizer"]["vocab_size"] == 1024
    steps = config["train"]["schedule"]["ends"][-1][1]
    assert steps == config["train"]["steps"]
    assert json.loads((run / "scores.json").read_text())["step"] == steps
    assert (run / "export" / "model.safetensors").exists()
    assert "1 x 64" in given.stdout and "1,024 wordpiece" in given.stdout
    assert f"are used; {steps:,} steps done, " in given.stdout.splitlines()[-1]
