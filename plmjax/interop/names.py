"""The mapping from our parameters to Hugging Face tensors: one table a family.

Export and import use the same tables. A row is (our name, their name, kind); `{i}`
stands for the layer, and the kind gives the names of a module's leaves and whether
their array is the transpose of ours. Rows without parameters in a config are left out,
so that one table serves all sizes of a family. A published family is a row of FAMILIES.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from plmjax import Exit, PlmjaxError, with_article
from plmjax.interop.task_names import CLASSES, MODULES, POOLER_NORMS
from plmjax.models import EncoderConfig

# Kinds: {our leaf: (their leaf, transposed)}. torch.nn.Linear keeps [out, in] and
# Conv1d [out, in, width]; GPT-2's Conv1D keeps [in, out] as we do.
DENSE = {"/kernel": (".weight", True), "/bias": (".bias", False)}
CONV1D = {"/kernel": (".weight", False), "/bias": (".bias", False)}
NORM = {"/scale": (".weight", False), "/bias": (".bias", False)}
TABLE = {"": (".weight", False)}
ARRAY = {"": ("", False)}

# Several of our modules may be concatenated in one of theirs.
Row = tuple[str | tuple[str, ...], str, Mapping[str, tuple[str, bool]]]


class Family(NamedTuple):
    """The layout of one family in transformers.

    `encoder` rows are relative to "encoder/" (ours) and `prefix` (theirs), rows of
    `heads` to the head's name and to no prefix. `classes` are transformers' classes by
    their sorted heads. `tied` maps duplicates that a file may hold to the tensors they
    must equal. `ignored` are (regex, description) of tensors without use in
    pretraining, unless a row names them. `aliases` are (regex, replacement) of names in
    other code.
    """

    prefix: str
    encoder: Sequence[Row]
    heads: Mapping[str, Sequence[Row]]
    classes: Mapping[tuple[str, ...], str]
    tied: Mapping[str, str]
    ignored: Sequence[tuple[str, str]]
    aliases: Sequence[tuple[str, str]] = ()


class Entry(NamedTuple):
    """One tensor: our names, their name, and whether it is transposed.

    Our arrays are concatenated in theirs, which is their transpose if `transposed`.
    """

    ours: tuple[str, ...]
    theirs: str
    transposed: bool


_EMBEDDINGS: Sequence[Row] = (
    ("embeddings/token", "embeddings.word_embeddings", TABLE),
    ("embeddings/position", "embeddings.position_embeddings", TABLE),
    ("embeddings/type", "embeddings.token_type_embeddings", TABLE),
    ("embeddings/norm", "embeddings.LayerNorm", NORM),
)
_AFTER_ATTENTION: Sequence[Row] = (
    ("layer_{i}/attention/output", "encoder.layer.{i}.attention.output.dense", DENSE),
    (
        "layer_{i}/attention_norm",
        "encoder.layer.{i}.attention.output.LayerNorm",
        NORM,
    ),
    ("layer_{i}/ffn/up", "encoder.layer.{i}.intermediate.dense", DENSE),
    ("layer_{i}/ffn/down", "encoder.layer.{i}.output.dense", DENSE),
    ("layer_{i}/ffn_norm", "encoder.layer.{i}.output.LayerNorm", NORM),
)
_BERT: Sequence[Row] = (
    *_EMBEDDINGS,
    ("layer_{i}/attention/query", "encoder.layer.{i}.attention.self.query", DENSE),
    ("layer_{i}/attention/key", "encoder.layer.{i}.attention.self.key", DENSE),
    ("layer_{i}/attention/value", "encoder.layer.{i}.attention.self.value", DENSE),
    *_AFTER_ATTENTION,
)
_GROUP = "encoder.albert_layer_groups.{i}.albert_layers.0"
_ALBERT: Sequence[Row] = (
    *_EMBEDDINGS,
    ("embeddings/projection", "encoder.embedding_hidden_mapping_in", DENSE),
    ("layer_{i}/attention/query", f"{_GROUP}.attention.query", DENSE),
    ("layer_{i}/attention/key", f"{_GROUP}.attention.key", DENSE),
    ("layer_{i}/attention/value", f"{_GROUP}.attention.value", DENSE),
    ("layer_{i}/attention/output", f"{_GROUP}.attention.dense", DENSE),
    ("layer_{i}/attention_norm", f"{_GROUP}.attention.LayerNorm", NORM),
    ("layer_{i}/ffn/up", f"{_GROUP}.ffn", DENSE),
    ("layer_{i}/ffn/down", f"{_GROUP}.ffn_output", DENSE),
    ("layer_{i}/ffn_norm", f"{_GROUP}.full_layer_layer_norm", NORM),
)
_DISTILBERT: Sequence[Row] = (
    *_EMBEDDINGS,
    ("layer_{i}/attention/query", "transformer.layer.{i}.attention.q_lin", DENSE),
    ("layer_{i}/attention/key", "transformer.layer.{i}.attention.k_lin", DENSE),
    ("layer_{i}/attention/value", "transformer.layer.{i}.attention.v_lin", DENSE),
    ("layer_{i}/attention/output", "transformer.layer.{i}.attention.out_lin", DENSE),
    ("layer_{i}/attention_norm", "transformer.layer.{i}.sa_layer_norm", NORM),
    ("layer_{i}/ffn/up", "transformer.layer.{i}.ffn.lin1", DENSE),
    ("layer_{i}/ffn/down", "transformer.layer.{i}.ffn.lin2", DENSE),
    ("layer_{i}/ffn_norm", "transformer.layer.{i}.output_layer_norm", NORM),
)
_SELF = "encoder.layer.{i}.attention.self"
_DEBERTA: Sequence[Row] = (
    *_EMBEDDINGS,
    ("relative/table", "encoder.rel_embeddings", TABLE),
    ("relative/norm", "encoder.LayerNorm", NORM),
    ("layer_{i}/attention/query", f"{_SELF}.query_proj", DENSE),
    ("layer_{i}/attention/key", f"{_SELF}.key_proj", DENSE),
    ("layer_{i}/attention/value", f"{_SELF}.value_proj", DENSE),
    ("layer_{i}/attention/position_query", f"{_SELF}.pos_query_proj", DENSE),
    ("layer_{i}/attention/position_key", f"{_SELF}.pos_key_proj", DENSE),
    *_AFTER_ATTENTION,
    ("convolution", "encoder.conv.conv", DENSE),
    ("convolution/norm", "encoder.conv.LayerNorm", NORM),
)
_QUERY_KEY_VALUE = tuple(
    f"layer_{{i}}/attention/{name}" for name in ("query", "key", "value")
)
_GPT2: Sequence[Row] = (
    ("embeddings/token", "wte", TABLE),
    ("embeddings/position", "wpe", TABLE),
    ("layer_{i}/attention_norm", "h.{i}.ln_1", NORM),
    (_QUERY_KEY_VALUE, "h.{i}.attn.c_attn", CONV1D),
    ("layer_{i}/attention/output", "h.{i}.attn.c_proj", CONV1D),
    ("layer_{i}/ffn_norm", "h.{i}.ln_2", NORM),
    ("layer_{i}/ffn/up", "h.{i}.mlp.c_fc", CONV1D),
    ("layer_{i}/ffn/down", "h.{i}.mlp.c_proj", CONV1D),
    ("final_norm", "ln_f", NORM),
)

_MODERN_LAYER: Sequence[Row] = (
    ("embeddings/token", "embeddings.tok_embeddings", TABLE),
    ("embeddings/norm", "embeddings.norm", NORM),
    ("layer_{i}/attention/output", "layers.{i}.attn.Wo", DENSE),
    ("layer_{i}/attention_norm", "layers.{i}.attn_norm", NORM),
    (("layer_{i}/ffn/up", "layer_{i}/ffn/gate"), "layers.{i}.mlp.Wi", DENSE),
    ("layer_{i}/ffn/down", "layers.{i}.mlp.Wo", DENSE),
    ("layer_{i}/ffn_norm", "layers.{i}.mlp_norm", NORM),
    ("final_norm", "final_norm", NORM),
)
_MODERNBERT: Sequence[Row] = (
    *_MODERN_LAYER,
    (_QUERY_KEY_VALUE, "layers.{i}.attn.Wqkv", DENSE),
)
_MODERNBERT_DECODER: Sequence[Row] = (
    *_MODERN_LAYER,
    ("layer_{i}/attention/query", "layers.{i}.attn.q_proj", DENSE),
    ("layer_{i}/attention/key", "layers.{i}.attn.k_proj", DENSE),
    ("layer_{i}/attention/value", "layers.{i}.attn.v_proj", DENSE),
)
_EUROBERT: Sequence[Row] = (
    ("embeddings/token", "embed_tokens", TABLE),
    ("layer_{i}/attention/query", "layers.{i}.self_attn.q_proj", DENSE),
    ("layer_{i}/attention/key", "layers.{i}.self_attn.k_proj", DENSE),
    ("layer_{i}/attention/value", "layers.{i}.self_attn.v_proj", DENSE),
    ("layer_{i}/attention/output", "layers.{i}.self_attn.o_proj", DENSE),
    ("layer_{i}/attention_norm", "layers.{i}.input_layernorm", NORM),
    ("layer_{i}/ffn/up", "layers.{i}.mlp.gate_proj", DENSE),
    ("layer_{i}/ffn/gate", "layers.{i}.mlp.up_proj", DENSE),
    ("layer_{i}/ffn/down", "layers.{i}.mlp.down_proj", DENSE),
    ("layer_{i}/ffn_norm", "layers.{i}.post_attention_layernorm", NORM),
    ("final_norm", "norm", NORM),
)


def _head(dense: str, norm: str, bias: str) -> Sequence[Row]:
    return ("transform", dense, DENSE), ("norm", norm, NORM), ("bias", bias, ARRAY)


def _pair(pooler: str, classifier: str) -> Sequence[Row]:
    return ("pooler/dense", pooler, DENSE), ("classifier", classifier, DENSE)


_BERT_HEAD = _head(
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.bias",
)
_ROBERTA_HEAD = _head("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
# ELECTRA's. No other family has a class with a detector, see `architecture`.
_DETECTOR: Sequence[Row] = (
    ("dense", "discriminator_predictions.dense", DENSE),
    ("prediction", "discriminator_predictions.dense_prediction", DENSE),
)
_TASKS = (
    r"(classifier|qa_outputs|pre_classifier|score|sequence_summary"
    r"|multiple_choice_head)\..*",
    "task head",
)
_POSITION_IDS = (r"model\.embeddings\.position_ids", "buffer")


def _ignored(prefix: str) -> Sequence[tuple[str, str]]:
    return (
        (rf"{prefix}\.embeddings\.(position|token_type)_ids", "buffer"),
        (rf"{prefix}\.pooler\..*", "pooler"),
        _TASKS,
    )


def _roberta(name: str) -> Family:
    return Family(
        prefix="roberta.",
        encoder=_BERT,
        heads={"head": _ROBERTA_HEAD, "detector": _DETECTOR},
        classes={(): f"{name}Model", ("head",): f"{name}ForMaskedLM"},
        tied={
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        ignored=_ignored("roberta"),
    )


def _with_tasks(name: str, family: Family) -> Family:
    """Returns the family with the heads of fine-tuning."""
    heads, classes = {}, {}
    for head, (pooler, classifier) in MODULES.get(name, {}).items():
        rows: list[Row] = [("classifier", classifier, DENSE)]
        if pooler is not None:
            rows.append(("pooler/dense", pooler, DENSE))
        if name in POOLER_NORMS:
            rows.append(("pooler/norm", POOLER_NORMS[name], NORM))
        heads[head] = rows
        classes[head,] = family.classes[()].removesuffix("Model") + CLASSES[head]
    return family._replace(
        heads={**family.heads, **heads}, classes={**family.classes, **classes}
    )


_PRETRAINED: dict[str, Family] = {
    "bert": Family(
        prefix="bert.",
        encoder=_BERT,
        heads={
            "head": _BERT_HEAD,
            "pair": _pair("bert.pooler.dense", "cls.seq_relationship"),
            "detector": _DETECTOR,
        },
        classes={
            (): "BertModel",
            ("head",): "BertForMaskedLM",
            ("head", "pair"): "BertForPreTraining",
            ("pair",): "BertForNextSentencePrediction",
        },
        tied={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        ignored=(
            *_ignored("bert"),
            (r"cls\.seq_relationship\..*", "next-sentence head"),
        ),
    ),
    "roberta": _roberta("Roberta"),
    "xlm-roberta": _roberta("XLMRoberta"),
    "albert": Family(
        prefix="albert.",
        encoder=_ALBERT,
        heads={
            "head": _head(
                "predictions.dense", "predictions.LayerNorm", "predictions.bias"
            ),
            "pair": _pair("albert.pooler", "sop_classifier.classifier"),
            "detector": _DETECTOR,
        },
        classes={
            (): "AlbertModel",
            ("head",): "AlbertForMaskedLM",
            ("head", "pair"): "AlbertForPreTraining",
        },
        tied={
            "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
            "predictions.decoder.bias": "predictions.bias",
        },
        ignored=(
            *_ignored("albert"),
            (r"sop_classifier\..*", "sentence-order head"),
        ),
    ),
    "distilbert": Family(
        prefix="distilbert.",
        encoder=_DISTILBERT,
        heads={
            "head": _head(
                "vocab_transform", "vocab_layer_norm", "vocab_projector.bias"
            ),
            "detector": _DETECTOR,
        },
        classes={(): "DistilBertModel", ("head",): "DistilBertForMaskedLM"},
        tied={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
        ignored=_ignored("distilbert"),
    ),
    "electra": Family(
        prefix="electra.",
        encoder=(
            *_BERT,
            ("embeddings/projection", "embeddings_project", DENSE),
        ),
        heads={
            "head": _head(
                "generator_predictions.dense",
                "generator_predictions.LayerNorm",
                "generator_lm_head.bias",
            ),
            "detector": _DETECTOR,
        },
        classes={
            (): "ElectraModel",
            ("head",): "ElectraForMaskedLM",
            ("detector",): "ElectraForPreTraining",
        },
        tied={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
        ignored=_ignored("electra"),
    ),
    "deberta-v2": Family(
        prefix="deberta.",
        encoder=_DEBERTA,
        heads={"head": _BERT_HEAD, "detector": _DETECTOR},
        classes={(): "DebertaV2Model", ("head",): "DebertaV2ForMaskedLM"},
        tied={
            "cls.predictions.decoder.weight": "deberta.embeddings.word_embeddings"
            ".weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        ignored=(
            *_ignored("deberta"),
            (r"pooler\..*", "pooler"),
            (r"mask_predictions\..*", "Microsoft's detector, which has one more norm"),
            # Without positions as input, only Microsoft's decoder reads it.
            (r"deberta\.embeddings\.position_embeddings\.weight", "decoder's input"),
        ),
        # Names of Microsoft's code, and of transformers with legacy = false.
        aliases=(
            (r"lm_predictions\.lm_head\.bias", "cls.predictions.bias"),
            (r"lm_predictions\.lm_head\.(.*)", r"cls.predictions.transform.\1"),
        ),
    ),
    "gpt2": Family(
        prefix="transformer.",
        encoder=_GPT2,
        heads={"head": (), "detector": _DETECTOR},
        classes={(): "GPT2Model", ("head",): "GPT2LMHeadModel"},
        tied={"lm_head.weight": "transformer.wte.weight"},
        ignored=((r"transformer\.h\.\d+\.attn\.(masked_)?bias", "buffer"), _TASKS),
    ),
    "modernbert": Family(
        prefix="model.",
        encoder=_MODERNBERT,
        heads={
            "head": _head("head.dense", "head.norm", "decoder.bias"),
            "detector": _DETECTOR,
        },
        classes={(): "ModernBertModel", ("head",): "ModernBertForMaskedLM"},
        tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
        ignored=(_POSITION_IDS, _TASKS),
    ),
    "modernbert-decoder": Family(
        prefix="model.",
        encoder=_MODERNBERT_DECODER,
        heads={
            "head": _head("lm_head.dense", "lm_head.norm", "decoder.bias"),
            "detector": _DETECTOR,
        },
        classes={
            (): "ModernBertDecoderModel",
            ("head",): "ModernBertDecoderForCausalLM",
        },
        tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
        ignored=(_POSITION_IDS, (r"(head|classifier)\..*", "task head")),
    ),
    "eurobert": Family(
        prefix="model.",
        encoder=_EUROBERT,
        heads={"head": (("decoder", "lm_head", TABLE),), "detector": _DETECTOR},
        classes={(): "EuroBertModel", ("head",): "EuroBertForMaskedLM"},
        tied={},
        ignored=(_POSITION_IDS, _TASKS),
    ),
}

FAMILIES = {name: _with_tasks(name, family) for name, family in _PRETRAINED.items()}


def architecture(family: str, heads: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    """Returns transformers' class for a model with these heads, and the heads it holds.

    A detector that no class holds is exported beside the model, in a separate file.

    Raises:
      PlmjaxError: transformers has no such class.
    """
    classes, wanted = FAMILIES[family].classes, tuple(sorted(heads))
    for inside in (wanted, tuple(head for head in wanted if head != "detector")):
        if inside in classes:
            return classes[inside], inside
    raise PlmjaxError(
        f"transformers has no class for {with_article(family)} with "
        f"{' and '.join(wanted)}; it has {', '.join(classes.values())}.",
        hint="Keep the model as a plmjax checkpoint, or train it without one of these "
        "heads.",
        code=Exit.USAGE,
    )


def class_of(family: str, named: object) -> str:
    """Returns the class that `architectures` names, or the one with a vocabulary head.

    A class that plmjax does not know counts as none.
    """
    classes = FAMILIES[family].classes
    known = [name for name in classes.values() if named == [name]]
    return known[0] if known else classes["head",]


def blocks(config: EncoderConfig) -> int:
    """Returns the number of layers in their file: ALBERT writes a shared one once."""
    return config.groups if config.sharing == "all" else config.layers


def entries(config: EncoderConfig, heads: Iterable[str]) -> Iterator[Entry]:
    """Yields all tensors that a model of this kind can have."""
    family = FAMILIES[config.family]
    for ours, theirs, kind in family.encoder:
        names = (ours,) if isinstance(ours, str) else ours
        for block in range(blocks(config)) if "{i}" in theirs else (0,):
            layered = [name.format(i=_layer(config, name, block)) for name in names]
            for our_leaf, (their_leaf, transposed) in kind.items():
                yield Entry(
                    tuple(f"encoder/{name}{our_leaf}" for name in layered),
                    family.prefix + theirs.format(i=block) + their_leaf,
                    transposed,
                )
    for head in heads:
        yield from head_entries(config.family, head)


def head_entries(family: str, head: str) -> Iterator[Entry]:
    """Yields the tensors of one head."""
    for ours, theirs, kind in FAMILIES[family].heads[head]:
        for our_leaf, (their_leaf, transposed) in kind.items():
            yield Entry((f"{head}/{ours}{our_leaf}",), theirs + their_leaf, transposed)


def _layer(config: EncoderConfig, name: str, block: int) -> int:
    """Returns the number of our layer that corresponds to their layer `block`."""
    layer = block * config.layers // blocks(config)
    sublayer = "attention" if "/attention" in name else "ffn"
    if config.sharing in (sublayer, "all"):
        return layer * config.groups // config.layers
    return layer
