"""A side of a comparison in a process of its own, told what to do through pipes.

Two runtimes in one process would share threads and memory; a side that waits sleeps.
"""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a side trains: the case in `folder` (peer.py makes it), and how."""

    folder: str
    dtype: str
    batch: int
    length: int
    # Of the learning-rate schedule.
    steps: int
    seed: int = 0
    # How the peer makes rows, and whether it compiles its model.
    padding: str = "group_texts"
    compile: bool = False
    device: str = "cpu"


class Worker:
    """A process that serves the methods of `module`.Side(spec); use it with `with`."""

    def __init__(self, module: str, spec: Spec):
        self.name = module.rpartition(".")[2]
        self.log = Path(spec.folder) / f"{self.name}-{id(self)}.log"
        command = [sys.executable, "-m", __name__, module]
        # Weights and tokenizer are on the disk; nothing is fetched.
        own = {"HF_HUB_OFFLINE": "1", "JAX_NUM_CPU_DEVICES": "1"}
        own["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[spec.device]
        if spec.device == "gpu":
            # JAX would take three quarters of the memory, and the peers are there, too.
            own["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        with open(self.log, "w") as log:
            self._process = subprocess.Popen(
                [*command, json.dumps(dataclasses.asdict(spec))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | own,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.communicate()

    def call(self, method: str, *arguments) -> Any:
        """Returns what the side's method returns, as JSON has it.

        Raises:
          RuntimeError: the process died; its last words are in the message.
        """
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps([method, *arguments]) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            last = self.log.read_text(errors="replace").splitlines()[-20:]
            raise RuntimeError(f"the {self.name} worker died:\n" + "\n".join(last))
        return json.loads(answer)


def _serve(module: str, spec: str) -> None:
    # Libraries print; the pipe is for answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    side = importlib.import_module(module).Side(Spec(**json.loads(spec)))
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        print(json.dumps(getattr(side, method)(*arguments)), file=answers, flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
