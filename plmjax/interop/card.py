"""The README.md of an exported folder: what the model is, from what, and how good."""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from plmjax import __version__
from plmjax.data.tasks import TaskKind

_SECRET = re.compile(
    r"(.*[_.-])?(key|secret|password|passwd|credentials?)"
    r"|(.*[_.-])?(access|api|auth|bearer|hf|private)[_.-]?token|token",
    re.IGNORECASE,
)
# A path from a root, a home or a drive. Slashes inside a word or an address stay.
_ROOT = r"(?:~|\.{1,2}|[A-Za-z]:)?[/\\]"
_PATH = re.compile(rf"(?<![\w:/.*<]){_ROOT}(?:[^\s,;:'\"|/\\]+[/\\]?)+")
_USER = re.compile(r"(?<=://)[^/\s@]+@")


class _Task(NamedTuple):
    """What cards of one kind of model say."""

    pipeline: str | None
    objective: str
    use: str
    limit: str


_TASKS = {
    "masked-lm": _Task(
        "fill-mask",
        "masked language modelling (Devlin et al. 2018, arXiv:1810.04805)",
        "It fills in masked words, and is a starting point for fine-tuning.",
        "It was trained to fill in blanks; it neither writes nor answers.",
    ),
    "causal-lm": _Task(
        "text-generation",
        "predicting the next token (Radford et al. 2019)",
        "It continues a text, and is a starting point for fine-tuning.",
        "It continues a text as its own text would go on; what it writes need not be "
        "true.",
    ),
    "detector": _Task(
        None,
        "replaced token detection (ELECTRA; Clark et al. 2020, arXiv:2003.10555)",
        "It tells which words of a text were replaced, and is a starting point for "
        "fine-tuning.",
        "It was trained to tell replaced words; it neither fills in blanks nor writes.",
    ),
    "encoder": _Task(
        "feature-extraction",
        "self-supervision",
        "It has no head: it gives a vector for each token, and is a starting point for "
        "fine-tuning.",
        "It decides nothing by itself; a head must be trained on it.",
    ),
}


_FOLLOWS = "It says of new texts like those it learned from what their labels might be."
_WRONG = "Its labels are guesses; how often they are right is in the figures alone."
_FINE_TUNED = {
    kind: _Task(pipeline, "labels", use, limit)
    for kind, pipeline, use, limit in (
        ("classes", "text-classification", _FOLLOWS, _WRONG),
        ("multilabel", "text-classification", _FOLLOWS, _WRONG),
        (
            "regression",
            "text-classification",
            "It gives a text a number.",
            "Its numbers are guesses; how near they are is in the figures alone.",
        ),
        ("tags", "token-classification", "It gives each word a tag.", _WRONG),
        (
            "answers",
            "question-answering",
            "It finds the answer to a question in a text.",
            "It only cuts out of the text; what it gives may be no answer.",
        ),
        (
            "choices",
            None,
            "It says which of several continuations or answers fits best.",
            "It must choose one, even where none is right.",
        ),
    )
}
_FINE_TUNED["embeddings"] = _Task(
    "sentence-similarity",
    "pairs of texts that belong together",
    "It gives a text a vector, which is near to those of texts that belong to it.",
    "What is near need not mean the same; how often it is right is in the figures.",
)
_TASKS |= _FINE_TUNED


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """What a model card tells, as plain values.

    `task` is what the model can do as it is, and `objective` what it was trained by, if
    that is not the task's usual objective. `data` is the description of a data source
    (`kind`, files or packages, counts); `recipe` holds the config's values by name,
    nested as they are; each of `figures` is (name, value, how it was measured).
    `language` is an ISO 639 code and `licence` an SPDX identifier, if known.
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
    task: Literal["masked-lm", "causal-lm", "detector", "encoder"] | TaskKind = (
        "masked-lm"
    )
    objective: str | None = None


def model_card(facts: CardFacts) -> str:
    """Returns README.md in Markdown, front matter included.

    Paths appear by their last part only, and values whose name says that they are
    secret do not appear.
    """
    task = _TASKS[facts.task]
    sections = [
        _front_matter(facts),
        f"# {_clean(facts.name)}",
        f"A {_clean(facts.family)} model of {facts.parameters:,} parameters, "
        f"{'fine-tuned' if facts.task in _FINE_TUNED else 'pretrained'} by "
        f"{_clean(facts.objective or task.objective)} with plmjax "
        f"{__version__}. {task.use}",
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
                task.limit,
                "The figures hold for text like its own, measured as they say.",
                *facts.limitations,
            )
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(facts: CardFacts) -> str:
    lines, pipeline = ["library_name: transformers"], _TASKS[facts.task].pipeline
    if pipeline:
        lines.append(f"pipeline_tag: {pipeline}")
    # JSON strings are YAML strings; nothing in a name can break out of them.
    if facts.language:
        lines.append(f"language: {json.dumps(facts.language)}")
    if facts.licence:
        lines.append(f"license: {json.dumps(facts.licence)}")
    lines += ["tags:", "- plmjax", f"- {facts.task}", f"- {json.dumps(facts.family)}"]
    return "\n".join(["---", *lines, "---"])


def _loading(facts: CardFacts) -> str:
    imports, lines = _snippet(facts)
    code = "\n".join(
        [
            *imports,
            "",
            'folder = "PATH/TO/THIS/FOLDER"',
            "tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)",
            *lines,
        ]
    )
    return f"With this folder at hand, nothing is fetched:\n\n```python\n{code}\n```"


def _snippet(facts: CardFacts) -> tuple[list[str], list[str]]:
    """Returns the imports, and what follows the tokenizer."""
    if facts.task == "masked-lm":
        return _loader("AutoModelForMaskedLM", "pipeline"), [
            _load("AutoModelForMaskedLM"),
            'fill = pipeline("fill-mask", model=model, tokenizer=tokenizer)',
            f'print(fill("The {_clean(facts.mask_token)} of a matrix."))',
        ]
    if facts.task == "causal-lm":
        return _loader("AutoModelForCausalLM", "pipeline"), [
            _load("AutoModelForCausalLM"),
            'write = pipeline("text-generation", model=model, tokenizer=tokenizer)',
            'print(write("The rows of a matrix", max_new_tokens=20))',
        ]
    if facts.task in _USES:
        return _use(facts.task)
    if facts.task == "embeddings":
        return _vectors(facts.data.get("pooling") == "cls")
    rows = 'rows = tokenizer("The rows of a matrix are cows.", return_tensors="pt")'
    if facts.task == "encoder":
        return _loader("AutoModel"), [
            _load("AutoModel"),
            rows,
            "print(model(**rows).last_hidden_state)",
        ]
    show = [
        'for token, score in zip(rows["input_ids"][0], scores[0]):',
        "    print(tokenizer.decode(token), score.sigmoid().item())",
    ]
    if facts.family == "electra":
        return _loader("ElectraForPreTraining"), [
            _load("ElectraForPreTraining"),
            rows,
            "scores = model(**rows).logits",
            *show,
        ]
    return [
        "from safetensors.torch import load_file",
        *_loader("AutoModel"),
        "from transformers.activations import ACT2FN",
    ], [
        _load("AutoModel"),
        "# transformers has no class for this head, so that it stands in its own file.",
        'found = load_file(f"{folder}/detector_head.safetensors")',
        "head = {name.split('.', 1)[1]: array for name, array in found.items()}",
        rows,
        "states = model(**rows).last_hidden_state",
        'states = states @ head["dense.weight"].T + head["dense.bias"]',
        "states = ACT2FN[model.config.hidden_act](states)",
        'scores = states @ head["dense_prediction.weight"][0]',
        'scores = scores + head["dense_prediction.bias"]',
        *show,
    ]


_USES = {
    "classes": ("SequenceClassification", 'print(run("A text like those it saw."))'),
    "multilabel": (
        "SequenceClassification",
        'print(run("A text like those it saw.", top_k=None))',
    ),
    "regression": (
        "SequenceClassification",
        'print(run("A text like those it saw.", function_to_apply="none"))',
    ),
    "tags": ("TokenClassification", 'print(run("A text like those it saw."))'),
    "answers": (
        "QuestionAnswering",
        'print(run(question="Who sat?", context="The cat sat on the mat."))',
    ),
    "choices": ("MultipleChoice", ""),
}


def _use(task: str) -> tuple[list[str], list[str]]:
    name, line = _USES[task]
    loader = f"AutoModelFor{name}"
    pipeline = _TASKS[task].pipeline
    if pipeline is None:
        return _loader(loader), [
            _load(loader),
            'first, choices = "It rains.", ["It is wet.", "It is dry."]',
            'rows = tokenizer([first] * 2, choices, padding=True, return_tensors="pt")',
            "rows = {name: values[None] for name, values in rows.items()}",
            "print(model(**rows).logits.softmax(-1))",
        ]
    return _loader(loader, "pipeline"), [
        _load(loader),
        f'run = pipeline("{pipeline}", model=model, tokenizer=tokenizer)',
        line,
    ]


def _vectors(first: bool) -> tuple[list[str], list[str]]:
    """Of the first token, or the mean over all of them but padding."""
    if first:
        lines = ["vectors = states[:, 0]"]
    else:
        lines = [
            'real = rows["attention_mask"][:, :, None]',
            "vectors = (states * real).sum(1) / real.sum(1)",
        ]
    return _loader("AutoModel"), [
        _load("AutoModel"),
        'texts = ["The rows of a matrix", "Lines of numbers"]',
        'rows = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")',
        "states = model(**rows).last_hidden_state",
        *lines,
        "vectors = vectors / vectors.norm(dim=1, keepdim=True)",
        "print(vectors @ vectors.T)  # cosines",
    ]


def _loader(*names: str) -> list[str]:
    return [f"from transformers import {', '.join(sorted([*names, 'AutoTokenizer']))}"]


def _load(name: str) -> str:
    return f"model = {name}.from_pretrained(folder, local_files_only=True)"


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
