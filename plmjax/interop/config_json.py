"""Conversion between the config.json of Hugging Face and EncoderConfig.

Nothing is dropped silently: an unknown key raises an error, and so does a value that
transformers' class of the family cannot express. The keys are in config_keys.
"""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

from plmjax import Exit, PlmjaxError, __version__
from plmjax import config as config_lib
from plmjax.interop.config_keys import (
    ACTIVATIONS,
    IDLE,
    KEYS,
    QUANTISED,
    UNUSED,
    WRITTEN,
    Keys,
)
from plmjax.interop.config_readers import (
    ATTENTION_TYPES,
    LAYER_TYPES,
    MAX_LAYERS,
    MAX_SIZE,
    READERS,
    Body,
    short,
)
from plmjax.interop.names import FAMILIES, architecture, blocks
from plmjax.interop.safetensors_file import refusal
from plmjax.interop.task_names import to_json as task_to_json
from plmjax.models import EncoderConfig
from plmjax.models.heads import HEADS
from plmjax.models.positions import rope_base
from plmjax.tasks.task import Task

# The model_type of a model that transformers cannot express.
NATIVE = "plmjax"
# {our field: (least value, exclusive upper bound)}.
_RANGES = {
    "norm_eps": (0.0, 1.0),
    "dropout": (0.0, 1.0),
    "attention_dropout": (0.0, 1.0),
    "init_std": (0.0, 1e6),
}
# Integer fields, with their least value.
_COUNTS = {"token_types": 1, "convolution_width": 0, "block": 1, "random_blocks": 0}
# Our names of families, where transformers' type of model is another.
TYPES = {"bigbird": "big_bird"}


def to_json(
    config: EncoderConfig,
    heads: Collection[str],
    pad_id: int,
    cls_id: int,
    sep_id: int,
    task: Task | None = None,
    *,
    mask_id: int | None = None,
    length: int | None = None,
) -> dict[str, Any]:
    """Returns the config.json of transformers 5 for a model with these heads.

    `task` is that of a fine-tuned model; `length` is the longest row in tokens, None:
    the model's positions. Ids for which the class has a default that a smaller
    vocabulary lacks are written, too.

    Raises:
      PlmjaxError: transformers' class of the family cannot express the config.
    """
    keys, (name, _) = KEYS[config.family], architecture(config.family, heads)
    for field, value in keys.ours.items():
        if getattr(config, field) != value:
            raise _inexpressible(field, getattr(config, field), name, value)
    _check_widths(config, name)
    if "type_vocab_size" in keys.options and not config.token_types:
        if config.family != "deberta-v2":
            raise _inexpressible("token_types", 0, name, 1)
    if not _head_fits(config, heads):
        raise _inexpressible("activation", config.activation, name, "gelu")
    offset = pad_id + 1 if keys.offset else keys.ours.get("position_offset", 0)
    if config.position_offset != offset:
        raise PlmjaxError(
            f"model.position_offset is {config.position_offset}, but {name} counts "
            f"positions from {offset} with the padding id {pad_id} of this tokenizer.",
            hint=f"Train with --config.model.position_offset={offset}.",
        )
    body: dict[str, Any] = {
        "architectures": [name],
        "model_type": TYPES.get(config.family, config.family),
        "dtype": "float32",
        "pad_token_id": pad_id,
        "tie_word_embeddings": config.head != "untied",
        "plmjax_version": __version__,
    }
    if keys.names_ends:
        body |= {"bos_token_id": cls_id, "eos_token_id": sep_id}
    if config.family in ("longformer", "bigbird"):  # by which they find the question
        body["sep_token_id"] = sep_id
    if config.family in ("modernbert", "modernbert-decoder"):
        body |= {"cls_token_id": cls_id, "sep_token_id": sep_id}
    if config.family == "eurobert" and mask_id is not None:
        body["mask_token_id"] = mask_id
    for key, field in keys.sizes.items():
        body[key] = getattr(config, field)
    if "embedding_size" in keys.sizes:
        body["embedding_size"] = config.input_width
    for key, (field, _) in keys.options.items():
        value = getattr(config, field)
        body[key] = WRITTEN[value] if field == "activation" else value
    body |= _special_to_json(config, name, length or config.max_length)
    return body if task is None else body | task_to_json(config, task)


def to_any_json(
    config: EncoderConfig,
    heads: Collection[str],
    pad_id: int,
    *more: int,
    task: Task | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Returns the config.json of any model; transformers may not know its kind.

    Then `only_plmjax` has the reason.
    """
    try:
        return to_json(config, heads, pad_id, *more, task=task, **options)
    except PlmjaxError as error:
        body = {
            "model_type": NATIVE,
            "only_plmjax": error.message,
            "plmjax_version": __version__,
            "pad_token_id": pad_id,
            "encoder": dataclasses.asdict(config),
            "heads": list(heads),
        }
    return body if task is None else body | task_to_json(config, task)


def native_heads(body: dict, family: str, where: str) -> tuple[str, ...] | None:
    """Returns the heads in the folder of a model that transformers cannot express.

    None: the folder is of one that it can.
    """
    if body.get("model_type") != NATIVE:
        return None
    named, known = body.get("heads"), FAMILIES[family].heads
    if not isinstance(named, list) or not all(
        head in HEADS or head in known for head in map(str, named)
    ):
        raise Body(body, where).wrong("heads", named, "a list of names of heads")
    return tuple(named)


def _check_widths(config: EncoderConfig, name: str) -> None:
    wide = config.input_width == config.width
    if "embedding_size" not in KEYS[config.family].sizes and not wide:
        raise _inexpressible(
            "embedding_width", config.embedding_width, name, config.width
        )
    if config.family == "albert" and wide:
        # transformers' ALBERT has the projection even at equal widths; ours has not.
        raise _inexpressible(
            "embedding_width", config.input_width, name, f"less than {config.width}"
        )


def _head_fits(config: EncoderConfig, heads: Collection[str]) -> bool:
    exact = KEYS[config.family].exact_head and "head" in heads
    return not exact or config.activation == "gelu"


def check_head(config: EncoderConfig, heads: Collection[str], where: str) -> None:
    """Raises PlmjaxError if the vocabulary head cannot use the config's activation."""
    if not _head_fits(config, heads):
        raise refusal(
            f"{where}: the activation is {WRITTEN[config.activation]!r}, but the head "
            f"of {FAMILIES[config.family].classes['head',]} always uses the exact "
            "GELU.",
            "Use another model.",
        )


def _special_to_json(config: EncoderConfig, name: str, length: int) -> dict[str, Any]:
    """Returns the keys that do not correspond to one field of EncoderConfig."""
    if config.family == "albert":
        return {"num_hidden_groups": blocks(config), "inner_group_num": 1}
    if config.family == "gpt2":
        return {"n_inner": config.ffn_width, "embd_pdrop": config.dropout}
    if config.family == "deberta-v2":
        body = {
            "relative_attention": True,
            "max_relative_positions": -1,
            "position_buckets": config.position_buckets,
            "norm_rel_ebd": "layer_norm" if config.position_norm else "none",
            "pos_att_type": ["c2p", "p2c"],
            "position_biased_input": config.positions == "learned",
            "legacy": True,
        }
        if config.convolution_width:
            body["conv_act"] = WRITTEN[config.activation]
        return body
    if config.family == "bigbird":
        return {"attention_type": ATTENTION_TYPES[config.attention]}
    if config.family == "nystromformer":
        return _nystromformer_to_json(config, name, length)
    if config.family == "eurobert":
        return {
            "num_key_value_heads": config.kv_heads or config.heads,
            "rope_parameters": _rope_to_json(config, "global"),
        }
    if config.family == "longformer":
        return {
            "attention_window": [config.window] * config.layers,
            "global_tokens": config.global_tokens,
            "global_token_ids": list(config.global_ids),
            "global_token_limit": config.global_limit,
        }
    if config.positions != "rope":
        return {}
    kinds = [config.layer_kind(layer) for layer in range(config.layers)]
    return {
        "layer_types": [LAYER_TYPES[kind] for kind in kinds],
        "local_attention": config.window,
        "embedding_dropout": config.dropout,
        "rope_parameters": {
            theirs: _rope_to_json(config, kind) for kind, theirs in LAYER_TYPES.items()
        },
    }


def _nystromformer_to_json(config: EncoderConfig, name: str, length: int) -> dict:
    """Returns the keys of a Nyströmformer for rows of at most `length` tokens.

    transformers' class takes rows of exactly segment_means_seq_len tokens, a multiple
    of num_landmarks; if the two are equal it computes the exact softmax, of any row.
    """
    landmarks, width = config.landmarks, config.value_convolution
    rows = length // landmarks * landmarks
    if landmarks == config.max_length:
        landmarks = rows = 64
    elif rows <= landmarks:
        raise _inexpressible("landmarks", landmarks, name, f"at most {length // 2}")
    if not width:
        raise _inexpressible("value_convolution", width, name, "an odd width")
    return {
        "max_position_embeddings": config.max_positions - config.position_offset,
        "segment_means_seq_len": rows,
        "num_landmarks": landmarks,
        "conv_kernel_size": width,
        "inv_coeff_init_option": False,
    }


def _rope_to_json(config: EncoderConfig, kind: str) -> dict[str, Any]:
    """Returns the rotations of a kind of layer in the form of transformers 5."""
    body: dict[str, Any] = {"rope_type": "default"}
    if kind == "global" and config.rope_scaling == "yarn":
        body = {
            "rope_type": "yarn",
            "factor": config.rope_factor,
            "original_max_position_embeddings": round(
                config.max_positions / config.rope_factor
            ),
        }
    return body | {"rope_theta": rope_base(config, kind)}


def _inexpressible(field: str, value, name: str, wanted) -> PlmjaxError:
    hint = "For transformers, train one with that value"
    if field == "embedding_width" and not name.startswith("Albert"):
        # Usually an ELECTRA's generator with the wider embeddings of its discriminator.
        hint += ", with model.family=electra, or with objective.tie=none"
    return PlmjaxError(
        f"model.{field}={value!r} cannot be read by transformers, whose {name} "
        f"supports only {wanted!r}.",
        hint=f"{hint}.",
        code=Exit.USAGE,
    )


def from_json(values: dict, where: str) -> tuple[EncoderConfig, int | None, list[str]]:
    """Returns the config, the padding id and the notes of a parsed config.json.

    Raises:
      PlmjaxError: the kind of model or a key is unknown, or a value is invalid; `where`
        names the file.
    """
    body = Body(values, where)
    kind = body.get("model_type")
    kind = next((ours for ours, theirs in TYPES.items() if kind == theirs), kind)
    if kind == NATIVE:
        return _from_native(body)
    native = isinstance(kind, str) and kind in KEYS and "auto_map" in KEYS[kind].idle
    if body.get("auto_map") and not native:
        raise refusal(
            f"{where} has auto_map: the model needs custom code, which plmjax never "
            "runs.",
            "Use a model of a family that plmjax supports.",
        )
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise body.refusal(
            f"model_type is {short(kind)}; plmjax reads {', '.join(FAMILIES)}",
            'If it is one of these, add "model_type" to the file.'
            if kind is None
            else "Use a folder of such a model.",
        )
    keys = KEYS[kind]
    notes = _unused_keys(body, keys, kind)
    for key, known in keys.fixed.items():
        # null stands for the default False; where it is True, null is not.
        if key in body and not (body[key] is None and not known[0]):
            body.check_choice(key, body[key], known)
    fields = {**keys.ours, "family": kind, **_sizes(body, keys)}
    for key, (field, default) in keys.options.items():
        if key not in body:
            notes.append(f"{where} has no {key}: {default}, transformers' default.")
        fields[field] = _option(body, key, field, default, kind)
    if kind in READERS:
        fields |= READERS[kind](body, fields)
    pad = body.get("pad_token_id", keys.pad)
    if keys.offset:
        # The first pad + 1 rows of the position table are not used by any token.
        below = min(fields["vocab_size"], fields["max_positions"] - 1)
        fields["position_offset"] = 1 + body.check_integer(
            "pad_token_id", pad, 0, below - 1
        )
    elif pad is not None:
        body.check_integer("pad_token_id", pad, 0, fields["vocab_size"] - 1)
    with _named(where):
        return EncoderConfig(**fields), pad, notes


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Context manager in which errors of a config become those of its file."""
    try:
        yield
    except PlmjaxError as error:
        hint = error.hint or "Use another model."
        raise refusal(f"{where}: {error.message}", hint) from error


def _from_native(body: Body) -> tuple[EncoderConfig, int, list[str]]:
    """Returns the config and padding id of a file that only plmjax reads."""
    encoder = body.get("encoder")
    if not isinstance(encoder, dict):
        raise body.wrong("encoder", encoder, "a block of values")
    with _named(body.where):
        config = config_lib.build(EncoderConfig, encoder, EncoderConfig.prefix)
    body.check_integer("layers", config.layers, 1, MAX_LAYERS)
    return config, body.integer("pad_token_id", None, 0, config.vocab_size - 1), []


def _unused_keys(body: Body, keys: Keys, kind: str) -> list[str]:
    """Returns a note about keys that are passed over, as no result depends on them.

    Raises:
      PlmjaxError: the weights are quantised, or a key is not known and has a value.
    """
    known = {*IDLE, *keys.idle, *keys.special, *keys.fixed, *keys.sizes, *keys.options}
    others = {key: body[key] for key in sorted(body.keys() - known)}
    unknown = [
        key
        for key, value in others.items()
        if not (key in UNUSED or key.startswith("_") or _is_empty(value))
    ]
    if quantised := QUANTISED.intersection(unknown):
        raise refusal(
            f"{body.where} has {min(quantised)}: the weights are quantised, and plmjax "
            "reads only floating-point ones.",
            "Use the model's unquantised weights.",
        )
    if unknown:
        raise refusal(
            f"{body.where} has keys that plmjax does not know in {kind}: "
            f"{', '.join(map(short, unknown[:5]))}.",
            "If they do not change the model, delete them from the file.",
        )
    named = ", ".join(key if key.isidentifier() else short(key) for key in others)
    return [f"Passed over in {body.where}: {named}."] if others else []


def _is_empty(value: Any) -> bool:
    """Returns True if a value sets nothing: null, [], {}, or a block of such values."""
    values = value.values() if isinstance(value, dict) else [value]
    return all(value in (None, [], {}) for value in values)


def _sizes(body: Body, keys: Keys) -> dict[str, Any]:
    for key, field in keys.sizes.items():
        if key not in body:
            raise refusal(f"{body.where} has no {key}.", "Add it to the file.")
        body.integer(key, None, 1, MAX_LAYERS if field == "layers" else MAX_SIZE)
    key_of = {field: key for key, field in keys.sizes.items()}
    width, heads = key_of["width"], key_of["heads"]
    if body[width] % body[heads]:
        text = f"{heads} {body[heads]} does not divide {width} {body[width]}"
        raise body.refusal(text, "Correct the file.")
    return {field: body[key] for key, field in keys.sizes.items()}


def _option(body: Body, key: str, field: str, default: Any, kind: str) -> Any:
    """Returns an optional value, checked and converted to our form."""
    value = body.get(key, default)
    if field in _RANGES:
        low, below = _RANGES[field]
        if type(value) not in (int, float) or not low <= value < below:
            raise body.wrong(key, value, f"a number in [{low:g}, {below:g})")
        return float(value)
    if field in _COUNTS:
        least = 0 if kind == "deberta-v2" else _COUNTS[field]
        return body.check_integer(key, value, least)
    if field == "activation":
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise body.unsupported(key, value, ", ".join(ACTIVATIONS))
        return ACTIVATIONS[value]
    return body.check_choice(key, value, (True, False))
