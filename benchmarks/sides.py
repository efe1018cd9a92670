"""What peer.py compares, and each side of it in a process of its own.

Two runtimes in one process would share threads and memory; a side that waits sleeps. It
is told what to do through pipes.
"""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from plmjax import PlmjaxError

PADDINGS = ("group_texts", "line_by_line")
DTYPES = ("float32", "bfloat16")
# The objectives, and the preset each is measured on unless told.
DEFAULTS = {"mlm": "bert-mini", "electra": "electra-small", "distill": "bert-mini"}
# Where transformers has the other side of a comparison.
_FAMILIES = {"electra": "electra", "distill": "bert"}


@dataclasses.dataclass(frozen=True)
class PeerConfig:
    """What is compared, and for how long."""

    # Files and globs; none: the docstrings of the installed packages.
    paths: str | None = None
    # A tokenizer to use; none: WordPiece of vocab_size pieces, from the text.
    vocab: str | None = None
    vocab_size: int | None = None
    # What is trained: mlm, electra or distill; a preset of DEFAULTS if none is named.
    objective: str = "mlm"
    # The model; of electra the discriminator, of distill the teacher.
    preset: str | None = None
    length: int = 128
    batch: int = 16
    dtypes: tuple[str, ...] = DTYPES
    paddings: tuple[str, ...] = PADDINGS[:1]
    # Measures torch.compile besides eager mode.
    compile: bool = False
    rounds: int = 5
    # Steps in one window of one side.
    steps: int = 10
    # Steps of the race to a held-out loss; 0: no race.
    to_loss: int = 0
    # Where both sides train: cpu or gpu.
    device: str = "cpu"

    def __post_init__(self):
        for name in ("rounds", "steps", "batch"):
            if getattr(self, name) < 1:
                raise PlmjaxError(f"--{name}={getattr(self, name)} must be at least 1.")
        if self.to_loss < 0:
            raise PlmjaxError(f"--to_loss={self.to_loss} must not be negative.")
        if self.to_loss and self.objective != "mlm":
            raise PlmjaxError(
                f"--to_loss does not go with --objective={self.objective}: it races to "
                "a held-out loss of masked words.",
                hint="Leave it out.",
            )
        self._check_family()

    def _check_family(self) -> None:
        """Raises PlmjaxError for a preset whose classes cannot do the objective."""
        from plmjax.models import PRESETS

        family = _FAMILIES.get(self.objective)
        known = [n for n, preset in PRESETS.items() if preset.family == family]
        if family is not None and self.name not in known:
            raise PlmjaxError(
                f"--objective={self.objective} compares {family} models, and "
                f"--preset={self.name} is none.",
                hint=f"Known: {', '.join(known)}.",
            )

    @property
    def name(self) -> str:
        return self.preset or DEFAULTS[self.objective]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a side trains: the case in `folder` (case.py makes it), and how."""

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
    """A process that serves the methods of `name`.Side(spec); use it with `with`."""

    def __init__(self, name: str, spec: Spec):
        self.name = name
        self.log = Path(spec.folder) / f"{name}-{id(self)}.log"
        command = [sys.executable, __file__, name]
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
