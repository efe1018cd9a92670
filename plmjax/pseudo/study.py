"""Semi-supervised fine-tuning: a model labels texts, a new one learns from both.

A chain is a round 0 on the labelled data alone, and rounds whose pseudo-labels are
predictions of the previous round's model. Each fold, or seed, has separate chains, so
that no label comes from a model that saw the fold's held-out part.

DIR/pseudo.json  the config and plan    DIR/results.json, results.csv, plots/
DIR[/fold-0]/round-0/                   a fine-tuning; round-0.json has its scores
DIR[/fold-0]/rate-0.5/round-1.jsonl     the pseudo-labels that round-1/ learned from;
                                        round-1-drawn.json has their numbers
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plmjax import PlmjaxError
from plmjax import config as config_lib
from plmjax.data.examples import Example
from plmjax.files import write_json
from plmjax.finetune.added import NOTHING, Added
from plmjax.finetune.build import split_of
from plmjax.finetune.config import FinetuneConfig
from plmjax.finetune.predict import Predictor, read_input
from plmjax.finetune.pseudo import (
    Pool,
    PseudoConfig,
    check_kind,
    choose,
    make_pool,
    read_added,
    write_records,
)
from plmjax.finetune.run import finetune
from plmjax.pseudo.results import Round, conclude
from plmjax.tasks.base import Prediction
from plmjax.tasks.config import TaskConfig
from plmjax.tasks.labelled import load_labelled
from plmjax.workdir import Workdir

Log = Callable[[str], Any]
_CHUNK = 4096  # examples that are held in memory as rows at a time


@dataclasses.dataclass(frozen=True)
class Plan(config_lib.Block, prefix="--"):
    """The experiments: chains of `rounds` at each rate, for each fold or seed.

    `rates` are shares of the pseudo-labels that reach the threshold.
    """

    unlabelled: str  # files and globs, separated by commas
    settings: PseudoConfig = dataclasses.field(default_factory=PseudoConfig)
    rates: tuple[float, ...] = (1.0,)
    rounds: int = config_lib.number(1, at_least=1)
    folds: int | None = config_lib.number(None, at_least=2)
    seeds: int = config_lib.number(1, at_least=1)

    def __post_init__(self):
        super().__post_init__()
        for rate in self.rates:
            if not 0 <= rate <= 1:
                raise PlmjaxError(f"the rate {rate} is no share; give 0 to 1.")
        if self.folds is not None and self.seeds > 1:
            raise PlmjaxError(
                f"--folds={self.folds} and --seeds={self.seeds} are two ways to see "
                "what is chance.",
                hint="Give one of them.",
            )


class _Stopped(Exception):
    """Raised when a signal ended a fine-tuning; `result` is finetune's."""

    def __init__(self, result: dict):
        self.result = result


def pseudo(config: FinetuneConfig, plan: Plan, path: Path, log: Log) -> dict:
    """Runs all chains in `path`, or resumes those begun there; one process.

    Returns the content of results.json, or finetune's result after a signal.

    Raises:
      PlmjaxError: an error that the user can fix.
    """
    check_kind(config.task.kind)
    if plan.folds is not None and config.folds.count is not None:
        raise PlmjaxError(
            "--folds runs every fold, and --config.folds.count one of them.",
            hint="Give one of them.",
        )
    unlabelled = _read_unlabelled(config.task, plan.unlabelled)
    data = load_labelled(config.task)
    workdir = Workdir(path, FinetuneConfig)
    workdir.create()
    with workdir.locked():
        labelled = (*data.train, *data.held_out, *data.test)
        _agree(path, config, plan, {"unlabelled": unlabelled, "labelled": labelled})
        found = []
        try:
            for name, own in _variants(config, plan):
                found += _Chain(own, plan, path, name, log).run(unlabelled)
        except _Stopped as stop:
            return stop.result
        return conclude(path, found, plan.folds, log)


def _read_unlabelled(config: TaskConfig, source: str) -> tuple[Example, ...]:
    if config.columns.group is not None and source.endswith((".txt", ".txt.gz")):
        raise PlmjaxError(
            f"{source} is plain text, which says no groups, but task.columns.group="
            f"{config.columns.group} keeps groups on one side.",
            hint=f"Give .jsonl or .csv with {config.columns.group!r}.",
        )
    return read_input(config, source, option="--unlabelled")


def _agree(
    path: Path, config: FinetuneConfig, plan: Plan, data: dict[str, Sequence[Example]]
) -> None:
    """Writes pseudo.json; refuses to mix two studies in one directory."""
    asked = {"config": config_lib.to_dict(config), "plan": dataclasses.asdict(plan)}
    for name, examples in data.items():
        digest = hashlib.blake2b(digest_size=16)
        for example in examples:
            digest.update(repr((example.texts, example.label)).encode())
        asked["plan"][f"{name} texts"] = digest.hexdigest()
    asked = json.loads(json.dumps(asked))
    note = path / "pseudo.json"
    begun = any(path.rglob("round-0.json"))
    if begun and note.exists():
        before = json.loads(note.read_text())
        # Keys that did not exist when the note was written get their defaults.
        filled = config_lib.build(FinetuneConfig, before["config"])
        before["config"] = json.loads(json.dumps(config_lib.to_dict(filled)))
        changed = config_lib.changes(before, asked)
        # Changing these only adds rounds; finished rounds stay as they are.
        free = ("plan.rates", "plan.rounds", "plan.seeds", "plan.unlabelled")
        refused = {k: v for k, v in changed.items() if k not in free}
        if refused:
            lines = [f"  {k}: {a!r} -> {b!r}" for k, (a, b) in refused.items()]
            raise PlmjaxError(
                f"{path} holds another study:\n" + "\n".join(lines),
                hint="\nChoose another --workdir, or go on as it was begun.",
            )
    write_json(note, asked)


def _variants(config: FinetuneConfig, plan: Plan) -> list[tuple[str, FinetuneConfig]]:
    """Returns (directory name, config) of each fold or seed; "" if only one."""
    found = []
    for number in range(plan.folds or plan.seeds):
        if plan.folds is not None:
            folds = dataclasses.replace(config.folds, count=plan.folds, fold=number)
            own = dataclasses.replace(config, folds=folds)
        else:
            train = dataclasses.replace(config.train, seed=config.train.seed + number)
            own = dataclasses.replace(config, train=train)
        name = "fold" if plan.folds is not None else "seed"
        alone = plan.folds is None and plan.seeds == 1
        found.append(("" if alone else f"{name}-{number}", own))
    return found


class _Chain:
    """The rounds of one fold or seed, at each rate; all share round 0."""

    def __init__(
        self, config: FinetuneConfig, plan: Plan, root: Path, name: str, log: Log
    ):
        self.config, self.plan, self.name, self.log = config, plan, name, log
        self.root, self.place = root, root / name
        self.data = split_of(self.config, load_labelled(self.config.task))

    def run(self, unlabelled: Sequence[Example]) -> list[Round]:
        """Runs or resumes all rounds; returns them in order."""
        grouped = self.config.task.columns.group is not None
        pool = make_pool(unlabelled, self.data, grouped)
        self._introduce(pool, len(unlabelled))
        self.place.mkdir(exist_ok=True)
        begin = self.place / "round-0"
        first = self._fine_tuned(begin, NOTHING, self.log)
        found = [Round(self.name, 0.0, 0, **first)]
        # Later rounds skip the baselines: their scores would be those of round 0.
        self.config = dataclasses.replace(self.config, baselines=False)
        # The first round of every rate uses these predictions.
        said = functools.cache(lambda: self._ask(begin, pool))
        for rate in self.plan.rates:
            here, teacher = self.place / f"rate-{rate:g}", begin
            here.mkdir(exist_ok=True)
            for number in range(1, self.plan.rounds + 1):
                workdir = here / f"round-{number}"
                note = Path(f"{workdir}-drawn.json")
                if not note.exists():
                    own = said() if teacher == begin else self._ask(teacher, pool)
                    write_json(note, self._label(pool, own, rate, workdir, number))
                counts = json.loads(note.read_text())
                self.log(
                    f"{workdir.relative_to(self.root)}: {counts['kept']:,} texts reach "
                    f"the threshold, {counts['drawn']:,} of them are drawn."
                )
                teacher, result = begin, first
                # Without pseudo-labels, training would repeat round 0 bit for bit.
                if counts["drawn"]:
                    teacher, result = workdir, self._learned(workdir)
                found.append(Round(self.name, rate, number, **result, **counts))
        return found

    def _introduce(self, pool: Pool, unlabelled: int) -> None:
        parts = [f"{count:,} {why}" for why, count in pool.left_out.items() if count]
        out = f", but for what stands elsewhere ({', '.join(parts)})" if parts else ""
        self.log(
            f"{self.name or 'Data'}: {len(self.data.train):,} labelled examples; "
            f"{len(pool.examples):,} of {unlabelled:,} unlabelled ones are in "
            f"play{out}."
        )

    def _ask(self, teacher: Path, pool: Pool) -> list[Prediction]:
        if not pool.examples:
            return []
        asked, said = Predictor([str(teacher)], batch=self.config.train.batch), []
        for begin in range(0, len(pool.examples), _CHUNK):
            said += asked.predict(pool.examples[begin : begin + _CHUNK])
        return said

    def _label(
        self,
        pool: Pool,
        said: list[Prediction],
        rate: float,
        workdir: Path,
        number: int,
    ) -> dict[str, Any]:
        """Writes the pseudo-labels of a round; returns their numbers."""
        seed = self.config.seed("data")
        found = choose(self.plan.settings, self.data, pool, said, rate=rate, seed=seed)
        records = [record | {"round": number} for record in found.records]
        write_records(_labels(workdir), records)
        return {
            "pool": len(pool.examples),
            "left_out": pool.left_out,
            "kept": found.kept,
            "drawn": len(records),
        }

    def _learned(self, workdir: Path) -> dict[str, Any]:
        added = read_added(_labels(workdir), self.data, self.plan.settings)
        workdir.mkdir(exist_ok=True)
        # The log of round 0 goes to the screen, the logs of later rounds to a file.
        with open(workdir / "log.txt", "a", encoding="utf-8") as file:
            return self._fine_tuned(
                workdir, added, lambda line: file.write(f"{line}\n")
            )

    def _fine_tuned(self, workdir: Path, added: Added, log: Log) -> dict[str, Any]:
        """Fine-tunes, unless that is done already; returns the scores."""
        note = Path(f"{workdir}.json")
        if not note.exists():
            result = finetune(self.config, workdir, log, added)
            if "stopped" in result:
                raise _Stopped(result)
            write_json(note, result)
        return json.loads(note.read_text())


def _labels(workdir: Path) -> Path:
    return Path(f"{workdir}.jsonl")
