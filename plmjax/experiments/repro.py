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
from plmjax.files import digest
from plmjax.pretrain.mixtures import open_sources
from plmjax.train.metrics import read_metrics
from plmjax.train.trackers import without_secrets
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
    own = {key: str(file) for key, file in own.items() if file.exists()}
    config, new = str(workdir / "config.json"), f"{workdir.path}-again"
    if (name := workdir.own_objective) is not None:
        yield f"# WARNING: plmjax.fit made this run in Python, by the objective {name},"
        yield "# whose code is not kept. Where you have it, go on in Python:"
        keys = f", keys={own}" if own else ""
        yield f"#   plmjax.fit({name}, config={config!r}, workdir={new!r}{keys})"
        yield f"# and then: plmjax repro {here} --against={shlex.quote(new)}"
        return
    run = [verb_of(saved).name, f"--config={config}", f"--workdir={new}"]
    run += [f"--config.{key}={file}" for key, file in own.items()]
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
        why = without_secrets(" ".join(str(error).split()))
        yield f"# WARNING: the text cannot be read: {why}"
        return
    for name, source in sources.items():
        what = f"The text of {name}" if name else "The text"
        manifest = workdir.read(f"data/{parts.get(name)}/manifest.json") or {}
        if manifest.get("source", {}).get("fingerprint") == source.fingerprint:
            yield f"# {what} is the same: {source.fingerprint}."
        else:
            yield f"# WARNING: {what} is not what the run has read."


def compare(path: Path, other: Path) -> str:
    """Returns what is equal in two runs.

    Raises:
      PlmjaxError: the data, a record or the weights are not, and which (exit code 3).
    """
    (ours, saved), (theirs, again) = _facts(path), _facts(other)
    for step in saved.keys() & again.keys():  # others depend on where a run was stopped
        ours |= saved[step]
        theirs |= again[step]
    trouble = [k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k)]
    if trouble or not ours:
        what = trouble[0] if trouble else "all of it: there are no records"
        more = f", and {len(trouble) - 1:,} more" * (len(trouble) > 1)
        message = f"{other} is not {path}: {what} differs{more}."
        raise PlmjaxError(message, code=Exit.DATA)
    records = sum(isinstance(value, list) for value in ours.values())
    return f"Equal bit for bit: data, weights, and {records:,} records."


def _facts(path: Path) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """Returns {what: value} of a run that are the same in the run made again.

    And those of its checkpoints by step.
    """
    if not is_run(path):
        raise PlmjaxError(f"{path} holds no run.", hint="Give the --workdir of one.")
    workdir, facts = Workdir(path), {}
    checkpoints = Checkpoints(workdir.checkpoints)
    saved = {
        step: {
            f"the {name} of checkpoint {step:,}": value
            for name, value in checkpoints.meta(step).items()
            if isinstance(value, str)
        }
        for step in checkpoints.steps()
    }
    for record in read_metrics(workdir / "metrics.jsonl"):
        kept = {k: v for k, v in record.items() if k not in _OF_THE_CLOCK}
        what = f"the record {record['kind']} of step {record['step']:,}"
        facts.setdefault(what, []).append(kept)  # rollbacks may go to one step
    for file in sorted((workdir / "export").rglob("*.safetensors")):
        facts[str(file.relative_to(path))] = digest(file)
    return facts, saved
