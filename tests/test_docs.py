"""The docs tell the truth: keys and defaults, commands, links and files they name."""

import re
import shlex
from pathlib import Path

import pytest

from plmjax import config
from plmjax.cli import _parser
from plmjax.pretrain import EMBEDDED
from plmjax.train.workdir import MAY_CHANGE, RunConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIG = ROOT / "docs" / "config.md"
KEYS = dict(config.fields(RunConfig))

VERBS = "pretrain|evaluate|fill|export|import|bench"
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A key as the text names it: `train.steps`, --config.train.steps=5.
BLOCKS = "data|tokenizer|model|objective|train|mesh"
NAMED = re.compile(rf"(?:`|--config\.)((?:{BLOCKS})\.[a-z0-9_.]*[a-z0-9_])")
FILES = re.compile(r"\.(json|jsonl|py|md|txt|safetensors|npz|npy|png)$")


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def commands(page: Path) -> list[list[str]]:
    """Returns the arguments of each `plmjax ...` in code, blocks and inline alike."""
    lines = []
    for block in FENCE.findall(page.read_text()):
        lines += block.replace("\\\n", " ").splitlines()
    # Inline, a bare `plmjax export` is the verb's name and no command.
    inline = re.findall(rf"`(plmjax (?:{VERBS}) [^`]+)`", " ".join(prose(page).split()))
    found = []
    for line in lines + inline:
        if "plmjax" not in line:
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # Text in which an apostrophe opens no quotation.
            assert not line.lstrip().startswith("plmjax "), line
            continue
        command: list[str] | None = None
        before = [""]
        for word in words:
            starts = before[-1] in ("", "&&", ";") or "=" in before[-1]
            if word == "plmjax" and starts:
                found.append(command := [])
            elif word == "plmjax" and before[-2:] == ["python", "-m"]:
                found.append(command := [])
            elif set(word) <= set("&|;<>"):
                command = None
            elif command is not None:
                command.append(word)
            before.append(word)
    return found


COMMANDS = [
    pytest.param(page, command, id=f"{page.stem}: {' '.join(command)[:60]}")
    for page in PAGES
    for command in commands(page)
]


@pytest.mark.parametrize("page, command", COMMANDS)
def test_a_command_parses(page, command, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    overrides = [
        word.removeprefix("--config.")
        for word in command
        if word.startswith("--config.")
    ]
    rest = [word for word in command if not word.startswith("--config.")]
    try:
        args = _parser().parse_args(rest)
    except SystemExit as leaving:
        assert leaving.code == 0, f"{page.name}: {capsys.readouterr().err}"
        return
    if not hasattr(args, "config"):
        assert not overrides, f"`plmjax {args.verb}` takes no --config"
        return
    # A file of the reader's own is not here; one of ours must be.
    path = args.config
    if path and not path.startswith("configs/") and not Path(path).is_file():
        path = None
    # "..." stands for what the reader fills in.
    overrides = [override for override in overrides if not override.endswith("=...")]
    config.load(RunConfig, path, overrides, {} if args.config else EMBEDDED)


def test_there_are_commands_of_every_verb():
    verbs = {command.values[1][0] for command in COMMANDS if command.values[1]}
    assert verbs >= set(VERBS.split("|"))


def test_every_key_stands_in_the_table_with_its_type_and_default():
    rows = re.findall(
        r"^\| `([a-z0-9_.]+)` \| (.+?) \| `(.*?)` \| .+ \|$",
        CONFIG.read_text(),
        re.MULTILINE,
    )
    table = {key: (kind, default.replace("\\|", "|")) for key, kind, default in rows}
    assert len(table) == len(rows), "a key stands there twice"
    values = config.flatten(config.to_dict(RunConfig()))
    expected = {
        key: (
            config.describe(kind).replace(" | ", ", "),
            "none" if values[key] is None else str(values[key]),
        )
        for key, kind in KEYS.items()
    }
    assert table == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_a_key_that_does_not_exist(page):
    named = set(NAMED.findall(page.read_text()))
    blocks = {key.rsplit(".", 1)[0] for key in KEYS}
    # What the store and the code call their files is no key.
    named = {name for name in named if not FILES.search(name)}
    assert named <= KEYS.keys() | blocks, named - KEYS.keys() - blocks


def test_what_may_change_is_listed():
    text = CONFIG.read_text()
    section = text.split("## What may change")[1].split("\n## ")[0]
    paragraph = section.split("printed:")[1].split("With any other")[0]
    assert set(re.findall(r"`([a-z_.]+)`", paragraph)) == set(MAY_CHANGE)


def slug(heading: str) -> str:
    """Returns the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_are_there(page):
    text = prose(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists() and file.is_relative_to(ROOT), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(file), re.MULTILINE)
            assert anchor in map(slug, headings), target
    for name in re.findall(r"`((?:docs|tests|plmjax|configs)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"(?<![\w/])configs/[\w/]+\.py", page.read_text()):
        assert (ROOT / name).is_file(), name
