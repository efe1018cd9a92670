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
from plmjax.experiments.outcomes import scores_of
from plmjax.experiments.pseudo_labels import (
    Pool,
    PseudoConfig,
    check_kind,
    choose,
    make_pool,
    read_added,
    write_records,
)
from plmjax.experiments.pseudo_results import Round, conclude
from plmjax.experiments.runs import (
    as_json,
    check_directory,
    check_same_config,
    with_defaults,
)
from plmjax.files import write_json
from plmjax.finetune.added import NOTHING, Added
from plmjax.finetune.build import split_of
from plmjax.finetune.config import FinetuneConfig
from plmjax.finetune.predict import Predictor, read_input
from plmjax.finetune.run import finetune
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
        definition = _definition(config, plan)
        for name, texts in (("unlabelled", unlabelled), ("labelled", labelled)):
            definition["plan"][f"{name} texts"] = _digest(texts)
        _check_definition(workdir, definition)
        write_json(path / "pseudo.json", definition)
        rounds = []
        try:
            for name, variant in _variants(config, plan):
                rounds += _Chain(variant, plan, path, name, log).run(unlabelled)
        except _Stopped as stop:
            return stop.result
        return conclude(path, rounds, plan.folds, log)


def _read_unlabelled(config: TaskConfig, source: str) -> tuple[Example, ...]:
    if config.columns.group is not None and source.endswith((".txt", ".txt.gz")):
        raise PlmjaxError(
            f"{source} is plain text, which says no groups, but task.columns.group="
            f"{config.columns.group} keeps groups on one side.",
            hint=f"Give .jsonl or .csv with {config.columns.group!r}.",
        )
    return read_input(config, source, option="--unlabelled")


def _definition(config: FinetuneConfig, plan: Plan) -> dict[str, Any]:
    return as_json(
        {"config": config_lib.to_dict(config), "plan": dataclasses.asdict(plan)}
    )


def _digest(examples: Sequence[Example]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for example in examples:
        digest.update(repr((example.texts, example.label)).encode())
    return digest.hexdigest()


# Changing these only adds rounds; finished rounds stay as they are.
_MAY_CHANGE = ("plan.rates", "plan.rounds", "plan.seeds", "plan.unlabelled")


def _check_definition(workdir: Workdir, definition: dict[str, Any]) -> None:
    """Raises PlmjaxError if rounds of another config or plan were begun."""
    check_directory(workdir.path, "pseudo.json")
    before = workdir.read("pseudo.json", config=dict)
    if before is None or not any(workdir.path.rglob("round-0.json")):
        return
    config = with_defaults(FinetuneConfig, before["config"])
    check_same_config(
        workdir.path,
        before | {"config": config},
        definition,
        "holds other rounds of pseudo-labels",
        may_change=lambda key, old, new: (
            key in _MAY_CHANGE or key.startswith("config.card.")
        ),
        hint="Choose another --workdir, or give these keys the first value again.",
    )


def _variants(config: FinetuneConfig, plan: Plan) -> list[tuple[str, FinetuneConfig]]:
    """Returns (directory name, config) of each fold or seed; "" if only one."""
    variants = []
    for number in range(plan.folds or plan.seeds):
        if plan.folds is not None:
            folds = dataclasses.replace(config.folds, count=plan.folds, fold=number)
            name, variant = "fold", dataclasses.replace(config, folds=folds)
        else:
            train = dataclasses.replace(config.train, seed=config.train.seed + number)
            name, variant = "seed", dataclasses.replace(config, train=train)
        alone = plan.folds is None and plan.seeds == 1
        variants.append(("" if alone else f"{name}-{number}", variant))
    return variants


class _Chain:
    """The rounds of one fold or seed, at each rate; all share round 0."""

    def __init__(
        self, config: FinetuneConfig, plan: Plan, root: Path, name: str, log: Log
    ):
        self.config, self.plan, self.name, self.log = config, plan, name, log
        self.root, self.directory = root, root / name
        self.data = split_of(self.config, load_labelled(self.config.task))

    def run(self, unlabelled: Sequence[Example]) -> list[Round]:
        """Runs or resumes all rounds; returns them in order."""
        grouped = self.config.task.columns.group is not None
        pool = make_pool(unlabelled, self.data, grouped)
        self._log_pool(pool, len(unlabelled))
        self.directory.mkdir(exist_ok=True)
        base = self.directory / "round-0"
        first = self._train(base, NOTHING, self.log)
        rounds = [Round(self.name, 0.0, 0, **first)]
        # Later rounds skip the baselines: their scores would be those of round 0.
        self.config = dataclasses.replace(self.config, baselines=False)
        # The first round of every rate uses these predictions.
        by_base = functools.cache(lambda: self._predict(base, pool))
        for rate in self.plan.rates:
            folder, teacher = self.directory / f"rate-{rate:g}", base
            folder.mkdir(exist_ok=True)
            for number in range(1, self.plan.rounds + 1):
                workdir = folder / f"round-{number}"
                path = Path(f"{workdir}-drawn.json")
                if not path.exists():
                    again = teacher != base
                    predicted = self._predict(teacher, pool) if again else by_base()
                    records, counts = self._label(pool, predicted, rate)
                    labels = [record | {"round": number} for record in records]
                    write_records(_labels(workdir), labels)
                    write_json(path, counts)
                counts = json.loads(path.read_text())
                self.log(
                    f"{workdir.relative_to(self.root)}: {counts['kept']:,} texts reach "
                    f"the threshold, {counts['drawn']:,} of them are drawn."
                )
                teacher, result = base, first
                # Without pseudo-labels, training would repeat round 0 bit for bit.
                if counts["drawn"]:
                    teacher, result = workdir, self._train_on_labels(workdir)
                rounds.append(Round(self.name, rate, number, **result, **counts))
        return rounds

    def _log_pool(self, pool: Pool, unlabelled: int) -> None:
        counts = ", ".join(f"{n:,} {why}" for why, n in pool.left_out.items() if n)
        out = f"; left out, as they occur elsewhere: {counts}" if counts else ""
        self.log(
            f"{self.name or 'Data'}: {len(self.data.train):,} labelled examples; "
            f"{len(pool.examples):,} of {unlabelled:,} unlabelled ones "
            f"can get pseudo-labels{out}."
        )

    def _predict(self, teacher: Path, pool: Pool) -> list[Prediction]:
        if not pool.examples:
            return []
        predictor = Predictor([str(teacher)], batch=self.config.train.batch)
        predictions = []
        for begin in range(0, len(pool.examples), _CHUNK):
            predictions += predictor.predict(pool.examples[begin : begin + _CHUNK])
        return predictions

    def _label(
        self, pool: Pool, predictions: list[Prediction], rate: float
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Returns the pseudo-labels of a round, and their numbers."""
        chosen = choose(
            self.plan.settings,
            self.data,
            pool,
            predictions,
            rate=rate,
            seed=self.config.seed("data"),
        )
        counts = {"pool": len(pool.examples), "left_out": pool.left_out}
        counts |= {"kept": chosen.kept, "drawn": len(chosen.records)}
        return chosen.records, counts

    def _train_on_labels(self, workdir: Path) -> dict[str, Any]:
        added = read_added(_labels(workdir), self.data, self.plan.settings)
        workdir.mkdir(exist_ok=True)
        # The log of round 0 goes to the screen, the logs of later rounds to a file.
        with open(workdir / "log.txt", "a", encoding="utf-8") as file:
            return self._train(workdir, added, lambda line: file.write(f"{line}\n"))

    def _train(self, workdir: Path, added: Added, log: Log) -> dict[str, Any]:
        """Fine-tunes, unless that is done already; returns the scores."""
        path = Path(f"{workdir}.json")
        if not path.exists():
            result = finetune(self.config, workdir, log, added)
            if "stopped" in result:
                raise _Stopped(result)
            write_json(path, result)
        result = json.loads(path.read_text())
        return result | scores_of(result)


def _labels(workdir: Path) -> Path:
    return Path(f"{workdir}.jsonl")
