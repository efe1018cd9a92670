"""The config.json of Hugging Face, to and from an EncoderConfig.

Nothing is dropped in silence: a key that we do not know is refused, as is a value of
ours that transformers' BERT and RoBERTa cannot express.
"""

import math
from typing import Any

from plmjax import Exit, PlmjaxError, __version__
from plmjax.interop.names import FAMILIES
from plmjax.interop.safetensors_file import refusal
from plmjax.models import EncoderConfig

# {their key: our field}. Sizes must be there: shapes would not betray a wrong `heads`.
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "ffn_width",
    "max_position_embeddings": "max_positions",
}
# {their key: (our field, transformers' default for both families)}.
_OPTIONAL = {
    "type_vocab_size": ("token_types", 2),
    "hidden_act": ("activation", "gelu"),
    "layer_norm_eps": ("norm_eps", 1e-12),
    "hidden_dropout_prob": ("dropout", 0.1),
    "attention_probs_dropout_prob": ("attention_dropout", 0.1),
    "initializer_range": ("init_std", 0.02),
}
_PAD = {"bert": 0, "roberta": 1}
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# Keys that change the model, with the only values that we can be.
_FIXED: dict[str, tuple] = {
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
    "position_embedding_type": ("absolute",),
    "pruned_heads": ({}, None),
}
# Keys that do not change what the encoder or the vocabulary head compute.
_IDLE = frozenset(
    """
    model_type architectures dtype torch_dtype transformers_version plmjax_version
    _name_or_path use_cache use_bfloat16 gradient_checkpointing torchscript
    chunk_size_feed_forward return_dict output_attentions output_hidden_states
    output_past bos_token_id eos_token_id sep_token_id cls_token_id mask_token_id
    unk_token_id classifier_dropout id2label label2id num_labels problem_type
    finetuning_task directionality pooler_fc_size pooler_num_attention_heads
    pooler_num_fc_layers pooler_size_per_head pooler_type
    """.split()
)
# Our switches that BertModel and RobertaModel do not have.
_PLAIN: dict[str, Any] = {
    "gated": False,
    "bias": True,
    "norm_place": "post",
    "sharing": "none",
    "attention": "full",
    "positions": "learned",
    "causal": False,
}
# Beyond any published model; keeps a lie from costing memory.
_MAX_SIZE = 10_000_000


def to_json(config: EncoderConfig, pad_id: int, cls_id: int, sep_id: int) -> dict:
    """Returns what transformers 5 wants in config.json for this model.

    Raises:
      PlmjaxError: transformers' class of the family cannot express the config.
    """
    family = FAMILIES.get(config.family)
    if family is None:
        raise _inexpressible("family", config.family, "the families of export", "bert")
    for field, value in _PLAIN.items():
        if getattr(config, field) != value:
            raise _inexpressible(
                field, getattr(config, field), family.architecture, value
            )
    if config.input_width != config.width:
        raise _inexpressible(
            "embedding_width", config.embedding_width, family.architecture, config.width
        )
    if config.token_types < 1:
        raise _inexpressible("token_types", 0, family.architecture, 1)
    if config.family == "roberta" and config.activation != "gelu":
        # Its head calls the exact GELU, whatever hidden_act says.
        raise _inexpressible(
            "activation", config.activation, family.architecture, "gelu"
        )
    offset = pad_id + 1 if config.family == "roberta" else 0
    if config.position_offset != offset:
        raise PlmjaxError(
            f"model.position_offset is {config.position_offset}, but "
            f"{family.architecture} counts positions from {offset} with the padding id "
            f"{pad_id} of this tokenizer.",
            hint=f"Train with --config.model.position_offset={offset}.",
        )
    body: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": config.family,
        "dtype": "float32",
        "pad_token_id": pad_id,
        "tie_word_embeddings": True,
        "plmjax_version": __version__,
    }
    if config.family == "roberta":
        body |= {"bos_token_id": cls_id, "eos_token_id": sep_id}
    body |= {key: getattr(config, field) for key, field in _SIZES.items()}
    body |= {key: getattr(config, field) for key, (field, _) in _OPTIONAL.items()}
    body["hidden_act"] = {"gelu": "gelu", "gelu_tanh": "gelu_new"}[config.activation]
    return body


def _inexpressible(field: str, value, architecture: str, wanted) -> PlmjaxError:
    return PlmjaxError(
        f"model.{field}={value!r} cannot be exported: {architecture} of transformers "
        f"has only {wanted!r}.",
        hint="Keep such a model as a plmjax checkpoint, or train one without it.",
        code=Exit.USAGE,
    )


def from_json(body: dict, where: str) -> tuple[EncoderConfig, int | None, list[str]]:
    """Returns the config, the padding id and notes of a config.json's object.

    Raises:
      PlmjaxError: another kind of model, a key that we do not know, or a value that no
        model has; `where` names the file.
    """
    kind = body.get("model_type")
    if "auto_map" in body:
        raise refusal(
            f"{where} has auto_map: the model needs code of its own, which plmjax "
            "never runs.",
            "Use a model of a family that plmjax has.",
        )
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise refusal(
            f"{where}: model_type is {_short(kind)}; plmjax reads "
            f"{' and '.join(FAMILIES)}.",
            'If it is one of these, add "model_type" to the file.'
            if kind is None
            else "Use a folder of such a model.",
        )
    known = _SIZES.keys() | _OPTIONAL.keys() | _FIXED.keys() | _IDLE | {"pad_token_id"}
    if unknown := sorted(body.keys() - known):
        raise refusal(
            f"{where} has keys that plmjax does not know: "
            f"{', '.join(_short(key) for key in unknown[:5])}.",
            "If they do not change the model, delete them from the file.",
        )
    for key, values in _FIXED.items():
        if key in body and body[key] not in values:
            raise refusal(
                f"{where}: {key} is {_short(body[key])}; "
                f"plmjax has only {values[0]!r}.",
                "Use another model.",
            )
    fields, notes = {"family": kind, **_sizes(body, where)}, []
    for key, (field, default) in _OPTIONAL.items():
        if key not in body:
            notes.append(f"{where} has no {key}: {default}, transformers' default.")
        fields[field] = body.get(key, default)
    _check_values(fields, kind, where)
    fields["activation"] = _ACTIVATIONS[fields["activation"]]
    pad = body.get("pad_token_id", _PAD[kind])
    if kind == "roberta":
        # Its table of positions begins with pad + 1 rows that no token uses.
        _check_padding(
            pad, min(fields["vocab_size"], fields["max_positions"] - 1), where
        )
        fields["position_offset"] = pad + 1
    elif pad is not None:
        _check_padding(pad, fields["vocab_size"], where)
    return EncoderConfig(**fields), pad, notes


def _sizes(body: dict, where: str) -> dict[str, Any]:
    for key in _SIZES:
        if key not in body:
            raise refusal(f"{where} has no {key}.", "Add it to the file.")
    for key in [*_SIZES, "type_vocab_size"]:
        value = body.get(key, 2)
        if type(value) is not int or not 1 <= value <= _MAX_SIZE:
            raise refusal(
                f"{where}: {key} is {_short(value)}; it must be a whole number from 1 "
                f"to {_MAX_SIZE:,}.",
                "Mend the file.",
            )
    if body["hidden_size"] % body["num_attention_heads"]:
        raise refusal(
            f"{where}: num_attention_heads {body['num_attention_heads']} does not "
            f"divide hidden_size {body['hidden_size']}.",
            "Mend the file.",
        )
    return {field: body[key] for key, field in _SIZES.items()}


def _check_values(fields: dict, kind: str, where: str) -> None:
    for key, low, below in (
        ("layer_norm_eps", 0.0, 1.0),
        ("hidden_dropout_prob", 0.0, 1.0),
        ("attention_probs_dropout_prob", 0.0, 1.0),
        ("initializer_range", 0.0, math.inf),
    ):
        value = fields[_OPTIONAL[key][0]]
        number = type(value) in (int, float)
        if not number or not low <= value < below:
            raise refusal(
                f"{where}: {key} is {_short(value)}; it must be a number in "
                f"[{low:g}, {below:g}).",
                "Mend the file.",
            )
        fields[_OPTIONAL[key][0]] = float(value)
    activation = fields["activation"]
    known = [
        name
        for name, ours in _ACTIVATIONS.items()
        # RoBERTa's head calls the exact GELU, whatever hidden_act says.
        if kind != "roberta" or ours == "gelu"
    ]
    if not isinstance(activation, str) or activation not in known:
        raise refusal(
            f"{where}: hidden_act is {_short(activation)}; plmjax reads a {kind} with "
            f"{', '.join(known)}.",
            "Use another model.",
        )


def _check_padding(pad: Any, below: int, where: str) -> None:
    if type(pad) is not int or not 0 <= pad < below:
        raise refusal(
            f"{where}: pad_token_id is {_short(pad)}; it must be a whole number from 0 "
            f"to {below - 1:,}.",
            "Mend the file.",
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
