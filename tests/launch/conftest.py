"""Stand-ins for the tools that launch runs elsewhere: they note how they are called."""

import json
import os
import stat
from pathlib import Path

import pytest

_NOTE = """#!/usr/bin/env python3
import json, os, sys
with open({calls!r}, "a") as file:
    file.write(json.dumps([{name!r}, *sys.argv[1:]]) + "\\n")
sys.exit({code})
"""


class Tools:
    """A folder on PATH; `calls()` returns what was called, with its arguments."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._calls = folder / "calls.jsonl"

    def add(self, name: str, text: str | None = None, code: int = 0) -> Path:
        path = self.folder / name
        path.write_text(
            text or _NOTE.format(calls=str(self._calls), name=name, code=code)
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def calls(self) -> list[list[str]]:
        if not self._calls.exists():
            return []
        return [json.loads(line) for line in self._calls.read_text().splitlines()]


@pytest.fixture
def tools(tmp_path, monkeypatch) -> Tools:
    folder = tmp_path / "tools"
    folder.mkdir()
    # What this machine has of them is out of the way.
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return Tools(folder)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A directory to launch from, whose name shells and YAML do not like."""
    folder = tmp_path / 'a dir\'with "$HOME" # in it'
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
