"""Starts of a pretraining: what a dry run refuses, and what may change between two."""

import shutil

import numpy as np
import pytest
from tests_common import once, sentences

from plmjax import Exit, PlmjaxError, tree
from plmjax import config as config_lib
from plmjax.checkpoint import storage
from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.pretrain import run as lib
from plmjax.pretrain.dry_run import dry_run
from plmjax.train.metrics import read_metrics
from plmjax.workdir import RunConfig

SMALL = (
    "data.source.kind=text",
    "data.source.document=line",
    "data.length=16",
    "data.held_out_percent=10",
    "tokenizer.vocab_size=100",
    "model.layers=1",
    "model.width=8",
    "model.heads=2",
    "model.ffn_width=16",
    "model.max_positions=16",
    "train.batch=8",
    "train.steps=2",
    "train.log_every_steps=1",
    "train.tensorboard=False",
    # No step depends on the number of steps.
    "train.schedule.kind=constant",
    "train.schedule.warmup_steps=0",
    "train.optimizer.learning_rate=0.01",
)


pytestmark = pytest.mark.usefixtures("module_on_one_device")


@pytest.fixture
def start(shared, monkeypatch):
    """start(path, *overrides) trains without tables, plots and an export."""
    monkeypatch.setattr(lib, "finish", lambda setup, result, log: result)
    return lambda path, *more: lib.pretrain(config(shared, *more), path)


def config(folder, *overrides: str) -> RunConfig:
    paths = f"data.source.paths={folder / 'corpus.txt'}"
    return config_lib.load(RunConfig, None, [*SMALL, paths, *overrides])


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder with a text and a run of two steps on it."""

    def make(folder):
        (folder / "corpus.txt").write_text("\n".join(sentences(60)) + "\n")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(lib, "finish", lambda setup, result, log: result)
            lib.pretrain(config(folder), folder / "run")

    return once(tmp_path_factory, "starts", make)


FOUR, AGAIN = "train.accumulation=4", "model.remat=True"


@pytest.mark.parametrize(
    "starts",
    [
        pytest.param([("train.steps=4", FOUR, AGAIN)], marks=pytest.mark.slow),
        pytest.param(
            [("train.steps=3", FOUR), ("train.steps=4", FOUR, AGAIN)],
            marks=pytest.mark.campaign,
        ),
    ],
    ids=len,
)
def test_accumulation_and_remat_may_change(start, shared, tmp_path, capsys, starts):
    """The steps, their rows and the result stay the same, to rounding."""
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    for path in (whole, changed):
        shutil.copytree(shared / "run", path)
    expected = start(whole, "train.steps=4")
    *_, found = [start(changed, *overrides) for overrides in starts]
    said = capsys.readouterr().out
    for change in ("train.accumulation changes from 1 to 4.", "None to True."):
        assert f"{change} The steps are the same, equal to rounding." in said
    assert found.step == expected.step == 4
    theirs = tree.flatten(expected.weights)
    for name, leaf in tree.flatten(found.weights).items():
        np.testing.assert_allclose(leaf, theirs[name], atol=2e-5, err_msg=name)
    assert found.scores["loss"] == pytest.approx(expected.scores["loss"], rel=1e-5)
    one, two = (read_metrics(path / "metrics.jsonl") for path in (whole, changed))
    tokens = [r["tokens"] for r in one if r["kind"] == "train"]
    assert tokens == [r["tokens"] for r in two if r["kind"] == "train"]
    assert len(tokens) == 4


def test_fewer_steps_than_are_done_leave_the_config(shared):
    before = (shared / "run/config.json").read_text()
    for go in (lib.pretrain, dry_run):
        with pytest.raises(PlmjaxError, match="has 2 steps done already.*for 1"):
            go(config(shared, "train.steps=1"), shared / "run")
    assert (shared / "run/config.json").read_text() == before


def refused(shared, path, *overrides: str) -> PlmjaxError:
    """The error of a dry run, which the run itself has, too."""
    errors = []
    for go in (lambda *given: dry_run(*given, compiles=False), lib.pretrain):
        with pytest.raises(PlmjaxError) as caught:
            go(config(shared, *overrides), path)
        errors.append(caught.value)
    assert str(errors[0]) == str(errors[1])
    return errors[0]


def test_start_weights_are_compared_before_text_is_read(shared, tmp_path):
    weights = f"train.init_from={shared / 'run'}"
    error = refused(shared, tmp_path / "a", weights, "tokenizer.vocab_size=90")
    assert error.code == Exit.MODEL and "have another tokenizer" in error.message
    tokenizer = f"tokenizer.path={shared / 'run/tokenizer'}"
    assert f"--config.{tokenizer}" in error.hint
    sizes = ("model.max_positions=32", "model.ffn_width=32")
    error = refused(shared, tmp_path / "a", weights, tokenizer, *sizes)
    assert error.code == Exit.MODEL and "do not fit this model" in error.message
    assert error.hint == (
        "Set --config.model.ffn_width=16 --config.model.max_positions=16."
    )
    error = refused(shared, tmp_path / "a", weights, tokenizer, "model.positions=rope")
    assert "unexpected embeddings/position" in error.message
    assert error.hint == "Set --config.model.positions=learned."
    assert not (tmp_path / "a/data").exists()


def test_missing_start_weights_are_named_by_their_key(shared, tmp_path):
    error = refused(shared, tmp_path / "a", "train.init_from=/nowhere")
    assert error.code == Exit.USAGE and "hf download" in error.hint
    assert error.message == "train.init_from=/nowhere is not a folder."


def test_start_weights_of_another_meaning_are_named(shared, tmp_path, capsys):
    local = ("model.layer_kinds=('local',)", "model.window=8")
    more = (f"train.init_from={shared / 'run'}", "model.heads=4", *local)
    tokenizer = f"tokenizer.path={shared / 'run/tokenizer'}"
    dry_run(config(shared, *more, tokenizer), tmp_path / "a", compiles=False)
    said = capsys.readouterr().out
    assert "was trained with model.heads=2, and this run has 4." in said
    assert "with model.layer_kinds=(), and this run has ('local',)." in said
    assert "Start weights of the model" in said
    assert "[MASK=x]: x is hidden; [y=x]: y stands in its place" in said


def test_a_disk_without_room_for_a_checkpoint(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(storage.Local, "free", lambda _: 10)
    error = refused(shared, tmp_path / "a")
    assert error.code == Exit.DISK and "a checkpoint needs" in error.message
    assert "train.checkpoints" in error.hint
    assert not Checkpoints(tmp_path / "a/checkpoints").steps()


def test_a_place_where_no_checkpoint_can_go(shared, tmp_path):
    error = refused(shared, tmp_path / "a", "train.checkpoints=ftp://a/b")
    assert "cannot be saved to ftp://a/b" in error.message
    assert not (tmp_path / "a").exists()


def test_a_batch_of_more_rows_than_there_are(shared, tmp_path, capsys):
    more = ("train.batch=256", "model.attention=blocks", "data.rows=single")
    dry_run(config(shared, *more), tmp_path / "a", compiles=False)
    said = capsys.readouterr().out
    assert "an epoch is 1 step of 256 rows" in said
    assert "WARNING: a step of 256 rows reads each of the" in said
    assert "full attention: block sparse attention begins at 705 tokens" in said
