"""Checks that processes on this machine connect, add a number, and disconnect."""

import os
import subprocess
import sys
import tempfile
import time

from plmjax.children import free_port
from plmjax.doctor.check import Check, last_line, ok, problem

# This limit ends before that of doctor's process, so that the result is reported.
SECONDS = 60.0


def checks(processes: str) -> list[Check]:
    """Starts the given number of processes on the CPU; each has one device."""
    count, begin = int(processes), time.monotonic()
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "PLMJAX_NUM_PROCESSES": str(count),
    }
    # It names devices of the real run, which these processes do not have.
    environment.pop("JAX_LOCAL_DEVICE_IDS", None)
    with tempfile.TemporaryFile("w+") as log:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", __name__],
                env=environment | {"PLMJAX_PROCESS_ID": str(index)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            for index in range(count)
        ]
        try:
            codes = [_wait(p, begin + SECONDS) for p in started]
        finally:
            for process in started:
                process.kill()
                process.wait()
        log.seek(0)
        last = last_line(log.read())
    if codes == [0] * count:
        seconds = time.monotonic() - begin
        seen = f"{count} connected, summed and ended in {seconds:.1f} s"
        return [ok("processes", seen)]
    if None in codes:
        fix = "Unset *_proxy variables; let processes connect to 127.0.0.1."
        seen = f"{codes.count(None)} of {count} still waited after {SECONDS:.0f} s"
        return [problem("processes", seen, fix)]
    fix = "Runs of several processes will fail here; read the message."
    return [problem("processes", f"exit codes {codes}: {last}", fix)]


def _wait(process: subprocess.Popen, until: float) -> int | None:
    try:
        return process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None


def _member() -> None:
    """Runs one of the processes; a wrong sum gives exit code 1."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    from plmjax import processes

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    processes.initialise()
    numbers = np.float32(1 + jax.process_index())
    total = float(np.sum(multihost_utils.process_allgather(numbers)))
    count = jax.process_count()
    jax.distributed.shutdown()
    if total != count * (count + 1) / 2:
        raise SystemExit(f"the sum over {count} processes is {total}")


if __name__ == "__main__":
    _member()
