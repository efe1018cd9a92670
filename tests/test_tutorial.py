"""The tutorial's commands run, one after the other, on small text; the site builds."""

import re
import shlex
from pathlib import Path

import pytest
from finetune_common import records

from plmjax.cli import main

ROOT = Path(__file__).parents[1]
# What makes the commands of docs/tutorial.md small: {what it says: what is run}.
SMALLER = {
    "--sizes=2000,4000,8000": "--sizes=300,400",
    "--size=8000": "--size=400",
    "--steps=2000": "--steps=3 --config.model.layers=1 --config.model.width=32 "
    "--config.model.heads=2 --config.model.ffn_width=32 --config.train.batch=2",
    "--config.task.train=": "--config.train.epochs=1 --config.baselines=False "
    "--config.task.train=",
}


@pytest.mark.slow
def test_every_command_of_the_tutorial_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for page in ("data", "model", "training"):
        text = (ROOT / "docs" / f"{page}.md").read_text()
        (tmp_path / "texts" / f"{page}.txt").write_text(text)
    for part in ("train", "test"):
        rows = [f'"{r["text"]}",{r["label"]}\n' for r in records("classes", 24)]
        (tmp_path / f"{part}.csv").write_text("text,label\n" + "".join(rows))
    page = (ROOT / "docs" / "tutorial.md").read_text()
    commands = re.findall(r"^```sh\nplmjax (.*?)^```", page, re.M | re.S)
    commands = [line for block in commands for line in block.split("\nplmjax ")]
    assert len(commands) > 10
    for command in commands:
        for text, smaller in SMALLER.items():
            command = command.replace(text, smaller)
        assert main(shlex.split(command)) == 0, command


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    build = pytest.importorskip("mkdocs.commands.build")
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path))
    # Strict: a link to no page, or to no heading, ends the build.
    build.build(config)
    pages = [*tmp_path.rglob("*.html")]
    assert len(pages) > 30
    for page in pages:
        loads = re.findall(
            r"<(?:script|link|img)[^>]+(?:src|href)=\"?(https?:[^\" >]+)",
            page.read_text(),
        )
        assert not loads, page
