"""Tensor names of other code and older versions, converted to those of `names`."""

import functools
import re
from collections.abc import Iterable

from plmjax.interop.names import FAMILIES, head_entries

# The names of LayerNorm's leaves in the first conversions from TensorFlow.
_OLD_LEAVES = {".gamma": ".weight", ".beta": ".bias"}

# Names that identify a family; the first match wins.
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


def modern_name(family: str, name: str, names: Iterable[str]) -> str:
    """Returns the name in `FAMILIES` of a tensor from a file that holds `names`.

    Replaces gamma and beta and the names of other code, and adds the prefix that a
    checkpoint of the bare encoder lacks.
    """
    layout = FAMILIES[family]
    for old, new in _OLD_LEAVES.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    for pattern, replacement in layout.aliases:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    token = layout.encoder[0][1] + ".weight"
    bare = token in names and layout.prefix + token not in names
    if bare and name not in _outside(family):
        return layout.prefix + name
    return name


@functools.cache
def _outside(family: str) -> frozenset[str]:
    """Returns the names of a family's tensors that have no prefix."""
    layout = FAMILIES[family]
    heads = {e.theirs for head in layout.heads for e in head_entries(family, head)}
    return frozenset(heads | layout.tied.keys())


def guess_family(names: Iterable[str]) -> str | None:
    """Returns the family that the names indicate, or None."""
    names = list(names)
    for pattern, family in _FOOTPRINTS:
        if any(re.search(pattern, name) for name in names):
            return family
    return None
