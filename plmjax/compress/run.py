"""`plmjax compress`: smaller forms of a model, and what each of them costs."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import Exit, PlmjaxError, files, machine
from plmjax.compress.formats import FOLDERS, GRAPHS, TRIED, Given, parse_formats
from plmjax.compress.score import Labelled, Run, Text, run_by_jax, run_by_onnx
from plmjax.console import as_lines, as_table, ignore_line
from plmjax.data.sources import SourceConfig, open_source
from plmjax.evaluate.latency import measure
from plmjax.evaluate.model import (
    Model,
    finished,
    is_finetuned,
    is_run,
    model_folders,
    open_models,
)
from plmjax.pretrain.export import export as export_run
from plmjax.workdir import Workdir

_DOCUMENTS = 2000  # of a run's held-out text, at most
_LENGTH = 32  # tokens of the text whose latency is measured, without a held-out part


class Unreached(PlmjaxError):
    """No format meets the target; `result` is the table."""

    result: dict[str, Any]


@dataclasses.dataclass
class _Forms:
    """Forms of the model in `source`, below `root`; each is written once."""

    given: Given
    source: Path
    root: Path

    def folder(self, parts: tuple[str, ...]) -> Path:
        """Returns the Hugging Face folder that these formats make, one of the other."""
        if not parts:
            return self.source
        to = self.root / "+".join(parts)
        if not to.exists():
            FOLDERS[parts[-1]](self.given, self.folder(parts[:-1]), to)
        return to

    def write(self, parts: tuple[str, ...]) -> Path:
        """Returns the file of a graph, or the folder, that these formats make."""
        if parts[-1] in FOLDERS:
            return self.folder(parts)
        from plmjax.onnx.export import export

        source, (file, write) = self.folder(parts[:-1]), GRAPHS[parts[-1]]
        to = self.root / "+".join([*parts[:-1], "onnx"])
        if not to.exists():
            export(source, to, log=ignore_line)
        write(self.given, source, to)
        return to / "onnx" / file

    def place(self, written: list[Path], to: Path) -> None:
        """Moves forms to a folder: the plain model's graphs, or the only one, itself.

        The others become subfolders.
        """
        owners = [path.parents[1] if path.is_file() else path for path in written]
        for owner in dict.fromkeys(owners):
            for file in owner.glob("onnx/*.onnx"):
                if file not in written:
                    file.unlink()
            alone = len({*owners}) == 1 or owner.name == "onnx"
            target = to if alone else to / owner.name
            target.mkdir(exist_ok=True)
            for item in [*owner.iterdir()]:
                item.rename(target / item.name)


def compress(
    name: str, to: Path, options: dict[str, Any], log: Callable[[str], Any]
) -> dict[str, Any]:
    """Writes a model in the formats of `options`, or the first that meets its target.

    Returns the table, {"rows": [...], ...}, which is in to/compress.json, too.

    Raises:
      PlmjaxError: an error that the user can fix; `to` is then as it was before.
      Unreached: no format meets the target (code 4).
    """
    target = options["target_ms"]
    formats = parse_formats(_asked(options))
    files.check_new(to)
    with (
        files.disk_errors(to),
        files.removed_unless_done(to),
        files.replacing_folder(to) as new,
    ):
        root = new / ".forms"
        root.mkdir()
        source = _source(name, root / "original")
        model = _open(source)
        part = _held_out(name, source, model, options["data"])
        if target is not None and part is None:
            raise PlmjaxError(
                f"there is nothing to score {name} on, which --max_drop needs.",
                hint="Give --data=FILE: labelled examples of its task, or text.",
            )
        length = options["length"] or (part.median if part else _LENGTH)
        forms = _Forms(Given(name, model, options), source, root)
        result = {"model": name, "metric": part and part.metric, "length": length}
        result |= {"cores": machine.cores(), "rows": []}
        measured = _measured(forms, formats, part, length, log)
        written = []
        for path, row in measured:
            result["rows"].append(row)
            if path is None or (target is not None and not _meets(row, options)):
                continue
            written.append(path)
            if target is not None:
                result["winner"] = row["format"]
                break
        if not written:
            raise _unreached(result, options)
        forms.place(written, new)
        shutil.rmtree(root)
        files.write_json(new / "compress.json", result)
    return result


def _asked(options: dict[str, Any]) -> str:
    """Returns the names of the formats to try."""
    if options["target_ms"] is None and options["format"] is None:
        raise PlmjaxError(
            "it is not clear what to write.",
            hint="Give --format=onnx,int8 or another, or --target_ms=5.",
        )
    tried = [n for n in TRIED if n != "int8-static" or options["calibrate"]]
    return options["format"] or ",".join(tried)


def _source(name: str, to: Path) -> Path:
    """Returns the Hugging Face folder of a model; that of a run is written to `to`."""
    path = Path(name)
    if is_finetuned(path):
        return finished(path)
    if is_run(path):
        export_run(Workdir(path), to, ignore_line)
        path = to
    return next(iter(model_folders(path).values()), path)


def _open(folder: Path) -> Model:
    return next(iter(open_models(str(folder)).values()))


def _held_out(
    name: str, source: Path, model: Model, data: str | None
) -> Labelled | Text | None:
    """Returns what to score on; None if there is nothing."""
    path = Path(name)
    if model.task is not None:
        if data is None and not is_finetuned(path):
            return None
        return Labelled(source, model, name, data)
    if data is not None:
        documents = open_source(SourceConfig(paths=(data,))).documents()
    elif is_run(path):
        documents = _own_documents(Workdir(path), model)
    else:
        return None
    return Text(source, model, documents)


def _own_documents(workdir: Workdir, model: Model) -> Iterator[str]:
    split = workdir.store().split("held_out")
    for begin, end in zip(split.offsets[:_DOCUMENTS], split.offsets[1:], strict=False):
        yield model.tokenizer.decode(split.read(np.arange(begin, end))[0])


def _measured(
    forms: _Forms,
    formats: list[tuple[str, ...]],
    part: Labelled | Text | None,
    length: int,
    log: Callable[[str], Any],
) -> Iterator[tuple[Path | None, dict[str, Any]]]:
    """Yields (path, row of the table): the original without its path, then formats."""
    first = None
    for parts in [None, *formats]:
        label = "original" if parts is None else "+".join(parts)
        log(f"{label} ...")
        path = forms.source if parts is None else forms.write(parts)
        graph = path.is_file()
        model = forms.given.model if graph else _open(path)
        run = run_by_onnx(path) if graph else run_by_jax(model)
        run = _finite(run, label)
        row: dict[str, Any] = {"format": label}
        row["runtime"] = "onnxruntime" if graph else "jax"
        row |= {"score": None, "drop": None, "agreement": None}
        if part is not None:
            row["score"], predicted = part.score(run)
            if first is None:
                first = row["score"], predicted
            row["agreement"] = part.agreement(predicted, first[1])
            change = 100 - row["agreement"]
            row["drop"] = change if first[0] is None else first[0] - row["score"]
        sample = _sample(model, length)
        latency = measure(lambda run=run, sample=sample: run(sample))
        row |= {"bytes": _bytes(path), "median_ms": latency.median_ms}
        row |= {"p95_ms": latency.p95_ms}
        yield (None if parts is None else path), row


def _finite(run: Run, label: str) -> Run:
    def checked(batch):
        scores = run(batch)
        if not np.isfinite(scores).all():
            raise PlmjaxError(
                f"{label}: an output of the model is not finite.",
                hint="Leave this format out.",
                code=Exit.NUMERIC,
            )
        return scores

    return checked


def _sample(model: Model, length: int) -> dict[str, np.ndarray]:
    """Returns a batch of one row of `length` tokens, whose ids do not matter."""
    ids = np.arange(length, dtype=np.int32) % model.tokenizer.vocab_size
    rows = (1, 1, length) if _has_several(model) else (1, length)
    zeros = np.zeros(rows, np.int32)
    return {
        "tokens": zeros + ids,
        "segments": zeros + 1,
        "positions": zeros + np.arange(length, dtype=np.int32),
        "types": zeros,
    }


def _has_several(model: Model) -> bool:
    return model.task is not None and model.task.head in (None, "choices")


def _bytes(path: Path) -> int:
    several = path.parent.glob(f"{path.name}*") if path.is_file() else None
    return sum(f.stat().st_size for f in several or path.glob("*.safetensors"))


def _meets(row: dict[str, Any], options: dict[str, Any]) -> bool:
    return (
        row["median_ms"] <= options["target_ms"] and row["drop"] <= options["max_drop"]
    )


def _unreached(result: dict[str, Any], options: dict[str, Any]) -> Unreached:
    most = options["max_drop"]
    rows = result["rows"][1:]
    near = min(rows, key=lambda row: (row["drop"] > most, row["median_ms"]))
    error = Unreached(
        f"no format meets --target_ms={options['target_ms']:g} and "
        f"--max_drop={most:g}; nothing is written. The nearest is {near['format']}: "
        f"{near['median_ms']:.2f} ms, {near['drop']:.2f} points lost.",
        hint="Change the target, or distil into a smaller model: `plmjax pretrain "
        "--config=distill`.",
        code=Exit.MODEL,
    )
    error.result = result
    return error


def as_text(result: dict[str, Any]) -> str:
    """Returns the table for the screen."""

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    rows = [
        (
            row["format"],
            row["runtime"],
            *(shown(row[name]) for name in ("score", "drop", "agreement")),
            f"{row['bytes'] / 1e6:.1f}",
            *(shown(row[name]) for name in ("median_ms", "p95_ms")),
        )
        for row in result["rows"]
    ]
    metric = (result["metric"] or "score").replace("_", " ")
    columns = ["format", "runtime", f"{metric} %", "points lost", "as before %"]
    columns += ["MB", "median ms", "95 % ms"]
    lines = [
        f"Milliseconds: one text of {result['length']} tokens, {result['cores']} cores."
    ]
    if "winner" in result:
        lines.append(f"{result['winner']} meets the target.")
    return as_lines(as_table(result["model"], columns, rows), *lines)
