"""Which tensor of a Hugging Face checkpoint is which parameter: one table a family.

The tables are read both ways, by export and by import. A row is (our name, their name,
kind); `{i}` stands for the layer, and the kind says how a module's leaves are called
and whether their array is the transpose of ours. A published family is a row of
FAMILIES.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

# Kinds: {our leaf: (their leaf, transposed)}. torch.nn.Linear keeps [out, in].
DENSE = {"/kernel": (".weight", True), "/bias": (".bias", False)}
NORM = {"/scale": (".weight", False), "/bias": (".bias", False)}
ARRAY = {"": ("", False)}

Row = tuple[str, str, dict[str, tuple[str, bool]]]


class Family(NamedTuple):
    """How transformers lays out one family.

    `encoder` rows are relative to "encoder/" and `prefix`, `head` rows to "head/" and
    nothing. `tied` maps duplicates that a file may hold to what they must equal.
    `ignored` are (regex, what it is) of tensors that pretraining does not use.
    """

    architecture: str
    prefix: str
    encoder: Sequence[Row]
    head: Sequence[Row]
    tied: Mapping[str, str]
    ignored: Sequence[tuple[str, str]]


class Entry(NamedTuple):
    """One leaf: our name, their name, whose array is the transpose if `transposed`."""

    ours: str
    theirs: str
    transposed: bool


_ENCODER: Sequence[Row] = (
    ("embeddings/token", "embeddings.word_embeddings.weight", ARRAY),
    ("embeddings/position", "embeddings.position_embeddings.weight", ARRAY),
    ("embeddings/type", "embeddings.token_type_embeddings.weight", ARRAY),
    ("embeddings/norm", "embeddings.LayerNorm", NORM),
    ("layer_{i}/attention/query", "encoder.layer.{i}.attention.self.query", DENSE),
    ("layer_{i}/attention/key", "encoder.layer.{i}.attention.self.key", DENSE),
    ("layer_{i}/attention/value", "encoder.layer.{i}.attention.self.value", DENSE),
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

FAMILIES: dict[str, Family] = {
    "bert": Family(
        architecture="BertForMaskedLM",
        prefix="bert.",
        encoder=_ENCODER,
        head=(
            ("transform", "cls.predictions.transform.dense", DENSE),
            ("norm", "cls.predictions.transform.LayerNorm", NORM),
            ("bias", "cls.predictions.bias", ARRAY),
        ),
        tied={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        ignored=(
            (r"bert\.embeddings\.(position|token_type)_ids", "buffer"),
            (r"bert\.pooler\..*", "pooler"),
            (r"cls\.seq_relationship\..*", "next-sentence head"),
            (r"(classifier|qa_outputs)\..*", "task head"),
        ),
    ),
    "roberta": Family(
        architecture="RobertaForMaskedLM",
        prefix="roberta.",
        encoder=_ENCODER,
        head=(
            ("transform", "lm_head.dense", DENSE),
            ("norm", "lm_head.layer_norm", NORM),
            ("bias", "lm_head.bias", ARRAY),
        ),
        tied={
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        ignored=(
            (r"roberta\.embeddings\.(position|token_type)_ids", "buffer"),
            (r"roberta\.pooler\..*", "pooler"),
            (r"(classifier|qa_outputs)\..*", "task head"),
        ),
    ),
}

# What the first TensorFlow conversions called LayerNorm's leaves.
_OLD_LEAVES = {".gamma": ".weight", ".beta": ".bias"}

# Names that give a family away; the first match wins.
_FOOTPRINTS = (
    (r"^roberta\.|^lm_head\.layer_norm", "RoBERTa"),
    (r"^distilbert\.|(^|\.)transformer\.layer\.\d+\.attention\.q_lin", "DistilBERT"),
    (r"^albert\.|albert_layer_groups", "ALBERT"),
    (r"^deberta\.|rel_embeddings", "DeBERTa"),
    (r"^electra\.|discriminator_predictions|generator_predictions", "ELECTRA"),
    (r"(^|\.)h\.\d+\.(attn|mlp)\.", "GPT-2"),
    (r"(encoder|decoder)\.block\.\d+\.", "T5"),
    (r"Wqkv|mlp\.Wi", "ModernBERT"),
    (r"^model\.layers\.\d+\.self_attn", "Llama or a relative"),
    (r"^bert\.|^cls\.predictions", "BERT"),
)


def entries(family: Family, layers: int) -> list[Entry]:
    """Returns every parameter of a model with that many layers."""
    found = []
    for room, prefix, rows in (
        ("encoder/", family.prefix, family.encoder),
        ("head/", "", family.head),
    ):
        for ours, theirs, kind in rows:
            for i in range(layers) if "{i}" in ours else (0,):
                for our_leaf, (their_leaf, transposed) in kind.items():
                    found.append(
                        Entry(
                            room + ours.format(i=i) + our_leaf,
                            prefix + theirs.format(i=i) + their_leaf,
                            transposed,
                        )
                    )
    return found


def modern_name(family: Family, name: str, names: Iterable[str]) -> str:
    """Returns what `FAMILIES` calls a tensor of a file that holds `names`.

    Mends gamma and beta, and the missing prefix of a checkpoint of the bare encoder.
    """
    for old, new in _OLD_LEAVES.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    token = family.encoder[0][1]
    if token in names and family.prefix + token not in names:
        return family.prefix + name
    return name


def guess_family(names: Iterable[str]) -> str | None:
    """Returns the family whose footprints the names show, or None."""
    names = list(names)
    for pattern, family in _FOOTPRINTS:
        if any(re.search(pattern, name) for name in names):
            return family
    return None
