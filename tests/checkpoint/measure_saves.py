"""What a checkpoint costs: seconds that training waits, and megabytes a second.

    python tests/checkpoint/measure_saves.py DIRECTORY [--megabytes=1300] [--saves=3]

The state has the size of BERT-base with Adam's moments by default; a step multiplies
matrices and updates all of it, in place, as training does. DIRECTORY decides: use the
disk that the run will use.
"""

import argparse
import os
import shutil
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from plmjax.checkpoint import digests
from plmjax.checkpoint.checkpoints import Checkpoints

WIDTH = 768


@jax.jit(donate_argnums=0)
def step(state, x):
    def work(_, x):
        return jnp.tanh(x @ state["0"][: x.shape[1], : x.shape[1]])

    x = jax.lax.fori_loop(0, 64, work, x)
    return jax.tree.map(lambda leaf: leaf * 0.999, state), x.sum()


def measure(directory: str, megabytes: int, saves: int) -> None:
    rows = 4 * WIDTH
    count = max(1, round(megabytes * 1e6 / (4 * rows * WIDTH)))
    keys = jax.random.split(jax.random.key(0), count)
    make = jax.jit(lambda key: jax.random.normal(key, (rows, WIDTH)))
    state = {str(i): make(keys[i]) for i in range(count)}
    size = sum(leaf.nbytes for leaf in state.values()) / 1e6
    x = jnp.ones((256, WIDTH))
    checkpoints = Checkpoints(directory, 2)

    def steps(n: int) -> list[float]:
        nonlocal state
        seconds = []
        for _ in range(n):
            before = time.perf_counter()
            state, loss = step(state, x)
            jax.block_until_ready((state, loss))
            seconds.append(time.perf_counter() - before)
        return seconds

    steps(3)
    alone = statistics.median(steps(20))
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {size:,.0f} MB")
    print(f"a step without a save: {alone * 1e3:.0f} ms")
    for number in range(1, saves + 1):
        before = time.perf_counter()
        checkpoints.save(number, state, {})
        blocked = time.perf_counter() - before
        beside = []
        while (saving := checkpoints._saves.current) is not None and saving.running:
            beside += steps(1)
        whole = time.perf_counter() - before
        checkpoints.wait()
        assert checkpoints.failure is None
        lost = blocked + sum(beside) - len(beside) * alone
        slowed = statistics.median(beside) * 1e3 if beside else 0.0
        print(
            f"save {number}: training stands still {blocked:.2f} s; it counts after "
            f"{whole:.1f} s ({size / whole:,.0f} MB/s); {len(beside)} steps beside it "
            f"take {slowed:.0f} ms each; lost in all {lost:.2f} s"
        )
    storage, name = checkpoints._storage, checkpoints.path(saves).name
    files = digests.checkpoint_files(storage, name)
    for threads in (1, 2, 4):
        digests._THREADS = threads
        before = time.perf_counter()
        digests.compute(storage, name, files)
        speed = size / (time.perf_counter() - before)
        print(f"SHA-256 by {threads} threads: {speed:,.0f} MB/s")
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )
    before = time.perf_counter()
    found = jax.block_until_ready(checkpoints.load(saves, abstract))
    print(f"loaded at {size / (time.perf_counter() - before):,.0f} MB/s")
    assert np.isfinite(np.asarray(found["0"])).all()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory")
    parser.add_argument("--megabytes", type=int, default=1300)
    parser.add_argument("--saves", type=int, default=3)
    args = parser.parse_args()
    if os.path.exists(args.directory):
        raise SystemExit(f"{args.directory} is there already; give a new directory.")
    try:
        measure(args.directory, args.megabytes, args.saves)
    finally:
        shutil.rmtree(args.directory, ignore_errors=True)


if __name__ == "__main__":
    main()
