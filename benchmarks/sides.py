"""Configs of peer.py, and each side of the comparison in a separate process.

Two runtimes in one process would share threads and memory; a waiting side sleeps. It
receives its commands through pipes.
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
ATTENTIONS = ("eager", "sdpa", "flash_attention_2")
# The objectives, and the default preset of each.
DEFAULTS = {"mlm": "bert-mini", "electra": "electra-small", "distill": "bert-mini"}
# The family of models that transformers can train with an objective.
_FAMILIES = {"electra": "electra", "distill": "bert"}


@dataclasses.dataclass(frozen=True)
class PeerConfig:
    """The models and data to compare, and the length of the measurement."""

    # Files and globs; None: the docstrings of the installed packages.
    paths: str | None = None
    # A tokenizer to use; None: WordPiece of vocab_size pieces, from the text.
    vocab: str | None = None
    vocab_size: int | None = None
    # The objective: mlm, electra or distill.
    objective: str = "mlm"
    # The model, with electra the discriminator, with distill the teacher; see DEFAULTS.
    preset: str | None = None
    length: int = 128
    batch: int = 16
    dtypes: tuple[str, ...] = DTYPES
    paddings: tuple[str, ...] = PADDINGS[:1]
    # Measures torch.compile in addition to eager mode.
    compile: bool = False
    rounds: int = 5
    # Steps in one window of one side.
    steps: int = 10
    # Steps of each side before it is measured.
    warm_up: int = 5
    # Steps of the race to a held-out loss; 0: no race.
    to_loss: int = 0
    # Where both sides train: cpu or gpu.
    device: str = "cpu"
    # The peer's implementation of attention; None: what transformers chooses.
    attention: str | None = None

    def __post_init__(self):
        for name in ("rounds", "steps", "warm_up", "batch"):
            if getattr(self, name) < 1:
                raise PlmjaxError(f"--{name}={getattr(self, name)} must be at least 1.")
        if self.to_loss < 0:
            raise PlmjaxError(f"--to_loss={self.to_loss} must not be negative.")
        if self.to_loss and self.objective != "mlm":
            raise PlmjaxError(
                f"--to_loss cannot be combined with --objective={self.objective}: it "
                "races to a held-out loss of masked words.",
                hint="Leave it out.",
            )
        self._check_family()

    def _check_family(self) -> None:
        """Raises PlmjaxError for a preset that does not fit the objective or rows."""
        from plmjax.models import PRESETS

        family = _FAMILIES.get(self.objective)
        if self.name in PRESETS and self.length > PRESETS[self.name].max_length:
            raise PlmjaxError(
                f"--length={self.length} is longer than the "
                f"{PRESETS[self.name].max_length} positions of {self.name}."
            )
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
    """Training of a side: the case in `folder` (see case.py), and its options."""

    folder: str
    dtype: str
    batch: int
    length: int
    # Length of the learning-rate schedule.
    steps: int
    seed: int = 0
    # How the peer forms rows, and whether it compiles its model.
    padding: str = "group_texts"
    compile: bool = False
    device: str = "cpu"
    attention: str | None = None


class Worker:
    """A process that serves the methods of `name`.Side(spec); use it with `with`.

    A name such as embed:Plmjax has the class in place of Side.
    """

    def __init__(self, name: str, spec: Spec):
        self.name = name
        self.log = Path(spec.folder) / f"{name}-{id(self)}.log"
        command = [sys.executable, __file__, name]
        # Weights and tokenizer are on the disk, so nothing needs to be downloaded.
        variables = {"HF_HUB_OFFLINE": "1", "JAX_NUM_CPU_DEVICES": "1"}
        variables["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[spec.device]
        if spec.device == "gpu":
            # JAX would reserve three quarters of the memory, but the peers need some.
            variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        with open(self.log, "w") as log:
            self._process = subprocess.Popen(
                [*command, json.dumps(dataclasses.asdict(spec))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | variables,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.communicate()

    def call(self, method: str, *arguments) -> Any:
        """Returns the result of a method of the side, sent as JSON.

        Raises:
          RuntimeError: the process died; the message has the end of its log.
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
    # Libraries print to stdout, but the pipe is for answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    file, _, name = module.partition(":")
    made = getattr(importlib.import_module(file), name or "Side")
    side = made(Spec(**json.loads(spec)))
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        print(json.dumps(getattr(side, method)(*arguments)), file=answers, flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
