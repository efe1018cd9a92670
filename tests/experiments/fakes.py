"""Trials that take no time: they write what a run writes, one evaluation a poll."""

import json
from collections.abc import Callable
from pathlib import Path

from plmjax import Exit

BASE = """
def get_config():
    return {
        "model": {"preset": "bert-tiny"},
        "train": {"steps": 80, "batch": 8, "evaluate_every_steps": 10},
    }
"""
RATE, SEED = "train.optimizer.learning_rate", "train.seed"
GRID = (
    BASE
    + f"""
def get_hyper(hyper):
    return hyper.product([
        hyper.sweep("config.{RATE}", [1e-4, 1e-3, 1e-2]), hyper.seeds(2)
    ])
"""
)
SEARCH = (
    BASE
    + f'''
def get_space(space):
    return {{
        "{RATE}": space.log(1e-5, 1e-1),
        "train.batch": space.choice([8, 16]),
        "{SEED}": space.integers(0, 9),
    }}

def get_study():
    return STUDY
'''
)


def no_page(root: Path, *_) -> None:
    """In place of page.write, which imports plotly and draws."""
    (root / "report.html").touch()


def sweep_file(directory: Path, text: str) -> str:
    path = directory / "sweep_file.py"
    path.write_text(text)
    return str(path)


class Fakes:
    """A start function whose processes live inside this one.

    `loss(values, step)` is what an evaluation gives; a number as `fails[trial]` is the
    exit code with which a trial ends after its first evaluation.
    """

    def __init__(self, loss: Callable[[dict, int], float], steps: int = 80):
        self.loss, self.steps = loss, steps
        self.fails: dict[int, int] = {}
        self.started: list[int] = []
        self.commands: list[list[str]] = []
        self.running: set[int] = set()
        self.most_at_once = 0
        # Called at each poll: what comes from outside, like a signal.
        self.at_poll: Callable[[], None] = lambda: None

    def __call__(self, arguments, log, slot, environment):
        self.commands.append(list(arguments))
        (workdir,) = (a for a in arguments if a.startswith("--workdir="))
        process = FakeProcess(self, Path(workdir.removeprefix("--workdir=")), log)
        self.started.append(process.number)
        assert process.number not in self.running, "a trial runs twice at once"
        self.running.add(process.number)
        self.most_at_once = max(self.most_at_once, len(self.running))
        return process


class FakeProcess:
    def __init__(self, fakes: Fakes, directory: Path, log: Path):
        self.fakes, self.directory, self.log = fakes, directory, log
        self.number = int(directory.name)
        self.told = json.loads((directory / "trial.json").read_text())
        (directory / "config.json").write_text(json.dumps(self.told["config"]))
        self.records = directory / "metrics.jsonl"
        self.step = 0
        if self.records.exists():
            self.step = json.loads(self.records.read_text().splitlines()[-1])["step"]
        self.code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            self.fakes.at_poll()
            self._advance()
        return self.code

    def _advance(self) -> None:
        self.step += 10
        loss = self.fakes.loss(self.told["values"], self.step)
        figures = {"loss": loss, "accuracy": 1 / loss}
        record = {"kind": "evaluation", "step": self.step, "seconds": 1.5} | figures
        with open(self.records, "a") as file:
            file.write(json.dumps({"kind": "train", "step": self.step}) + "\n")
            file.write(json.dumps(record) + "\n")
        if (code := self.fakes.fails.get(self.number)) is not None:
            self.log.write_text("Reading.\n\nerror: there is no text.\n")
            self._end(code)
        elif self.step >= self.fakes.steps:
            scores = json.dumps(figures | {"step": self.step})
            (self.directory / "scores.json").write_text(scores)
            self._end(0)

    def _end(self, code: int) -> None:
        if self.code is None:
            self.code = code
            self.fakes.running.discard(self.number)

    def terminate(self) -> None:
        self._end(Exit.RESUMABLE)

    def kill(self) -> None:
        self._end(-9)
