"""The README.md of an exported folder: what the model is, from what, and how good."""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from plmjax import __version__

_SECRET = re.compile(
    r"(.*[_.-])?(key|secret|password|passwd|credentials?)"
    r"|(.*[_.-])?(access|api|auth|bearer|hf|private)[_.-]?token|token",
    re.IGNORECASE,
)
# A path from a root, a home or a drive. Slashes inside a word or an address stay.
_ROOT = r"(?:~|\.{1,2}|[A-Za-z]:)?[/\\]"
_PATH = re.compile(rf"(?<![\w:/.*<]){_ROOT}(?:[^\s,;:'\"|/\\]+[/\\]?)+")
_USER = re.compile(r"(?<=://)[^/\s@]+@")


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """What a model card tells, as plain values.

    `data` is the description of a data source (`kind`, files or packages, counts);
    `recipe` holds the config's values by name, nested as they are; each of `figures` is
    (name, value, how it was measured). `language` is an ISO 639 code and `licence` an
    SPDX identifier, if known.
    """

    name: str
    family: str
    parameters: int
    mask_token: str
    data: Mapping[str, Any]
    recipe: Mapping[str, Any]
    figures: Sequence[tuple[str, float | str, str]]
    language: str | None = None
    licence: str | None = None
    # Beyond those that hold for every such model.
    limitations: Sequence[str] = ()


def model_card(facts: CardFacts) -> str:
    """Returns README.md in Markdown, front matter included.

    Paths appear by their last part only, and values whose name says that they are
    secret do not appear.
    """
    sections = [
        _front_matter(facts),
        f"# {_clean(facts.name)}",
        f"A {_clean(facts.family)} encoder of {facts.parameters:,} parameters, "
        f"pretrained by masked language modelling with plmjax {__version__}. It fills "
        "in masked words, and is a starting point for fine-tuning.",
        "## How to load it",
        _loading(facts),
        "## Data",
        *_data(facts.data),
        "## Recipe",
        _table(["setting", "value"], _flat(facts.recipe)),
        "## Figures",
        _table(
            ["figure", "value", "how it was measured"],
            [(name, _number(value), how) for name, value, how in facts.figures],
        )
        if facts.figures
        else "None were measured.",
        "## Limitations",
        "\n".join(
            f"- {_clean(line)}"
            for line in (
                "It repeats the views, errors and gaps of the text above.",
                "It was trained to fill in blanks; it neither writes nor answers.",
                "The figures hold for text like its own, measured as they say.",
                *facts.limitations,
            )
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(facts: CardFacts) -> str:
    lines = ["library_name: transformers", "pipeline_tag: fill-mask"]
    # JSON strings are YAML strings; nothing in a name can break out of them.
    if facts.language:
        lines.append(f"language: {json.dumps(facts.language)}")
    if facts.licence:
        lines.append(f"license: {json.dumps(facts.licence)}")
    lines += ["tags:", "- plmjax", "- masked-lm", f"- {json.dumps(facts.family)}"]
    return "\n".join(["---", *lines, "---"])


def _loading(facts: CardFacts) -> str:
    return f"""\
With this folder at hand, nothing is fetched:

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

folder = "PATH/TO/THIS/FOLDER"
tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
model = AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True)
fill = pipeline("fill-mask", model=model, tokenizer=tokenizer)
print(fill("The {_clean(facts.mask_token)} of a matrix."))
```"""


def _data(data: Mapping[str, Any]) -> Iterable[str]:
    rest = dict(data)
    if packages := rest.pop("packages", None):
        yield (
            "The text is the documentation strings (docstrings) of the Python packages "
            "that were installed on the training machine, each under its package's "
            "licence; no other text was used. The packages, with their versions and "
            "licences:"
        )
        yield _table(
            ["package", "version", "licence"],
            [(p["name"], p["version"], p["licence"] or "unknown") for p in packages],
        )
    yield _table(["property", "value"], _flat(rest))


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Rows of dotted name and value; secrets are withheld."""
    rows = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += _flat(value, f"{name}.")
        elif _SECRET.fullmatch(str(key)) and isinstance(value, str):
            rows.append((name, "(withheld)"))
        else:
            rows.append((name, _plain(value)))
    return rows


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return ", ".join(str(_plain(item)) for item in value)
    if isinstance(value, str):
        # Whole paths, which may hold blanks; `_clean` finds those inside of sentences.
        parts = [part.strip() for part in value.split(",")]
        return ", ".join(_base_name(p) if re.match(_ROOT, p) else p for p in parts)
    return _number(value)


def _number(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "none" if value is None else value


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(x) for x in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return _clean(str(value)).replace("|", "\\|")


def _clean(text: str) -> str:
    """One line, without whoever signs in and where the files lie on this machine."""
    text = _USER.sub("", " ".join(text.split()))
    return _PATH.sub(lambda path: _base_name(path[0]), text)


def _base_name(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
