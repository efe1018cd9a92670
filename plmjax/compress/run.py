"""`plmjax compress`: smaller forms of a model, and what each of them costs."""

import dataclasses
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import Exit, PlmjaxError, files, machine
from plmjax.compress.formats import FOLDERS, GRAPHS, parse_formats
from plmjax.compress.score import (
    Given,
    Labelled,
    Part,
    Scored,
    Text,
    own_documents,
    run_by_jax,
    run_by_onnx,
)
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

_LENGTH = 32  # tokens of the text that is timed, if there is no held-out part
_CUTS = ("layers", "heads", "neurons", "sparsity")  # options of `prune`


@dataclasses.dataclass(frozen=True)
class _Forms:
    """Forms of the model in `source`, below `root`; each is written once."""

    given: Given
    source: Path
    root: Path

    def folder(self, parts: tuple[str, ...]) -> Path:
        """Returns the Hugging Face folder that formats make, one after the other."""
        to = self.root / "+".join(parts)
        if parts and not to.exists():
            FOLDERS[parts[-1]](self.given, self.folder(parts[:-1]), to)
        return to if parts else self.source

    def write(self, parts: tuple[str, ...]) -> Path:
        """Returns the graph, or the folder, that formats make."""
        if parts[-1] in FOLDERS:
            return self.folder(parts)
        from plmjax.onnx.export import export

        source, (file, write) = self.folder(parts[:-1]), GRAPHS[parts[-1]]
        to = self.root / "+".join((*parts[:-1], "onnx"))
        if not to.exists():
            export(source, to, log=ignore_line)
        logging.disable(logging.WARNING)  # onnxruntime's advice is not for users
        try:
            write(self.given, source, to / "onnx" / file)
        finally:
            logging.disable(logging.NOTSET)
        return to / "onnx" / file


def compress(
    name: str,
    to: Path,
    options: dict[str, Any],
    log: Callable[[str], Any],
    show: Callable[[dict[str, Any]], Any] = lambda result: None,
) -> None:
    """Writes a model in the formats of `options`, or the first that meets its target.

    `show` gets the table, {"rows": [...], ...}, which is in to/compress.json, too.

    Raises:
      PlmjaxError: an error that the user can fix, or no format meets the target (code
        4, after `show`); `to` is then as it was before.
    """
    target = options["target_ms"]
    if target is None and options["format"] is None:
        raise PlmjaxError(
            "it is not clear what to write.",
            hint="Give --format=onnx,int8 or another, or --target_ms=5.",
        )
    static = ",int8-static" * bool(options["calibrate"])
    formats = parse_formats(options["format"] or f"onnx,float16,int8{static}")
    files.check_new(to)
    with files.disk_errors(to), files.replacing_folder(to) as new:
        root = new / ".forms"
        source = _source(name, root / "original", log)
        model = _open(source)
        part = _held_out(name, source, model, options["data"])
        if target is not None and part is None:
            raise PlmjaxError(
                f"there is nothing to score {name} on, which --target_ms needs.",
                hint="Give --data=FILE: labelled examples of its task, or text.",
            )
        length = options["length"] or (part.median if part else _LENGTH)
        forms = _Forms(Given(name, model, options, part, log), source, root)
        tried = [("original", forms, ()), *(("+".join(f), forms, f) for f in formats)]
        if options["format"] is None:
            tried += _pruned(forms)
        result: dict[str, Any] = {"model": name, "length": length, "rows": []}
        result |= {"metric": part.metric if part else "score"}
        result |= {"scored": part and part.size, "cores": machine.cores()}
        written, first = [], None
        for label, form, parts in tried:
            log(f"{label} ...")
            try:
                path, row, first = _measured(form, label, parts, length, first)
            except PlmjaxError as error:
                if target is None or not parts:
                    raise
                log(f"{label} is left out: {error}")
                continue
            result["rows"].append(row)
            if parts and (target is None or _meets(row, options)):
                written.append(path)
            if written and target is not None:
                result["winner"] = label
                break
        show(result)
        if not written:
            raise _unreached(result["rows"][1:], options)
        _place(written, new, root)
        files.write_json(new / "compress.json", result)


def _pruned(forms: _Forms) -> list[tuple[str, _Forms, tuple[str, ...]]]:
    """Returns what a target tries last: what is asked to be cut, or fewer layers."""
    given, parts = forms.given, ("prune", "int8")
    if any(given.options[name] is not None for name in _CUTS):
        return [("prune+int8", forms, parts)]
    cut = []
    for count in range(1, given.model.encoder.layers):
        fewer = dataclasses.replace(given, options={**given.options, "layers": count})
        root = forms.root / f"layers-{count}"
        cut.append(
            (f"prune+int8 --layers={count}", _Forms(fewer, forms.source, root), parts)
        )
    return cut


def _source(name: str, to: Path, log: Callable[[str], Any]) -> Path:
    """Returns the Hugging Face folder of a model; that of a run is written to `to`.

    Of ELECTRA's two it is the discriminator.
    """
    path = Path(name)
    to.parent.mkdir()
    if is_finetuned(path):
        return finished(path)
    if is_run(path):
        export_run(Workdir(path), to, ignore_line)
        path = to
    first, *others = model_folders(path) or ("",)
    for other in others:
        log(
            f"{name} has a {first}, which is compressed, and a {other}: for that give "
            f"--model=FOLDER/{other} of `plmjax export`."
        )
    return model_folders(path).get(first, path)


def _open(folder: Path) -> Model:
    return next(iter(open_models(str(folder)).values()))


def _held_out(name: str, source: Path, model: Model, data: str | None) -> Part | None:
    """Returns what to score on; None if there is nothing."""
    if data is None and not is_run(Path(name)):
        return None
    if model.task is not None:
        return Labelled(source, model, name, data)
    if data is None:
        return Text(source, model, own_documents(name, model))
    return Text(source, model, open_source(SourceConfig(paths=(data,))).documents())


def _measured(
    forms: _Forms,
    label: str,
    parts: tuple[str, ...],
    length: int,
    first: Scored | None,
) -> tuple[Path, dict[str, Any], Scored | None]:
    """Returns a form's path, its row of the table, and the original's score.

    `first` is that score, None for the original itself.
    """
    path, part = forms.write(parts) if parts else forms.source, forms.given.part
    graph = path.is_file()
    run = run_by_onnx(path) if graph else run_by_jax(_open(path))
    row: dict[str, Any] = {"format": label, "run": "onnxruntime" if graph else "jax"}
    row |= dict.fromkeys(("score", "drop", "interval", "agreement", "bits_per_byte"))
    if part is not None:
        score, predicted, bits = scored = part.score(run)
        agreement = part.agreement(predicted, (first or scored).predicted)
        row |= {"score": score, "bits_per_byte": bits, "agreement": agreement}
        if first is None:
            first, row["drop"] = scored, 0.0
        elif score is None or first.score is None:
            row["drop"] = 100 - agreement
        else:
            row["drop"] = first.score - score
            same = not row["drop"] and agreement == 100
            found = part.interval(predicted, first.predicted) if not same else None
            row["interval"] = [0.0, 0.0] if same else found
    sample = _sample(forms.given.model, length)
    latency = measure(lambda: run(sample))
    several = path.parent.glob(f"{path.name}*") if graph else path.glob("*.safe*")
    row["bytes"] = sum(file.stat().st_size for file in several)
    row |= {"median_ms": latency.median_ms, "p95_ms": latency.p95_ms}
    return path, row, first


def _sample(model: Model, length: int) -> dict[str, np.ndarray]:
    """Returns a batch of one row of `length` tokens, whose ids do not matter."""
    task = model.task
    several = task is not None and task.head in (None, "choices")
    zeros = np.zeros((1, 1, length) if several else (1, length), np.int32)
    count = zeros + np.arange(length, dtype=np.int32)
    return {
        "tokens": count % model.tokenizer.vocab_size,
        "segments": zeros + 1,
        "positions": count,
        "types": zeros,
    }


def _place(written: list[Path], to: Path, root: Path) -> None:
    """Moves forms to `to`: the plain model's graphs, or the only ones, as they are.

    Others become folders of it, and what is left below `root` is removed.
    """
    owners = [path.parents[1] if path.is_file() else path for path in written]
    for owner in dict.fromkeys(owners):
        for graph in {*owner.glob("onnx/*.onnx*")}:
            if not any(graph.name.startswith(path.name) for path in written):
                graph.unlink()
        alone = len({*owners}) == 1 or owner.name == "onnx"
        target = to if alone else to / owner.name
        target.mkdir(exist_ok=True)
        for item in [*owner.iterdir()]:
            item.rename(target / item.name)
    shutil.rmtree(root)


def _meets(row: dict[str, Any], options: dict[str, Any]) -> bool:
    fast = row["median_ms"] <= options["target_ms"]
    return fast and row["drop"] <= options["max_drop"]


def _unreached(rows: list[dict[str, Any]], options: dict[str, Any]) -> PlmjaxError:
    target, most = options["target_ms"], options["max_drop"]
    near = min(rows, key=lambda row: (not row["drop"] <= most, row["median_ms"]))
    return PlmjaxError(
        f"no format meets --target_ms={target:g} and --max_drop={most:g}; nothing is "
        f"written. The nearest is {near['format']}: {near['median_ms']:.2f} ms, "
        f"{near['drop']:.2f} points lost.",
        hint="Change the target, or train a smaller model.",
        code=Exit.MODEL,
    )


def as_text(result: dict[str, Any]) -> str:
    """Returns the table for the screen."""
    names = {
        "score": f"{result['metric'].replace('_', ' ')} %",
        "bits_per_byte": "bits a byte",
        "drop": "points lost",
        "agreement": "as before %",
        "megabytes": "MB",
        "median_ms": "median ms",
        "p95_ms": "95th ms",
    }
    rows = result["rows"]
    if rows[0]["bits_per_byte"] is None:
        del names["bits_per_byte"]
    cells = []
    for row in rows:
        figures = {n: (row | {"megabytes": row["bytes"] / 1e6})[n] for n in names}
        figures = {n: "-" if x is None else f"{x:.2f}" for n, x in figures.items()}
        if row["interval"]:
            low, high = row["interval"]
            figures["drop"] += f" ±{(high - low) / 2:.2f}"
        cells.append((row["format"], row["run"], *figures.values()))
    lines = [f"ms: a text of {result['length']} tokens, {result['cores']} cores."]
    if any(row["interval"] for row in rows):
        lines.append(
            f"Scored on {result['scored']}; ±: half of the 95 % interval. A loss that "
            "is not larger may be chance."
        )
    if any(row["bytes"] > rows[0]["bytes"] for row in rows if row["run"] != "jax"):
        lines.append(
            "A graph also holds its operations: it is larger than a tiny original, as "
            "one of 32 bits is than one of 16."
        )
    lines += [f"{result['winner']} meets the target."] if "winner" in result else []
    columns = ["format", "run by", *names.values()]
    return as_lines(as_table(result["model"], columns, cells), *lines)
