"""Test process: eight virtual CPU devices, no network, no accelerator."""

import os
import sys

# Before jax is imported. With fewer threads than this, collectives between eight
# virtual devices wait for each other for ever on few cores.
os.environ["NPROC"] = "32"
os.environ["JAX_PLATFORMS"] = os.environ.get("PLMJAX_TEST_PLATFORM", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PLMJAX_HUGE_PAGES"] = "0"
# Compiles in a quarter of the time, here and in the processes that a test starts. Tests
# marked `optimised` have LLVM's optimisations, children with tests_common.USERS all.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import atexit
import contextlib
import gc
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

# What one test or command line compiled, the next one in this session need not.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="plmjax-xla-")
    atexit.register(
        shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True
    )
# Tiny programs, too: a command line compiles dozens of them. What another process has
# just begun to write is compiled here, without a warning of it.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["PYTHONWARNINGS"] = "ignore:Error reading persistent compilation cache"

import jax
import jaxlib
import pytest
from tests_common import one_device, sentences

known = jaxlib.version.__version_info__ < (0, 13)  # A flag that is not known aborts.
if known and "PLMJAX_TEST_PLATFORM" not in os.environ:
    # Programs are tiny: to divide one for 32 threads of LLVM costs more than it saves.
    quick = "--xla_cpu_use_fusion_emitters=false "
    quick += "--xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick}".strip()
# Looking for cycles among what JAX keeps costs a twentieth of the time.
gc.set_threshold(100_000, 50, 50)


def pytest_collection_finish(session):
    """Refuses to import torch and transformers where no test of the run is `peer`."""
    if not any(item.get_closest_marker("peer") for item in session.items):
        os.environ["USE_TORCH"] = "0"  # `datasets` imports torch wherever it is.
        sys.addaudithook(refuse_peers)


def refuse_peers(event: str, arguments: tuple) -> None:
    if event == "import" and arguments[0] in ("torch", "transformers"):
        name = arguments[0]
        raise ModuleNotFoundError(f"{name} is there for `-m peer` alone.", name=name)


@pytest.fixture(autouse=True)
def optimised(request, monkeypatch):
    """Compiles as for users where the test or its module is marked `optimised`."""
    quick = request.node.get_closest_marker("optimised") is None
    jax.config.update("jax_disable_most_optimizations", quick)
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", str(int(quick)))


@pytest.fixture(autouse=True)
def handlers():
    """Sets the handlers of signals back that a command line has replaced."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    old = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.fixture
def on_one_device():
    with one_device():
        yield


@pytest.fixture(scope="module")
def module_on_one_device():
    with one_device():
        yield


@pytest.fixture
def strict():
    """Refuses silent dtype and rank promotion around models/ and objectives/ alone."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.numpy_dtype_promotion("strict"))
        stack.enter_context(jax.numpy_rank_promotion("raise"))
        yield


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A text file of 400 short documents, one a line."""
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(sentences(400)) + "\n")
    return path


@pytest.fixture
def s3(monkeypatch, tmp_path):
    """The URL of a bucket in moto's S3, which runs on this machine alone."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    with open(tmp_path / "moto.txt", "wb") as file:
        command = [sys.executable, "-m", "moto.server"]
        command += ["-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                bucket = f"http://127.0.0.1:{port}/bucket"
                urllib.request.urlopen(urllib.request.Request(bucket, method="PUT"))
                break
            except OSError:
                assert time.monotonic() < end, (tmp_path / "moto.txt").read_text()
                time.sleep(0.1)
        yield "s3://bucket/runs/mine"
    finally:
        process.kill()
        process.wait()
