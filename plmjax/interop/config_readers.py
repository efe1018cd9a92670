"""Reads those keys of a config.json that do not correspond to one field each."""

from collections.abc import Callable, Iterable
from typing import Any, get_args

from plmjax import PlmjaxError
from plmjax.interop.config_keys import ACTIVATIONS
from plmjax.interop.names import FAMILIES
from plmjax.interop.safetensors_file import refusal
from plmjax.models.config import GlobalRule
from plmjax.models.global_tokens import USUAL

# Larger than any published model; a false size in a file must not exhaust the memory.
MAX_SIZE = 10_000_000
MAX_LAYERS = 10_000
LAYER_TYPES = {"global": "full_attention", "local": "sliding_attention"}
ATTENTION_TYPES = {"blocks": "block_sparse", "full": "original_full"}


def short(value: Any) -> str:
    """Returns a value for a sentence, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Body(dict[str, Any]):
    """A parsed config.json; `where` is its name in errors."""

    def __init__(self, values: dict, where: str):
        super().__init__(values)
        self.where = where

    def refusal(self, text: str, hint: str = "Use another model.") -> PlmjaxError:
        return refusal(f"{self.where}: {text}.", hint)

    def wrong(self, key: str, value: Any, wanted: str) -> PlmjaxError:
        text = f"{key} is {short(value)}; it must be {wanted}"
        return self.refusal(text, "Correct the file.")

    def unsupported(self, key: str, value: Any, supported: str) -> PlmjaxError:
        return self.refusal(
            f"{key} is {short(value)}; plmjax supports only {supported}"
        )

    def check_integer(
        self, key: str, value: Any, least: int, most: int = MAX_SIZE
    ) -> int:
        if type(value) is not int or not least <= value <= most:
            wanted = f"a whole number from {least} to {most:,}"
            raise self.wrong(key, value, wanted)
        return value

    def integer(self, key: str, default: Any, least: int, most: int = MAX_SIZE) -> int:
        return self.check_integer(key, self.get(key, default), least, most)

    def check_choice(self, key: str, value: Any, values: Iterable) -> Any:
        # 1 == True in Python, but not in JSON.
        if not any(value == known and type(value) is type(known) for known in values):
            raise self.unsupported(key, value, " or ".join(map(repr, values)))
        return value

    def choice(self, key: str, default: Any, values: Iterable) -> Any:
        return self.check_choice(key, self.get(key, default), values)

    def check_rate(self, key: str, default: Any, other: str, dropout: float) -> None:
        """Raises unless the rate is that of another key."""
        if (rate := self.get(key, default)) != dropout:
            raise self.refusal(
                f"{key} is {short(rate)} and {other} {dropout}; plmjax has one rate "
                "for both",
                "Set both to the same value in the file.",
            )

    def block(self, key: str, within: str = "") -> "Body":
        """Returns an object of the file; an empty one if it is missing or null."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, value, "an object")
        return Body(value or {}, self.where + within)


def _modernbert(body: Body, fields: dict) -> dict[str, Any]:
    every = body.integer("global_attn_every_n_layers", 3, 1, MAX_LAYERS)
    types = body.get("layer_types")
    if types is None:
        kinds = ("global", *["local"] * (every - 1))
    else:
        named = {theirs: kind for kind, theirs in LAYER_TYPES.items()}
        if not isinstance(types, list) or len(types) != fields["layers"]:
            wanted = f"a list of num_hidden_layers = {fields['layers']:,} names"
            raise body.wrong("layer_types", types, wanted)
        kinds = _shortest(
            [named[body.check_choice("layer_types", name, named)] for name in types]
        )
    # Half of the window, which Ettin's decoders have alone.
    half = body.get("sliding_window")
    if half is not None:
        body.check_integer("sliding_window", half, 1)
    window = body.integer("local_attention", 2 * half if half else 128, 2)
    if half is not None:
        body.check_choice("sliding_window", half, (window // 2,))
    dropout = fields["dropout"]
    body.check_rate("embedding_dropout", dropout, "mlp_dropout", dropout)
    old = {"global": "global_rope_theta", "local": "local_rope_theta"}
    default = {"global": 160_000.0, "local": 10_000.0}
    scaling = body.block("rope_scaling")
    ropes, by_kind = body.block("rope_parameters", ": rope_parameters"), {}
    for kind, theirs in LAYER_TYPES.items():
        rope = {"rope_theta": body.get(old[kind], default[kind])}
        rope |= ropes.block(theirs) | scaling
        by_kind[kind] = _rope(Body(rope, body.where), fields)
    local = by_kind["local"]
    if local["rope_scaling"] != "none":
        # Rotations of a window of tokens need no stretching.
        raise body.refusal(
            "the rotations of sliding_attention are scaled; plmjax scales those of "
            "full_attention alone"
        )
    theta, other = by_kind["global"]["rope_theta"], local["rope_theta"]
    return {
        "layer_kinds": kinds,
        "window": window,
        **by_kind["global"],
        "rope_local_theta": None if other == theta else other,
    }


def _longformer(body: Body, fields: dict) -> dict[str, Any]:
    windows = body.get("attention_window", 512)
    windows = windows if isinstance(windows, list) else [windows] * fields["layers"]
    if len(windows) != fields["layers"]:
        wanted = f"a list of num_hidden_layers = {fields['layers']:,} windows"
        raise body.wrong("attention_window", windows, wanted)
    for window in windows:
        body.check_integer("attention_window", window, 2)
        if window != windows[0]:
            one = "one window in all layers"
            raise body.unsupported("attention_window", windows, one)
    named, classes = body.get("architectures"), FAMILIES["longformer"].classes
    usual = [rule for head, rule in USUAL.items() if named == [classes[head,]]]
    default = usual[0] if usual else "none"
    rule = body.choice("global_tokens", default, get_args(GlobalRule))
    ids = [body.get("sep_token_id", 2)] if rule in ("question", "second") else []
    ids = body.get("global_token_ids", ids)
    if not isinstance(ids, list):
        raise body.wrong("global_token_ids", ids, "a list of ids")
    for number in ids:
        body.check_integer("global_token_ids", number, 0, fields["vocab_size"] - 1)
    return {
        "window": windows[0],
        "global_tokens": rule,
        "global_ids": tuple(ids),
        "global_limit": body.integer("global_token_limit", 16, 1),
    }


def _eurobert(body: Body, fields: dict) -> dict[str, Any]:
    heads, kv_heads = fields["heads"], body.get("num_key_value_heads")
    kv_heads = heads if kv_heads is None else kv_heads
    body.check_integer("num_key_value_heads", kv_heads, 1, heads)
    if body.get("head_dim") is not None:
        body.choice("head_dim", None, (fields["width"] // heads,))
    rope = {"rope_theta": body.get("rope_theta", 10_000.0)}
    rope |= body.block("rope_parameters") | body.block("rope_scaling")
    # The class has no dropout but that of the attention weights.
    scaled = _rope(Body(rope, body.where), fields)
    return {"kv_heads": kv_heads, "dropout": 0.0, **scaled}


def _bigbird(body: Body, fields: dict) -> dict[str, Any]:
    del fields
    ours = {theirs: kind for kind, theirs in ATTENTION_TYPES.items()}
    return {"attention": ours[body.choice("attention_type", "block_sparse", ours)]}


def _nystromformer(body: Body, fields: dict) -> dict[str, Any]:
    positions = fields["max_positions"]
    rows = body.integer("segment_means_seq_len", 64, 1)
    landmarks = body.integer("num_landmarks", 64, 1, rows)
    return {
        "max_positions": positions + 2,
        # With as many landmarks as tokens, their class computes the exact softmax.
        "landmarks": positions if landmarks == rows else landmarks,
        "value_convolution": body.integer("conv_kernel_size", 65, 3),
    }


def _rope(rope: Body, fields: dict) -> dict[str, Any]:
    """Returns our fields of the rotations that an object of config.json names."""
    # The older name stands in rope_scaling, which counts beside rope_parameters.
    newer = rope.pop("rope_type", "default")
    kind = rope.pop("type", newer)
    theta = rope.pop("rope_theta")
    if type(theta) not in (int, float) or not 0 < theta < 1e12:
        raise rope.wrong("rope_theta", theta, "a positive number")
    rope.check_choice("rope_type", kind, ("default", "yarn"))
    found: dict[str, Any] = {"rope_theta": float(theta), "rope_scaling": "none"}
    if kind == "yarn":
        factor = rope.pop("factor", None)
        trained = rope.pop("original_max_position_embeddings", None)
        positions = fields["max_positions"]
        if type(factor) not in (int, float) or not 1 <= factor <= 1e6:
            raise rope.wrong("factor", factor, "from 1 to a million")
        if trained is not None and trained != round(positions / factor):
            raise rope.refusal(
                f"original_max_position_embeddings is {short(trained)}, not "
                f"max_position_embeddings {positions:,} / factor {factor:g}"
            )
        found |= {"rope_scaling": "yarn", "rope_factor": float(factor)}
    if more := [short(key) for key, value in rope.items() if value is not None]:
        raise rope.refusal(
            f"plmjax does not support {', '.join(more)} of rope_parameters with the "
            f"type {kind!r}"
        )
    return found


def _shortest(kinds: list[str]) -> tuple[str, ...]:
    """Returns the shortest list that gives `kinds` when it is repeated."""
    for size in range(1, len(kinds) + 1):
        if all(kinds[i] == kinds[i % size] for i in range(len(kinds))):
            return tuple(kinds[:size])
    return ()


def _albert(body: Body, fields: dict) -> dict[str, Any]:
    layers = fields["layers"]
    groups = body.integer("num_hidden_groups", 1, 1, layers)
    if layers % groups:
        raise body.refusal(
            f"num_hidden_groups {groups} does not divide num_hidden_layers {layers}"
        )
    if fields["embedding_width"] == fields["width"]:
        raise body.refusal(
            "embedding_size is hidden_size; for equal sizes plmjax has no projection"
        )
    if groups == layers > 1:
        return {"sharing": "none"}
    return {"sharing": "all", "groups": groups}


def _gpt2(body: Body, fields: dict) -> dict[str, Any]:
    inner = body.get("n_inner")
    body.check_rate("embd_pdrop", 0.1, "resid_pdrop", fields["dropout"])
    inner = 4 * fields["width"] if inner is None else inner
    return {"ffn_width": body.check_integer("n_inner", inner, 1)}


def _deberta(body: Body, fields: dict) -> dict[str, Any]:
    width = fields["width"]
    body.choice("relative_attention", None, (True,))
    if body.get("max_relative_positions", -1) != -1:
        body.choice("max_relative_positions", None, (fields["max_positions"],))
    if "position_buckets" not in body:
        raise refusal(f"{body.where} has no position_buckets.", "Use another model.")
    kinds = body.get("pos_att_type")
    kinds = kinds.split("|") if isinstance(kinds, str) else kinds
    if kinds not in (["c2p", "p2c"], ["p2c", "c2p"]):
        raise body.unsupported("pos_att_type", kinds, "c2p and p2c together")
    norm = body.choice("norm_rel_ebd", "none", ("none", "layer_norm"))
    biased = body.choice("position_biased_input", True, (True, False))
    activation = body.get("conv_act", "tanh")
    if fields["convolution_width"]:
        if ACTIVATIONS.get(str(activation)) != fields["activation"]:
            ours = "the activation of the layers"
            raise body.unsupported("conv_act", activation, ours)
    body.choice("embedding_size", width, (width,))
    size = width // fields["heads"]
    body.choice("attention_head_size", size, (size,))
    return {
        "position_buckets": body.integer("position_buckets", None, 2),
        "position_norm": norm == "layer_norm",
        "positions": "learned" if biased else "none",
    }


READERS: dict[str, Callable[[Body, dict], dict[str, Any]]] = {
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
