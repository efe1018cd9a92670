"""Conversion between the config.json of Hugging Face and EncoderConfig.

Nothing is dropped silently: an unknown key raises an error, and so does a value that
transformers' class of the family cannot express. The keys are in config_keys.
"""

import dataclasses
from collections.abc import Collection
from typing import Any, get_args

from plmjax import Exit, PlmjaxError, __version__
from plmjax import config as config_lib
from plmjax.interop.config_keys import (
    ACTIVATIONS,
    IDLE,
    KEYS,
    QUANTISED,
    UNUSED,
    WRITTEN,
)
from plmjax.interop.names import FAMILIES, architecture, blocks
from plmjax.interop.safetensors_file import refusal
from plmjax.interop.task_names import to_json as task_to_json
from plmjax.models import EncoderConfig
from plmjax.models.config import GlobalRule
from plmjax.models.global_tokens import USUAL
from plmjax.models.heads import HEADS
from plmjax.models.positions import rope_base
from plmjax.tasks.task import Task

# The model_type of a model that transformers cannot express.
NATIVE = "plmjax"
# Larger than any published model; a false size in a file must not exhaust the memory.
_MAX_SIZE = 10_000_000
_MAX_LAYERS = 10_000
# {our field: (least value, exclusive upper bound)}.
_RANGES = {
    "norm_eps": (0.0, 1.0),
    "dropout": (0.0, 1.0),
    "attention_dropout": (0.0, 1.0),
    "init_std": (0.0, 1e6),
}
_LAYER_TYPES = {"global": "full_attention", "local": "sliding_attention"}
_ATTENTION_TYPES = {"blocks": "block_sparse", "full": "original_full"}
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
        raise _wrong(where, "heads", named, "a list of names of heads")
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
        return {"attention_type": _ATTENTION_TYPES[config.attention]}
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
        "layer_types": [_LAYER_TYPES[kind] for kind in kinds],
        "local_attention": config.window,
        "embedding_dropout": config.dropout,
        "rope_parameters": {
            theirs: _rope_to_json(config, kind) for kind, theirs in _LAYER_TYPES.items()
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


def from_json(body: dict, where: str) -> tuple[EncoderConfig, int | None, list[str]]:
    """Returns the config, the padding id and the notes of a parsed config.json.

    Raises:
      PlmjaxError: the kind of model or a key is unknown, or a value is invalid; `where`
        names the file.
    """
    for ours, theirs in TYPES.items():
        if body.get("model_type") == theirs:
            body = body | {"model_type": ours}
    kind = body.get("model_type")
    if kind == NATIVE:
        return _from_native(body, where)
    native = isinstance(kind, str) and kind in KEYS and "auto_map" in KEYS[kind].idle
    if body.get("auto_map") and not native:
        raise refusal(
            f"{where} has auto_map: the model needs custom code, which plmjax never "
            "runs.",
            "Use a model of a family that plmjax supports.",
        )
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise refusal(
            f"{where}: model_type is {_short(kind)}; plmjax reads "
            f"{', '.join(FAMILIES)}.",
            'If it is one of these, add "model_type" to the file.'
            if kind is None
            else "Use a folder of such a model.",
        )
    keys = KEYS[kind]
    known = keys.idle | keys.special | keys.fixed.keys()
    known |= keys.sizes.keys() | keys.options.keys()
    notes = _unused_keys(body, known, where)
    for key, values in keys.fixed.items():
        # null stands for the default False; where it is True, null is not.
        if key in body and not (body[key] is None and not values[0]):
            _one_of(body, key, values, where)
    fields = {**keys.ours, "family": kind, **_sizes(body, where)}
    for key, (field, default) in keys.options.items():
        if key not in body:
            notes.append(f"{where} has no {key}: {default}, transformers' default.")
        value = body.get(key, default)
        fields[field] = _option(key, field, value, kind, where)
    fields |= _special_from_json(body, fields, where)
    pad = body.get("pad_token_id", keys.pad)
    if keys.offset:
        # The first pad + 1 rows of the position table are not used by any token.
        below = min(fields["vocab_size"], fields["max_positions"] - 1)
        _check_integer("pad_token_id", pad, 0, below - 1, where)
        fields["position_offset"] = pad + 1
    elif pad is not None:
        _check_integer("pad_token_id", pad, 0, fields["vocab_size"] - 1, where)
    try:
        return EncoderConfig(**fields), pad, notes
    except PlmjaxError as error:
        hint = error.hint or "Use another model."
        raise refusal(f"{where}: {error.message}", hint) from error


def _from_native(body: dict, where: str) -> tuple[EncoderConfig, int, list[str]]:
    """Returns the config and padding id of a file that only plmjax reads."""
    pad_id, encoder = body.get("pad_token_id"), body.get("encoder")
    if not isinstance(encoder, dict):
        raise _wrong(where, "encoder", encoder, "a block of values")
    try:
        config = config_lib.build(EncoderConfig, encoder, EncoderConfig.prefix)
    except PlmjaxError as error:
        hint = error.hint or "Use another model."
        raise refusal(f"{where}: {error.message}", hint) from error
    _check_integer("pad_token_id", pad_id, 0, config.vocab_size - 1, where)
    _check_integer("layers", config.layers, 1, _MAX_LAYERS, where)
    return config, pad_id, []  # type: ignore[return-value]


def _unused_keys(body: dict, known: Collection[str], where: str) -> list[str]:
    """Returns a note about keys that are passed over, as no result depends on them.

    Raises:
      PlmjaxError: the weights are quantised, or a key is not known and has a value.
    """
    others = {key: body[key] for key in sorted(body.keys() - known - IDLE)}
    unknown = [
        key
        for key, value in others.items()
        if not (key in UNUSED or key.startswith("_") or _is_empty(value))
    ]
    if quantised := QUANTISED.intersection(unknown):
        raise refusal(
            f"{where} has {min(quantised)}: the weights are quantised, and plmjax "
            "reads only floating-point ones.",
            "Use the model's unquantised weights.",
        )
    if unknown:
        raise refusal(
            f"{where} has keys that plmjax does not know in {body['model_type']}: "
            f"{', '.join(map(_short, unknown[:5]))}.",
            "If they do not change the model, delete them from the file.",
        )
    named = ", ".join(key if key.isidentifier() else _short(key) for key in others)
    return [f"Passed over in {where}: {named}."] if others else []


def _is_empty(value: Any) -> bool:
    """Returns True if a value sets nothing: null, [], {}, or a block of such values."""
    values = value.values() if isinstance(value, dict) else [value]
    return all(value in (None, [], {}) for value in values)


def _one_of(body: dict, key: str, values: tuple, where: str) -> None:
    """Raises unless body[key] (None if absent) is one of the values."""
    value = body.get(key)
    # 1 == True in Python, but not in JSON.
    if not any(value == known and type(value) is type(known) for known in values):
        raise _unsupported(where, key, value, " or ".join(map(repr, values)))


def _sizes(body: dict, where: str) -> dict[str, Any]:
    sizes = KEYS[body["model_type"]].sizes
    key_of = {field: key for key, field in sizes.items()}
    for key, field in sizes.items():
        if key not in body:
            raise refusal(f"{where} has no {key}.", "Add it to the file.")
        most = _MAX_LAYERS if field == "layers" else _MAX_SIZE
        _check_integer(key, body[key], 1, most, where)
    width, heads = key_of["width"], key_of["heads"]
    if body[width] % body[heads]:
        raise refusal(
            f"{where}: {heads} {body[heads]} does not divide {width} {body[width]}.",
            "Correct the file.",
        )
    return {field: body[key] for key, field in sizes.items()}


def _wrong(where: str, key: str, value: Any, wanted: str) -> PlmjaxError:
    return refusal(
        f"{where}: {key} is {_short(value)}; it must be {wanted}.", "Correct the file."
    )


def _unsupported(where: str, key: str, value: Any, supported: str) -> PlmjaxError:
    return refusal(
        f"{where}: {key} is {_short(value)}; plmjax supports only {supported}.",
        "Use another model.",
    )


def _check_integer(key: str, value: Any, least: int, most: int, where: str) -> None:
    if type(value) is not int or not least <= value <= most:
        raise _wrong(where, key, value, f"a whole number from {least} to {most:,}")


def _check_same(where: str, key: str, rate: Any, other: str, dropout: float) -> None:
    if rate != dropout:
        raise refusal(
            f"{where}: {key} is {_short(rate)} and {other} {dropout}; plmjax has one "
            "rate for both.",
            "Set both to the same value in the file.",
        )


def _option(key: str, field: str, value: Any, kind: str, where: str) -> Any:
    """Returns an optional value, checked and converted to our form."""
    if field in _RANGES:
        low, below = _RANGES[field]
        number = type(value) in (int, float)
        if not number or not low <= value < below:
            raise _wrong(where, key, value, f"a number in [{low:g}, {below:g})")
        return float(value)
    if field in _COUNTS:
        least = 0 if kind == "deberta-v2" else _COUNTS[field]
        _check_integer(key, value, least, _MAX_SIZE, where)
        return value
    if field == "activation":
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise _unsupported(where, key, value, ", ".join(ACTIVATIONS))
        return ACTIVATIONS[value]
    _one_of({key: value}, key, (True, False), where)
    return value


def _special_from_json(body: dict, fields: dict, where: str) -> dict[str, Any]:
    """Returns the fields that depend on several keys."""
    special = {
        "albert": _albert,
        "gpt2": _gpt2,
        "deberta-v2": _deberta,
        "modernbert": _modernbert,
        "modernbert-decoder": _modernbert,
        "eurobert": _eurobert,
        "longformer": _longformer,
        "bigbird": _bigbird,
        "nystromformer": _nystromformer,
    }
    read = special.get(fields["family"])
    return {} if read is None else read(body, fields, where)


def _modernbert(body: dict, fields: dict, where: str) -> dict[str, Any]:
    every = body.get("global_attn_every_n_layers", 3)
    _check_integer("global_attn_every_n_layers", every, 1, _MAX_LAYERS, where)
    types = body.get("layer_types")
    if types is None:
        kinds = ("global", *["local"] * (every - 1))
    else:
        named = {theirs: kind for kind, theirs in _LAYER_TYPES.items()}
        if not isinstance(types, list) or len(types) != fields["layers"]:
            wanted = f"a list of num_hidden_layers = {fields['layers']:,} names"
            raise _wrong(where, "layer_types", types, wanted)
        for theirs in types:
            _one_of({"layer_types": theirs}, "layer_types", tuple(named), where)
        kinds = _shortest([named[theirs] for theirs in types])
    # Half of the window, which Ettin's decoders have alone.
    half = body.get("sliding_window")
    if half is not None:
        _check_integer("sliding_window", half, 1, _MAX_SIZE, where)
    window = body.get("local_attention", 2 * half if half else 128)
    _check_integer("local_attention", window, 2, _MAX_SIZE, where)
    if half is not None:
        _one_of(body, "sliding_window", (window // 2,), where)
    dropout = fields["dropout"]
    rate = body.get("embedding_dropout", dropout)
    _check_same(where, "embedding_dropout", rate, "mlp_dropout", dropout)
    old = {"global": "global_rope_theta", "local": "local_rope_theta"}
    default = {"global": 160_000.0, "local": 10_000.0}
    scaling = _object(body, "rope_scaling", where)
    ropes, by_kind = _object(body, "rope_parameters", where), {}
    for kind, theirs in _LAYER_TYPES.items():
        rope = {"rope_theta": body.get(old[kind], default[kind])}
        rope |= _object(ropes, theirs, f"{where}: rope_parameters") | scaling
        by_kind[kind] = _rope(rope, fields, where)
    local = by_kind["local"]
    if local["rope_scaling"] != "none":
        # Rotations of a window of tokens need no stretching.
        raise refusal(
            f"{where}: the rotations of sliding_attention are scaled; plmjax scales "
            "those of full_attention alone.",
            "Use another model.",
        )
    theta, other = by_kind["global"]["rope_theta"], local["rope_theta"]
    return {
        "layer_kinds": kinds,
        "window": window,
        **by_kind["global"],
        "rope_local_theta": None if other == theta else other,
    }


def _longformer(body: dict, fields: dict, where: str) -> dict[str, Any]:
    windows = body.get("attention_window", 512)
    windows = windows if isinstance(windows, list) else [windows] * fields["layers"]
    if len(windows) != fields["layers"]:
        wanted = f"a list of num_hidden_layers = {fields['layers']:,} windows"
        raise _wrong(where, "attention_window", windows, wanted)
    for window in windows:
        _check_integer("attention_window", window, 2, _MAX_SIZE, where)
        if window != windows[0]:
            one = "one window in all layers"
            raise _unsupported(where, "attention_window", windows, one)
    named, classes = body.get("architectures"), FAMILIES["longformer"].classes
    usual = [rule for head, rule in USUAL.items() if named == [classes[head,]]]
    rule = body.get("global_tokens", usual[0] if usual else "none")
    _one_of({"global_tokens": rule}, "global_tokens", get_args(GlobalRule), where)
    ids = [body.get("sep_token_id", 2)] if rule in ("question", "second") else []
    ids, limit = body.get("global_token_ids", ids), body.get("global_token_limit", 16)
    if not isinstance(ids, list):
        raise _wrong(where, "global_token_ids", ids, "a list of ids")
    for number in ids:
        most = fields["vocab_size"] - 1
        _check_integer("global_token_ids", number, 0, most, where)
    _check_integer("global_token_limit", limit, 1, _MAX_SIZE, where)
    return {
        "window": windows[0],
        "global_tokens": rule,
        "global_ids": tuple(ids),
        "global_limit": limit,
    }


def _object(body: dict, key: str, where: str) -> dict[str, Any]:
    """Returns an object of config.json; {} if it is missing or null."""
    value = body.get(key)
    if value is not None and not isinstance(value, dict):
        raise _wrong(where, key, value, "an object")
    return value or {}


def _eurobert(body: dict, fields: dict, where: str) -> dict[str, Any]:
    kv_heads = body.get("num_key_value_heads")
    kv_heads = fields["heads"] if kv_heads is None else kv_heads
    _check_integer("num_key_value_heads", kv_heads, 1, fields["heads"], where)
    if body.get("head_dim") is not None:
        _one_of(body, "head_dim", (fields["width"] // fields["heads"],), where)
    rope = {"rope_theta": body.get("rope_theta", 10_000.0)}
    rope |= _object(body, "rope_parameters", where)
    rope |= _object(body, "rope_scaling", where)
    # The class has no dropout but that of the attention weights.
    return {"kv_heads": kv_heads, "dropout": 0.0, **_rope(rope, fields, where)}


def _bigbird(body: dict, fields: dict, where: str) -> dict[str, Any]:
    ours = {theirs: kind for kind, theirs in _ATTENTION_TYPES.items()}
    kind = body.get("attention_type", "block_sparse")
    _one_of({"attention_type": kind}, "attention_type", tuple(ours), where)
    return {"attention": ours[kind]}


def _nystromformer(body: dict, fields: dict, where: str) -> dict[str, Any]:
    positions = fields["max_positions"]
    rows, landmarks = (
        body.get(key, 64) for key in ("segment_means_seq_len", "num_landmarks")
    )
    _check_integer("segment_means_seq_len", rows, 1, _MAX_SIZE, where)
    _check_integer("num_landmarks", landmarks, 1, rows, where)
    width = body.get("conv_kernel_size", 65)
    _check_integer("conv_kernel_size", width, 3, _MAX_SIZE, where)
    return {
        "max_positions": positions + 2,
        # With as many landmarks as tokens, their class computes the exact softmax.
        "landmarks": positions if landmarks == rows else landmarks,
        "value_convolution": width,
    }


def _rope(rope: dict, fields: dict, where: str) -> dict[str, Any]:
    """Returns our fields of the rotations that an object of config.json names."""
    rope = dict(rope)
    # The older name stands in rope_scaling, which counts beside rope_parameters.
    newer = rope.pop("rope_type", "default")
    kind = rope.pop("type", newer)
    theta = rope.pop("rope_theta")
    if type(theta) not in (int, float) or not 0 < theta < 1e12:
        raise _wrong(where, "rope_theta", theta, "a positive number")
    _one_of({"rope_type": kind}, "rope_type", ("default", "yarn"), where)
    found: dict[str, Any] = {"rope_theta": float(theta), "rope_scaling": "none"}
    if kind == "yarn":
        factor = rope.pop("factor", None)
        trained = rope.pop("original_max_position_embeddings", None)
        positions = fields["max_positions"]
        if type(factor) not in (int, float) or not 1 <= factor <= 1e6:
            raise _wrong(where, "factor", factor, "from 1 to a million")
        if trained is not None and trained != round(positions / factor):
            raise refusal(
                f"{where}: original_max_position_embeddings is {_short(trained)}, not "
                f"max_position_embeddings {positions:,} / factor {factor:g}.",
                "Use another model.",
            )
        found |= {"rope_scaling": "yarn", "rope_factor": float(factor)}
    if more := {key: value for key, value in rope.items() if value is not None}:
        raise refusal(
            f"{where}: plmjax does not support {', '.join(map(_short, more))} of "
            f"rope_parameters with the type {kind!r}.",
            "Use another model.",
        )
    return found


def _shortest(kinds: list[str]) -> tuple[str, ...]:
    """Returns the shortest list that gives `kinds` when it is repeated."""
    for size in range(1, len(kinds) + 1):
        if all(kinds[i] == kinds[i % size] for i in range(len(kinds))):
            return tuple(kinds[:size])
    return ()


def _albert(body: dict, fields: dict, where: str) -> dict[str, Any]:
    layers, groups = fields["layers"], body.get("num_hidden_groups", 1)
    _check_integer("num_hidden_groups", groups, 1, layers, where)
    if layers % groups:
        raise refusal(
            f"{where}: num_hidden_groups {groups} does not divide num_hidden_layers "
            f"{layers}.",
            "Use another model.",
        )
    if fields["embedding_width"] == fields["width"]:
        raise refusal(
            f"{where}: embedding_size is hidden_size; for equal sizes plmjax has no "
            "projection.",
            "Use another model.",
        )
    if groups == layers > 1:
        return {"sharing": "none"}
    return {"sharing": "all", "groups": groups}


def _gpt2(body: dict, fields: dict, where: str) -> dict[str, Any]:
    inner = body.get("n_inner")
    if inner is None:
        inner = 4 * fields["width"]
    _check_integer("n_inner", inner, 1, _MAX_SIZE, where)
    rate = body.get("embd_pdrop", 0.1)
    _check_same(where, "embd_pdrop", rate, "resid_pdrop", fields["dropout"])
    return {"ffn_width": inner}


def _deberta(body: dict, fields: dict, where: str) -> dict[str, Any]:
    _one_of(body, "relative_attention", (True,), where)
    if body.get("max_relative_positions", -1) != -1:
        _one_of(body, "max_relative_positions", (fields["max_positions"],), where)
    if "position_buckets" not in body:
        raise refusal(f"{where} has no position_buckets.", "Use another model.")
    _check_integer("position_buckets", body["position_buckets"], 2, _MAX_SIZE, where)
    kinds = body.get("pos_att_type")
    kinds = kinds.split("|") if isinstance(kinds, str) else kinds
    if kinds not in (["c2p", "p2c"], ["p2c", "c2p"]):
        raise _unsupported(where, "pos_att_type", kinds, "c2p and p2c together")
    norm = body.get("norm_rel_ebd", "none")
    _one_of({"norm_rel_ebd": norm}, "norm_rel_ebd", ("none", "layer_norm"), where)
    biased = body.get("position_biased_input", True)
    _one_of(
        {"position_biased_input": biased}, "position_biased_input", (True, False), where
    )
    if fields["convolution_width"]:
        activation = ACTIVATIONS.get(str(body.get("conv_act", "tanh")))
        if activation != fields["activation"]:
            ours = "the activation of the layers"
            raise _unsupported(where, "conv_act", body.get("conv_act", "tanh"), ours)
    for key, value in (
        ("embedding_size", fields["width"]),
        ("attention_head_size", fields["width"] // fields["heads"]),
    ):
        if key in body:
            _one_of(body, key, (value,), where)
    return {
        "position_buckets": body["position_buckets"],
        "position_norm": norm == "layer_norm",
        "positions": "learned" if biased else "none",
    }


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
