"""Reads and writes models as folders that Hugging Face transformers loads.

Parameters are {"encoder": ..., and the heads by name}, nested dicts of float32 arrays.
"""

import dataclasses
import json
import shutil
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import save_file

from plmjax import PlmjaxError, with_article
from plmjax.interop import config_json, sentence_files, task_names
from plmjax.interop.card import CardFacts, model_card
from plmjax.interop.config_keys import KEYS
from plmjax.interop.flax_file import FLAX, read_flax
from plmjax.interop.folder import (
    CARD,
    CONFIG,
    check_is_folder,
    check_replaceable,
    replacing_export,
)
from plmjax.interop.names import class_of
from plmjax.interop.safetensors_file import (
    DETECTOR,
    INDEX,
    WEIGHTS,
    find_tensors,
    load_json,
    refusal,
)
from plmjax.interop.weights import (
    MIX_UP,
    check_tied,
    read_params,
    select_native,
    select_tensors,
    to_native,
    to_tensors,
)
from plmjax.models import EncoderConfig
from plmjax.models.task_heads import TASK_HEADS
from plmjax.tasks.task import Task
from plmjax.tokenizers import Tokenizer, describe


@dataclasses.dataclass(frozen=True)
class Imported:
    """The content of a Hugging Face folder, in our form.

    `params` holds "encoder" and those of "head", "pair" and "detector" that are
    complete in the checkpoint, or the fine-tuning head of its class. `task` is set for
    a fine-tuning head and for a folder with the files of sentence-transformers
    (embeddings), else None. `notes` are lines about tensors left out, conversions and
    defaults.
    """

    config: EncoderConfig
    params: dict
    tokenizer: Tokenizer
    notes: list[str]
    task: Task | None = None


def export_folder(
    directory: str | Path,
    config: EncoderConfig,
    params: dict,
    tokenizer: Tokenizer,
    card: CardFacts | str,
    length: int | None = None,
    task: Task | None = None,
    files: Mapping[str, str] = types.MappingProxyType({}),
) -> str | None:
    """Writes a folder that transformers and its AutoTokenizer load.

    A model that transformers cannot express becomes a folder that only plmjax reads;
    returns why, else None.

    The class follows from the heads in `params`; a detector that the class does not
    have is written to detector_head.safetensors beside the model. `card` (its text, or
    its facts) becomes README.md; `length` is the tokenizer's longest row in tokens
    (None: the model's positions); `task` is that of a fine-tuned model (for embeddings
    the files of sentence-transformers are written, too); `files` holds further files by
    name. The folder is written atomically; an earlier export of plmjax is replaced,
    anything else is left untouched.

    Raises:
      PlmjaxError: the folder holds something else (code 2), the parameters are not the
        config's (4) or not finite (6), or the disk refuses (5).
    """
    directory = Path(directory)
    length = config.max_length if length is None else length
    if not 3 <= length <= config.max_length:
        raise PlmjaxError(
            f"rows of {length} tokens do not fit this model, which has positions for "
            f"{config.max_length}.",
            hint=f"Export with a length from 3 to {config.max_length}.",
        )
    if tokenizer.vocab_size > config.vocab_size:
        raise refusal(
            f"the tokenizer has {tokenizer.vocab_size:,} pieces, the model "
            f"{config.vocab_size:,}.",
            "Export a model with the tokenizer that it was trained with.",
        )
    heads = [name for name in params if name != "encoder"]
    task_heads = [] if task is None or task.head is None else [task.head]
    if [head for head in heads if head in TASK_HEADS] != task_heads:
        raise refusal(
            f"the heads {', '.join(heads)} do not fit the task "
            f"{task.kind if task else None}.",
            "Export a fine-tuned model together with its own task.",
        )
    body, texts = describe_model(config, heads, tokenizer, length, task)
    problem, outputs = body.get("only_plmjax"), task.outputs if task else 0
    if problem is None:
        tensors, detector = to_tensors(config, params, outputs)
    else:
        tensors, detector = to_native(config, params, outputs), {}
    if isinstance(card, CardFacts):
        card = model_card(dataclasses.replace(card, only_plmjax=problem))
    check_replaceable(directory)
    with replacing_export(directory) as folder:
        write_texts(folder, {**texts, CARD: card, **files})
        for name, arrays in ((WEIGHTS, tensors), (DETECTOR, detector)):
            if arrays:
                save_file(arrays, folder / name, metadata={"format": "pt"})
                # The library makes it unreadable for other users, unlike the files
                # beside it.
                shutil.copymode(folder / CONFIG, folder / name)
        save_tokenizer(folder, config, tokenizer, length)
    return problem


def describe_model(
    config: EncoderConfig,
    heads: Sequence[str],
    tokenizer: Tokenizer,
    length: int,
    task: Task | None,
) -> tuple[dict, dict[str, str]]:
    """Returns config.json, and {name: text} of it and of sentence-transformers' files.

    `length` is the tokenizer's longest row in tokens.
    """
    ids = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id)
    body = config_json.to_any_json(
        config, heads, *ids, task=task, mask_id=tokenizer.mask_id, length=length
    )
    texts = {CONFIG: json.dumps(body, indent=2, sort_keys=True) + "\n"}
    if task is not None and task.head is None:
        texts |= sentence_files.to_files(task.pooling, config.width, length)
    return body, texts


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Writes {name: text} into a folder."""
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def save_tokenizer(
    folder: Path, config: EncoderConfig, tokenizer: Tokenizer, length: int
) -> None:
    """Writes the tokenizer's files for rows of at most `length` tokens of a model."""
    several = config.token_types > 1
    tokenizer.save(folder, max_length=length, token_types=several, segmenter=False)


def read_folder(path: str | Path) -> Imported:
    """Reads config, weights and tokenizer of a Hugging Face folder.

    Everything is checked against the files' headers before memory is allocated. Weights
    are read as float32 from safetensors, in one file or in shards; a pickle is never
    opened.

    Raises:
      PlmjaxError: there is no such folder; a file is missing or invalid (code 4).
    """
    folder = Path(path)
    check_is_folder(folder, folder)
    try:
        return _read_folder(folder)
    except (OSError, SafetensorError) as error:
        raise refusal(f"{folder} cannot be read: {error}.", "Check the file.") from None


def _read_folder(folder: Path) -> Imported:
    path = folder / CONFIG
    if not path.is_file():
        inner = [*folder.glob(f"*/{CONFIG}"), *folder.glob(f"snapshots/*/{CONFIG}")]
        models = [p.parent for p in sorted(inner) if "Pooling" not in p.parent.name]
        names = " or ".join(map(str, models[:3]))
        hint = f"Did you mean {names}?" if names else "Give a folder that holds one."
        if (folder / "adapter_config.json").is_file():
            hint = "It is an adapter: merge it into its model (merge_and_unload)."
        raise refusal(f"{folder} has no {CONFIG}.", hint)
    body = load_json(path, path.read_bytes())
    config, pad_id, notes = config_json.from_json(body, str(path))
    named = body.get("architectures")
    heads = config_json.native_heads(body, config.family, str(path))
    if (folder / FLAX).is_file() and not any(
        (folder / n).is_file() for n in (WEIGHTS, INDEX)
    ):
        tensors = read_flax(folder / FLAX)
        notes.append(f"Weights are read from {FLAX}.")
    else:
        tensors = find_tensors(folder, class_of(config.family, named))
    if heads is None:
        selection = select_tensors(folder, config, tensors, named, notes)
        config_json.check_head(config, selection.heads, str(path))
    else:
        selection = select_native(folder, config, heads, tensors)
    tokenizer = _load_tokenizer(folder, config, pad_id, notes)
    task = None
    for head in selection.heads:
        if head in TASK_HEADS:
            task = task_names.from_json(
                config.family, body, head, selection.outputs, str(path)
            )
    if task is None and (pooling := sentence_files.read_pooling(folder, notes)):
        task = Task(task_names.kinds_of(None)[0], pooling=pooling)
    params = read_params(selection)
    check_tied(folder, config.family, selection)
    return Imported(config, params, tokenizer, notes, task)


def _load_tokenizer(
    folder: Path, config: EncoderConfig, pad_id: int | None, notes: list[str]
) -> Tokenizer:
    tokenizer = Tokenizer.load(folder)
    notes += describe(tokenizer)
    if tokenizer.vocab_size > config.vocab_size:
        raise refusal(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} pieces, the "
            f"embeddings have {config.vocab_size:,}.",
            MIX_UP,
        )
    if tokenizer.vocab_size < config.vocab_size:
        notes.append(
            f"The embeddings have {config.vocab_size:,} rows for "
            f"{tokenizer.vocab_size:,} pieces; the further rows are kept."
        )
    if pad_id is not None and tokenizer.pad_id != pad_id:
        if KEYS[config.family].offset:
            raise refusal(
                f"{folder}: pad_token_id is {pad_id} in {CONFIG}, but "
                f"{tokenizer.pad_id} in the tokenizer; "
                f"{with_article(config.family)} counts positions from it.",
                MIX_UP,
            )
        notes.append(
            f"pad_token_id is {pad_id} in {CONFIG}; plmjax uses the tokenizer's, "
            f"{tokenizer.pad_id}."
        )
    return tokenizer
