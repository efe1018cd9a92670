"""The docs tell the truth: keys and defaults, commands, links and files they name."""

import importlib
import re
import shlex
import typing
from pathlib import Path

import pytest
from finetune_common import records, write

from plmjax import config
from plmjax.cli import main, recipes
from plmjax.cli.parser import make_parser
from plmjax.experiments import sweep_plan as plan
from plmjax.finetune.config import FinetuneConfig
from plmjax.pretrain.run import DEFAULT_CONFIG
from plmjax.tasks.config import TaskConfig
from plmjax.workdir import MAY_CHANGE, RunConfig

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "launch" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
CONFIG = ROOT / "docs" / "config.md"
KEYS = dict(config.fields(RunConfig))
ALL_KEYS = KEYS | dict(config.fields(FinetuneConfig))

VERBS = (
    "pretrain|finetune|compare|pseudo|predict|evaluate|fill|next|detect|embed|export|"
    "import|extend|sweep|launch|doctor|bench|data|tokenizer|serve|compress|config|"
    "report|repro"
)
PROGRAMS = {
    f"benchmarks/{name}.py"
    for name in ("attention", "bytes", "device", "embed", "peer", "prepare", "scaling")
}
PROGRAMS |= {"benchmarks/serve.py"}
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A key as the text names it: `train.steps`, --config.train.steps=5.
BLOCKS = "data|tokenizer|model|objective|train|mesh|card"
NAMED = re.compile(rf"(?:`|--config\.)((?:{BLOCKS})\.[a-z0-9_.]*[a-z0-9_])")
FILES = re.compile(r"\.(csv|json|jsonl|py|md|txt|safetensors|npz|npy|png)$")


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def commands(page: Path) -> list[list[str]]:
    """Returns the arguments of each `plmjax ...` in code, blocks and inline alike.

    Of `python benchmarks/NAME.py ...`, the file is the first of them.
    """
    lines = []
    for block in FENCE.findall(page.read_text()):
        lines += block.replace("\\\n", " ").splitlines()
    # Inline, a bare `plmjax export` is the verb's name and no command.
    verbs = re.sub(r"(data|tokenizer)", r"\1 [a-z]+", VERBS)
    words = rf"`(plmjax (?:{verbs}) [^`]+|python benchmarks/[^`]+)`"
    inline = re.findall(words, " ".join(prose(page).split()))
    found = []
    for line in lines + inline:
        if "plmjax" not in line and "benchmarks/" not in line:
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
            elif word.startswith("benchmarks/") and before[-1] == "python":
                found.append(command := [word])
            elif word == "plmjax" and before[-2:] == ["python", "-m"]:
                found.append(command := [])
            elif set(word) <= set("&|;<>"):
                command = None
            elif word == "--" and command is not None:
                found.append(command := [])  # what `plmjax launch` starts
            elif command is not None:
                command.append(word)
            before.append(word)
    return found


COMMANDS = [
    pytest.param(page, command, id=f"{page.stem}: {' '.join(command)[:60]}")
    for page in PAGES
    for command in commands(page)
]


def is_ours(file: str) -> bool:
    """Whether FILE[:argument] is a recipe or a file in the checkout."""
    name = file.partition(":")[0]
    return name in config.recipes() or Path(name).is_file()


@pytest.mark.parametrize("page, command", COMMANDS)
def test_a_command_parses(page, command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    if command[:1] and command[0].startswith("benchmarks/"):
        importlib.import_module(Path(command[0]).stem).make_parser().parse_args(
            command[1:]
        )
        return
    overrides = [
        word.removeprefix("--config.")
        for word in command
        if word.startswith("--config.")
    ]
    prefix = "--pretrain."
    pretraining = [w.removeprefix(prefix) for w in command if w.startswith(prefix)]
    own = ("--config.", prefix)
    rest = [word for word in command if not word.startswith(own)]
    try:
        args = make_parser().parse_args(rest)
    except SystemExit as leaving:
        assert leaving.code == 0, f"{page.name}: {capsys.readouterr().err}"
        return
    if not hasattr(args, "config"):
        assert not overrides, f"`plmjax {args.verb}` has no --config"
        return
    # A file of the reader's own is not here; one of ours must be.
    path = args.config and recipes.resolve(args.config, args.verb)
    if path and not path.startswith("configs/") and not is_ours(path):
        path = None
    # "..." stands for what the reader fills in.
    overrides = [override for override in overrides if not override.endswith("=...")]
    if args.verb == "sweep":
        assert path, "a sweep is a file of ours"
        if any(override.startswith("model=") for override in overrides):
            train = write(tmp_path / "train.jsonl", records("classes", 40))
            overrides += [f"model={tmp_path}", f"task.train={train}"]
        plan.load(path, overrides)
        return
    if pretraining:
        assert args.pretrain, "--pretrain.KEY goes with --pretrain=FILE"
        plan.load(recipes.resolve(args.pretrain, "sweep"), pretraining, args.seeds)
    if args.verb in ("finetune", "compare", "pseudo"):
        tasks = (getattr(args, "tasks", None) or "").split(",")
        tasks = [recipes.resolve(task, "finetune") for task in tasks]
        for file in [task for task in tasks if is_ours(task)] or [path]:
            config.load(FinetuneConfig, file, overrides)
    elif args.verb == "predict":
        config.load(TaskConfig, path, overrides)
    else:
        config.load(RunConfig, path, overrides, {} if args.config else DEFAULT_CONFIG)


def test_there_are_commands_of_every_verb():
    verbs = {command.values[1][0] for command in COMMANDS if command.values[1]}
    assert verbs >= set(VERBS.split("|")) | PROGRAMS


def test_every_key_of_fine_tuning_stands_in_its_table():
    """With its type, range and default; of training those with another default."""
    page = ROOT / "docs" / "finetuning.md"
    usual = expected(RunConfig)
    shared = {k: v for k, v in usual.items() if k.startswith(("train.", "mesh."))}
    wanted = expected(FinetuneConfig)
    assert tables(page)[""] == dict(wanted.items() - shared.items())


def tables(page: Path = CONFIG) -> dict[str, dict[str, tuple[str, str]]]:
    """{heading: {key: (types; range, default)}}; the first table has no heading."""
    found = {}
    _, _, every = page.read_text().partition("\n## Every key\n")
    for section in re.split(r"^### ", "\n" + every, flags=re.MULTILINE):
        heading = section.partition("\n")[0].replace("`", "")
        rows = re.findall(
            r"^\| `([a-z0-9_.]+)` \| (.+?) \| `(.*?)` \| .+ \|$", section, re.MULTILINE
        )
        found[heading] = {
            key: (kind, default.replace("\\|", "|")) for key, kind, default in rows
        }
        assert len(found[heading]) == len(rows), "a key stands there twice"
    return found


def expected(schema: type, prefix: str = "") -> dict[str, tuple[str, str]]:
    """{key: (types; range, default)} of a schema, of unions the first."""
    block = {prefix.rstrip("."): config.to_dict(schema())} if prefix else None
    values = config.flatten(block or config.to_dict(schema()))
    limits = config.ranges(schema, prefix)
    return {
        key: (
            config.describe(kind).replace(" | ", ", ")
            + (f"; {limits[key]}" if key in limits else ""),
            "none" if values[key] is None else str(values[key]),
        )
        for key, kind in config.fields(schema, prefix)
        if key in values
    }


def test_every_key_stands_in_the_table_with_its_type_range_and_default():
    own = {key for key in KEYS if key.startswith("objective.")} - {"objective.kind"}
    wanted = {k: v for k, v in expected(RunConfig).items() if k not in own}
    assert tables()[""] == wanted


def test_every_objective_has_its_table():
    """What a kind has is its own table laid over that of the masks, if it has masks."""
    found = {heading: rows for heading, rows in tables().items() if heading}
    kinds = config.variants(typing.get_type_hints(RunConfig)["objective"])
    (masks,) = (heading for heading in found if heading.startswith("Masks: "))
    masked = masks.removeprefix("Masks: ").split(", ")
    assert found.keys() - {masks} == {f"objective.kind={kind}" for kind in kinds}
    for kind, schema in kinds.items():
        own = found[f"objective.kind={kind}"]
        shared = found[masks] if kind in masked else {}
        assert not own.items() & shared.items(), f"{kind} repeats what masks have"
        wanted = expected(schema, "objective.")
        del wanted["objective.kind"]
        assert shared | own == wanted, kind


@pytest.mark.parametrize("kind", ["mlm", "clm", "electra", "distill"])
def test_show_config_prints_the_keys_of_the_kind(kind, capsys):
    override = f"--config.objective.kind={kind}"
    assert main(["pretrain", "--show_config", override]) == 0
    shown = re.findall(r"^([a-z0-9_.]+) = ", capsys.readouterr().out, re.MULTILINE)
    schema = config.variants(typing.get_type_hints(RunConfig)["objective"])[kind]
    others = [key for key in KEYS if not key.startswith("objective.")]
    assert sorted(shown) == sorted([*others, *expected(schema, "objective.")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_a_key_that_does_not_exist(page):
    named = set(NAMED.findall(page.read_text()))
    blocks = {key.rsplit(".", 1)[0] for key in ALL_KEYS}
    # What the store and the code call their files is no key.
    named = {name for name in named if not FILES.search(name)}
    assert named <= ALL_KEYS.keys() | blocks, named - ALL_KEYS.keys() - blocks


def test_what_may_change_is_listed():
    text = CONFIG.read_text()
    section = text.split("## What may change")[1].split("\n## ")[0]
    paragraph = section.split("printed:")[1].split("With any other")[0]
    assert set(re.findall(r"`([a-z0-9_.]+)`", paragraph)) == set(MAY_CHANGE)


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
    folders = "docs|tests|plmjax|configs|benchmarks"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"(?<![\w/])configs/[\w/]+\.py", page.read_text()):
        assert (ROOT / name).is_file(), name


def test_the_map_of_the_house_names_every_room():
    (tree,) = (b for b in FENCE.findall(PAGES[0].read_text()) if "\n  cli/" in b)
    named = {line.split()[0] for line in tree.splitlines() if line.startswith("  ")}
    package = ROOT / "plmjax"
    rooms = {f"{p.parent.name}/" for p in package.glob("*/__init__.py")}
    assert rooms | {p.name for p in package.glob("*.py")} - {"__main__.py"} <= named


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
