"""A corpus without download: the docstrings of the installed Python packages.

A document is one full docstring, if it is English; duplicates are removed.
"""

import ast
import csv
import dataclasses
import hashlib
import importlib.metadata
import inspect
import itertools
import json
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from plmjax.data.corpus import Source, SourceConfig, Tally, make_source
from plmjax.data.parallel import ordered_map
from plmjax.machine import cores

HARVEST = 2  # increase it when the harvest changes: it is part of the fingerprint

# Parsing takes 0.4 s a megabyte of source, so files are parsed in the order of their
# share of docstring, until this many bytes are collected.
DOCSTRING_BYTES = 20_000_000
FILE_BYTES = 1_000_000  # larger files are tables and generated code
# If the packages have less source than this, the standard library is added.
SOURCE_BYTES = 40_000_000

_LEFT_OUT = re.compile(
    r"(^|/)(tests?|testing|site-packages|_?vendor(ed)?)/|_pb2|^\.\.|^plmjax/"
)


@dataclasses.dataclass(frozen=True)
class Package:
    """A set of Python files: an installed distribution or the standard library."""

    name: str
    version: str
    licence: str
    digest: str  # of the names and contents of its files
    files: dict[str, Path]  # name in the package -> path
    size: int  # bytes


class Docstrings(NamedTuple):
    """The docstrings of one file."""

    texts: list[str]
    invalid: bool  # the file is not valid Python


def open_docstrings(config: SourceConfig, _: Any = None) -> Source:
    """Opens the source of kind docstrings; files and their decoding do not apply."""
    packages = installed_packages()
    if sum(package.size for package in packages) < SOURCE_BYTES:
        packages.append(standard_library())
    licences = [
        {"name": p.name, "version": p.version, "licence": p.licence} for p in packages
    ]
    harvested: list[str] = []

    def read(tally: Tally) -> Iterator[str]:
        if not harvested:
            texts, counts = harvest(packages)
            harvested.extend(texts)
            source.description.update(counts)
        yield from harvested

    source = make_source(
        config,
        read,
        content=[HARVEST, [[p.name, p.version, p.digest] for p in packages]],
        description={"document": "one docstring", "packages": licences},
    )
    return source


def installed_packages() -> list[Package]:
    """All distributions that list their files in RECORD, as pip writes it."""
    packages: dict[str, Package] = {}
    for distribution in importlib.metadata.distributions():
        name, record = distribution.name, distribution.read_text("RECORD")
        if not name or not record or name in packages or name == "plmjax":
            continue
        rows = sorted(
            row
            for row in csv.reader(record.splitlines())
            if len(row) == 3 and row[0].endswith(".py") and not _LEFT_OUT.search(row[0])
        )
        packages[name] = Package(
            name=name,
            version=distribution.version,
            licence=licence(distribution.metadata),
            digest=_digest(rows),
            files={row[0]: Path(str(distribution.locate_file(row[0]))) for row in rows},
            size=sum(int(row[2] or 0) for row in rows),
        )
    return sorted(packages.values(), key=lambda package: package.name.lower())


def licence(metadata) -> str:
    """The licence in a distribution's metadata, in one line."""
    for key in ("License-Expression", "License"):
        text = (metadata[key] or "").strip()
        if text and len(text) < 100 and "\n" not in text:
            return text
    kinds = [c for c in metadata.get_all("Classifier") or [] if c.startswith("License")]
    return "; ".join(kind.split(" :: ")[-1] for kind in kinds) or "not stated"


def standard_library() -> Package:
    """Python's standard library; its digest covers file names, not contents."""
    root = Path(sysconfig.get_paths()["stdlib"])
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    files = {name: root / name for name in names if not _LEFT_OUT.search(name)}
    size = sum(path.stat().st_size for path in files.values())
    version = platform.python_version()
    return Package(
        name="Python",
        version=version,
        licence="PSF-2.0",
        digest=_digest(list(files)),
        files=files,
        size=size,
    )


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def harvest(packages: list[Package]) -> tuple[list[str], dict[str, int]]:
    """Returns the packages' English docstrings, sorted by package, and counts."""
    names = {
        f"{package.name}/{name}": path
        for package in packages
        for name, path in package.files.items()
    }
    workers = cores() if len(names) > 200 else 1
    groups = _groups(list(names.values()), 200)
    weights = itertools.chain.from_iterable(ordered_map(_weigh, groups, workers))
    chosen = _choose(list(names), list(weights))

    groups = _groups([names[name] for name in chosen], 25)
    results = itertools.chain.from_iterable(ordered_map(_parse, groups, workers))
    # A dict keeps the first of equal docstrings, in order.
    documents: dict[str, None] = {}
    invalid = 0
    for texts, is_invalid in results:
        invalid += is_invalid
        documents |= dict.fromkeys(filter(_is_english, texts))
    return list(documents), {"files": len(chosen), "skipped_files": invalid}


def _groups(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _weigh(paths: list[Path]) -> list[tuple[int, int]]:
    """(bytes, bytes between triple quotes) of each file; (0, 0) if it is left out.

    The quotes need not be docstrings: this only selects the files to parse.
    """
    weights = []
    for path in paths:
        try:
            raw = path.read_bytes() if path.stat().st_size <= FILE_BYTES else b""
        except OSError:
            raw = b""
        weights.append((len(raw), sum(map(len, raw.split(b'"""')[1::2]))))
    return weights


def _choose(names: list[str], weights: list[tuple[int, int]]) -> list[str]:
    """The files with the largest share of docstring, sorted by name."""
    shares = [
        (quoted / size, name, quoted)
        for name, (size, quoted) in zip(names, weights, strict=True)
        if quoted
    ]
    chosen, total = [], 0
    for _, name, quoted in sorted(shares, reverse=True):
        if total >= DOCSTRING_BYTES:
            break
        chosen.append(name)
        total += quoted
    return sorted(chosen)


def _parse(paths: list[Path]) -> list[Docstrings]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in the packages' source
        return [docstrings(path) for path in paths]


def docstrings(path: Path) -> Docstrings:
    """The docstrings of a file from top to bottom; none if its Python is invalid."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return Docstrings([], invalid=True)
    return Docstrings(list(_docstrings(tree)), invalid=False)


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> Iterator[str]:
    text = ast.get_docstring(node, clean=False)
    if text:
        # A lone surrogate ("\ud800") is valid in Python, but not in UTF-8.
        yield inspect.cleandoc(text).encode(errors="replace").decode()
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child)  # type: ignore[arg-type]


_WORD = re.compile(r"[A-Za-z]+")
_COMMON = frozenset(
    "a an and are as at be by can for from has if in is it its not of on or that the "
    "this to was when which will with you".split()
)


def _is_english(docstring: str) -> bool:
    """Whether a text has twelve words or more, and an eighth are common English."""
    words = _WORD.findall(docstring)
    common = sum(word.lower() in _COMMON for word in words)
    return len(words) >= 12 and common >= len(words) / 8
