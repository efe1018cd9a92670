"""Trains on virtual CPU devices again and again: collectives must never hang.

    python tests/reliability/virtual.py --runs=200

With as many threads as cores they do (docs/reliability.md); plmjax asks for more. Each
run is a process that dispatches steps with a sum over all devices, as fast as it can.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import runs  # noqa: F401 (finds the tests' modules)
from tests_common import environment

LIMIT_SECONDS = 60.0
_WORKS_SECONDS = 0.2  # of the processor, in that time
DEVICES = (2, 4, 8)
_PROGRAM = """
import sys
from plmjax import cli
cli._prepare_process([], False)  # what every verb does before jax is there
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
count = int(sys.argv[1])
assert jax.local_device_count() == count
mesh = jax.make_mesh((count,), ("data",), (AxisType.Auto,))
def loss(w, x):
    return ((jax.numpy.tanh(x @ w) - x) ** 2).mean()
def step(w, x):
    return w - 0.1 * jax.lax.pmean(jax.grad(loss)(w, x), "data")
specs = (P(), P("data"))
step = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P()))
w = jax.device_put(np.eye(64, dtype=np.float32), NamedSharding(mesh, P()))
x = np.random.default_rng(0).normal(size=(8 * count, 64)).astype(np.float32)
x = jax.device_put(x, NamedSharding(mesh, P("data")))
for _ in range(200):
    w = step(w, x)  # Nothing waits for it: the worst case.
assert np.isfinite(np.asarray(w)).all()
"""


def hangs(devices: int, program: str = _PROGRAM, **variables: str) -> bool:
    """Says whether a run on so many virtual devices does not end in time.

    Raises:
      CalledProcessError: it failed in another way.
    """
    more = {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    found = environment(**more, PLMJAX_HUGE_PAGES="0")
    found.pop("NPROC", None)  # It is what plmjax has to set.
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(devices)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=found | variables,
    )
    used = 0.0
    try:
        while True:
            try:
                code = process.wait(LIMIT_SECONDS)
            except subprocess.TimeoutExpired:
                # On a busy machine it may only be slow; what hangs does no work, or
                # goes round and round.
                earlier, used = used, cpu_seconds(process.pid)
                if used - earlier < _WORKS_SECONDS or used > LIMIT_SECONDS:
                    return True
                continue
            if code:
                raise subprocess.CalledProcessError(code, process.args)
            return False
    finally:
        process.kill()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """Returns what a process has had of the processor."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    args = parser.parse_args()
    begin = time.monotonic()
    hung = {devices: 0 for devices in DEVICES}
    for number in range(args.runs):
        devices = DEVICES[number % len(DEVICES)]
        hung[devices] += hangs(devices)
    result = {
        "runs": args.runs,
        "hangs": hung,
        "seconds": round(time.monotonic() - begin),
    }
    print(json.dumps(result))
    return 1 if any(hung.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
