"""metrics.jsonl: what a crash leaves is dropped, what somebody broke is named."""

import json

import pytest

from plmjax import Exit, PlmjaxError
from plmjax.train.metrics import MetricWriter, read_metrics

GOOD = {"kind": "train", "step": 1, "loss": 2.5, "tokens": 8, "seconds": 0.5}


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_last_line_cut_short_is_left_out(tmp_path):
    path = write(tmp_path / "metrics.jsonl", json.dumps(GOOD), '{"kind": "tr')
    assert read_metrics(path) == [GOOD]
    # As some file systems do: the length was on the disk before the content.
    path.write_bytes(path.read_bytes().rstrip() + bytes(100))
    assert read_metrics(path) == [GOOD]
    writer = MetricWriter(tmp_path, tensorboard=False, step=1)
    writer.write("train", 2, {"loss": 2.0})
    assert [record["step"] for record in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "5",
        "[" * 100_000,
        "\ufffd",
        json.dumps(GOOD | {"step": "one"}),
        json.dumps(GOOD | {"loss": None}),
        json.dumps({"step": 1}),
    ],
    ids=lambda line: line[:20],
)
def test_a_broken_line_is_named(tmp_path, line):
    path = write(tmp_path / "metrics.jsonl", json.dumps(GOOD), line, json.dumps(GOOD))
    with pytest.raises(PlmjaxError, match="metrics.jsonl:2 is no record") as caught:
        read_metrics(path)
    assert caught.value.code == Exit.DATA and "remove that line" in caught.value.hint


def test_other_kinds_of_records_hold_what_they_like(tmp_path):
    record = {"kind": "rollback", "step": 5, "skipped": [1, 2], "why": "a spike"}
    path = write(tmp_path / "metrics.jsonl", json.dumps(record), json.dumps(GOOD))
    assert read_metrics(path) == [record, GOOD]
