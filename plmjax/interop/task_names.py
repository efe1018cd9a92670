"""The names of fine-tuning heads in transformers, and their keys in config.json."""

from typing import Any

from plmjax import PlmjaxError
from plmjax.interop.safetensors_file import refusal
from plmjax.models import EncoderConfig
from plmjax.tasks import KINDS
from plmjax.tasks.task import Task

# The part of a head's class name after the family's name.
CLASSES = {
    "sequence": "ForSequenceClassification",
    "tags": "ForTokenClassification",
    "answers": "ForQuestionAnswering",
    "choices": "ForMultipleChoice",
}
_Modules = dict[str, tuple[str | None, str]]
_TAGS: _Modules = {"tags": (None, "classifier"), "answers": (None, "qa_outputs")}
_ROBERTA: _Modules = _TAGS | {
    "sequence": ("classifier.dense", "classifier.out_proj"),
    "choices": ("roberta.pooler.dense", "classifier"),
}


def _pooled(pooler: str) -> _Modules:
    both = (pooler, "classifier")
    return {**_TAGS, "sequence": both, "choices": both}


# {family: {head: (name of its pooler, name of its classifier)}}.
MODULES: dict[str, _Modules] = {
    "bert": _pooled("bert.pooler.dense"),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "longformer": _ROBERTA | {"choices": ("longformer.pooler.dense", "classifier")},
    "albert": _pooled("albert.pooler"),
    "distilbert": _pooled("pre_classifier"),
    "electra": _TAGS
    | {
        "sequence": ("classifier.dense", "classifier.out_proj"),
        "choices": ("sequence_summary.summary", "classifier"),
    },
    "deberta-v2": _pooled("pooler.dense"),
    "modernbert": dict.fromkeys(CLASSES, ("head.dense", "classifier")),
    "eurobert": {"sequence": ("dense", "classifier"), "tags": (None, "classifier")},
}
# The norm after the pooler, in the families that have one.
POOLER_NORMS = {"modernbert": "head.norm"}
# The key of the classifier's dropout. Most heads for answers, and DistilBERT's for
# tags, have no such key.
_DROPOUT_KEY = {
    "bert": "classifier_dropout",
    "roberta": "classifier_dropout",
    "xlm-roberta": "classifier_dropout",
    "albert": "classifier_dropout_prob",
    "electra": "classifier_dropout",
    "deberta-v2": "cls_dropout",
    "modernbert": "classifier_dropout",
    ("modernbert", "answers"): "classifier_dropout",
    ("distilbert", "sequence"): "seq_classif_dropout",
    ("distilbert", "choices"): "seq_classif_dropout",
    ("distilbert", "answers"): "qa_dropout",
    ("electra", "choices"): "summary_last_dropout",
}
# transformers' key for what distinguishes two kinds of one class and problem_type.
_KIND = "finetuning_task"
# Options of poolers in transformers: {(family, head): {key: (the only value that plmjax
# supports, transformers' default)}}.
_GELU = {"pooler_hidden_act": ("gelu", "gelu")}
_CLS = {"classifier_pooling": ("cls", "cls")}
_FIXED: dict[tuple[str, str], dict[str, tuple[Any, Any]]] = {
    ("deberta-v2", "sequence"): _GELU,
    ("deberta-v2", "choices"): _GELU,
    ("modernbert", "sequence"): _CLS,
    ("modernbert", "choices"): _CLS,
    ("eurobert", "sequence"): {"classifier_pooling": ("bos", "late")},
    ("electra", "choices"): {
        "summary_type": ("first", "first"),
        "summary_use_proj": (True, True),
        "summary_activation": ("gelu", "gelu"),
    },
}


def _dropout_key(family: str, head: str) -> str | None:
    usual = None if head == "answers" else _DROPOUT_KEY.get(family)
    return _DROPOUT_KEY.get((family, head), usual)


def to_json(config: EncoderConfig, task: Task) -> dict[str, Any]:
    """Returns the keys of config.json for a task, except the class.

    A dropout for which the class has no key is not written: it matters in training
    only.
    """
    body: dict[str, Any] = {}
    if task.head is None:
        return body
    kind = KINDS[task.kind]
    if kind.problem_type is not None:
        body["problem_type"] = kind.problem_type
    if kinds_of(task.head, kind.problem_type)[0] != task.kind:
        body[_KIND] = task.kind
    if task.head in ("sequence", "tags"):
        labels = task.labels or ("LABEL_0",)
        body["id2label"] = {str(i): label for i, label in enumerate(labels)}
        body["label2id"] = {label: i for i, label in enumerate(labels)}
    for key, (only, default) in _FIXED.get((config.family, task.head), {}).items():
        if only != default:
            body[key] = only
    key = _dropout_key(config.family, task.head)
    if task.dropout is not None and key is not None:
        body[key] = task.dropout
    return body


def from_json(family: str, body: dict, head: str, outputs: int, where: str) -> Task:
    """Returns the task of a head with `outputs` scores.

    Raises:
      PlmjaxError (code 4): config.json and the head contradict each other.
    """
    for key, (only, default) in _FIXED.get((family, head), {}).items():
        if (value := body.get(key, default)) != only:
            raise refusal(
                f"{where}: {key} is {value!r}; plmjax has only {only!r}.",
                "Use another model.",
            )
    kind = _kind(body, head, outputs, where)
    labels: tuple[str, ...] = ()
    if KINDS[kind].label_names:
        labels = _labels(body, outputs, where)
    dropout = body.get(_dropout_key(family, head) or "")
    if dropout is not None and (
        type(dropout) not in (int, float) or not 0 <= dropout < 1
    ):
        raise refusal(
            f"{where}: the classifier's dropout is {dropout!r}; it must be a number in "
            "[0, 1).",
            "Correct the file.",
        )
    try:
        return Task(kind, labels, None if dropout is None else float(dropout))
    except PlmjaxError as error:
        raise refusal(f"{where}: {error.message}", "Correct id2label.") from error


def kinds_of(head: str | None, problem: str | None = None) -> list[str]:
    """Returns the kinds of task with a head and a problem_type."""
    wanted = (head, problem)
    return [
        name for name, kind in KINDS.items() if (kind.head, kind.problem_type) == wanted
    ]


def _kind(body: dict, head: str, outputs: int, where: str) -> str:
    """Returns the kind of task of a config.json."""
    fixed = {"answers": 2, "choices": 1}
    if outputs != fixed.get(head, outputs):
        raise refusal(
            f"{where}: the head of {CLASSES[head]} has {outputs} outputs, not "
            f"{fixed[head]}.",
            "Use another model.",
        )
    # Other heads ignore problem_type.
    problem = body.get("problem_type") if head == "sequence" else None
    if problem is None and head == "sequence":
        # transformers decides the same way if the file has no problem_type.
        problem = "regression" if outputs == 1 else "single_label_classification"
    kinds = kinds_of(head, problem)
    if kinds and (problem != "regression" or outputs == 1):
        return body[_KIND] if body.get(_KIND) in kinds else kinds[0]
    raise refusal(
        f"{where}: problem_type is {problem!r} with {outputs} outputs, which plmjax "
        "has not.",
        "Correct the file.",
    )


def _labels(body: dict, outputs: int, where: str) -> tuple[str, ...]:
    named = body.get("id2label")
    if named is None:
        return tuple(f"LABEL_{i}" for i in range(outputs))
    wanted = {str(i) for i in range(outputs)}
    if (
        not isinstance(named, dict)
        or named.keys() != wanted
        or not all(isinstance(label, str) for label in named.values())
    ):
        raise refusal(
            f"{where}: id2label does not name the {outputs} outputs of the head, from "
            f'"0" to "{outputs - 1}".',
            "Correct the file.",
        )
    return tuple(named[str(i)] for i in range(outputs))
