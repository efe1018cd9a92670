"""What cleaning did to a corpus: events of documents, and the report of all."""

import dataclasses
from typing import Any, NamedTuple

from plmjax import DataError, counted
from plmjax.data.clean import STEPS, CleanConfig
from plmjax.data.corpus import Source
from plmjax.data.rules import LIMITS, LINES

EXAMPLES = 2  # of each rule
_EXCERPT, _BEFORE = 100, 30  # characters of an example; those before what changed
MOST_DROPPED = 0.5  # of the documents; more is remarked on


class Event(NamedTuple):
    """What a step did to a document, with excerpts.

    `after` is the changed text, or the earlier document that a dropped one repeats.
    """

    step: str
    reason: str
    dropped: bool
    before: str
    after: str = ""


class Cleaned(NamedTuple):
    """A document after some steps; `kept` or dropped by the last of its events."""

    text: str
    kept: bool
    events: tuple[Event, ...] = ()


def excerpt(text: str, begin: int = 0) -> str:
    """Returns some characters of a text on one line."""
    begin = max(begin - _BEFORE, 0)
    return " ".join(text[begin : begin + _EXCERPT].split())


class Report:
    """Counts the events of all documents; `content` is ready for JSON."""

    def __init__(self, config: CleanConfig):
        self.content: dict[str, Any] = {
            "config": dataclasses.asdict(config),
            "documents": 0,
            "steps": {
                name: {"dropped": 0, "changed": 0, "rules": {}}
                for name in STEPS
                if name in config.steps
            },
        }

    def add(self, number: int, document: Cleaned, first: bool = False) -> None:
        """Counts what happened to a document, which `first` counts as read."""
        self.content["documents"] += first
        changed = set()
        for event in document.events:
            step = self.content["steps"][event.step]
            rules = event.reason.partition(":")[0].split(", ")
            which = "dropped" if event.dropped else "changed"
            if (event.step, which) not in changed:
                step[which] += 1
            changed.add((event.step, which))
            for rule in rules[:1] if event.dropped else rules:
                counts = step["rules"].setdefault(
                    rule, {"dropped": 0, "changed": 0, "examples": []}
                )
                counts[which] += 1
                # An excerpt is of one change, which need not be of each rule.
                alone = event.dropped or len(rules) == 1
                if alone and len(counts["examples"]) < EXAMPLES:
                    example = {"document": number, **event._asdict()}
                    counts["examples"].append(example)

    def finish(self, source: Source, documents: int, characters: int) -> None:
        """Adds what is left, and remarks on steps that drop most of the documents.

        Raises:
          PlmjaxError: nothing is left.
        """
        total, remarks = self.content["documents"], []
        for name, step in self.content["steps"].items():
            if step["dropped"] > MOST_DROPPED * total:
                rules = step["rules"].items()
                rule, counts = max(rules, key=lambda item: item[1]["dropped"])
                hint = f"--without={rule} leaves it out."
                if rule not in (*LIMITS, *LINES):
                    hint = f"Is the step {name} meant for this text?"
                elif rule == "gopher-stop-words":
                    hint = f"It is for English; {hint}"
                elif rule == "gopher-words":
                    ends = source.description.get("document")
                    hint = f"A document is a {ends or 'record'} here; {hint}"
                remarks.append(
                    f"{name} dropped {step['dropped'] / total:.0%} of the documents, "
                    f"most by {rule} ({counts['dropped']:,}). {hint}"
                )
        if not documents:
            raise DataError(
                f"no document of {counted(total, 'document')} is left.",
                hint=" ".join(remarks) or "Choose fewer --steps.",
            )
        self.content |= {
            "kept": {"documents": documents, "characters": characters},
            "source": source.description,
            "remarks": remarks,
        }
