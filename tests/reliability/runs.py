"""Small runs that are cut short on purpose: what they are, where they stand, what they
must end as. Shared by the programs of this folder.
"""

import dataclasses
import random
import re
import sys
from pathlib import Path

# The programs are run by hand, too, without pytest's paths.
sys.path.extend(str(Path(__file__).parents[1] / name) for name in ("", "train", ".."))

import processes_common
from test_resume import flat_state, records
from tests_common import TINY, WORDS

METRICS = "metrics.jsonl"
OBJECTIVES = {
    "mlm": (),
    # Original BERT's two tasks, whose rows are drawn anew each epoch.
    "nsp": ("--config.objective.pairs=nsp",),
    "electra": (
        "--config.objective.kind=electra",
        "--config.model.preset=electra-tiny",
        "--config.objective.generator.width_fraction=0.5",
    ),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A run, by its arguments; how it is spread over processes; where it lives.

    Records fall on every step, checkpoints and evaluations on steps of their own.
    """

    folder: Path
    objective: str
    steps: int
    checkpoint_every: int = 7
    evaluate_every: int = 25
    processes: int = 1
    devices: int = 1
    # Overrides that come last.
    more: tuple[str, ...] = ()

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus.txt"

    @property
    def arguments(self) -> tuple[str, ...]:
        return (
            *TINY,
            # A start is mostly compiling, which takes as long again for each layer.
            "--config.model.layers=1",
            "--config.data.source.document=blank",
            f"--config.data.source.paths={self.corpus}",
            f"--config.train.steps={self.steps}",
            f"--config.train.checkpoint_every_steps={self.checkpoint_every}",
            f"--config.train.evaluate_every_steps={self.evaluate_every}",
            *OBJECTIVES[self.objective],
            *self.more,
        )

    def write_corpus(self, paragraphs: int = 1500) -> None:
        """Writes paragraphs of four sentences, enough that tokenising takes a while.

        The sentences of a paragraph share their words, which sentence pairs are about.
        """
        chance, text = random.Random(0), []
        for _ in range(paragraphs):
            topic = chance.sample(WORDS, 12)
            drawn = [" ".join(chance.choices(topic, k=12)) for _ in range(4)]
            text.append(" ".join(f"{line.capitalize()}." for line in drawn))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.corpus.write_text("\n\n".join(text) + "\n")

    def start(self, *command: str, processes: int = 1):
        """Returns a context manager of `python *command` (processes_common.Group)."""
        return processes_common.start(
            processes,
            self.devices,
            *command,
            # Shared by all, so that a start takes seconds; a kill may well fall into
            # a write to it.
            JAX_COMPILATION_CACHE_DIR=str(self.folder / "xla"),
            # A second exec would only make the start longer.
            PLMJAX_HUGE_PAGES="0",
        )

    def pretrain(self, workdir: Path, program: tuple[str, ...] = ("-m", "plmjax")):
        """Returns what `start` does, of the run, on all its processes."""
        arguments = ("pretrain", *self.arguments, f"--workdir={workdir}")
        return self.start(*program, *arguments, processes=self.processes)

    def export(self, workdir: Path, to: Path):
        command = ("-m", "plmjax", "export", f"--workdir={workdir}", f"--to={to}")
        return self.start(*command)


# --- where a run stands, read from the disk while it runs


def last_step(workdir: Path, kind: str = "train") -> int:
    """Returns the last step with a whole record of the kind, 0 without one."""
    found = re.findall(rf'"kind": "{kind}", "step": (\d+),.*\n', read(workdir, METRICS))
    return int(found[-1]) if found else 0


def read(workdir: Path, name: str) -> str:
    """Returns a file's text, empty where there is none."""
    try:
        return (workdir / name).read_text()
    except FileNotFoundError:
        return ""


def checkpoints(workdir: Path) -> dict[int, bool]:
    """Returns {step: whether it is complete} of the checkpoints on the disk."""
    return {
        int(path.name.removeprefix("step_")): (path / "DIGESTS.json").is_file()
        for path in (workdir / "checkpoints").glob("step_*")
        if path.name.removeprefix("step_").isdecimal()
    }


def newest_checkpoint(workdir: Path) -> int:
    """Returns the newest complete step, 0 without one."""
    return max((s for s, whole in checkpoints(workdir).items() if whole), default=0)


# --- what a run must end as


def rows_read(case: Case, workdir: Path) -> list[list[int]]:
    """Returns the rows of each step, as the run's own store and config give them."""
    from plmjax.data.loader import Loader, Phase
    from plmjax.workdir import Workdir, row_plan

    run = Workdir(workdir)
    config, store, tokenizer = run.config(), run.store(), run.tokenizer()
    split = store.split("train")
    plan = row_plan(config, split, config.data.length, store)
    phase = Phase(case.steps, config.train.batch, plan)
    loader = Loader(split, [phase], tokenizer, config.train.seed)
    return [loader.batch(step)["row"].tolist() for step in range(case.steps)]


def ledger(workdir: Path) -> dict[int, dict]:
    """Returns what was recorded of each step that counted in the end.

    Loss, gradient norm and tokens of every step, which differ in their last digits if
    one row of one batch is another (chaos.py tries that, too).

    Raises:
      AssertionError: a step is missing, out of its turn, or there twice.
    """
    found = [r for r in records(workdir) if r["kind"] == "train"]
    steps = [r["step"] for r in found]
    assert steps == list(range(1, len(steps) + 1)), f"steps recorded: {steps}"
    return {r["step"]: r for r in found}


def first_difference(reference: Path, workdir: Path) -> int | None:
    """Returns the first step whose record differs from the reference's, or None."""
    one, two = ledger(reference), ledger(workdir)
    differing = [s for s in one.keys() | two.keys() if one.get(s) != two.get(s)]
    return min(differing, default=None)


# Times, hosts and compiled programs may differ; checkpoints are compared by leaves,
# because orbax lays the same arrays out differently each time.
_MAY_DIFFER = re.compile(
    r"\.lock|environment\.json|metrics\.jsonl|checkpoints/.*|plots/.*|tensorboard/.*"
    r"|\.xla/.*|starts\.json|examples\.json"
)


def differences(reference: Path, workdir: Path) -> list[str]:
    """Returns in what two finished runs differ, bit for bit; empty if in nothing.

    Parameters and optimizer, every step's record, the token store, the exported
    folder, and what should no longer be there.
    """
    found = []
    one, two = flat_state(reference), flat_state(workdir)
    found += [f"only one state has {name}" for name in one.keys() ^ two.keys()]
    for name in one.keys() & two.keys():
        if one[name].tobytes() != two[name].tobytes():
            found.append(f"state: {name}")
    if step := first_difference(reference, workdir):
        found.append(f"records from step {step} on")
    elif records(reference) != records(workdir):
        found.append("records of evaluations")
    ours, theirs = _files(reference), _files(workdir)
    found += [f"only one has {name}" for name in sorted(ours ^ theirs)]
    for name in sorted(ours & theirs):
        if (reference / name).read_bytes() != (workdir / name).read_bytes():
            found.append(f"file: {name}")
    unfinished = [s for s, whole in checkpoints(workdir).items() if not whole]
    found += [f"an unfinished checkpoint of step {step}" for step in unfinished]
    return found


def _files(workdir: Path) -> set[str]:
    names = (
        p.relative_to(workdir).as_posix() for p in workdir.rglob("*") if p.is_file()
    )
    return {name for name in names if not _MAY_DIFFER.fullmatch(name)}
