"""What the directories of runs tell about them: for `plmjax report`."""

import dataclasses
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from plmjax import Exit, PlmjaxError
from plmjax.evaluate.model import is_finetuned, is_folder, is_run
from plmjax.files import did_you_mean, locked_by
from plmjax.tasks.scores import cost
from plmjax.train.metrics import read_starts, scan_metrics
from plmjax.train.trackers import redacted, without_secrets
from plmjax.workdir import MAY_CHANGE, Workdir

# Two runs that differ in nothing else are repetitions of each other.
_SEEDS = "train.seed", "name", "seeds."
_HARMLESS = MAY_CHANGE - {"train.steps", "train.epochs", "objective.teacher"}


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its directory tells it; `config` is flat and without secrets.

    `records` are those of metrics.jsonl. `remarks` grow by what cannot be read.
    """

    name: str
    directory: Path
    kind: str
    config: dict[str, Any]
    records: list[dict[str, Any]]
    remarks: list[str]

    @property
    def live(self) -> bool:
        """Whether a process writes there now."""
        return locked_by(self.directory) is not None

    @property
    def state(self) -> str:
        """How it stands: running, finished, stopped (by a signal), failed, killed."""
        starts = read_starts(self.directory)
        if self.live:
            return "running"
        if starts and starts[-1]["ended"] is None:
            return "killed"
        if starts and starts[-1]["how"] in ("stopped", "failed"):
            return starts[-1]["how"]
        if (self.directory / "scores.json").exists():
            return "finished"
        # Its training has ended, but not what follows, such as the export.
        return "failed" if starts else "not begun"

    @property
    def metric(self) -> str:
        """The score by which the run is judged."""
        chosen = self.read("scores.json").get("metric")
        return chosen or self.config.get("select.metric") or "loss"

    def read(self, name: str) -> dict[str, Any]:
        """Returns a JSON file of the run; {} if it is missing or damaged."""
        try:
            return Workdir(self.directory).read(name) or {}
        except PlmjaxError as error:
            self.remarks.append(error.message)
            return {}

    def values(self, kind: str, metric: str) -> list[float]:
        """Returns the values of a metric in the records of a kind that have it."""
        found = (
            record.get(metric) for record in self.records if record["kind"] == kind
        )
        return [value for value in found if value is not None]

    def best(self) -> float | None:
        """Returns the best held-out score, or None."""
        values = self.values("evaluation", self.metric)
        return min(values, key=lambda value: cost(self.metric, value), default=None)


def open_runs(paths: Sequence[Path]) -> list[Run]:
    """Returns the runs in directories, or in the folders below them.

    Raises:
      PlmjaxError: a path is no run and holds none, or no run has metrics yet.
    """
    folders = dict.fromkeys(folder for path in paths for folder in _folders(path))
    absolute = [folder.absolute() for folder in folders]
    above = os.path.commonpath(absolute) if len(absolute) > 1 else absolute[0].parent
    some = [_open(f, os.path.relpath(f.absolute(), above)) for f in folders]
    if not any(run.records for run in some):
        raise PlmjaxError(
            f"{paths[0]} has no metrics yet.",
            hint="A run writes them after train.log_every_steps.",
            code=Exit.DATA,
        )
    return some


def _folders(path: Path) -> list[Path]:
    below = [path / "config.json", *sorted(path.rglob("config.json"))]
    if is_run(path) or not (runs := [f.parent for f in below if is_run(f.parent)]):
        below, runs = [], [path]
    if not is_run(runs[0]):
        what = "holds no run" if path.exists() else "does not exist"
        what = "is a Hugging Face folder, not a run" if is_folder(path) else what
        hint = "Give the --workdir of a training, a sweep or a study, or their folder."
        raise PlmjaxError(f"{path} {what}.", hint=did_you_mean(path) + hint)
    return runs


def _open(directory: Path, name: str) -> Run:
    records, damaged = scan_metrics(directory / "metrics.jsonl")
    remarks = [
        f"{name}/metrics.jsonl:{line} is left out: {trouble}."
        for line, (trouble, _) in damaged.items()
    ]
    remarks += [f"{name} has no metrics yet."] * (not records)
    config = redacted(Workdir(directory).read("config.json") or {})
    kind = "fine-tuning" if is_finetuned(directory) else "pretraining"
    return Run(name, directory, kind, config, records, remarks=remarks)


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Returns {key: each run's value} of the keys whose values are not all the same."""
    keys = sorted(set().union(*(run.config for run in runs)))
    rows = {key: [run.config.get(key) for run in runs] for key in keys}
    return {key: row for key, row in rows.items() if any(v != row[0] for v in row)}


def groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Returns {what sets them apart: runs that differ in their seed alone}."""
    keys = differences(runs)
    keys = [k for k in keys if not k.startswith(_SEEDS) and k not in _HARMLESS]
    named: dict[str, list[Run]] = {}
    for run in runs:
        texts = (f"{key.rpartition('.')[2]}={run.config.get(key)}" for key in keys)
        named.setdefault(", ".join(texts) or "all runs", []).append(run)
    return named


def facts(run: Run) -> dict[str, Any]:
    """Returns the figures of a run; None: not known."""
    written = [record for record in run.records if record["kind"] != "rollback"]
    last = written[-1] if written else {}
    speeds = sorted(run.values("train", "tokens_per_second"))
    noted = run.read("environment.json")
    devices = noted.get("devices", [])
    counts = [f"{devices.count(name)} {name}" for name in dict.fromkeys(devices)]
    return {
        "run": run.name,
        "kind": run.kind,
        "state": run.state,
        **{name: last.get(name) for name in ("step", "tokens")},
        "training": last.get("seconds"),
        "score": run.metric,
        "last": next(iter(run.values("evaluation", run.metric)[::-1]), None),
        "best": run.best(),
        "tokens_per_second": speeds[len(speeds) // 2] if speeds else None,
        "mfu": next(iter(run.values("train", "mfu")[::-1]), None),
        **_goodput(run, last),
        "devices": ", ".join(counts),
        "commit": noted.get("commit"),
    }


def _goodput(run: Run, last: dict[str, Any]) -> dict[str, Any]:
    """Returns where the seconds of a run's processes went; {} if it is not noted.

    `goodput` is the share of `processes` in steps that count. Between starts is the
    time from an end to the next start; steps are done again that a kill had undone.
    """
    starts = read_starts(run.directory)
    if not starts or not last:
        return {}
    if starts[-1]["ended"] is None:
        written = (run.directory / "metrics.jsonl").stat().st_mtime
        end = {"ended": time.time() if run.live else written, "reached": last["step"]}
        starts[-1] |= end
    pairs = list(itertools.pairwise(starts))
    wall = sum(max(start["ended"] - start["began"], 0) for start in starts)
    trained = min(last["seconds"], wall)
    return {
        "starts": len(starts),
        "processes": wall,
        "lost": wall - trained,
        "goodput": trained / wall if wall else None,
        "between_starts": sum(max(b["began"] - a["ended"], 0) for a, b in pairs),
        "steps_done_again": sum(max(a["reached"] - b["step"], 0) for a, b in pairs),
    }


def data_facts(run: Run) -> Iterator[dict[str, Any]]:
    """Yields a record a source and split: documents (or examples), tokens, files."""
    noted = run.read("run.json")
    parts = noted.get("parts") or ({"": noted["store"]} if "store" in noted else {})
    for name, key in parts.items():
        manifest = run.read(f"data/{key}/manifest.json")
        source, splits = manifest.get("source", {}), manifest.get("splits", {})
        title = name or ", ".join(map(str, source.get("names", [source.get("kind")])))
        tokens = sum(facts["tokens"] for facts in splits.values())
        unknown = manifest.get("quality", {}).get("unknown_tokens", 0) / max(tokens, 1)
        more = {"run": run.name, "source": without_secrets(title), "digest": key}
        more["unknown_tokens"] = unknown
        for split, facts in splits.items():
            yield more | facts | {"part": split.replace("_", "-")}
    for path in sorted(run.directory.glob("predictions-*.jsonl")):
        with open(path, "rb") as file:
            more = {"source": run.config.get("task.train"), "part": path.stem[12:]}
            yield more | {"run": run.name, "documents": sum(1 for _ in file)}
