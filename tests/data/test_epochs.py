"""Epochs and phases: each row once an epoch, in an order of its own in each of them."""

import itertools
import shutil

import numpy as np
import pytest
from test_resume import assert_same_run
from tests_common import sentences

from plmjax import PlmjaxError
from plmjax import config as config_lib
from plmjax.data.loader import Loader, Phase, ramped
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
    # The batch grows from 2 to 4 rows after two steps.
    "data.phases=((4, 16, 4, 50), (3, 24, 2, 900.0))",
    "data.batch_ramp=(60, 2)",
    "tokenizer.vocab_size=80",
    "model.preset=modernbert-tiny",
    "model.layers=2",
    "model.width=8",
    "model.heads=1",
    "model.ffn_width=8",
    "model.max_positions=24",
    "model.window=4",
    "train.log_every_steps=1",
    "train.evaluate_every_steps=100",
    "train.checkpoint_every_steps=1",
    "train.keep_checkpoints=10",
    "train.tensorboard=False",
)


def test_a_batch_grows_by_tokens_and_its_epochs_go_on():
    plan = make_plan(Stream(96), 16, packed=False)
    whole = [Phase(40, 16, plan), Phase(5, 4, plan)]
    # A row has 12 tokens; 4, 8 and 12 rows share 576 tokens equally.
    phases = ramped(whole, 576, 4)
    sizes = [(p.steps, p.batch, p.before) for p in phases]
    assert sizes == [(4, 4, 0), (2, 8, 16), (1, 12, 32), (33, 16, 44), (5, 4, 0)]
    loader = Loader(Stream(96), phases, Ids(), 3)
    steps = [loader.rows(step) for step in range(40)]
    rows, epochs = (np.concatenate([s[what] for s in steps]) for what in (1, 2))
    np.testing.assert_array_equal(epochs, np.arange(len(rows)) // 96)
    for epoch in range(5):
        assert sorted(rows[epochs == epoch]) == [*range(96)]
    assert loader.rows(40)[2][0] == 0
    # As many rows as before, in more steps.
    assert sum(p.steps * p.batch for p in ramped(whole, 576, 4, whole=True)[:-1]) == 652
    assert len(ramped([Phase(900, 512, plan)], 4800, 2)) == 9
    with pytest.raises(PlmjaxError, match="take 51 steps, but the phase"):
        ramped(whole, 4000, 4)


@pytest.mark.slow
def test_a_run_that_stops_before_its_second_phase_goes_on_bit_for_bit(
    tmp_path, monkeypatch, on_one_device
):
    """It is taken back to what a kill at step 3 of 7 would have left."""
    from plmjax.evaluate.model import open_run
    from plmjax.interop.huggingface import read_folder
    from plmjax.pretrain.run import pretrain
    from plmjax.workdir import RunConfig, Workdir

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
    # Threads read ahead, in any order.
    assert [len(read["whole"][step]) for step in range(7)] == [2, 2, 4, 4, 2, 2, 2]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for step in range(4, 8):
        shutil.rmtree(tmp_path / f"b/checkpoints/step_{step:08d}")
    name = "resumed"
    pretrain(config, tmp_path / "b")
    assert read["resumed"].keys() >= {*range(3, 7)}
    assert all(read["whole"][step] == rows for step, rows in read["resumed"].items())
    assert_same_run(tmp_path / "a", tmp_path / "b")
    # What is opened or exported has the rotations of its steps.
    for step, theta in (("4", 50), ("5", 900), ("newest", 900)):
        opened = open_run(Workdir(tmp_path / "a"), step).models()["model"]
        assert opened.encoder.rope_theta == theta
    assert read_folder(tmp_path / "a" / "export").config.rope_theta == 900
