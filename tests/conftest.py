"""Test process: eight virtual CPU devices, no network, no accelerator."""

import os

# Before jax is imported. With fewer threads than this, collectives between eight
# virtual devices wait for each other for ever on few cores.
os.environ["NPROC"] = "32"
os.environ["JAX_PLATFORMS"] = os.environ.get("PLMJAX_TEST_PLATFORM", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PLMJAX_HUGE_PAGES"] = "0"

import atexit
import contextlib
import shutil
import tempfile
from pathlib import Path

# What one test or command line compiled, the next one in this session need not.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="plmjax-xla-")
    atexit.register(
        shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True
    )

import jax
import pytest
from tests_common import sentences


@pytest.fixture(autouse=True)
def optimised(request):
    """Compiles in a third of the time what this process compiles, less well.

    A test or module marked `optimised` has what users have; so have command lines that
    run in processes of their own.
    """
    quick = request.node.get_closest_marker("optimised") is None
    jax.config.update("jax_disable_most_optimizations", quick)


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
