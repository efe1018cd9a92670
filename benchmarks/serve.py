"""Loads `plmjax serve` with sentences: the rate, bad requests, a stop and a kill.

    python benchmarks/serve.py --input=sentences.txt --requests=10000
    python benchmarks/serve.py --input=sentences.txt --model=served --threads=1

Without --model it is one of MiniLM-L6's shape and random weights, whose vocabulary is
from the sentences, as what is measured depends on neither. First each sentence is sent
alone, then all of them at once from several connections, among 100 bad requests. Each
answer is compared with that of its sentence alone: none may be lost or go to another
request. Then, under the same load, SIGTERM ends a server and SIGKILL another. Server
and clients share the processors.
"""

import argparse
import asyncio
import collections
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from embed import SHAPE
from plmjax import PlmjaxError
from plmjax.cli import run_program
from plmjax.cli.options import at_least_one, json_option, print_result
from plmjax.cli.parser import program_parser

PATIENCE = 10  # seconds: --timeout of the server
_HEAD = "{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"


def make_parser() -> argparse.ArgumentParser:
    parser = program_parser(
        _run,
        "load `plmjax serve` with sentences, bad requests, a stop and a kill",
        "python benchmarks/serve.py --input=sentences.txt --requests=10000",
    )
    add = parser.add_argument
    add("--input", required=True, metavar="FILE", help="a sentence a line")
    add("--model", metavar="FOLDER", help="a folder that answers /embed")
    add("--requests", type=int, default=10_000, help="default: 10000")
    add("--clients", type=int, default=32, help="connections (default: 32)")
    add("--threads", type=int, default=2, help="of the model (default: 2)")
    add("--file", default="model.onnx", help="in FOLDER/onnx (default: model.onnx)")
    json_option(parser)
    return parser


def _run(args) -> int:
    at_least_one(args, "requests", "clients", "threads")
    lines = Path(args.input).read_text(encoding="utf-8").splitlines()
    sentences = list(dict.fromkeys(line for line in lines if line.strip()))[:1000]
    if len(sentences) < 2:
        raise PlmjaxError(f"--input={args.input} has fewer than two sentences.")
    with tempfile.TemporaryDirectory() as place:
        folder = args.model or make_model(Path(place), sentences)
        options = [f"--model={folder}", f"--file={args.file}"]
        options += [f"--threads={args.threads}"]
        load = Load(Path(folder), options, sentences, args.clients)
        result = load.run(args.requests, Path(place))
    return print_result(args, result, as_text)


def make_model(place: Path, sentences: list[str]) -> Path:
    """Returns an ONNX folder of a sentence model of MiniLM-L6's shape."""
    import jax

    from plmjax.evaluate.model import some_shapes
    from plmjax.interop.huggingface import export_folder
    from plmjax.models import EncoderConfig
    from plmjax.models.heads import init_model
    from plmjax.onnx.export import export
    from plmjax.tasks.task import Task
    from plmjax.tokenizers import TokenizerConfig, train_tokenizer

    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=8192), sentences)
    shape: Any = SHAPE
    config = EncoderConfig(vocab_size=tokenizer.vocab_size, **shape)
    batch: Any = {
        name: np.zeros(x.shape, np.int32) for name, x in some_shapes().items()
    }
    params = init_model(config, jax.random.key(0), batch, ())
    more: dict[str, Any] = {"length": 256, "task": Task("embeddings")}
    export_folder(
        place / "hub", config, jax.device_get(params), tokenizer, "Random.", **more
    )
    return export(place / "hub", place / "served", log=lambda line: None)


class Connection:
    """One connection; `ask` sends a request and returns status and body."""

    def __init__(self, port: int):
        self.port = port
        self.reader: asyncio.StreamReader | None = None

    async def ask(
        self, body: bytes, path: str = "/embed", method: str = "POST"
    ) -> tuple[int, bytes]:
        if self.reader is None:
            streams = await asyncio.open_connection("127.0.0.1", self.port)
            self.reader, self.writer = streams
        head = _HEAD.format(method=method, path=path, size=len(body))
        self.writer.write(head.encode() + body)
        await self.writer.drain()
        return await self.answer()

    async def answer(self) -> tuple[int, bytes]:
        assert self.reader is not None
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        size = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        body = await self.reader.readexactly(size)
        if "connection: close" in head:
            self.close()
        return int(head.split()[1]), body

    def close(self) -> None:
        if self.reader is not None:
            self.reader = None
            self.writer.close()


async def send_slowly(port: int, begin: bytes) -> tuple[int, bytes]:
    """Sends a beginning and then a byte now and then; returns the answer."""
    connection = Connection(port)
    connection.reader, connection.writer = await asyncio.open_connection(
        "127.0.0.1", port
    )
    connection.writer.write(begin)

    async def drip() -> None:
        while True:
            await asyncio.sleep(PATIENCE / 4)
            connection.writer.write(b"x")

    dripping = asyncio.create_task(drip())
    try:
        return await connection.answer()
    finally:
        dripping.cancel()
        connection.close()


def bad_requests(port: int) -> dict[str, tuple[int, Callable[[], Awaitable]]]:
    """Returns {what: (the status it must get, what sends it)}."""

    def ask(body: bytes, *where: str):
        return lambda: Connection(port).ask(body, *where)

    begin = _HEAD.format(method="POST", path="/embed", size=1000).encode()
    many = json.dumps({"inputs": ["a"] * 1000}).encode()
    long = json.dumps({"text": "a " * 100_000}).encode()
    return {
        "empty": (400, ask(b"")),
        "broken JSON": (400, ask(b'{"text": "a')),
        "wrong type": (422, ask(b'{"text": 7}')),
        "unknown key": (422, ask(b'{"texts": "a"}')),
        "huge": (413, ask(b" " * (8 << 20))),
        "too many": (413, ask(many)),
        "too long": (413, ask(long)),
        "another path": (404, ask(b"{}", "/../secret")),
        "slow body": (408, lambda: send_slowly(port, begin)),
        "slow head": (408, lambda: send_slowly(port, begin[:30])),
    }


class Load:
    """The servers of a folder, and the requests that they get."""

    def __init__(
        self, folder: Path, options: list[str], sentences: list[str], clients: int
    ):
        self.folder, self.options, self.clients = folder, options, clients
        self.bodies = [json.dumps({"text": text}).encode() for text in sentences]
        self.alone: np.ndarray | None = None

    def start(self, more: dict[str, str]) -> tuple[subprocess.Popen, int]:
        """Returns a server and its port."""
        more_options = ["--port=0", f"--timeout={PATIENCE}", "--queue=100000"]
        child = subprocess.Popen(
            [sys.executable, "-m", "plmjax", "serve", *self.options, *more_options],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | more,
            start_new_session=True,
        )
        assert child.stdout is not None
        line = child.stdout.readline()
        if "http://" not in line:
            raise PlmjaxError(f"the server of {self.folder} did not start.")
        return child, int(line.rpartition(":")[2].partition("/")[0])

    def run(self, requests: int, place: Path) -> dict[str, Any]:
        """Returns all figures."""
        child, port = self.start({})
        try:
            result = asyncio.run(self.measure(port, requests, child.pid))
            result["resident_mb"] = _resident_mb(child.pid)
            return result | self.stop(child, port) | self.kill(place)
        finally:
            child.kill()
            child.wait()

    async def measure(self, port: int, requests: int, pid: int) -> dict[str, Any]:
        """Sends sentences alone, and then many at once with the bad requests."""
        connection, took, alone = Connection(port), [], []
        for body in self.bodies:
            begin = time.perf_counter()
            _, answer = await connection.ask(body)
            took.append(time.perf_counter() - begin)
            if "vector" not in (found := json.loads(answer)):
                raise PlmjaxError(
                    f"{self.folder} answers with {', '.join(found)}, not a vector.",
                    hint="Give a model of sentences: task.kind=embeddings.",
                )
            alone.append(found["vector"])
        connection.close()
        vectors = np.array(alone, np.float32)
        # Random weights give vectors that differ little from their mean.
        self.mean = vectors.mean(0)
        self.alone = _unit(vectors - self.mean)
        drawn = np.random.default_rng(0).integers(len(self.bodies), size=requests)
        order = collections.deque(drawn.tolist())
        load_average, used = os.getloadavg()[0], _processor_seconds(pid)
        began = time.perf_counter()
        good, bad = await asyncio.gather(self.send(port, order), self.misbehave(port))
        seconds = max(when for *_, when in good) - began
        used = _processor_seconds(pid) - used
        distances = [one for one in map(self.distance, good) if one is not None]
        latencies = sorted(one[2] for one in good)
        return {
            "alone_ms": 1000 * statistics.median(took),
            "requests": requests,
            "clients": self.clients,
            "load_average": load_average,
            "per_second": requests / seconds,
            "processor_ms": 1000 * used / requests,
            "median_ms": 1000 * latencies[len(latencies) // 2],
            "p95_ms": 1000 * latencies[int(0.95 * len(latencies))],
            "lost": requests - len(distances),
            "largest_distance": max(distances),
            "bad": bad,
        }

    async def send(self, port: int, left: collections.deque[int]) -> list[tuple]:
        """Returns (sentence, its answer or None, seconds, when) of each request."""
        done: list[tuple] = []

        async def client() -> None:
            connection = Connection(port)
            while left:
                number, answer = left.popleft(), None
                begin = time.perf_counter()
                try:
                    status, body = await connection.ask(self.bodies[number])
                    answer = body if status == 200 else None
                except (OSError, EOFError):
                    connection.close()
                now = time.perf_counter()
                done.append((number, answer, now - begin, now))
            connection.close()

        await asyncio.gather(*(client() for _ in range(self.clients)))
        return done

    async def misbehave(self, port: int) -> dict[str, int]:
        """Returns how many of ten bad requests of each kind are answered in words."""

        async def one(name: str, status: int, send) -> str | None:
            try:
                found, body = await send()
                good = found == status and len(json.loads(body)["error"]) > 20
            except (OSError, EOFError, ValueError, KeyError):
                good = False
            return name if good else None

        kinds = bad_requests(port)
        calls = [one(name, *kind) for name, kind in kinds.items() for _ in range(10)]
        counts = collections.Counter(await asyncio.gather(*calls))
        return {name: counts[name] for name in kinds}

    def distance(self, one: tuple) -> float | None:
        """Returns the distance to the answer alone; None for none, or another's."""
        number, answer, *_ = one
        if answer is None or self.alone is None:
            return None
        vector = np.array(json.loads(answer)["vector"], np.float32)
        vector = _unit(vector - self.mean)
        apart = np.linalg.norm(self.alone - vector, axis=1)
        return float(apart[number]) if apart.argmin() == number else None

    def stop(self, child: subprocess.Popen, port: int) -> dict[str, Any]:
        """Ends a server under load by SIGTERM."""
        good, seconds = self.end(child, port, signal.SIGTERM)
        wrong = [one for one in good if one[1] and self.distance(one) is None]
        return {
            "stopped_code": child.returncode,
            "stopped_seconds": seconds,
            "stopped_wrong": len(wrong),
        }

    def kill(self, place: Path) -> dict[str, Any]:
        """Kills a server under load, and looks what is left of it."""
        temporary = place / "temporary"
        temporary.mkdir()
        before = sorted(self.folder.rglob("*"))
        child, port = self.start({"TMPDIR": str(temporary)})
        self.end(child, port, signal.SIGKILL)
        left = [*temporary.iterdir()]
        left += set(self.folder.rglob("*")) - set(before)
        try:
            os.killpg(child.pid, 0)
            left.append(Path("a process"))
        except ProcessLookupError:
            pass
        with socket.create_server(("127.0.0.1", port)):
            left = [str(path) for path in left]
            return {"killed_code": child.returncode, "killed_left": left}

    def end(self, child: subprocess.Popen, port: int, number: int):
        """Returns the answers until a signal, and the seconds until the end."""
        left = collections.deque(n % len(self.bodies) for n in range(100_000))

        async def load():
            sending = asyncio.create_task(self.send(port, left))
            await asyncio.sleep(1)
            begin = time.perf_counter()
            child.send_signal(number)
            await asyncio.to_thread(child.wait, 60)
            seconds = time.perf_counter() - begin
            left.clear()
            return await sending, seconds

        return asyncio.run(load())


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _resident_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def as_text(result: dict) -> str:
    bad = ", ".join(f"{name} {count}" for name, count in result["bad"].items())
    return f"""\
alone         {result["alone_ms"]:.1f} ms (median)
together      {result["per_second"]:.0f} requests/s from {result["clients"]} clients, \
{result["median_ms"]:.0f} ms (median), {result["p95_ms"]:.0f} ms (95 %); \
{result["processor_ms"]:.1f} ms of a processor each
machine       {os.cpu_count()} processors, load {result["load_average"]:.1f} before; \
server {result["resident_mb"]:.0f} MB at most
lost          {result["lost"]} of {result["requests"]:,}; largest distance to the \
answer alone {result["largest_distance"]:.1g}
bad requests  answered in words, of 10 each: {bad}
SIGTERM       exit code {result["stopped_code"]} after \
{result["stopped_seconds"]:.1f} s, {result["stopped_wrong"]} wrong answers
SIGKILL       exit code {result["killed_code"]}; the port is free; left behind: \
{", ".join(result["killed_left"]) or "nothing"}"""


if __name__ == "__main__":
    sys.exit(run_program(make_parser(), __file__))
