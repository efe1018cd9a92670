"""The commands that make a run again, and whether they did."""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plmjax import Exit, PlmjaxError
from plmjax import config as config_lib
from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.evaluate.model import is_run
from plmjax.experiments.verbs import verb_of
from plmjax.pretrain.mixtures import open_sources
from plmjax.train.metrics import read_metrics
from plmjax.workdir import CHECKOUT, RunConfig, Workdir, environment

# Files that a run may have in its own directory.
_OWN_FILES = ("train.init_from", "tokenizer.path", "tokenizer.user_dictionary")
_OF_THE_CLOCK = {"seconds", "tokens_per_second", "mfu"}


def open_run(path: Path) -> tuple[Workdir, dict[str, Any]]:
    """Returns a run's directory and its environment.json.

    Raises:
      PlmjaxError: it is no run, or an earlier version wrote it.
    """
    workdir = Workdir(path.resolve())
    noted = workdir.read("environment.json") if is_run(path) else None
    if noted is None or "diff" not in noted:
        what = "holds no run" if not is_run(path) else "does not say how it was made"
        hint = "Give the --workdir of a run that this version of plmjax has begun."
        raise PlmjaxError(f"{path} {what}.", hint=hint)
    return workdir, noted


def commands(path: Path) -> Iterator[str]:
    """Yields lines for a shell that make a run again; those with # are remarks."""
    (workdir, then), now = open_run(path), environment()
    here = shlex.quote(str(workdir.path))
    yield from _code(then, now, here)
    for name, value in then["variables"].items():
        yield f"export {name}={shlex.quote(value)}"
    for name in ("python", "devices", "processes"):
        if then[name] != now[name]:
            yield f"# WARNING: {name} was {then[name]}; {now[name]} rounds otherwise."
    yield f"cd {shlex.quote(then['directory'])}"
    saved = workdir.read("config.json") or {}
    if "task" not in saved:
        yield from _text(workdir, config_lib.build(RunConfig, saved), then["directory"])
    values = config_lib.flatten(saved)
    own = {key: workdir.path / values[key] for key in _OWN_FILES if values.get(key)}
    more = [f"--config.{key}={file}" for key, file in own.items() if file.exists()]
    config, new = workdir / "config.json", f"{workdir.path}-again"
    run = [verb_of(saved).name, f"--config={config}", f"--workdir={new}", *more]
    yield shlex.join(["plmjax", *run])
    yield f"plmjax repro {here} --against={shlex.quote(new)}"


def _code(then: dict[str, Any], now: dict[str, Any], here: str) -> Iterator[str]:
    """Yields how to get the code and the packages, where they are others now."""
    names = [n for n, v in then["packages"].items() if now["packages"].get(n) != v]
    wanted = [f"{name}=={then['packages'][name]}" for name in names]
    if any(then[name] != now[name] for name in ("plmjax", "commit", "diff")):
        commit = (then["commit"] or "").removesuffix("-dirty")
        wanted.insert(0, f"plmjax=={then['plmjax']}")
        if commit:
            folder = f"plmjax-{commit[:10]}"
            yield f"git clone {shlex.quote(str(CHECKOUT))} {folder}"
            yield f"git -C {folder} checkout {commit}"
            wanted[:1] = ["-e", f"./{folder}"]
            if then["diff"]:
                yield f"plmjax repro {here} --diff | git -C {folder} apply"
        if then["diff"] is None:
            size = f"{then['diff_bytes']:,} bytes"
            yield f"# WARNING: its changes to the code ({size}) were too large to keep."
    else:
        yield f"# The code is the same: plmjax {then['commit'] or then['plmjax']}."
    if wanted:
        yield shlex.join(["pip", "install", *wanted])


def _text(workdir: Workdir, config: RunConfig, directory: str) -> Iterator[str]:
    """Yields whether the text is what the run has read, by its digest."""
    noted = workdir.read("run.json") or {}
    parts = noted.get("parts") or {"": noted.get("store")}
    try:
        with contextlib.chdir(directory):
            sources = open_sources(config.data)
    except (PlmjaxError, OSError) as error:
        yield f"# WARNING: the text cannot be read: {' '.join(str(error).split())}"
        return
    for name, source in sources.items():
        manifest = workdir.read(f"data/{parts.get(name)}/manifest.json") or {}
        if manifest.get("source", {}).get("fingerprint") == source.fingerprint:
            yield f"# The text{name and ' '}{name} is the same: {source.fingerprint}."
        else:
            yield f"# WARNING: the text {name} is not what the run has read."


def compare(path: Path, other: Path) -> str:
    """Returns what is equal in two runs.

    Raises:
      PlmjaxError: the data or a record is not, and which (exit code 3).
    """
    digests, records = [], []
    for workdir in (Workdir(path), Workdir(other)):
        checkpoints = Checkpoints(workdir.checkpoints)
        meta = checkpoints.meta(checkpoints.steps()[-1]) if checkpoints.steps() else {}
        digests.append({k: v for k, v in meta.items() if isinstance(v, str)})
        found = read_metrics(workdir / "metrics.jsonl")
        kept = [{k: v for k, v in r.items() if k not in _OF_THE_CLOCK} for r in found]
        records.append({(r["kind"], r["step"]): r for r in kept})
    trouble = [f"the {k}" for k, v in digests[0].items() if digests[1].get(k) != v]
    trouble += [
        f"the record {kind} of step {step:,}"
        for kind, step in records[0]
        if records[1].get((kind, step)) != records[0][kind, step]
    ]
    if trouble or not records[0]:
        what = trouble[0] if trouble else "all of it: there are no records"
        raise PlmjaxError(f"{other} is not {path}: {what} differs.", code=Exit.DATA)
    return f"Equal bit for bit: data, and {len(records[0]):,} records."
