"""What several tests share: a made-up corpus, a tiny config, the command line."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

WORDS = """the model learns a word from its context and every row of the matrix holds
one vector for each token in the list while the function returns an array of values that
were computed over all axes when the user gives no other shape or type""".split()


def sentences(count: int, seed: int = 0) -> list[str]:
    """Returns made-up sentences whose words follow each other with some regularity."""
    state, lines = seed + 1, []
    for _ in range(count):
        words, at = [], 0
        for _ in range(12):
            state = (state * 1103515245 + 12345) % 2**31
            # Three followers a word, so that context helps.
            at = (at * 3 + 1 + state // 65536 % 3) % len(WORDS)
            words.append(WORDS[at])
        lines.append(" ".join(words) + ".")
    return lines


TINY = (
    "--config.data.source.kind=text",
    "--config.data.source.document=line",
    "--config.data.length=32",
    "--config.data.held_out_percent=10",
    "--config.tokenizer.vocab_size=120",
    "--config.model.width=32",
    "--config.model.heads=2",
    "--config.model.ffn_width=64",
    "--config.model.dropout=0.1",
    "--config.train.batch=8",
    "--config.train.steps=10",
    "--config.train.log_every_steps=1",
    "--config.train.evaluate_every_steps=5",
    "--config.train.checkpoint_every_steps=5",
    "--config.train.tensorboard=False",
)


def batch_of(tokens: Any, **others: Any) -> dict[str, np.ndarray]:
    """Returns a batch of tokens [rows, ..., L], each row one document; `others` too."""
    tokens = np.asarray(tokens, np.int32)
    index = np.arange(tokens.shape[-1], dtype=np.int32)
    return {
        "tokens": tokens,
        "segments": np.ones_like(tokens),
        "positions": np.broadcast_to(index, tokens.shape).copy(),
        "types": np.zeros_like(tokens),
        "word_start": np.ones(tokens.shape, bool),
        "row": np.arange(len(tokens), dtype=np.int32),
        "copy": np.zeros(len(tokens), np.int32),
    } | others


# The environment of a child whose programs are compiled as users have them.
USERS = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}


def environment(**more: str) -> dict[str, str]:
    """Returns a child's environment: one device, unless asked for more."""
    return os.environ | {"JAX_NUM_CPU_DEVICES": "1", "TERM": "dumb"} | more


def run_cli(*arguments: str, timeout: float = 240, **more: str):
    """Runs `python -m plmjax` with the arguments; returns the finished process."""
    return run_python("-m", "plmjax", *arguments, timeout=timeout, **more)


def run_python(*arguments: str, timeout: float = 240, **more: str):
    """Runs `python` with the arguments; returns the finished process."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(**more),
    )


def campaign(cases, *kept) -> list:
    """Returns cases of a test; all but the `kept` ones are for .ci/nightly alone."""
    unknown = [case for case in kept if case not in cases]
    assert not unknown, unknown

    def rare(case):
        values = case if isinstance(case, tuple) else (case,)
        return pytest.param(*values, marks=pytest.mark.campaign)

    return [case if case in kept else rare(case) for case in cases]


@contextlib.contextmanager
def one_device() -> Iterator[None]:
    """Programs for one device compile sooner than those for eight."""
    from plmjax.train import sharding

    make, first = sharding.make_mesh, jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            sharding, "make_mesh", lambda config, _=None: make(config, first)
        )
        yield


def once(factory: pytest.TempPathFactory, name: str, make: Callable) -> Path:
    """Returns a folder that `make(folder)` filled, once for all workers of pytest."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, done = root / name, root / f"{name}.done"
    with open(root / f"{name}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
