"""A budget of time: the choices for given speeds, and a schedule whose end moves."""

import itertools
import json
import re
import shutil

import pytest
from test_resume import assert_same_run, flat_state
from tests_common import TINY, run_cli, sentences

from plmjax import PlmjaxError
from plmjax import config as config_lib
from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.cli import main
from plmjax.models.config import resolve
from plmjax.pretrain import budget
from plmjax.pretrain.run import pretrain
from plmjax.train.clock import Clock
from plmjax.train.config import ScheduleConfig
from plmjax.train.schedule import make_schedule, moved_share
from plmjax.workdir import RunConfig


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
    [(1e5, 1, 8), (2e6, 1, 8), (3.2e7, 1, 32), (2e6, 8, 8), (3.2e7, 3, 24)],
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
    clock = Clock(seconds=100.0, began=100.0, after=10.0)
    clock.measured(20.0, 10)
    clock.measured(8.0, 8)
    clock.pause = 5.0
    assert clock.step == 1.5 and clock.left() == 60.0
    # 55 seconds, each step 1.5 and a tenth of a pause
    assert clock.steps_left(10) == 27
    clock.seconds = 20.0
    assert clock.steps_left(10) == 1


class Scripted(Clock):
    """A clock that says in turn how many steps are left."""

    script = itertools.chain([24], range(9, 0, -1))

    def steps_left(self, every: int) -> int:
        return next(self.script)


def config_of(folder):
    (folder / "corpus.txt").write_text("\n".join(sentences(400)) + "\n")
    keys = [option.removeprefix("--config.") for option in TINY]
    keys += [f"data.source.paths={folder / 'corpus.txt'}", "model.layers=1"]
    config = config_lib.load(RunConfig, None, keys)
    return budget.with_steps(config, 40, 1.0)


def test_a_run_that_ends_in_time_is_repeated_by_its_config(tmp_path):
    """And one that was stopped on the way goes on to the same weights."""
    run, again, resumed = (tmp_path / name for name in ("run", "again", "resumed"))
    pretrain(config_of(tmp_path), run, Scripted(99.0, 0.0))
    saved = json.loads((run / "config.json").read_text())
    ends = saved["train"]["schedule"]["ends"]
    assert saved["train"]["steps"] == ends[-1][1] == 24
    assert ends[:3] == [[2, 40], [12, 36], [15, 24]]
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
