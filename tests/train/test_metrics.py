"""Records of a run: whole, in order, and never a reason to stop."""

import json
import threading

import pytest

from plmjax import PlmjaxError
from plmjax.train.metrics import MetricWriter, read_metrics
from plmjax.workdir import Workdir


def steps(directory) -> list[int]:
    return [record["step"] for record in read_metrics(directory / "metrics.jsonl")]


def test_records_after_a_step_are_dropped(tmp_path):
    writer = MetricWriter(tmp_path, False, 0)
    for step in (1, 2, 3):
        writer.write("train", step, {"loss": 1.0})
    writer.write("evaluation", 3, {"loss": 1.0})
    writer.write("rollback", 2, {"skips": [[1, 2]], "reason": "a test"})
    with open(writer.path, "a") as file:
        file.write('{"kind": "train", "st')  # a crash cut it short
    again = MetricWriter(tmp_path, False, 2)
    assert steps(tmp_path) == [1, 2, 2]
    assert again.skips == [[1, 2]] and again.evaluated == set()


def test_what_the_disk_does_not_take_waits_in_memory(tmp_path):
    said: list[str] = []
    folder = tmp_path / "run"
    folder.mkdir()
    writer = MetricWriter(folder, False, 0, said.append)
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
    writer = MetricWriter(tmp_path, True, 0, said.append)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(event_file_writer.EventsWriter, "write_event", full)
    for step in range(1, 60):
        writer.write("train", step, {f"a{i}": 1.0 for i in range(8)})
        if said:
            break
        writer._board.file_writer.event_writer._worker.join(0.2)
    assert "TensorBoard's files cannot be written" in said[0]
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
