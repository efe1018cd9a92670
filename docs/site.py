"""Hooks of mkdocs: pages of the repository's other folders, and a reference that is
made from the code.
"""

import inspect
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

from plmjax import api
from plmjax import config as config_lib
from plmjax.cli.parser import make_parser
from plmjax.finetune.config import FinetuneConfig
from plmjax.workdir import RunConfig

ROOT = Path(__file__).parents[1]
# {a file of the repository: its page}.
OUTSIDE = {
    "README.md": "about.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "launch/README.md": "launchers.md",
    "launch/container/README.md": "container.md",
}
_SOURCE = {page: file for file, page in OUTSIDE.items()}
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#:]*)(#[^)]*)?\)")


def on_files(files, config):
    """Adds the pages that are not in docs/."""
    made = {page: (ROOT / file).read_text() for file, page in OUTSIDE.items()}
    made |= {"reference/commands.md": _commands(), "reference/keys.md": _keys()}
    made["reference/python.md"] = _functions()
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links to files of the repository into links to pages, or into names."""
    here = page.file.src_uri
    folder = posixpath.dirname(_SOURCE.get(here, f"docs/{here}"))

    def link(match: re.Match) -> str:
        text, target, anchor = match.group(1), match.group(2), match.group(3) or ""
        if not target:
            return match.group()
        file = posixpath.normpath(posixpath.join(folder, target))
        name = OUTSIDE.get(file) or file.removeprefix("docs/")
        if not files.get_file_from_path(name):
            return text
        return f"[{text}]({posixpath.relpath(name, posixpath.dirname(here))}{anchor})"

    return _LINK.sub(link, markdown)


def _commands() -> str:
    """Returns a page with the help of every verb."""
    parts = ["# Commands\n\nWhat `plmjax VERB --help` prints."]
    for parser in _leaves(make_parser()):
        parts.append(f"## {parser.prog}\n\n```text\n{parser.format_help()}```")
    return "\n\n".join(parts) + "\n"


def _leaves(parser):
    """Yields the parsers of verbs; of `plmjax data`, those of its verbs."""
    verbs = [a for a in parser._actions if isinstance(a.choices, dict)]
    if not verbs:
        yield parser
    for action in verbs:
        for choice in action.choices.values():
            yield from _leaves(choice)


def _functions() -> str:
    """Returns a page with the functions of plmjax.api, as their docstrings tell."""
    parts = ["# Python\n\n[api.md](../api.md) shows how to use these."]
    for name, value in vars(api).items():
        if getattr(value, "__module__", "") != api.__name__ or name.startswith("_"):
            continue
        methods = vars(value).items() if isinstance(value, type) else ()
        shown = [(name, value), *((f"{name}.{n}", f) for n, f in methods)]
        for title, each in shown:
            if inspect.getdoc(each) and not title.rpartition(".")[2].startswith("_"):
                given = inspect.signature(each) if callable(each) else ""
                text = inspect.cleandoc(each.__doc__ or "")
                parts.append(f"## {title}\n\n```text\n{title}{given}\n\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def _keys() -> str:
    """Returns a page with every key of both kinds of runs."""
    parts = ["# Keys\n\nEvery key; [config.md](../config.md) explains them."]
    for title, schema in (("pretrain", RunConfig), ("finetune", FinetuneConfig)):
        values = config_lib.flatten(config_lib.to_dict(schema()))
        limits = config_lib.ranges(schema, "")
        rows = [
            f"| `{key}` | {config_lib.describe(kind)} | {limits.get(key, '')} "
            f"| `{values[key]}` |".replace(" | None", ", None")
            for key, kind in config_lib.fields(schema, "")
            if key in values
        ]
        head = "| key | type | range | default |\n|---|---|---|---|"
        parts.append("\n".join([f"## plmjax {title}\n", head, *rows]))
    return "\n\n".join(parts) + "\n"
