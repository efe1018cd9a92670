"""The README.md of an exported folder: the model, its training data and its scores."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from string import Template
from typing import Any

from plmjax import PlmjaxError, __version__, with_article
from plmjax.data.corpus import RIGHTS
from plmjax.interop.config_keys import KEYS
from plmjax.interop.task_names import CLASSES
from plmjax.models import EncoderConfig
from plmjax.models.global_tokens import USUAL
from plmjax.tasks import KINDS
from plmjax.tasks.base import CardText

# Rows of the table of the data whose names in a manifest say little.
_PROPERTIES = {"kind": "format", "why": "how documents were found"}
_PROPERTIES |= {"license": "licence of the text", "url": "where the text is from"}
_PROPERTIES |= {"rights": "rights in the text"}
_SECRET = re.compile(
    r"(.*[_.-])?(key|secret|password|passwd|credentials?)"
    r"|(.*[_.-])?(access|api|auth|bearer|hf|private)[_.-]?token|token",
    re.IGNORECASE,
)
# Matches a path from a root, a home or a drive, but not slashes inside a word or a URL.
_ROOT = r"(?:~|\.{1,2}|[A-Za-z]:)?[/\\]"
_PATH = re.compile(rf"(?<![\w:/.*<]){_ROOT}(?:[^\s,;:'\"|/\\]+[/\\]?)+")
_USER = re.compile(r"(?<=://)[^/\s@]+@")


_LOADING = Template("""\
With this folder at hand, nothing is fetched:

```python
$imports

folder = "PATH/TO/THIS/FOLDER"
tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
model = $loader.from_pretrained(folder, local_files_only=True)
$code
```""")
_NATIVE = Template("""\
Only plmjax can read this folder: $why

```bash
plmjax $use --model=PATH/TO/THIS/FOLDER
```""")
_EMBED = 'embed --text="The rows of a matrix are cows."'
_USES = {
    "masked-lm": 'fill "The [MASK] of a matrix."',
    "causal-lm": 'fill "The rows of a matrix"',
    "detector": 'detect "The rows of a matrix are cows."',
}
_POOL = {
    "cls": "vectors = states[:, 0]",
    "mean": """\
real = rows["attention_mask"][:, :, None]
vectors = (states * real).sum(1) / real.sum(1)""",
}
_ROWS = 'rows = tokenizer("The rows of a matrix are cows.", return_tensors="pt")\n'
_SHOW = """
for token, score in zip(rows["input_ids"][0], scores[0]):
    print(tokenizer.decode(token), score.sigmoid().item())"""
_PRETRAINED = {
    "masked-lm": CardText(
        pipeline="fill-mask",
        objective="masked language modelling (Devlin et al. 2018, arXiv:1810.04805)",
        use="It fills in masked words, and is a starting point for fine-tuning.",
        limit="It was trained to fill in blanks; it neither writes nor answers.",
        code="""\
fill = pipeline("$pipeline", model=model, tokenizer=tokenizer)
print(fill("The $mask of a matrix."))""",
    ),
    "causal-lm": CardText(
        pipeline="text-generation",
        objective="predicting the next token (Radford et al. 2019)",
        use="It continues a text, and is a starting point for fine-tuning.",
        limit="It continues a text in the way of the text it was trained on; what it "
        "writes need not be true.",
        code="""\
write = pipeline("$pipeline", model=model, tokenizer=tokenizer)
print(write("The rows of a matrix", max_new_tokens=20))""",
    ),
    "detector": CardText(
        pipeline=None,
        objective="replaced token detection (ELECTRA; Clark et al. 2020, "
        "arXiv:2003.10555)",
        use="It tells which words of a text were replaced, and is a starting point "
        "for fine-tuning.",
        limit="It was trained to tell replaced words; it neither fills in blanks nor "
        "writes.",
        code=_ROWS + "scores = model(**rows).logits" + _SHOW,
    ),
    "encoder": CardText(
        pipeline="feature-extraction",
        objective="self-supervision",
        use="It has no head: it gives a vector for each token, and is a starting point "
        "for fine-tuning.",
        limit="It decides nothing by itself; a head must be trained on it.",
        code=_ROWS + "print(model(**rows).last_hidden_state)",
    ),
}
_LOADERS = {
    "masked-lm": "AutoModelForMaskedLM",
    "causal-lm": "AutoModelForCausalLM",
    "detector": "ElectraForPreTraining",
    "encoder": "AutoModel",
}
_DETECTOR_BESIDE = _PRETRAINED["detector"]._replace(
    imports="""\
from safetensors.torch import load_file
from transformers import $names
from transformers.activations import ACT2FN""",
    code=f"""\
# transformers has no class for this head, so that it stands in its own file.
found = load_file(f"{{folder}}/detector_head.safetensors")
head = {{name.split('.', 1)[1]: array for name, array in found.items()}}
{_ROWS}states = model(**rows).last_hidden_state
states = states @ head["dense.weight"].T + head.get("dense.bias", 0)
states = ACT2FN[model.config.$activation](states)
scores = states @ head["dense_prediction.weight"][0]
scores = scores + head["dense_prediction.bias"]{_SHOW}""",
)

# The families by their authors' names.
_FAMILIES = {
    "bert": "BERT",
    "roberta": "RoBERTa",
    "xlm-roberta": "XLM-RoBERTa",
    "albert": "ALBERT",
    "distilbert": "DistilBERT",
    "electra": "ELECTRA",
    "deberta-v2": "DeBERTa",
    "gpt2": "GPT-2",
    "modernbert": "ModernBERT",
    "modernbert-decoder": "ModernBERT decoder",
    "eurobert": "EuroBERT",
    "longformer": "Longformer",
    "bigbird": "BigBird",
    "nystromformer": "Nyströmformer",
}


@dataclasses.dataclass(frozen=True)
class CardConfig:
    """Facts for the front matter of the model card; what is not set is left out."""

    # The identifier of the model's licence on the Hugging Face hub: apache-2.0, other.
    license: str | None = None
    # ISO 639 codes of the text's languages, separated by commas: eo,en.
    language: str | None = None
    datasets: str | None = None  # their names on the hub, separated by commas
    # The model on the hub that training starts from, or the teacher. none: its folder's
    # name, if that is the complete path and no export of plmjax.
    base_model: str | None = None

    def __post_init__(self):
        code = r"\s*([a-z]{2,3}|code|multilingual)\s*"
        for key, pattern, hint in (
            ("license", r"[a-z0-9.+-]+", "Write an identifier such as apache-2.0."),
            ("language", rf"{code}(,{code})*", "Write ISO 639 codes, such as eo,en."),
        ):
            value = getattr(self, key)
            if value is not None and not re.fullmatch(pattern, value):
                raise PlmjaxError(f"card.{key} is {value!r}.", hint=hint)


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """The facts of a model card, as plain values.

    `task` is the model's use without further training; `objective` is the training
    objective, if it is not the usual one of the task. `data` describes a data source
    (`kind`, files or packages, counts); `recipe` holds the config's values by name,
    nested as in the config; each of `figures` is (name, value, how it was measured).
    """

    name: str
    family: str
    parameters: int
    mask_token: str | None  # None: the tokenizer has none.
    data: Mapping[str, Any]
    recipe: Mapping[str, Any]
    figures: Sequence[tuple[str, float | str, str]]
    card: CardConfig = CardConfig()
    # Limitations in transformers, in addition to those of every such model.
    limitations: Sequence[str] = ()
    task: str = "masked-lm"  # or causal-lm, detector, encoder, or a kind of task
    objective: str | None = None
    only_plmjax: str | None = None  # why transformers cannot express it


# What a rule of model.global_tokens is called in a sentence.
_GLOBAL = {
    "none": "no token",
    "first": "the first token of a text",
    "question": "the tokens before the first separator",
    "second": "the tokens after the first text and its separators",
    "sentences": "the first token of a text, and of each sentence: those after the ids",
    "listed": "the tokens with the ids",
}


def limits(encoder: EncoderConfig, head: str | None = None) -> list[str]:
    """Returns limitations of an encoder in transformers, for `CardFacts`."""
    rule, usual = encoder.global_tokens, USUAL.get(head or "", "none")
    if encoder.family == "longformer" and rule != usual:
        ids = ""
        if rule in ("sentences", "listed"):
            ids = " " + ", ".join(map(str, encoder.global_ids))
        return [
            f"It was trained with global attention for {_GLOBAL[rule]}{ids}. "
            "transformers must be given that as global_attention_mask; by default it "
            f"takes {_GLOBAL[usual]}."
        ]
    if encoder.attention == "blocks":
        return [
            "In training each block of tokens also sees some at random; in evaluation, "
            "in plmjax and in transformers, the first block stands for them.",
            f"A batch whose rows have less than {encoder.shortest_sparse:,} tokens is "
            "read with full attention; transformers reads all later ones so, too, "
            "until the model is loaded again.",
        ]
    if encoder.attention == "nystrom" and encoder.landmarks == encoder.max_length:
        return ["transformers convolves padding, too: states of padded rows differ."]
    if encoder.attention == "nystrom":
        return [
            "transformers reads only rows of exactly segment_means_seq_len tokens "
            "(config.json) without padding, and fails with other texts. It also lets "
            "the rows of a batch depend on each other. plmjax (fill, predict, embed) "
            "reads rows of any length, and leaves padding out."
        ]
    return []


def model_card(facts: CardFacts) -> str:
    """Returns README.md in Markdown, including the front matter.

    Of a path only the last part appears; values with a secret's name do not appear.
    """
    task = _text(facts.task)
    family = with_article(_FAMILIES.get(facts.family, _clean(facts.family)))
    sections = [
        _front_matter(facts),
        f"# {_clean(facts.name)}",
        f"{family[0].upper()}{family[1:]} model of {facts.parameters:,} parameters, "
        f"{'fine-tuned' if facts.task in KINDS else 'pretrained'} by "
        f"{_clean(facts.objective or task.objective)} with plmjax "
        f"{__version__}. {_base_model(facts)}{task.use}",
        "## How to load it",
        _loading(facts),
        *(() if facts.only_plmjax else map(_clean, facts.limitations)),
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
            )
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _base_model(facts: CardFacts) -> str:
    base = facts.card.base_model
    return f"Its base model is {_clean(base)}. " if base else ""


def _text(task: str) -> CardText:
    return KINDS[task].card if task in KINDS else _PRETRAINED[task]


def _loader(task: str) -> str:
    """Returns the class of transformers that loads a model."""
    if task in KINDS:
        return f"AutoModel{CLASSES.get(KINDS[task].head or '', '')}"
    return _LOADERS[task]


def _front_matter(facts: CardFacts) -> str:
    from huggingface_hub import ModelCardData

    sentences = facts.task in KINDS and KINDS[facts.task].head is None
    keys: dict[str, Any] = {}
    for name, value in dataclasses.asdict(facts.card).items():
        names = [_clean(part.strip()) for part in (value or "").split(",")]
        keys[name] = names if len(names) > 1 else names[0] or None
    library = "sentence-transformers" if sentences else "transformers"
    native = facts.only_plmjax is not None
    data = ModelCardData(
        library_name="plmjax" if native else library,
        pipeline_tag=None if native else _text(facts.task).pipeline,
        tags=["plmjax", facts.task, _clean(facts.family)],
        **keys,
    )
    return f"---\n{data.to_yaml()}\n---"


def _loading(facts: CardFacts) -> str:
    if facts.only_plmjax is not None:
        trained = KINDS[facts.task].head if facts.task in KINDS else None
        use = "predict --input=TEXTS.csv" if trained else _USES.get(facts.task, _EMBED)
        return _NATIVE.substitute(why=_clean(facts.only_plmjax), use=use)
    task, loader = _text(facts.task), _loader(facts.task)
    if facts.task == "detector" and facts.family != "electra":
        task, loader = _DETECTOR_BESIDE, "AutoModel"
    names = [loader, "AutoTokenizer"]
    names += ["pipeline"] if "pipeline(" in task.code else []
    imports = Template(task.imports).substitute(names=", ".join(sorted(names)))
    code = Template(task.code).substitute(
        mask=_clean(facts.mask_token or ""),
        pipeline=task.pipeline,
        activation=_activation(facts.family),
        pool=_POOL["cls" if facts.data.get("pooling") == "cls" else "mean"],
    )
    return _LOADING.substitute(imports=imports, loader=loader, code=code)


def _activation(family: str) -> str:
    """Returns the key of a family's config.json that names the activation."""
    options = KEYS[family].options if family in KEYS else {}
    return next((k for k, (ours, _) in options.items() if ours == "activation"), "")


def _data(data: Mapping[str, Any]) -> Iterable[str]:
    properties = dict(data)
    if packages := properties.pop("packages", None):
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
    if sources := properties.pop("sources", None):
        yield "The text is a mixture of sources; each stays under its own licence:"
        named = {name: [_of_source(one, name) for one in sources] for name in _SOURCE}
        known = {name: column for name, column in named.items() if any(column)}
        yield _table([*known], zip(*known.values(), strict=True))
    rows = [
        (name.removeprefix("counts.").replace("_", " "), value)
        for name, value in _flat(properties)
    ]
    names = [(_PROPERTIES.get(name, name), value) for name, value in rows]
    yield _table(["property", "value"], names)


# Columns of the table of a mixture's sources, if any of these has a value.
_SOURCE = ("name", "kind", "documents", "tokens", "share", "epochs", *RIGHTS)


def _of_source(source: Mapping[str, Any], name: str) -> Any:
    value = source.get(name)
    if name == "share" and value is not None:
        return ", ".join(f"{share:.2%}" for share in value)
    return "" if value is None else _plain(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Returns rows of (dotted name, value) without secrets."""
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
        # A path that is a complete value may hold blanks; `_clean` finds the others.
        items = [part.strip() for part in value.split(",")]
        if any(re.match(_ROOT, part) for part in items):
            return ", ".join(_base_name(p) if re.match(_ROOT, p) else p for p in items)
        return value
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
    """Returns the text as one line, without user names and local directories."""
    text = _USER.sub("", " ".join(text.split()))
    return _PATH.sub(lambda path: _base_name(path[0]), text)


def _base_name(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
