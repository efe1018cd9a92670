"""Bad steps: skipped, refused, or gone back from; what spikes are; what is left out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests_common import TINY

from plmjax import Exit, PlmjaxError
from plmjax import config as config_lib
from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.data.loader import Loader
from plmjax.objectives import altered
from plmjax.pretrain import build as run_lib
from plmjax.pretrain import run as pretrain
from plmjax.train import rollback
from plmjax.train.metrics import read_starts
from plmjax.train.rollback import BadStep
from plmjax.workdir import RunConfig


def test_a_spike_stands_out_from_the_losses_before_it():
    losses = list(5 + 0.1 * np.random.default_rng(0).standard_normal(128))
    assert rollback.spike(losses, 5.4, 6) is None
    assert "over 5.6" in rollback.spike(losses, 6.5, 6)
    # An earlier spike neither hides the next one nor makes one of its neighbours.
    assert rollback.spike([*losses, 900.0], 6.5, 6)
    assert rollback.spike([*losses, 900.0], 5.4, 6) is None
    assert rollback.spike(losses, 1.0, 6) is None  # lower is no spike
    assert rollback.spike(losses[:20], 900.0, 6) is None  # too few to know
    assert rollback.spike([2.0] * 128, 2.001, 6) is None


def test_what_is_left_out_adds_up():
    assert rollback.skip(BadStep(57, ""), 50, 10) == [50, 7]
    assert rollback.skip(BadStep(57, ""), 20, 10) == [47, 10]
    skips = [[47, 10], [60, 3]]
    ahead = [rollback.skipped_batches(skips, step) for step in (46, 47, 59, 60)]
    assert ahead == [0, 10, 10, 13]
    # Of two that overlap, the second begins before the first: 140 to 154 are left out.
    skips = rollback.with_skip([[140, 10]], rollback.skip(BadStep(145, ""), 100, 10))
    read = [step + rollback.skipped_batches(skips, step) for step in range(133, 138)]
    assert read == [133, 134, 155, 156, 157]


def poison(monkeypatch, value, step: int = 8) -> None:
    """Gives a row of a step `value` times its loss, wherever it is read again."""
    make = run_lib.make_objective
    poisoned = {}

    def make_poisoned(*arguments):
        real = make(*arguments)

        def loss(params, frozen, batch, key, train):
            total, metrics = real.loss(params, frozen, batch, key, train)
            bad = jnp.isin(batch["row"], poisoned["rows"]).any() & train
            return total * jnp.where(bad, value, 1.0), metrics

        return altered(real, loss=loss)

    made = Loader.__init__

    def init(self, *arguments, **more):
        made(self, *arguments, **more)
        if self.steps >= step:  # else it reads a sample, to check the text
            poisoned["rows"] = jnp.asarray(self.rows(step - 1)[1][:1])

    monkeypatch.setattr(Loader, "__init__", init)
    monkeypatch.setattr(run_lib, "make_objective", make_poisoned)


# Bad steps are the same on any mesh.
pytestmark = pytest.mark.usefixtures("on_one_device")


def train(corpus, workdir, *more):
    overrides = [
        argument.removeprefix("--config.")
        for argument in (*TINY, f"--config.data.source.paths={corpus}", *more)
    ]
    config = config_lib.load(RunConfig, None, overrides)
    return pretrain.pretrain(config, workdir)


def records(workdir, kind) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


def final(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints")
    path = checkpoints.path(checkpoints.good_step()) / "state"
    from orbax.checkpoint import v1 as ocp

    return jax.tree.leaves(ocp.load(str(path)))


BACK = ("--config.train.on_bad_step=rollback", "--config.train.rollback_batches=2")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sharding info:UserWarning")
@pytest.mark.timeout(600)
def test_going_back_gives_the_run_that_never_saw_those_rows(
    corpus, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        poison(patch, jnp.nan)
        train(corpus, tmp_path / "a", *BACK)
    said = capsys.readouterr().out
    assert "step 8: the loss or the gradient is not finite (its 8 rows are" in said
    assert "Going back to step 5, and on without 2 batches from step 6 on" in said
    (record,) = records(tmp_path / "a", "rollback")
    assert (record["step"], record["bad_step"]) == (5, 8)
    assert record["skips"] == [[6, 2]]
    assert [r["step"] for r in records(tmp_path / "a", "train")] == list(range(1, 11))

    batch = Loader.batch
    with monkeypatch.context() as patch:
        # One program for both, since XLA rounds each its way; no such row is read here.
        poison(patch, jnp.nan)
        patch.setattr(
            Loader,
            "batch",
            lambda self, step, ahead=0: batch(self, step, 2 * (step > 5)),
        )
        train(corpus, tmp_path / "b")
    for one, other in zip(final(tmp_path / "a"), final(tmp_path / "b"), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_bad_step_stops_the_run_where_it_shall(corpus, tmp_path, monkeypatch):
    poison(monkeypatch, jnp.nan)
    with pytest.raises(PlmjaxError, match="step 8: the loss or the grad") as caught:
        train(corpus, tmp_path, "--config.train.on_bad_step=raise")
    assert caught.value.code == Exit.NUMERIC
    assert "its 8 rows are" in caught.value.message
    assert [start["how"] for start in read_starts(tmp_path)] == ["failed"]
    assert Checkpoints(tmp_path / "checkpoints").steps() == [5]


@pytest.mark.campaign
def test_a_run_does_not_go_back_for_ever(corpus, tmp_path, monkeypatch):
    poison(monkeypatch, jnp.nan)
    # With so little text the row comes again, and again.
    few = corpus.read_text().splitlines()[:150]
    corpus.write_text("\n".join(few) + "\n")
    more = ("--config.train.max_rollbacks=1", "--config.train.steps=200")
    with pytest.raises(PlmjaxError, match="rolled back 1 times") as caught:
        train(corpus, tmp_path, *BACK, *more)
    assert caught.value.code == Exit.NUMERIC


@pytest.mark.campaign
def test_a_finite_spike_is_noticed(corpus, tmp_path, monkeypatch):
    poison(monkeypatch, 30.0, step=36)
    more = ("--config.train.spike_sigmas=6", "--config.train.steps=38")
    train(corpus, tmp_path, *BACK, *more)
    (record,) = records(tmp_path, "rollback")
    assert record["bad_step"] == 36 and "standard deviations" in record["reason"]


def test_settings_that_cannot_be():
    with pytest.raises(PlmjaxError, match="spike_sigmas needs train.on_bad_step"):
        config_lib.load(RunConfig, None, ["train.spike_sigmas=6"])
    with pytest.raises(PlmjaxError, match="must be above 0, or none"):
        config_lib.load(RunConfig, None, ["train.hang_after_seconds=0"])
