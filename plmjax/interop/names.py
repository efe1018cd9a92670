"""The mapping from our parameters to Hugging Face tensors: one table a family.

Export and import use the same tables. A row is (our name, their name, kind); `{i}`
stands for the layer, and the kind gives the names of a module's leaves and whether
their array is the transpose of ours. Rows without parameters in a config are left out,
so that one table serves all sizes of a family. A published family is a row of FAMILIES.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from plmjax import Exit, PlmjaxError, with_article
from plmjax.interop.task_names import BLOCKS, CLASSES, MODULES, POOLER_NORMS
from plmjax.models import EncoderConfig

# Kinds: {our leaf: (their leaf, transposed)}. torch.nn.Linear keeps [out, in] and
# Conv1d [out, in, width]; GPT-2's Conv1D keeps [in, out] as we do.
DENSE = {"/kernel": (".weight", True), "/bias": (".bias", False)}
CONV1D = {"/kernel": (".weight", False), "/bias": (".bias", False)}
NORM = {"/scale": (".weight", False), "/bias": (".bias", False)}
TABLE = {"": (".weight", False)}
ARRAY = {"": ("", False)}
KERNEL = {"": (".weight", True)}

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


# Our modules of a layer, without "layer_{i}/"; the last is in gated ones alone.
_LAYER = (
    *("attention/query", "attention/key", "attention/value", "attention/output"),
    *("attention_norm", "ffn/up", "ffn/down", "ffn_norm", "ffn/gate"),
)


def _layer_rows(where: str, theirs: str, dense=DENSE) -> Sequence[Row]:
    """Returns the rows of a layer with modules `theirs`, in the order of _LAYER.

    Those of ours for which the same one is named are concatenated in it.
    """
    ours: dict[str, list[str]] = {}
    for our, their in zip(_LAYER, theirs.split(), strict=False):
        ours.setdefault(their, []).append(f"layer_{{i}}/{our}")
    return tuple(
        (tuple(names), f"{where}.{their}", NORM if "norm" in names[0] else dense)
        for their, names in ours.items()
    )


_EMBEDDINGS: Sequence[Row] = (
    ("embeddings/token", "embeddings.word_embeddings", TABLE),
    ("embeddings/position", "embeddings.position_embeddings", TABLE),
    ("embeddings/type", "embeddings.token_type_embeddings", TABLE),
    ("embeddings/norm", "embeddings.LayerNorm", NORM),
)
_AFTER_ATTENTION = (
    "attention.output.dense attention.output.LayerNorm intermediate.dense "
    "output.dense output.LayerNorm"
)
_SELF = "encoder.layer.{i}.attention.self"
_BERT: Sequence[Row] = (
    *_EMBEDDINGS,
    *_layer_rows(
        "encoder.layer.{i}",
        "attention.self.query attention.self.key attention.self.value "
        + _AFTER_ATTENTION,
    ),
)
_LONGFORMER: Sequence[Row] = (
    *_BERT,
    *(
        (f"layer_{{i}}/attention/global_{x}", f"{_SELF}.{x}_global", DENSE)
        for x in ("query", "key", "value")
    ),
)
_ALBERT: Sequence[Row] = (
    *_EMBEDDINGS,
    ("embeddings/projection", "encoder.embedding_hidden_mapping_in", DENSE),
    *_layer_rows(
        "encoder.albert_layer_groups.{i}.albert_layers.0",
        "attention.query attention.key attention.value attention.dense "
        "attention.LayerNorm ffn ffn_output full_layer_layer_norm",
    ),
)
_DISTILBERT: Sequence[Row] = (
    *_EMBEDDINGS,
    *_layer_rows(
        "transformer.layer.{i}",
        "attention.q_lin attention.k_lin attention.v_lin attention.out_lin "
        "sa_layer_norm ffn.lin1 ffn.lin2 output_layer_norm",
    ),
)
_DEBERTA: Sequence[Row] = (
    *_EMBEDDINGS,
    ("relative/table", "encoder.rel_embeddings", TABLE),
    ("relative/norm", "encoder.LayerNorm", NORM),
    *_layer_rows(
        "encoder.layer.{i}",
        "attention.self.query_proj attention.self.key_proj attention.self.value_proj "
        + _AFTER_ATTENTION,
    ),
    ("layer_{i}/attention/position_query", f"{_SELF}.pos_query_proj", DENSE),
    ("layer_{i}/attention/position_key", f"{_SELF}.pos_key_proj", DENSE),
    ("convolution", "encoder.conv.conv", DENSE),
    ("convolution/norm", "encoder.conv.LayerNorm", NORM),
)
_GPT2: Sequence[Row] = (
    ("embeddings/token", "wte", TABLE),
    ("embeddings/position", "wpe", TABLE),
    *_layer_rows(
        "h.{i}",
        "attn.c_attn attn.c_attn attn.c_attn attn.c_proj ln_1 mlp.c_fc mlp.c_proj ln_2",
        CONV1D,
    ),
    ("final_norm", "ln_f", NORM),
)


def _modern(attention: str) -> Sequence[Row]:
    theirs = f"{attention} attn.Wo attn_norm mlp.Wi mlp.Wo mlp_norm mlp.Wi"
    return (
        ("embeddings/token", "embeddings.tok_embeddings", TABLE),
        ("embeddings/norm", "embeddings.norm", NORM),
        *_layer_rows("layers.{i}", theirs),
        ("final_norm", "final_norm", NORM),
    )


_EUROBERT: Sequence[Row] = (
    ("embeddings/token", "embed_tokens", TABLE),
    *_layer_rows(
        "layers.{i}",
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj "
        "input_layernorm mlp.gate_proj mlp.down_proj post_attention_layernorm "
        "mlp.up_proj",
    ),
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
# ELECTRA's. No other family has a class with a detector, see `architecture`.
_DETECTOR: Sequence[Row] = (
    ("dense", "discriminator_predictions.dense", DENSE),
    ("prediction", "discriminator_predictions.dense_prediction", DENSE),
)
_UNTIED: Sequence[Row] = (("decoder", "lm_head", TABLE),)
_TASKS = (
    r"(classifier|qa_outputs|qa_classifier|pre_classifier|score|sequence_summary"
    r"|multiple_choice_head)\..*",
    "task head",
)


def _family(
    name: str,
    prefix: str,
    encoder: Sequence[Row],
    head: Sequence[Row],
    *,
    decoder: str,
    heads: Mapping[str, Sequence[Row]] = MappingProxyType({}),
    classes: Mapping[tuple[str, ...], str] = MappingProxyType({}),
    ignored: Sequence[tuple[str, str]] = (),
    aliases: Sequence[tuple[str, str]] = (),
) -> Family:
    """Returns a family; `decoder` is the output layer with the weights of the tokens.

    `classes` are those without or with other heads than the vocabulary head.
    """
    tied = {f"{decoder}.weight": f"{prefix}.{encoder[0][1]}.weight"}
    if decoder.endswith(".decoder"):  # which has the head's bias, too
        tied[f"{decoder}.bias"] = f"{decoder.removesuffix('.decoder')}.bias"
    buffers = (rf"{prefix}\.embeddings\.(position|token_type)_ids", "buffer")
    if encoder[0] in _EMBEDDINGS:
        ignored = ((rf"{prefix}\.pooler\..*", "pooler"), _TASKS, *ignored)
    return Family(
        prefix=f"{prefix}.",
        encoder=encoder,
        heads={"head": head, "detector": _DETECTOR, **heads},
        classes={(): f"{name}Model", ("head",): f"{name}ForMaskedLM", **classes},
        tied=tied if head != _UNTIED else {},
        ignored=(buffers, *ignored),
        aliases=aliases,
    )


def _roberta(
    name: str, prefix: str = "roberta", encoder: Sequence[Row] = _BERT
) -> Family:
    head = _head("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
    return _family(name, prefix, encoder, head, decoder="lm_head.decoder")


def _with_tasks(name: str, family: Family) -> Family:
    """Returns the family with the heads of fine-tuning."""
    heads, classes = {}, {}
    for head, (pooler, classifier) in MODULES.get(name, {}).items():
        rows: list[Row] = [("classifier", classifier, DENSE)]
        if pooler is not None:
            rows.append(("pooler/dense", pooler, DENSE))
        if name in POOLER_NORMS:
            rows.append(("pooler/norm", POOLER_NORMS[name], NORM))
        if block := BLOCKS.get((name, head)):
            rows.append(("ffn/up", f"{block}.intermediate.dense", DENSE))
            rows.append(("ffn/down", f"{block}.output.dense", DENSE))
            rows.append(("norm", f"{block}.output.LayerNorm", NORM))
        heads[head] = rows
        classes[head,] = family.classes[()].removesuffix("Model") + CLASSES[head]
    return family._replace(
        heads={**family.heads, **heads}, classes={**family.classes, **classes}
    )


_PRETRAINED: dict[str, Family] = {
    "bert": _family(
        "Bert",
        "bert",
        _BERT,
        _BERT_HEAD,
        decoder="cls.predictions.decoder",
        heads={"pair": _pair("bert.pooler.dense", "cls.seq_relationship")},
        classes={
            ("head", "pair"): "BertForPreTraining",
            ("pair",): "BertForNextSentencePrediction",
        },
        ignored=[(r"cls\.seq_relationship\..*", "next-sentence head")],
    ),
    "roberta": _roberta("Roberta"),
    "xlm-roberta": _roberta("XLMRoberta"),
    "longformer": _roberta("Longformer", "longformer", _LONGFORMER),
    "albert": _family(
        "Albert",
        "albert",
        _ALBERT,
        _head("predictions.dense", "predictions.LayerNorm", "predictions.bias"),
        decoder="predictions.decoder",
        heads={"pair": _pair("albert.pooler", "sop_classifier.classifier")},
        classes={("head", "pair"): "AlbertForPreTraining"},
        ignored=[(r"sop_classifier\..*", "sentence-order head")],
    ),
    "distilbert": _family(
        "DistilBert",
        "distilbert",
        _DISTILBERT,
        _head("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
        decoder="vocab_projector",
    ),
    "electra": _family(
        "Electra",
        "electra",
        (*_BERT, ("embeddings/projection", "embeddings_project", DENSE)),
        _head(
            "generator_predictions.dense",
            "generator_predictions.LayerNorm",
            "generator_lm_head.bias",
        ),
        decoder="generator_lm_head",
        classes={("detector",): "ElectraForPreTraining"},
    ),
    "deberta-v2": _family(
        "DebertaV2",
        "deberta",
        _DEBERTA,
        _BERT_HEAD,
        decoder="cls.predictions.decoder",
        ignored=(
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
    "gpt2": _family(
        "GPT2",
        "transformer",
        _GPT2,
        (),
        decoder="lm_head",
        classes={("head",): "GPT2LMHeadModel"},
        ignored=((r"transformer\.h\.\d+\.attn\.(masked_)?bias", "buffer"), _TASKS),
    ),
    "modernbert": _family(
        "ModernBert",
        "model",
        _modern("attn.Wqkv attn.Wqkv attn.Wqkv"),
        _head("head.dense", "head.norm", "decoder.bias"),
        decoder="decoder",
        ignored=[_TASKS],
    ),
    "modernbert-decoder": _family(
        "ModernBertDecoder",
        "model",
        _modern("attn.q_proj attn.k_proj attn.v_proj"),
        _head("lm_head.dense", "lm_head.norm", "decoder.bias"),
        decoder="decoder",
        classes={("head",): "ModernBertDecoderForCausalLM"},
        ignored=[(r"(head|classifier)\..*", "task head")],
    ),
    "eurobert": _family(
        "EuroBert", "model", _EUROBERT, _UNTIED, decoder="lm_head", ignored=[_TASKS]
    ),
    "bigbird": _family(
        "BigBird",
        "bert",
        _BERT,
        _BERT_HEAD,
        decoder="cls.predictions.decoder",
        heads={"pair": _pair("bert.pooler", "cls.seq_relationship")},
        classes={("head", "pair"): "BigBirdForPreTraining"},
        ignored=[(r"cls\.seq_relationship\..*", "next-sentence head")],
    ),
    "nystromformer": _family(
        "Nystromformer",
        "nystromformer",
        (*_BERT, ("layer_{i}/attention/value_convolution", f"{_SELF}.conv", KERNEL)),
        _BERT_HEAD,
        decoder="cls.predictions.decoder",
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
        hint="For transformers, train it without one of these heads.",
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
