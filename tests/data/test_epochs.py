"""Epochs and phases: each row once an epoch, in an order of its own in each of them."""

import itertools
import shutil

import jax
import numpy as np
import pytest
from test_resume import assert_same_run
from tests_common import sentences

from plmjax import config as config_lib
from plmjax.data.loader import Loader, Phase
from plmjax.data.rows import make_plan

EPOCHS = 6


class Stream:
    """Stands for a Split: documents of ten tokens, which say where they stand."""

    name = "train"

    def __init__(self, documents: int):
        self.offsets = np.arange(documents + 1) * 10

    def read(self, index):
        return (index + 100).astype(np.int32), index % 2 == 1


class Ids:
    """Stands for a Tokenizer."""

    cls_id, sep_id, pad_id = 1, 2, 0


def make(*shapes: tuple[int, int, int], documents: int = 96, seed: int = 3) -> Loader:
    """Returns the loader of phases (steps, length, batch); a row is a document."""
    stream = Stream(documents)
    phases = [
        Phase(steps, batch, make_plan(stream, length, packed=False))
        for steps, length, batch in shapes
    ]
    return Loader(stream, phases, Ids(), seed)


def orders(loader: Loader, first: int, rows: int, batch: int) -> list[np.ndarray]:
    """Returns the rows of six epochs in their order, from a step on."""
    steps = range(first, first + EPOCHS * rows // batch)
    seen = np.concatenate([loader.rows(step)[1] for step in steps])
    return list(seen.reshape(EPOCHS, rows))


def assert_apart(found: dict) -> None:
    """Each is a permutation, and no two agree in more places than chance would."""
    for one in found.values():
        np.testing.assert_array_equal(np.sort(one), np.arange(len(one)))
        assert (one == np.arange(len(one))).mean() < 0.1
    for (a, one), (b, other) in itertools.combinations(found.items(), 2):
        assert (one == other).mean() < 0.1, (a, b)
        # Nor does one begin elsewhere in the other's order, or go backwards.
        steps = [
            np.bincount((x - y) % len(x)) for x, y in ((one, other), (one, other[::-1]))
        ]
        assert max(map(max, steps)) < 0.2 * len(one), (a, b)


def test_all_epochs_of_all_phases_and_seeds_differ():
    found = {}
    for seed in (3, 4, 3 + 2**31):
        loader = make((36, 16, 16), (72, 16, 8), seed=seed)
        for phase, (first, batch) in enumerate(((0, 16), (36, 8))):
            for epoch, order in enumerate(orders(loader, first, 96, batch)):
                found[seed, phase, epoch] = order
    assert len(found) == 3 * 2 * EPOCHS
    assert_apart(found)


@pytest.mark.parametrize("batch", [7, 32, 200])
def test_each_row_is_read_once_an_epoch(batch):
    """Whatever the batch, also where one crosses into the next epoch, or two."""
    steps = -(-EPOCHS * 96 // batch)
    loader = make((5, 24, 16), (steps, 16, batch))
    rows, epochs = (
        np.concatenate([loader.rows(5 + step)[what] for step in range(steps)])
        for what in (1, 2)
    )
    np.testing.assert_array_equal(epochs, np.arange(len(rows)) // 96)
    for epoch in range(EPOCHS):
        mine = rows[epochs == epoch]
        np.testing.assert_array_equal(np.sort(mine), np.arange(96))
    for name, array in loader.batch(5 + steps - 1).items():
        assert len(array) == batch, name


def test_what_is_read_is_the_row_that_is_named():
    loader = make((12, 16, 8))
    for step in range(12):
        _, rows, _ = loader.rows(step)
        batch = loader.batch(step)
        np.testing.assert_array_equal(batch["row"], rows)
        np.testing.assert_array_equal(batch["tokens"][:, 1], 100 + 10 * rows)


def test_phases_change_at_their_steps():
    shapes = ((3, 16, 8), (1, 24, 4), (5, 32, 2))
    loader, step = make(*shapes), 0
    assert loader.steps == 9
    for steps, length, batch in shapes:
        for place in range(steps):
            assert loader.batch(step)["tokens"].shape == (batch, length)
            assert loader.phase(step).plan.length == length
            # Each phase begins at the begin of an epoch of its own.
            _, rows, epochs = loader.rows(step)
            assert epochs[0] == place * batch // 96 and len(set(rows)) == batch
            step += 1
    for beyond in (9, 100):
        with pytest.raises(IndexError):
            loader.batch(beyond)


def test_rows_that_are_left_out_stay_within_their_phase():
    loader = make((6, 16, 16), (6, 24, 8))
    for first, batch in ((0, 16), (6, 8)):
        plain = [loader.rows(step)[1] for step in range(first, first + 6)]
        ahead = [loader.rows(step, 2)[1] for step in range(first, first + 4)]
        np.testing.assert_array_equal(ahead, plain[2:])
        batches = [loader.batch(step, 2)["row"] for step in range(first, first + 4)]
        np.testing.assert_array_equal(batches, ahead)
        assert loader.batch(first + 5, 2)["tokens"].shape[0] == batch


OPTIONS = (
    "data.source.kind=text",
    "data.source.document=line",
    "data.held_out_percent=10",
    "data.phases=((3, 16, 4), (4, 24, 2))",
    "tokenizer.vocab_size=80",
    "model.layers=1",
    "model.width=8",
    "model.heads=1",
    "model.ffn_width=8",
    "model.max_positions=24",
    "train.log_every_steps=1",
    "train.evaluate_every_steps=100",
    "train.checkpoint_every_steps=1",
    "train.keep_checkpoints=10",
    "train.tensorboard=False",
)


@pytest.mark.slow
def test_a_run_that_stops_in_its_second_phase_goes_on_bit_for_bit(
    tmp_path, monkeypatch
):
    """It is taken back to what a kill at step 5 of 7 would have left."""
    from plmjax.pretrain.run import pretrain
    from plmjax.train import sharding
    from plmjax.workdir import RunConfig

    mesh, first = sharding.make_mesh, jax.devices()[:1]
    monkeypatch.setattr(
        sharding, "make_mesh", lambda config, _=None: mesh(config, first)
    )
    corpus, read = tmp_path / "corpus.txt", {}
    corpus.write_text("\n".join(sentences(60)) + "\n")
    overrides = [*OPTIONS, f"data.source.paths={corpus}"]
    config = config_lib.load(RunConfig, None, overrides)
    batch = Loader.batch

    def noted(self, step, ahead=0):
        read.setdefault(name, {})[step] = self.rows(step)[1].tolist()
        return batch(self, step, ahead)

    monkeypatch.setattr(Loader, "batch", noted)
    name = "whole"
    pretrain(config, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for step in (6, 7):
        shutil.rmtree(tmp_path / f"b/checkpoints/step_{step:08d}")
    name = "resumed"
    pretrain(config, tmp_path / "b")
    assert read["resumed"].keys() >= {5, 6}
    assert all(read["whole"][step] == rows for step, rows in read["resumed"].items())
    assert_same_run(tmp_path / "a", tmp_path / "b")
