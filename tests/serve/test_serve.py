"""`plmjax serve`: its answers are those of the other verbs, each to its own request."""

import asyncio
import concurrent.futures
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from finetune_common import one_device, records, write
from serve_common import HEADS, TASKS, make, texts
from starlette.testclient import TestClient
from tests_common import campaign, environment, once

from plmjax.cli import main
from plmjax.embed.run import EmbedConfig, embed_texts, open_encoder
from plmjax.evaluate.fill import fill
from plmjax.evaluate.judge import detect
from plmjax.evaluate.model import open_model
from plmjax.finetune.predict import predict
from plmjax.serve import run as serve_run
from plmjax.serve.answers import Asked, Endpoint
from plmjax.serve.app import Server
from plmjax.serve.run import open_server
from plmjax.serve.worker import Limits

ROOT = Path(__file__).parents[2]
CONTAINER = ROOT / "launch" / "container"
# The packages of the container.
PACKAGES = re.findall(r"^(\w+)>=", (CONTAINER / "requirements.txt").read_text(), re.M)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Makes the two folders of a kind of model: for transformers, and ONNX."""

    def made(kind):
        to = once(tmp_path_factory, f"served-{kind}", lambda to: make(kind, to))
        return to / "hub", to / "onnx"

    return made


@contextlib.contextmanager
def client_of(folder, **limits):
    server = open_server(folder, Limits(**limits))
    with TestClient(server.app) as client:
        yield server, client


def inputs_of(kind):
    """Inputs of a kind, of one row and of several."""
    several = [*texts(6, seed=1, most=8), *texts(3, seed=2, most=40)]
    if kind == "fill-gpt2":
        return [{"text": " ".join(text.split()[:7])} for text in several]
    kind = kind.partition("-")[0]
    if kind == "fill":
        words = [text.split()[:7] for text in several]
        return [{"text": " ".join(["[MASK]", *some, "[MASK]"])} for some in words]
    if kind == "detect":
        return [{"text": " ".join(text.split()[:9])} for text in several]
    if kind == "tags":
        return [{"tokens": text.split()} for text in several]
    if kind == "answers":
        return [{"question": text.split()[0], "context": text} for text in several]
    if kind == "choices":
        found = records("choices", 9)
        return [{key: one[key] for key in ("text", "choices")} for one in found]
    if kind == "multilabel":
        return [{"text": text, "pair": text[::-1]} for text in several]
    return [{"text": text} for text in several]


def wanted(kind, hub, inputs, tmp_path):
    """What the verbs that use JAX answer."""
    kind = kind.partition("-")[0]
    if kind == "fill":
        model = open_model(str(hub))
        found = [fill(model, one["text"]) for one in inputs]
        masks = [[[g._asdict() for g in mask] for mask in one] for one in found]
        return [{**x, "masks": y} for x, y in zip(inputs, masks, strict=True)]
    if kind == "detect":
        model = open_model(str(hub), head="detector")
        return [
            {**one, "pieces": [s._asdict() for s in detect(model, one["text"])]}
            for one in inputs
        ]
    if kind in ("embeddings", "encoder"):
        model, longest = open_encoder(str(hub))
        given = [one["text"] for one in inputs]
        found = embed_texts(model, given, EmbedConfig(), longest)
        return [{"vector": vector.tolist()} for vector in found]
    names = {"text": "a"} if kind == "classes" else {"pair": "b"}
    lines = [{names.get(key, key): x for key, x in one.items()} for one in inputs]
    found: list[dict] = []
    predict([str(hub)], str(write(tmp_path / "in.jsonl", lines)), found.append, batch=4)
    return [{key: x for key, x in one.items() if key != "id"} for one in found]


def assert_equal(found, right):
    """Compares nested answers; numbers as far as padding lets them be equal."""
    if isinstance(right, dict):
        assert found.keys() == right.keys()
        for key in right:
            assert_equal(found[key], right[key])
    elif isinstance(right, list | tuple):
        assert len(found) == len(right)
        for one, other in zip(found, right, strict=True):
            assert_equal(one, other)
    else:
        close = isinstance(right, float)
        assert found == (pytest.approx(right, abs=3e-6, rel=1e-5) if close else right)


def assert_same_form(found, shown):
    """Compares types, keys, and lists as far as they are shown."""
    assert type(found) is type(shown)
    if isinstance(shown, dict):
        assert found.keys() == shown.keys()
        for key in shown:
            assert_same_form(found[key], shown[key])
    elif isinstance(shown, list):
        assert len(found) >= len(shown)
        for one, other in zip(found, shown, strict=False):
            assert_same_form(one, other)


EXAMPLE = re.compile(r"^curl -s \S+/(\w+) -d '(.+)'\n```\n+```json\n(.+)$", re.M)
_PATHS = {"tag": "tags", "answer": "answers", "embed": "embeddings"}
_PATHS["classify"] = "classes"
# {kind: body and answer of its example in docs/serve.md}.
SHOWN = {
    _PATHS.get(path, path): (body, json.loads(answer))
    for path, body, answer in EXAMPLE.findall((ROOT / "docs/serve.md").read_text())
}
assert len(SHOWN) == 6


@pytest.mark.parametrize(
    "kind",
    campaign(
        [*TASKS, *HEADS, "fill-bigbird", "classes-bigbird", "fill-gpt2"],
        *("tags", "answers", "embeddings", "fill-bigbird"),
    ),
)
def test_answers_are_those_of_the_other_verbs(kind, folders, tmp_path):
    hub, onnx = folders(kind)
    inputs = inputs_of(kind)
    with one_device():
        right = wanted(kind, hub, inputs, tmp_path)
    with client_of(onnx) as (server, client):
        answer = client.post(server.path, json={"inputs": inputs}).json()
        alone = client.post(server.path, json=inputs[-1]).json()
        if kind in SHOWN:
            body, shown = SHOWN[kind]
            assert_same_form(client.post(server.path, content=body).json(), shown)
    assert_equal(answer.pop("answers"), right)
    # What was cut is said; windows cut nothing.
    assert (answer.pop("cut_tokens", 0) > 0) == (kind in ("regression", "multilabel"))
    answer.pop("lost_words", None)
    assert not answer
    alone.pop("cut_tokens", None)
    assert_equal(alone, right[-1])


def test_each_request_gets_its_own_answer(folders):
    """A shuffled load, of which each answer is compared with that of the text alone."""
    server = open_server(folders("tags")[1], Limits(batch=16, wait_ms=2, timeout=60))
    server.worker.start()
    several = [text.split() for text in texts(120, seed=3)]
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(120), 2)).tolist()

    async def load():
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://a"
        ) as client:
            bodies = [{"tokens": tokens} for tokens in several]
            right = [(await client.post("/tag", json=body)).json() for body in bodies]
            calls = [client.post("/tag", json=bodies[i]) for i in order]
            return right, await asyncio.gather(*calls), await client.get("/metrics")

    right, found, metrics = asyncio.run(load())
    server.worker.close()
    assert [one["tokens"] for one in right] == several
    for number, response in zip(order, found, strict=True):
        assert_equal(response.json(), right[number])
    figures = dict(re.findall(r"^(\S+) (\S+)$", metrics.text, re.M))
    assert float(figures['plmjax_requests_total{endpoint="tag",status="200"}']) == 360
    # 120 alone; the 240 that came at once shared batches.
    batches = float(figures["plmjax_batch_requests_count"])
    assert 120 + 240 / 16 <= batches < 120 + 240 / 4
    assert float(figures['plmjax_seconds_count{endpoint="tag"}']) == 360


BAD = [
    (b"", 400, "the body is empty"),
    (b'{"tokens": ["a"', 400, "is not JSON"),
    (b"\xff\xfe", 400, "is not JSON"),
    (b"[" * 50_000, 400, "is not JSON"),
    (b"9" * 5000, 400, "is not JSON"),
    (b"3", 422, "the input: there is an int where an object was expected"),
    (b'["a"]', 422, 'example {"inputs": [{"tokens": ["The", "words", "."]}]}.'),
    (b"{}", 422, "the input: it has no 'tokens'. Send for example {"),
    (b'{"input": ["a"]}', 422, "unknown key 'input'. Did you mean inputs?"),
    (b'{"tokens": []}', 422, "there are no tokens. Send for example {"),
    (b'{"tokens": "a b"}', 422, "the key 'tokens' is a str, not a list. Send for"),
    (b'{"inputs": ["a", {"tokens": [1]}]}', 422, "inputs[1]: the key 'tokens' is an"),
    (b'{"tokens": ["\\ud800"]}', 422, "the input"),
    (b'{"token": ["a"]}', 422, "unknown key 'token'. Did you mean tokens?"),
    (b'{"text": "  "}', 422, "there are no tokens"),
    (b'{"text": {"a": 1}}', 422, "unknown key 'text'"),
    (b'{"inputs": []}', 422, "must be a list that is not empty"),
    (b'{"inputs": [{"tokens": ["a"]}, 7]}', 422, "inputs[1]: there is an int"),
    (b'{"inputs": ["a"], "top": 3}', 422, "the only key"),
    (json.dumps({"inputs": ["a"] * 5}).encode(), 413, "5 inputs; at most 4"),
    (json.dumps({"text": "a" * 2001}).encode(), 413, "2,001 characters; at most 2,000"),
    (b'{"text": "' + b"a" * 70_000 + b'"}', 413, "has 70,012 bytes; at most 65,536"),
]


def test_what_is_wrong_is_said_in_a_sentence(folders):
    limits = {"inputs": 4, "characters": 2000, "max_bytes": 1 << 16}
    with client_of(folders("tags")[1], **limits) as (_, client):
        for body, status, words in BAD:
            answer = client.post("/tag", content=body)
            assert answer.status_code == status, (body[:50], answer.text)
            assert words in answer.json()["error"], body[:50]
        assert client.post("/tag", json={"text": "a b"}).status_code == 200
        for call, path, status in (
            (client.post, "/fill", 404),
            (client.get, "/tag", 405),
            (client.get, "/../../etc/passwd", 404),
            (client.post, "/health", 405),
        ):
            answer = call(path)
            assert answer.status_code == status, path
            assert "This model (tags) answers POST /tag" in answer.json()["error"]
        assert client.get("/health").json()["ready"] is True
        assert client.get("/").json()["POST /tag"] == {"tokens": ["The", "words", "."]}
        figures = client.get("/metrics").text
        assert 'plmjax_requests_total{endpoint="tag",status="400"} 5.0' in figures


class Waiting(Endpoint):
    """A model that is as slow as a test wants it, and fails at some texts."""

    path = "wait"

    def __init__(self):
        self.go, self.began, self.sizes = threading.Event(), threading.Event(), []

    def ask(self, inputs):
        return Asked({"tokens": np.zeros((len(inputs), 1))}, inputs, {})

    def score(self, several):
        self.began.set()
        assert self.go.wait(30)
        self.sizes.append(len(several))
        given = [text for asked in several for text in asked.state]
        if "bug" in given:
            raise RuntimeError("secret")
        return given

    def answers(self, asked, scores):
        return [{"text": text} for text in scores]


def test_the_queue_and_the_time_have_limits(capsys):
    model = Waiting()
    server = Server("a", "wait", model, Limits(queue=2, batch=1, timeout=1.0))
    with (
        TestClient(server.app) as client,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):

        def ask(text):
            return pool.submit(client.post, "/wait", json={"text": text})

        first = ask("first")
        assert model.began.wait(30)  # the model has it, so that others wait
        waiting = [ask("second"), ask("third")]
        while server.worker.waiting < 2:
            time.sleep(0.01)
        refused = ask("fourth").result()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "2 requests wait" in refused.json()["error"]
        for one in (first, *waiting):
            late = one.result()
            assert late.status_code == 504
            assert "no answer within 1 seconds" in late.json()["error"]
        model.go.set()
        assert ask("fifth").result().json() == {"text": "fifth"}
        # Nobody waits for those whose time was over: they are not computed.
        assert model.sizes == [1, 1]
        bug = ask("bug").result()
        assert bug.status_code == 500 and "secret" not in bug.text
        assert "secret" in capsys.readouterr().err
        assert ask("sixth").result().json() == {"text": "sixth"}
    assert not server.worker.ready


CHILD = f"""
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in {{"plmjax", *{PACKAGES}, *sys.stdlib_module_names}}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Refuse())
from plmjax.cli import main

sys.exit(main(sys.argv[1:]))
"""


@contextlib.contextmanager
def process(folder, *options):
    """A server with the container's packages alone; yields it and its address."""
    command = [sys.executable, "-c", CHILD, "serve", f"--model={folder}", "--port=0"]
    child = subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(PLMJAX_HUGE_PAGES="0"),
    )
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        found = re.search(r"http://([\d.]+):(\d+)/(\w+)", line)
        assert found, line + child.communicate()[1]
        yield child, (found[1], int(found[2]))
    finally:
        child.kill()
        child.communicate()


def sent(address, *parts):
    """Opens a connection and sends parts."""
    connection = socket.create_connection(address, timeout=30)
    for part in parts:
        connection.sendall(part)
    return connection


def received(connection):
    with connection:
        return b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()


HEAD = (
    b"POST /tag HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
)


def test_a_process_of_the_container_answers_and_ends_in_peace(folders):
    folder = folders("tags")[1]
    before = sorted(folder.rglob("*"))
    with process(folder, "--timeout=1", "--threads=1") as (child, address):
        body = json.dumps({"text": "the rows"}).encode()
        answer = received(sent(address, HEAD % len(body), body))
        assert answer.startswith("HTTP/1.1 200") and '"tokens":["the","rows"]' in answer
        # Clients that are too slow: with nothing, with a head, with a body.
        slow = [
            sent(address),
            sent(address, b"POST /tag HT"),
            sent(address, HEAD % len(body), body[:3]),
        ]
        for connection in slow:
            answer = received(connection)
            assert answer.startswith("HTTP/1.1 408"), answer
            assert "arrive within 1 seconds" in answer
        answer = received(sent(address, b"\x16\x03\x01 hello\r\n\r\n"))
        assert answer.startswith("HTTP/1.1 400") and '{"error":' in answer
        # What is in flight is finished; new requests are refused.
        open_request = sent(address, HEAD % len(body), body[:3])
        health = sent(address, b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b""
        while b"}" not in answer:
            answer += health.recv(1 << 16)
        assert b'"ready":true' in answer
        child.send_signal(signal.SIGTERM)
        assert received(health) == ""  # an idle connection is closed
        with pytest.raises(ConnectionError):
            sent(address).close()
        open_request.sendall(body[3:])
        assert received(open_request).startswith("HTTP/1.1 200")
        assert child.wait(30) == 0
        assert "SIGTERM ended it, after 2 answers." in child.communicate()[0]
    assert sorted(folder.rglob("*")) == before


MAKES = "plmjax compress --format=onnx"


def test_what_is_no_model_or_port_is_said(folders, tmp_path, capsys):
    hub, onnx = folders("tags")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for given, code, words in (
            (
                [f"--model={onnx}", f"--port={port}"],
                2,
                f"port {port} of 127.0.0.1 is in use.",
            ),
            ([f"--model={onnx}", "--port=70000"], 2, "--port=70000"),
            ([f"--model={hub}", "--port=0"], 4, MAKES),
            ([f"--model={tmp_path}"], 4, MAKES),
            ([f"--model={tmp_path}/no"], 2, f"no is not a folder. `{MAKES}"),
            ([f"--model={onnx}", "--file=int8.onnx"], 4, "There is model.onnx."),
            ([f"--model={onnx}", "--timeout=0"], 2, "--timeout"),
            ([f"--model={onnx}", "--batch=0"], 2, "--batch"),
        ):
            assert main(["serve", "--port=0", *given]) == code, given
            assert words in capsys.readouterr().err


@pytest.mark.parametrize("when", ["load", "import", "start"])
def test_a_signal_before_the_first_request_ends_in_peace(
    when, folders, monkeypatch, capsys
):

    def interrupted(*given, **more):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        except KeyboardInterrupt:
            if when == "import":  # as compiled code does
                raise ModuleNotFoundError("numpy", name="numpy") from None
            raise
        assert given[0].should_exit  # it would begin, and end at once

    owner = uvicorn.Server if when == "start" else serve_run
    name = "run" if when == "start" else "Session"
    monkeypatch.setattr(owner, name, interrupted)
    assert main(["serve", f"--model={folders('tags')[1]}", "--port=0"]) == 0
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert ("SIGTERM ended it, after 0" in out) == (when == "start")
    assert ("Ended before it answered." in err) == (when != "start")
