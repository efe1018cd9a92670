"""Records of a run: whole, in order, and never a reason to stop."""

import json
import math
import threading
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from plmjax import PlmjaxError
from plmjax.console import TrainingDisplay
from plmjax.models import EncoderConfig
from plmjax.objectives import MLM, MLMConfig, Pieces
from plmjax.train.config import TrainConfig
from plmjax.train.loop import Progress, _Meter
from plmjax.train.metrics import MetricWriter, means, read_metrics
from plmjax.workdir import Workdir


def steps(directory) -> list[int]:
    return [record["step"] for record in read_metrics(directory / "metrics.jsonl")]


def test_records_after_a_step_are_dropped(tmp_path):
    writer = MetricWriter(tmp_path, (), 0)
    for step in (1, 2, 3):
        writer.write("train", step, {"loss": 1.0})
    writer.write("evaluation", 3, {"loss": 1.0})
    writer.write("rollback", 2, {"skips": [[1, 2]], "reason": "a test"})
    with open(writer.path, "a") as file:
        file.write('{"kind": "train", "st')  # a crash cut it short
    again = MetricWriter(tmp_path, (), 2)
    assert steps(tmp_path) == [1, 2, 2]
    assert again.skips == [[1, 2]] and again.evaluated == set()


def test_what_the_disk_does_not_take_waits_in_memory(tmp_path):
    said: list[str] = []
    folder = tmp_path / "run"
    folder.mkdir()
    writer = MetricWriter(folder, (), 0, said.append)
    writer.write("train", 1, {"loss": 1.0})
    folder.rename(tmp_path / "gone")
    for step in (2, 3, 4):
        writer.write("train", step, {"loss": 1.0})
    assert len(said) == 1 and "cannot be written" in said[0]
    (tmp_path / "gone").rename(folder)
    # A return to step 2 drops what waits, too.
    writer.rewind(2)
    writer.write("train", 3, {"loss": 2.0})
    assert steps(folder) == [1, 2, 3]
    assert read_metrics(writer.path)[-1]["loss"] == 2.0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.timeout(60)
def test_a_dead_tensorboard_thread_stops_nobody(tmp_path, monkeypatch):
    from tensorboardX import event_file_writer

    said: list[str] = []
    writer = MetricWriter(tmp_path, ("tensorboard",), 0, said.append)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(event_file_writer.EventsWriter, "write_event", full)
    for step in range(1, 60):
        writer.write("train", step, {f"a{i}": 1.0 for i in range(8)})
        if said:
            break
        writer._outlets[0]._thread.join(0.2)
    assert "tensorboard gets no more records" in said[0]
    writer.write("train", 60, {"loss": 1.0})
    writer.close()
    assert json.loads(writer.path.read_text().splitlines()[-1])["step"] == 60


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"step": "1"}', '{"step": 1, "name": "\\ud800"}']
)
def test_a_file_of_the_run_that_is_damaged_is_named(tmp_path, content):
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(PlmjaxError, match=r"scores\.json is .*Restore it"):
        Workdir(tmp_path).read("scores.json", step=int)


def test_what_was_not_measured_is_no_figure(tmp_path):
    assert means({"loss": (6.0, 3.0)}) == {"loss": 2.0}
    assert math.isnan(means({"loss": (0.0, 0.0)})["loss"])
    writer = MetricWriter(tmp_path, (), 0)
    writer.write("train", 1, {"loss": math.nan, "tokens": 2})
    (record,) = read_metrics(writer.path)
    assert record == {"kind": "train", "step": 1, "loss": None, "tokens": 2}
    # NaN is no JSON: other readers would refuse the line.
    json.loads(writer.path.read_text(), parse_constant=pytest.fail)


def meter(log_every_steps: int) -> Any:
    """Returns a meter of masked language modelling that writes into a list."""
    objective = MLM(MLMConfig(), EncoderConfig(), Pieces(4, (0,), (1,)))
    records: list[dict] = []
    run: Any = SimpleNamespace(
        config=TrainConfig(
            log_every_steps=log_every_steps, on_bad_step="rollback", spike_sigmas=6.0
        ),
        training=SimpleNamespace(objective=objective),
        progress=Progress(),
        waiting=deque(),
        writer=SimpleNamespace(
            records=records, write=lambda kind, step, values: records.append(values)
        ),
        display=TrainingDisplay(9, 0),
    )
    return _Meter(run)


def arrive(meter: Any, step: int, loss: float, tokens: int) -> None:
    """Lets a step arrive in which `tokens` were predicted."""
    sums = {
        "loss": (loss * tokens, tokens),
        "accuracy": (0.5 * tokens, tokens),
        "nats_per_byte": (loss * tokens, 3 * tokens),
        "objective": (loss, 1.0),
        "learning_rate": (0.1, 1.0),
        "bad_steps": (0.0, 1.0),
        "tokens": (8.0, 1.0),
    }
    meter.run.waiting.append((step, 1.0, sums))
    assert meter.read(keep=0) is None


def test_a_step_without_predictions_lowers_no_mean_and_is_no_calm(capsys):
    one = meter(log_every_steps=3)
    for step, (loss, tokens) in enumerate([(2.0, 4), (0.0, 0), (5.0, 2)], 1):
        arrive(one, step, loss, tokens)
    (record,) = one.run.writer.records
    assert (record["loss"], record["objective"]) == (3.0, 3.5)  # by token, by step
    assert record["accuracy"] == 0.5 and record["tokens"] == 24
    assert one.run.progress.losses == [2.0, 5.0]


def test_a_window_without_predictions_has_no_figure(capsys):
    one = meter(log_every_steps=1)
    one.run.display.total = 1  # the last step is shown at once
    arrive(one, 1, 0.0, 0)
    (record,) = one.run.writer.records
    for name in ("loss", "accuracy", "perplexity", "bits_per_byte", "objective"):
        assert math.isnan(record[name]), name
    assert record["learning_rate"] == 0.1
    shown = capsys.readouterr().out
    assert "step 1/1  lr 1.0e-01" in shown and "nan" not in shown
