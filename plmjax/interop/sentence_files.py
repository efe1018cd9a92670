"""The files by which sentence-transformers computes a text's vector."""

import json
from pathlib import Path
from typing import Any, Literal

from plmjax.interop.safetensors_file import load_json, refusal

MODULES, LENGTH, POOLING = "modules.json", "sentence_bert_config.json", "1_Pooling"
POOLING_CONFIG = f"{POOLING}/config.json"
FILES = (MODULES, LENGTH, POOLING_CONFIG)

Pooling = Literal["mean", "cls", "max"]
_FLAGS: dict[Pooling, str] = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
}
# Pooling modes that plmjax does not have.
_OTHERS = ("mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
_TYPE = "sentence_transformers.models."


def to_files(pooling: Pooling, width: int, length: int) -> dict[str, str]:
    """Returns {name: text} for vectors of `width` numbers, of rows of `length` tokens.

    Vectors are not scaled to length 1, so that they equal those of `plmjax embed`.
    """
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"{_TYPE}{kind}"}
        for number, (kind, path) in enumerate(
            (("Transformer", ""), ("Pooling", POOLING))
        )
    ]
    flags = {flag: name == pooling for name, flag in _FLAGS.items()}
    flags |= {f"pooling_mode_{name}": False for name in _OTHERS}
    bodies = {
        MODULES: modules,
        LENGTH: {"max_seq_length": length, "do_lower_case": False},
        POOLING_CONFIG: {"word_embedding_dimension": width, **flags},
    }
    return {name: json.dumps(body, indent=2) + "\n" for name, body in bodies.items()}


def read_pooling(folder: Path, notes: list[str]) -> Pooling | None:
    """Returns the pooling of a folder; None if it does not specify one.

    Appends a line to `notes` for each setting that plmjax does not support.

    Raises:
      PlmjaxError (code 4): a file is invalid.
    """
    path = folder / MODULES
    if not path.is_file():
        return None
    try:
        kinds = [str(one["type"]).rpartition(".")[2] for one in json.loads(_text(path))]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise refusal(
            f"{path} is not a list of modules ({error}).", "Correct or remove the file."
        ) from error
    others = [k for k in kinds if k not in ("Transformer", "Pooling", "Normalize")]
    config = folder / POOLING_CONFIG
    if others or "Pooling" not in kinds or not config.is_file():
        why = f"{MODULES} has {', '.join(others)}" if others else "they set no pooling"
        notes.append(f"Left out, the files of sentence-transformers: {why}.")
        return None
    return _pooling(load_json(config, config.read_bytes()), notes)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _pooling(body: dict[str, Any], notes: list[str]) -> Pooling | None:
    # sentence-transformers' default.
    settings = {"pooling_mode_mean_tokens": True} | body
    modes = {
        key for key, on in settings.items() if key.startswith("pooling_mode_") and on
    }
    if isinstance(mode := body.get("pooling_mode"), str):  # newer files
        modes = {_FLAGS.get(mode, mode)}  # type: ignore[arg-type]
    for name, flag in _FLAGS.items():
        if modes == {flag}:
            return name
    notes.append(
        f"Left out: the pooling of {POOLING_CONFIG}, {', '.join(sorted(modes))}."
    )
    return None
