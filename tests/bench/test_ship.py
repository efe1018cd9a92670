"""The four commands of docs/ship.md, as they stand there, on a tiny fine-tuning."""

import json
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from finetune_common import make_folder, one_device, records, run, write
from tests_common import environment, run_cli, sentences

from plmjax.children import free_port

PAGE = Path(__file__).parents[2] / "docs" / "ship.md"


@pytest.mark.slow
def test_from_a_run_to_a_server(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, count in (("train", 64), ("held_out", 16)):
        write(tmp_path / f"{name}.jsonl", records("classes", count))
    folder = make_folder(tmp_path / "hub")
    with one_device():
        run(tmp_path / "runs" / "roles", folder, tmp_path)
    write(tmp_path / "papers.jsonl", [{"text": text} for text in sentences(8)])
    block = re.search(r"^```\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert block is not None
    compress, bench, serve, ask = map(shlex.split, block[1].splitlines())
    for command in (compress, bench):
        assert command[0] == "plmjax"
        quick = ["--seconds=0.2"] if command is bench else []
        done = run_cli(*command[1:], *quick, "--json")
        assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {row["backend"] for row in result["results"]} == {"onnx", "int8"}
    assert {row["batch"] for row in result["results"]} == {1, 32}
    for row in result["estimates"]:
        assert row["price"] == pytest.approx(0.2 * row["hours"]) and row["hours"] > 0
    assert {path.name for path in Path("small/onnx").iterdir()} == {
        "model.onnx",
        "model_quantized.onnx",
    }
    assert ask[0] == "curl" and ask[-1].startswith("http://127.0.0.1:8000/")
    port = free_port()
    url, text = ask[-1].replace("8000", str(port)), ask[ask.index("-d") + 1]
    command = [sys.executable, "-m", *serve, f"--port={port}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment()
    ) as server:
        try:
            assert server.stdout and url in server.stdout.readline()
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(url, text.encode(), timeout=60) as answer:
                found = json.load(answer)
        finally:
            server.terminate()
    assert found["label"] in ("with", "without")
    assert sum(found["probabilities"].values()) == pytest.approx(1, abs=1e-5)
