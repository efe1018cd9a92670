"""The files of a corpus and their kind, from the paths, the names and the content."""

import collections
import csv
import functools
import itertools
import json
import re
from pathlib import Path
from typing import NamedTuple

from plmjax import DataError, PlmjaxError, counted
from plmjax.data.archives import ENDINGS, ERRORS, container, is_archive, members
from plmjax.data.blocks import UTF8, Decoding, ending, open_bytes, raw_blocks
from plmjax.data.corpus import SourceConfig, find_inputs, relative_names, unreadable
from plmjax.data.records import SEPARATORS, is_saved

# The kind of a file by its ending, before one of a compression.
KINDS = {
    **dict.fromkeys(("", "txt", "text", "md"), "text"),
    **dict.fromkeys(("jsonl", "ndjson", "json"), "jsonl"),
    "csv": "csv",
    **dict.fromkeys(("tsv", "tab"), "tsv"),
    "parquet": "parquet",
    **dict.fromkeys(("warc", "wet"), "warc"),
}
SAMPLE_CHARACTERS = 1 << 16
# Files about a data set, left out of a folder that holds other files.
_ABOUT = re.compile(
    "(readme|licen[cs]e|copying|notice|authors|changelog|manifest|_success)([._-]|$)",
    re.IGNORECASE,
)


class Corpus(NamedTuple):
    """The files of a corpus in order, how to decode them, and what to log."""

    files: list[Path]
    decoding: Decoding
    notes: list[str]
    unchecked: bool = False  # read as text what looks like a table


def find_corpus(config: SourceConfig) -> tuple[dict[str, list[Path]], list[str]]:
    """Returns {kind of source: its files in their order}, and lines for the log.

    Kinds that read a folder, a data set by name or no files have none.

    Raises:
      PlmjaxError: no file matches (code 2), or an archive is refused (3).
    """
    notes, folder = [], single_path(config)
    kind = config.kind or (
        (config.dataset is not None and ("tfds" if config.paths else "hf"))
        or (not config.paths and "docstrings")
        or (config.column is not None and "text")
        or (folder is not None and is_saved(folder) and "hf")
        or None
    )
    if kind == "docstrings" and config.paths:
        raise PlmjaxError(
            f"data.source.paths={config.paths} is set, but data.source.kind=docstrings "
            "reads no files.",
            hint="Set --config.data.source.kind=none, so that the files decide.",
        )
    if kind in ("docstrings", "hf", "tfds"):
        return {kind: []}, notes
    chosen = functools.partial(_files_in, kind=kind, notes=notes)
    files = []
    for path in find_inputs(config.paths or "", "data.source.paths", chosen):
        files += chosen(path) if is_archive(path) else [path]
    # Members of an archive stay in its order: the other one would unpack it each time.
    names = relative_names([container(path) for path in files])
    order = sorted(range(len(files)), key=names.__getitem__)
    kinds: dict[str, list[Path]] = {}
    for path in map(files.__getitem__, order):
        by_name = ending(path) and KINDS.get(ending(path))
        is_of = kind or by_name or kind_of_content(path) or "text"
        # A single JSON value is refused where JSON lines are read.
        kinds.setdefault(is_of if is_of != "json" else "jsonl", []).append(path)
    if len(kinds) > 1:
        counts = ", ".join(
            f"{counted(len(some), 'file')} of {name} ({some[0].name}"
            f"{', ...' * (len(some) > 1)})"
            for name, some in kinds.items()
        )
        notes.append(
            f"The files are read each by its kind: {counts}. data.source.kind reads "
            "those of one kind."
        )
    return kinds, notes


def single_path(config: SourceConfig) -> Path | None:
    """Returns the path if data.source.paths holds one; a string is taken as one."""
    paths = (config.paths,) if isinstance(config.paths, str) else config.paths or ()
    return Path(paths[0]).expanduser() if len(paths) == 1 else None


def _files_in(folder: Path, kind: str | None, notes: list[str]) -> list[Path]:
    """Returns the files of a known kind below a folder or in an archive.

    Hidden files, and those about the others, are left out.
    """
    files = []
    for path in [folder] if is_archive(folder) else sorted(folder.rglob("*")):
        if is_archive(path):
            files += members(path)
        elif path.is_file():
            files.append(path)
    visible = [
        path
        for path in files
        if not any(name.startswith(".") for name in path.relative_to(folder).parts)
    ]
    hidden = len(files) - len(visible)
    known = [p for p in visible if not _ABOUT.match(p.name)] or visible
    files = [p for p in known if (k := KINDS.get(ending(p))) and kind in (None, k)]
    others = sorted({*visible} - {*files})
    nested = [p for p in others if p.name.lower().endswith(ENDINGS)]
    if not files and nested:
        raise PlmjaxError(
            f"data.source.paths: {folder} holds no texts, but archives inside an "
            f"archive, which are not read: {', '.join(map(str, nested[:3]))}.",
            hint=f"Unpack {container(nested[0])}.",
        )
    if not files:
        names = sorted({path.suffix or path.name for path in others})[:5]
        what = "archive" if is_archive(folder) else "folder"
        raise PlmjaxError(
            f"data.source.paths: the {what} {folder} holds no files of "
            f"{f'kind {kind}' if kind else 'a known kind'} (others: {len(others):,}"
            f"{'; ' * bool(names) + ', '.join(names)}).",
            hint="Name the files by a glob: --config.data.source.paths="
            f"'{folder}/**/*.ENDING'. Known: .{', .'.join(filter(None, KINDS))}.",
        )
    if hidden or others or any(container(path) != path for path in files[:1]):
        example = f" ({[*nested, *others][0].name}, ...)" if others else ""
        notes.append(
            f"{folder}: files read: {len(files):,}; left out: {hidden:,} hidden, "
            f"{len(others):,} of other kinds{example}."
        )
    return files


# --- content


def sample(path: Path, decoding: Decoding = UTF8) -> str:
    """Returns the first lines of a file as text; invalid bytes are replaced."""
    text = next(raw_blocks(path, decoding)).decode(errors="replace")
    head = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if len(head) <= SAMPLE_CHARACTERS:
        return head
    head = head[:SAMPLE_CHARACTERS]
    return head[: head.rfind("\n") + 1] or head


def kind_of_content(path: Path) -> str | None:
    """Returns the kind that a file's content shows beyond doubt, or None."""
    try:
        with open_bytes(path) as file:
            if file.read(4) == b"PAR1":
                return "parquet"
    except ERRORS as error:
        raise unreadable(path, error) from None
    return kind_of_text(sample(path, UTF8._replace(errors="replace")))


_JSON = re.compile(r'\s*(\{\s*"[^"\n]*"\s*:|\[\s*\{\s*("[^"\n]*"\s*:|\}))')


def kind_of_text(text: str) -> str | None:
    """Returns jsonl, json, csv or tsv if the first lines of a file show it, or None."""
    if _JSON.match(text):
        if text[0] == "{" and "\n" not in text and len(text) >= SAMPLE_CHARACTERS:
            return "jsonl"  # the begin of a long line
        try:
            first = json.loads(text.lstrip().partition("\n")[0])
        except (ValueError, RecursionError):
            return "json"  # one value on several lines
        return "jsonl" if isinstance(first, dict) else "json"
    separator = separator_of(text)
    return None if separator is None else "tsv" if separator == "\t" else "csv"


def separator_of(text: str) -> str | None:
    """Returns what separates the columns of a table, or None if the text is prose.

    Ten lines or more have the same number of columns, and no blank follows most of the
    separators: a comma in prose is followed by one.
    """
    for separator in SEPARATORS:
        if 2 * text.count(f"{separator} ") > text.count(separator):
            continue
        lines = filter(None, (line.strip("\t ") for line in text.split("\n")))
        quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
        rows = csv.reader(
            itertools.islice(lines, 200), delimiter=separator, quoting=quoting
        )
        sizes = collections.Counter(map(len, rows))
        width, often = max(sizes.items(), key=lambda item: item[1], default=(0, 0))
        total = sizes.total()
        if width > 1 and total >= 10 and often >= 0.95 * total:
            return separator
    return None


def check_kind(path: Path, kind: str, decoding: Decoding) -> None:
    """Raises PlmjaxError if a file is of another kind: text, jsonl, csv or tsv."""
    begin = sample(path, decoding._replace(errors="replace"))
    shown = kind_of_text(begin)
    if shown is None and kind == "text":
        shown = KINDS.get(ending(path), "text")
    elif shown is None and kind == "jsonl" and KINDS.get(ending(path)) != kind:
        shown = "text"
    tables = ("csv", "tsv")
    if shown in (None, kind) or not begin.strip() or {shown, kind} <= {*tables}:
        return
    hint = f"Set --config.data.source.kind={shown}."
    if shown == "json":
        hint = f"Write one object a line, as does: jq -c '.[]' {path.name} > a.jsonl."
    elif shown == "tsv":
        hint = (
            "To read one column of each line, set --config.data.source.column="
            f"{_text_column(begin)}; if the first line names the columns, set "
            "--config.data.source.kind=tsv."
        )
    raise DataError(
        f"{path} would be read as {kind}, but it is {_NAMES.get(shown, shown)}: "
        f"{begin.strip().partition(chr(10))[0][:60]!r}.",
        hint=hint + " --yes reads all as text." * (kind == "text"),
    )


_NAMES = {
    "json": "a single JSON value",
    "jsonl": "JSON lines",
    "csv": "a table",
    "tsv": "columns separated by tabs",
}


def _text_column(begin: str) -> int:
    """Returns the number of the longest column of lines with tabs."""
    rows = (line.split("\t") for line in begin.split("\n"))
    columns = itertools.zip_longest(*rows, fillvalue="")
    sizes = [sum(map(len, column)) for column in columns]
    return 1 + sizes.index(max(sizes))
