"""Converts parameters to tensors and back, and checks their names and shapes.

Values are read only after all names and shapes are known to fit.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from plmjax import Exit, PlmjaxError, counted
from plmjax.interop.foreign_names import (
    guess_family,
    modern_name,
    partly_prefixed,
    unwrap,
)
from plmjax.interop.names import (
    FAMILIES,
    Entry,
    architecture,
    blocks,
    entries,
    head_entries,
)
from plmjax.interop.safetensors_file import DETECTOR, Tensor, read_tensor, refusal
from plmjax.models import EncoderConfig
from plmjax.models.heads import HEADS, init_model
from plmjax.models.task_heads import TASK_HEADS, init_head
from plmjax.tree import flatten, unflatten

MIX_UP = "Give a folder whose config.json, weights and tokenizer belong together."
_INPUTS = ("tokens", "segments", "positions", "types")
_CLASSIFIER = re.compile(rf"({'|'.join(TASK_HEADS)})/classifier/.*")


class Selection(NamedTuple):
    """The tensors of a checkpoint: {modern name: (name in the file, tensor)}.

    `heads` are the heads to read, `outputs` the number of scores of a fine-tuning head
    (0 without one), `wanted` the tensors to read.
    """

    tensors: dict[str, tuple[str, Tensor]]
    heads: tuple[str, ...]
    wanted: list[Entry]
    outputs: int


@functools.lru_cache(maxsize=32)
def shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Returns {our name: shape} of a model, with layers 0 and 1 only.

    The heads of fine-tuning have one output.
    """
    # One layer stands for all, so that the cost does not depend on an untrusted file;
    # two, if the first has no norm.
    count = 1 + (config.norm_embeddings and config.layers > 1)
    one = dataclasses.replace(config, layers=count, sharing="none", groups=1)
    return _all_shapes(one, [*HEADS, *FAMILIES[config.family].heads], 1)


def _all_shapes(
    config: EncoderConfig, heads: Collection[str], outputs: int
) -> dict[str, tuple[int, ...]]:
    ids = jax.ShapeDtypeStruct((1, 1), np.int32)

    def init(key, batch):
        tasks = [head for head in TASK_HEADS if head in heads]
        params = init_model(config, key, batch, heads)
        return params | {head: init_head(config, head, outputs, key) for head in tasks}

    params = jax.eval_shape(init, jax.random.key(0), dict.fromkeys(_INPUTS, ids))
    return {name: leaf.shape for name, leaf in flatten(params).items()}


def _our_shape(
    config: EncoderConfig, name: str, outputs: int = 1
) -> tuple[int, ...] | None:
    shape_of = shapes(config)
    other = int(config.norm_embeddings)
    name = re.sub(r"/layer_[1-9]\d*/", f"/layer_{other}/", name)
    if name not in shape_of:
        return None
    if _CLASSIFIER.fullmatch(name):
        return (*shape_of[name][:-1], outputs)
    return shape_of[name]


def _their_shape(config: EncoderConfig, entry: Entry, outputs: int) -> tuple[int, ...]:
    """Returns the shape of the entry's tensor in Hugging Face's format."""
    first = _our_shape(config, entry.ours[0], outputs)
    assert first is not None
    shape = (*first[:-1], first[-1] * len(entry.ours))
    return shape[::-1] if entry.transposed else shape


def model_entries(config: EncoderConfig, heads: Iterable[str]) -> list[Entry]:
    """Returns the entries of the tensors whose parameters the config has."""
    return [
        entry
        for entry in entries(config, heads)
        if _our_shape(config, entry.ours[0]) is not None
    ]


def to_tensors(
    config: EncoderConfig, params: dict, outputs: int = 0
) -> tuple[dict, dict]:
    """Returns a model's tensors by name, and those that transformers' class lacks.

    `outputs` is the number of scores of a fine-tuning head.

    Raises:
      PlmjaxError: the parameters are not the config's (code 4) or not finite (6).
    """
    heads = [name for name in params if name != "encoder"]
    _, class_heads = architecture(config.family, heads)
    flat, used = flatten(params), set()
    exported: tuple[dict, dict] = {}, {}
    for entry in model_entries(config, heads):
        arrays = [
            _checked(flat, name, _our_shape(config, name, outputs))
            for name in entry.ours
        ]
        used.update(entry.ours)
        array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
        head = entry.ours[0].split("/")[0]
        separate = head != "encoder" and head not in class_heads
        exported[separate][entry.theirs] = np.ascontiguousarray(
            array.T if entry.transposed else array
        )
    _check_known(flat, used)
    return exported


def to_native(config: EncoderConfig, params: dict, outputs: int = 0) -> dict:
    """Returns a model's tensors by our own names; as `to_tensors`, for any config."""
    flat, shapes = flatten(params), _all_shapes(config, params.keys(), outputs)
    _check_known(flat, shapes.keys())
    return {
        name.replace("/", "."): np.ascontiguousarray(_checked(flat, name, shape))
        for name, shape in shapes.items()
    }


def _check_known(flat: dict, known: Collection[str]) -> None:
    if foreign := sorted(flat.keys() - known):
        raise refusal(
            f"the config does not have {foreign[0]} ({len(foreign)} such leaves).",
            "Export with the config that the model was trained with.",
        )


def _checked(flat: dict, name: str, shape: tuple[int, ...] | None) -> np.ndarray:
    if name not in flat:
        raise refusal(f"the parameters lack {name}.", "Export a pretrained model.")
    array = np.asarray(flat[name])
    if array.dtype != np.float32 or array.shape != shape:
        raise refusal(
            f"{name} is {array.dtype}{list(array.shape)}, not "
            f"float32{list(shape or ())}.",
            "Export with the config that the model was trained with.",
        )
    if not np.isfinite(array).all():
        raise PlmjaxError(
            f"{name} holds values that are not finite.",
            hint="Export an earlier checkpoint.",
            code=Exit.NUMERIC,
        )
    return array


def select_tensors(
    folder: Path,
    config: EncoderConfig,
    tensors: dict[str, Tensor],
    named: object,
    notes: list[str],
) -> Selection:
    """Selects the tensors to read from a folder.

    `named` is the value of `architectures` in config.json; a line is appended to
    `notes` for tensors that are left out or converted.

    Raises:
      PlmjaxError: tensors are missing, unexpected, of another shape, or named twice.
    """
    family = FAMILIES[config.family]
    by_name = _by_modern_name(config.family, tensors, notes)
    for duplicate, source in family.tied.items():
        if duplicate in by_name and source not in by_name:
            by_name[source] = by_name[duplicate]
    if blocks(config) > len(by_name):
        raise refusal(
            f"{folder}: the config has {counted(config.layers, 'layer')}, but the "
            f"weights are {counted(len(by_name), 'tensor')}.",
            MIX_UP,
        )
    heads = _heads_in(config, by_name, named)
    wanted = model_entries(config, heads)
    known = {entry.theirs for entry in wanted} | family.tied.keys()
    for what, names in _split_off_ignored(by_name, known, family.ignored).items():
        notes.append(
            f"Left out, because pretraining does not use it: {what} ({names})."
        )
    if not heads:
        notes.append("The checkpoint has no head: a new head starts untrained.")
    if "head" in heads and any("lm_predictions" in name for name in tensors):
        notes.append(
            "If this is Microsoft's model, its vocabulary head predicts well only "
            "after an enhanced mask decoder, which plmjax lacks: train it further."
        )
    outputs = _outputs(wanted, by_name)
    _check_all(
        folder,
        config,
        tensors,
        by_name=by_name,
        wanted=wanted,
        known=known,
        outputs=outputs,
    )
    for dtype in sorted({tensor.dtype for _, tensor in by_name.values()} - {"F32"}):
        notes.append(f"Weights stored as {dtype} became float32.")
    return Selection(by_name, heads, wanted, outputs)


def select_native(
    folder: Path, config: EncoderConfig, heads: tuple[str, ...], tensors: dict
) -> Selection:
    """Selects the tensors of a folder that `to_native` has written.

    Raises:
      PlmjaxError: tensors are missing, unexpected, or of another shape.
    """
    by_name = {n.replace(".", "/"): (n, tensor) for n, tensor in tensors.items()}
    held = {name: tensor.shape for name, (_, tensor) in by_name.items()}
    ends = [sum(held[name][-1:]) for name in held if _CLASSIFIER.fullmatch(name)]
    outputs = max(ends, default=0)
    wanted = _all_shapes(config, heads, outputs)
    if wrong := sorted({name for name, _ in held.items() ^ wanted.items()}):
        name = wrong[0]
        raise refusal(
            f"{folder}: {name} is {held.get(name, 'missing')}, not "
            f"{wanted.get(name, 'expected')} ({len(wrong)} such tensors).",
            MIX_UP,
        )
    entries = [Entry((name,), name, transposed=False) for name in wanted]
    return Selection(by_name, heads, entries, outputs)


def _outputs(wanted: Iterable[Entry], tensors: dict) -> int:
    """Returns the number of scores of a fine-tuning head; 0 without one."""
    for entry in wanted:
        if _CLASSIFIER.fullmatch(entry.ours[0]) and entry.theirs in tensors:
            shape = tensors[entry.theirs][1].shape
            return shape[0] if shape else 0
    return 0


def _by_modern_name(family: str, tensors: dict[str, Tensor], notes: list[str]) -> dict:
    by_name: dict[str, tuple[str, Tensor]] = {}
    # Our own file beside the model's never has wrappers.
    inside = [name for name, tensor in tensors.items() if tensor.file.name != DETECTOR]
    plain, removed = unwrap(family, inside)
    if removed:
        changed = sum(name != short for name, short in plain.items())
        notes.append(
            f"Removed from {changed:,} of {len(tensors):,} tensor names: "
            f"{', '.join(removed)} (wrappers of the model)."
        )
    names = set(plain.values())
    for name, tensor in tensors.items():
        modern = modern_name(family, plain.get(name, name), names)
        if modern in by_name:
            raise refusal(
                f"{tensor.file} holds {modern} twice, as {by_name[modern][0]} and "
                f"{name}.",
                "Do not use this file.",
            )
        by_name[modern] = (name, tensor)
    return by_name


def _heads_in(config: EncoderConfig, tensors: dict, named) -> tuple[str, ...]:
    """Returns the checkpoint's heads; `_check_all` rejects incomplete ones."""
    family, heads = FAMILIES[config.family], []
    # ModernBERT's heads of fine-tuning have tensors of its vocabulary head.
    shared = {
        entry.theirs
        for head in TASK_HEADS
        if head in family.heads
        for entry in head_entries(config.family, head)
    }
    for head in HEADS:
        if head not in family.heads:
            continue
        names = [entry.theirs for entry in head_entries(config.family, head)]
        if head == "head":
            names = [name for name in names if name not in shared]
        present = [name in tensors for name in names]
        if not names:
            # This head is the token table; only the class shows whether it was trained.
            has = named != [family.classes[()]]
        else:
            # Many checkpoints have a pooler that was trained for another task.
            has = all(present) if head == "pair" else any(present)
        if has:
            heads.append(head)
    # Several heads use the same tensor names; only the class distinguishes them.
    for head in TASK_HEADS:
        if head in family.heads and named == [family.classes[head,]]:
            entries = head_entries(config.family, head)
            heads += [head] if any(entry.theirs in tensors for entry in entries) else []
    return tuple(heads)


def _split_off_ignored(tensors: dict, known, ignored) -> dict[str, str]:
    """Removes ignored tensors from `tensors`; returns {description: their names}."""
    left_out: dict[str, list[str]] = {}
    for key in [key for key in tensors if key not in known]:
        for pattern, what in ignored:
            if re.fullmatch(pattern, key):
                left_out.setdefault(what, []).append(tensors.pop(key)[0])
                break
    return {what: ", ".join(names) for what, names in left_out.items()}


def _check_all(folder: Path, config, tensors, by_name, wanted, known, outputs: int):
    problems = [f"missing {e.theirs}" for e in wanted if e.theirs not in by_name]
    problems += [
        f"unexpected {name}" for key, (name, _) in by_name.items() if key not in known
    ]
    for entry in wanted:
        if entry.theirs in by_name:
            held = by_name[entry.theirs][1].shape
            shape = _their_shape(config, entry, outputs)
            if held != shape:
                problems.append(f"{entry.theirs} is {list(held)}, not {list(shape)}")
    if problems:
        plain = set(unwrap(config.family, tensors.keys())[0].values())
        guess = guess_family(plain)
        raise refusal(
            f"{folder}: the weights are not those of the {config.family} in "
            f"config.json: {'; '.join(problems[:5])}"
            f"{f' ({len(problems)} in all)' if len(problems) > 5 else ''}."
            f"{f' The names look like {guess}.' if guess else ''}",
            partly_prefixed(config.family, plain) or MIX_UP,
        )


def read_params(selection: Selection) -> dict:
    """Reads the selected tensors as our parameters."""
    return from_tensors(
        selection.wanted,
        selection.heads,
        lambda name: read_tensor(*selection.tensors[name]),
    )


def from_tensors(
    wanted: Iterable[Entry],
    heads: Iterable[str],
    tensor: Callable[[str], np.ndarray],
) -> dict:
    """Converts tensors, read by name with `tensor`, to our parameters."""
    flat = {}
    for entry in wanted:
        array = tensor(entry.theirs)
        array = array.T if entry.transposed else array
        arrays = np.split(array, len(entry.ours), axis=-1)
        for name, leaf in zip(entry.ours, arrays, strict=True):
            flat[name] = np.ascontiguousarray(leaf)
    params = unflatten(flat)
    # A plain head has no parameters, but must be a key.
    return params | {head: params.get(head, {}) for head in heads}


def check_tied(folder: Path, family: str, selection: Selection) -> None:
    """Raises PlmjaxError if a copy of a tied tensor differs from the original."""
    for duplicate, source in FAMILIES[family].tied.items():
        copy = selection.tensors.get(duplicate)
        # Without the head, or with the copy alone, there is nothing to compare.
        if copy is None or source not in selection.tensors:
            continue
        if copy is not selection.tensors[source] and not np.array_equal(
            read_tensor(*copy), read_tensor(*selection.tensors[source])
        ):
            raise refusal(
                f"{folder}: {duplicate} differs from {source}; plmjax ties them, as "
                f"{family} does.",
                "Use a model with a tied decoder.",
            )
