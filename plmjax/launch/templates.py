"""Fills in the templates of launch/, and quotes the values.

A template is a complete file with {{words}} in it, so that a person can read it and
fill it in by hand. A line with a word that has no value is omitted; a line is repeated
for each value of a word that has several.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from plmjax import PlmjaxError

# A link to launch/ in a checkout, a folder in an installed package.
FOLDER = Path(__file__).parent / "templates"
_WORD = re.compile(r"\{\{([a-z_]+)\}\}")
# Characters that a line of YAML or of a shell script cannot hold: controls, line and
# paragraph separators, halves of surrogate pairs, and others that YAML forbids.
_UNWRITABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]"
)


def fill(template: str, values: Mapping[str, str | int | Sequence[str] | None]) -> str:
    """Returns the text of launch/TEMPLATE with the values, which must be quoted."""
    lines, used = [], set()
    for line in (FOLDER / template).read_text().splitlines():
        words = set(_WORD.findall(line))
        used |= words
        several = [w for w in words if isinstance(values[w], list | tuple)]
        assert len(several) < 2, f"{template}: two lists in one line"
        if any(values[word] is None for word in words):
            continue
        for item in values[several[0]] if several else [None]:  # type: ignore[union-attr]
            items = {word: values[word] if item is None else item for word in several}
            filled = {**values, **items}
            lines.append(_WORD.sub(lambda m, filled=filled: str(filled[m[1]]), line))
    assert used == values.keys(), f"{template}: {used ^ values.keys()}"
    return "\n".join(lines) + "\n"


def shell(text: str) -> str:
    """Returns the text quoted as one word of a shell."""
    return shlex.quote(writable(text))


def shell_line(words: Sequence[str]) -> str:
    """Returns the words quoted as a line of a shell."""
    return " ".join(map(shell, words))


def yaml(value: str | int | bool | Sequence[str]) -> str:
    """Returns a scalar or a list of scalars as YAML; JSON is YAML."""
    if isinstance(value, str):
        writable(value)
    elif not isinstance(value, int):
        value = [writable(text) for text in value]
    return json.dumps(value, ensure_ascii=False)


def yaml_or_none(value: str | int | None) -> str | None:
    """Returns the scalar as YAML, and None as None."""
    return None if value is None else yaml(value)


def writable(text: str) -> str:
    """Returns the text unchanged.

    Raises:
      PlmjaxError: it holds a character that a script or YAML cannot hold.
    """
    if (match := _UNWRITABLE.search(text)) is not None:
        raise PlmjaxError(
            f"{text!r} holds the character {match[0]!r}, which cannot be in a "
            "script for another machine.",
            hint="Put the value into a config file.",
        )
    return text
