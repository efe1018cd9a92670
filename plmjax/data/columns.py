"""The names of the columns of labelled data, by role."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ColumnsConfig:
    """The columns, or fields of a record, by role; without a header "1", "2", ..."""

    text: str = "text"
    # The second text, if any. choices: text put before each choice. embeddings: the
    # text that belongs to the first; None: "pair".
    pair: str | None = None
    negative: str | None = None  # embeddings: a hard negative
    # Relations: "start,end,start,end", the columns of the character positions of two
    # entities in the text, counted from 0, the end excluded.
    entities: str | None = None
    # multilabel: "a,b,c" are columns of 0 and 1.
    label: str = "label"
    # None: "tokens" and "tags"; CoNLL's first and last column; CoNLL-U's FORM, UPOS.
    tokens: str | None = None
    tags: str | None = None
    question: str = "question"
    context: str = "context"
    answers: str = "answers"
    choices: str = "choices"  # one column of lists, or "a,b,c", one per choice
    id: str | None = None  # None: "id" if there is one, else counted from 0
    group: str | None = None  # examples of one group stay on one side of a split

    def name(self, field: str) -> str:
        """Returns the column of a field: the one that is set, or the field's name."""
        chosen = getattr(self, field)
        return chosen if chosen is not None else field

    def names(self, field: str) -> list[str]:
        """Returns a field's columns; label, choices and entities may have several."""
        name = self.name(field)
        several = field in ("label", "choices", "entities") and "," in name
        return [one.strip() for one in name.split(",")] if several else [name]
