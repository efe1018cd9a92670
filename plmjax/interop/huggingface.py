"""Models as folders that Hugging Face transformers loads, written and read.

Parameters are {"encoder": ..., "head": ...}, nested dicts of float32 arrays.
"""

import contextlib
import dataclasses
import functools
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from plmjax import Exit, PlmjaxError
from plmjax.interop import config_json
from plmjax.interop.names import FAMILIES, Entry, entries, guess_family, modern_name
from plmjax.interop.safetensors_file import (
    WEIGHTS,
    Tensor,
    find_tensors,
    load_json,
    read_tensor,
    refusal,
)
from plmjax.models import Encoder, EncoderConfig
from plmjax.models.heads import VocabularyHead
from plmjax.tokenizers import Tokenizer
from plmjax.tree import flatten, unflatten

CONFIG, CARD = "config.json", "README.md"
# All that an export writes, whatever the tokenizer's kind.
_OURS = frozenset(
    f"""
    {CONFIG} {CARD} {WEIGHTS} tokenizer.json tokenizer_config.json
    special_tokens_map.json vocab.txt vocab.json merges.txt
    """.split()
)
_MIX_UP = "Give a folder whose config.json, weights and tokenizer belong together."


@dataclasses.dataclass(frozen=True)
class Imported:
    """What a Hugging Face folder holds, as ours.

    `params["head"]` is None if the checkpoint has no vocabulary head. `notes` say, one
    a line, what was left out, converted or taken by default.
    """

    config: EncoderConfig
    params: dict
    tokenizer: Tokenizer
    notes: list[str]


def export_folder(
    directory: str | Path,
    config: EncoderConfig,
    params: dict,
    tokenizer: Tokenizer,
    card: str,
    length: int | None = None,
) -> None:
    """Writes a folder that AutoModelForMaskedLM and AutoTokenizer load.

    `card` becomes README.md; `length` is the longest row in tokens that the tokenizer
    shall give (the model's positions if None). The folder appears whole or not at all;
    an earlier export of plmjax in its place is replaced, anything else is not touched.

    Raises:
      PlmjaxError: transformers cannot express the config (code 2), the folder holds
        something else (2), the parameters are not the config's (4) or not finite (6),
        or the disk refuses (5).
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
    body = config_json.to_json(
        config, tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id
    )
    tensors = _to_tensors(config, params)
    _check_replaceable(directory)
    with _appearing(directory) as folder:
        text = json.dumps(body, indent=2, sort_keys=True) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        # The library lets nobody else read it, unlike the files beside it.
        shutil.copymode(folder / CONFIG, folder / WEIGHTS)
        tokenizer.save(folder, max_length=length)
        (folder / CARD).write_text(card, encoding="utf-8")


def read_folder(path: str | Path) -> Imported:
    """Reads config, weights and tokenizer of a Hugging Face folder.

    Everything is checked against the files' own claims before memory is taken. Weights
    come as float32 from safetensors, whole or in shards; a pickle is never opened.

    Raises:
      PlmjaxError (code 4): what is wrong, in which file, and how to mend it.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise refusal(
            f"{folder} is no folder.",
            "plmjax fetches nothing; download the model there first, for example with "
            "`hf download NAME --local-dir DIR`.",
        )
    try:
        return _read_folder(folder)
    except OSError as error:
        raise refusal(f"{folder} cannot be read: {error}.", "Check the file.") from None


def _read_folder(folder: Path) -> Imported:
    if not (folder / CONFIG).is_file():
        raise refusal(f"{folder} has no {CONFIG}.", "Give a folder that holds one.")
    body = load_json(folder / CONFIG, (folder / CONFIG).read_bytes())
    config, pad_id, notes = config_json.from_json(body, str(folder / CONFIG))
    chosen, has_head = _choose(folder, config, find_tensors(folder), notes)
    tokenizer = _load_tokenizer(folder, config, pad_id, notes)
    flat = {}
    for entry in entries(FAMILIES[config.family], config.layers):
        if entry.theirs in chosen:
            name, tensor = chosen[entry.theirs]
            array = read_tensor(name, tensor)
            flat[entry.ours] = np.ascontiguousarray(
                array.T if entry.transposed else array
            )
    _check_tied(folder, config, chosen)
    params = unflatten(flat)
    if not has_head:
        params["head"] = None
    return Imported(config, params, tokenizer, notes)


@functools.lru_cache(maxsize=16)
def _shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Returns {our name: shape} of a model, of which only layer 0 is named."""
    # One layer stands for all: the cost does not depend on what a file claims.
    one = dataclasses.replace(config, layers=1)
    key, ids = jax.random.key(0), jax.ShapeDtypeStruct((1, 1), np.int32)
    x_TH = jax.ShapeDtypeStruct((1, config.width), np.float32)
    table_VE = jax.ShapeDtypeStruct((config.vocab_size, config.input_width), np.float32)
    params = {
        "encoder": jax.eval_shape(Encoder(one).init, key, ids, ids, ids, ids),
        "head": jax.eval_shape(VocabularyHead(one).init, key, x_TH, table_VE),
    }
    params = {room: tree["params"] for room, tree in params.items()}
    return {name: leaf.shape for name, leaf in flatten(params).items()}


def _shape(config: EncoderConfig, entry: Entry) -> tuple[int, ...]:
    """Returns the shape that Hugging Face gives the entry's tensor."""
    shape = _shapes(config)[re.sub(r"/layer_\d+/", "/layer_0/", entry.ours)]
    return shape[::-1] if entry.transposed else shape


def _to_tensors(config: EncoderConfig, params: dict) -> dict[str, np.ndarray]:
    """Returns the parameters by Hugging Face's names, in its orientation."""
    flat, tensors = flatten(params), {}
    for entry in entries(FAMILIES[config.family], config.layers):
        if entry.ours not in flat:
            raise refusal(
                f"the parameters lack {entry.ours}.", "Export a pretrained model."
            )
        array = np.asarray(flat.pop(entry.ours))
        array = array.T if entry.transposed else array
        shape = _shape(config, entry)
        if array.dtype != np.float32 or array.shape != shape:
            raise refusal(
                f"{entry.ours} is {array.dtype}{list(array.shape)}, not "
                f"float32{list(shape)}, in the order of {entry.theirs}.",
                "Export with the config that the model was trained with.",
            )
        if not np.isfinite(array).all():
            raise PlmjaxError(
                f"{entry.ours} holds values that are not finite.",
                hint="Export an earlier checkpoint.",
                code=Exit.NUMERIC,
            )
        tensors[entry.theirs] = np.ascontiguousarray(array)
    if flat:
        raise refusal(
            f"the config does not have {next(iter(flat))} ({len(flat)} such leaves).",
            "Export with the config that the model was trained with.",
        )
    return tensors


def _check_replaceable(directory: Path) -> None:
    """Raises unless `directory` is free, empty or an earlier export of plmjax."""
    if not directory.exists() and not directory.is_symlink():
        return
    hint = "Choose another folder, or remove this one yourself."
    if directory.is_symlink() or not directory.is_dir():
        raise PlmjaxError(f"{directory} is not a folder of its own.", hint=hint)
    names = {path.name for path in directory.iterdir()}
    if not names:
        return
    if foreign := sorted(names - _OURS):
        raise PlmjaxError(
            f"{directory} holds {', '.join(foreign[:3])}, which no export of plmjax "
            "writes; it is not overwritten.",
            hint=hint,
        )
    config = directory / CONFIG
    try:
        ours = "plmjax_version" in load_json(config, config.read_bytes())
    except (OSError, PlmjaxError):
        ours = False
    if not ours:
        raise PlmjaxError(
            f"{directory} holds files, but no {CONFIG} with plmjax_version, the mark "
            "of an export of plmjax; it is not overwritten.",
            hint=hint,
        )


@contextlib.contextmanager
def _appearing(directory: Path) -> Iterator[Path]:
    """Yields a folder that takes the place of `directory` once all is written."""
    directory = Path(os.path.abspath(directory))
    # Beside its place, so that a rename suffices; a killed export's is used again.
    folder = directory.with_name(f".{directory.name}.plmjax-new")
    old = directory.with_name(f".{directory.name}.plmjax-old")
    try:
        for left_over in (folder, old):
            shutil.rmtree(left_over, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
        if directory.exists():
            directory.rename(old)
        try:
            folder.rename(directory)
        except OSError:
            if old.exists():
                old.rename(directory)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise PlmjaxError(
            f"{directory} cannot be written: {error}.",
            hint="Free some space, or choose a place where you may write.",
            code=Exit.DISK,
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _choose(
    folder: Path, config: EncoderConfig, tensors: dict[str, Tensor], notes: list[str]
) -> tuple[dict[str, tuple[str, Tensor]], bool]:
    """Returns {modern name: (name in the file, tensor)}, and whether there is a head.

    Raises:
      PlmjaxError: tensors are missing, unexpected, of another shape, or named twice.
    """
    family = FAMILIES[config.family]
    found: dict[str, tuple[str, Tensor]] = {}
    for name, tensor in tensors.items():
        modern = modern_name(family, name, tensors.keys())
        if modern in found:
            raise refusal(
                f"{tensor.file} holds {modern} twice, as {found[modern][0]} and "
                f"{name}.",
                "Do not use this file.",
            )
        found[modern] = (name, tensor)
    for what, names in _split_off_ignored(found, family.ignored).items():
        notes.append(f"Left out, as pretraining has no use for it: {what} ({names}).")
    for duplicate, source in family.tied.items():
        if duplicate in found and source not in found:
            found[source] = found[duplicate]
    if config.layers > len(found):
        raise refusal(
            f"{folder / CONFIG}: num_hidden_layers is {config.layers:,}, but the "
            f"weights are {len(found)} tensors.",
            _MIX_UP,
        )
    wanted = {entry.theirs: entry for entry in entries(family, config.layers)}
    head = [name for name, entry in wanted.items() if entry.ours.startswith("head/")]
    has_head = any(name in found for name in head)
    if not has_head:
        wanted = {name: wanted[name] for name in wanted if name not in head}
        notes.append(
            f"The checkpoint has no vocabulary head (none of {', '.join(head)}): "
            "it must be trained anew."
        )
    known = wanted.keys() | family.tied.keys()
    problems = [f"missing {name}" for name in wanted if name not in found]
    problems += [
        f"unexpected {name}" for key, (name, _) in found.items() if key not in known
    ]
    for key, entry in wanted.items():
        if key in found and found[key][1].shape != _shape(config, entry):
            problems.append(
                f"{key} is {list(found[key][1].shape)}, not "
                f"{list(_shape(config, entry))}"
            )
    if problems:
        guess = guess_family(tensors)
        raise refusal(
            f"{folder}: the weights are not those of the {config.family} in "
            f"{CONFIG}: {'; '.join(problems[:5])}"
            f"{f' ({len(problems)} in all)' if len(problems) > 5 else ''}."
            f"{f' The names look like {guess}.' if guess else ''}",
            _MIX_UP,
        )
    for dtype in sorted({tensor.dtype for _, tensor in found.values()} - {"F32"}):
        notes.append(f"Weights stored as {dtype} became float32.")
    return found, has_head


def _split_off_ignored(found: dict, ignored) -> dict[str, str]:
    """Takes the ignored tensors out of `found`; returns {what: their names}."""
    left_out: dict[str, list[str]] = {}
    for key in list(found):
        for pattern, what in ignored:
            if re.fullmatch(pattern, key):
                left_out.setdefault(what, []).append(found.pop(key)[0])
                break
    return {what: ", ".join(names) for what, names in left_out.items()}


def _check_tied(folder: Path, config: EncoderConfig, found: dict) -> None:
    """Raises unless duplicates of tied tensors equal what they are tied to."""
    for duplicate, source in FAMILIES[config.family].tied.items():
        if duplicate in found and found[duplicate] is not found[source]:
            if not np.array_equal(
                read_tensor(*found[duplicate]), read_tensor(*found[source])
            ):
                raise refusal(
                    f"{folder}: {duplicate} differs from {source}; plmjax ties them, "
                    "as BERT and RoBERTa do.",
                    "Use a model with a tied decoder.",
                )


def _load_tokenizer(
    folder: Path, config: EncoderConfig, pad_id: int | None, notes: list[str]
) -> Tokenizer:
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise refusal(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} pieces, the "
            f"embeddings have {config.vocab_size:,}.",
            _MIX_UP,
        )
    if tokenizer.vocab_size < config.vocab_size:
        notes.append(
            f"The embeddings have {config.vocab_size:,} rows for "
            f"{tokenizer.vocab_size:,} pieces; the rest is kept."
        )
    if tokenizer.pad_id != pad_id:
        if config.family == "roberta":
            raise refusal(
                f"{folder}: pad_token_id is {pad_id} in {CONFIG}, but "
                f"{tokenizer.pad_id} in the tokenizer; RoBERTa counts positions "
                "from it.",
                _MIX_UP,
            )
        notes.append(
            f"pad_token_id is {pad_id} in {CONFIG}; the tokenizer's is taken: "
            f"{tokenizer.pad_id}."
        )
    return tokenizer
