"""Tensor names of other code and older versions, converted to those of `names`."""

import functools
import re
from collections.abc import Collection, Iterable

from plmjax.interop.names import FAMILIES, Family, head_entries

# The names of LayerNorm's leaves in the first conversions from TensorFlow.
_OLD_LEAVES = {".gamma": ".weight", ".beta": ".bias"}

# Components that wrappers of PyTorch put into names: compiled, sharded, recomputed.
_WRAPPER = re.compile(
    r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)

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
    (r"^nystromformer\.", "Nyströmformer"),
    (r"^bert\.|^cls\.predictions", "BERT"),
)


def unwrap(family: str, names: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Returns {name: name without wrappers}, and the components that were removed.

    A leading component is a wrapper if all names share it; it is kept if it is the
    prefix of a family with that family's token table behind it.
    """
    removed = {match[0]: None for name in names for match in _WRAPPER.finditer(name)}
    plain = {name: _WRAPPER.sub("", name) for name in names}
    tables = {f"{layout.prefix}{_table(layout)}" for layout in FAMILIES.values()}
    while len(firsts := {name.partition(".")[0] + "." for name in plain.values()}) == 1:
        (first,) = firsts
        if tables.intersection(plain.values()):
            break
        plain = {name: short.removeprefix(first) for name, short in plain.items()}
        removed[first] = None
    token = _table(FAMILIES[family])
    if not {token, FAMILIES[family].prefix + token} & set(plain.values()):
        return {name: name for name in names}, []  # not this family's tensors
    return plain, list(removed)


def partly_prefixed(family: str, names: Collection[str]) -> str | None:
    """Returns a sentence about a wrapper's prefix that only some names have, or None.

    `names` are without the prefix that all share.
    """
    layout = FAMILIES[family]
    for end in (layout.prefix + _table(layout), _table(layout)):
        for name in names:
            first = name.removesuffix(end)
            if first not in (name, "", layout.prefix):
                others = [name for name in names if not name.startswith(first)]
                return (
                    f"{len(names) - len(others)} of the {len(names)} names begin with "
                    f"{first!r}, but not {', '.join(others[:3])}: save the model "
                    "without its wrapper."
                )
    return None


def _table(layout: Family) -> str:
    """Returns the name of a family's token table, without the prefix."""
    return layout.encoder[0][1] + ".weight"


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
    token = _table(layout)
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
