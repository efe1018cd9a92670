"""All that goes out and in: families, heads, and what their classes are called."""

import functools

import jax
import numpy as np

from plmjax.models.heads import init_model

# A published size of each family, from which the tiny one has all but the sizes.
PATTERNS = {
    "bert": "bert-base",
    "roberta": "roberta-base",
    "xlm-roberta": "xlm-roberta-base",
    "albert": "albert-base-v2",
    "distilbert": "distilbert-base",
    "electra": "electra-small",
    "deberta-v2": "deberta-v3-base",
    "gpt2": "gpt2",
    "modernbert": "modernbert-base",
    "modernbert-decoder": "ettin-decoder-17m",
    "eurobert": "eurobert-210m",
    "longformer": "longformer-base-4096",
}

# {name: (family, heads, what differs, transformers' class)}: all that goes out and in.
CASES: dict[str, tuple[str, tuple[str, ...], dict, str]] = {
    "bert": ("bert", ("head",), {}, "BertForMaskedLM"),
    "bert-bare": ("bert", (), {}, "BertModel"),
    "bert-nsp": ("bert", ("head", "pair"), {}, "BertForPreTraining"),
    "bert-pair": ("bert", ("pair",), {}, "BertForNextSentencePrediction"),
    "bert-detector": ("bert", ("detector",), {}, "BertModel"),
    "bert-tanh": ("bert", ("head",), {"activation": "gelu_tanh"}, "BertForMaskedLM"),
    "roberta": ("roberta", ("head",), {}, "RobertaForMaskedLM"),
    "roberta-bare": ("roberta", (), {}, "RobertaModel"),
    "xlm-roberta": ("xlm-roberta", ("head",), {}, "XLMRobertaForMaskedLM"),
    "albert": ("albert", ("head",), {}, "AlbertForMaskedLM"),
    "albert-sop": (
        "albert",
        ("head", "pair"),
        {"groups": 2, "layers": 4},
        "AlbertForPreTraining",
    ),
    "albert-own": ("albert", ("head",), {"sharing": "none"}, "AlbertForMaskedLM"),
    "albert-bare": ("albert", (), {}, "AlbertModel"),
    "distilbert": ("distilbert", ("head",), {}, "DistilBertForMaskedLM"),
    "distilbert-bare": ("distilbert", (), {}, "DistilBertModel"),
    "electra-generator": ("electra", ("head",), {}, "ElectraForMaskedLM"),
    "electra": ("electra", ("detector",), {}, "ElectraForPreTraining"),
    "electra-wide": (
        "electra",
        ("detector",),
        {"embedding_width": 10},
        "ElectraForPreTraining",
    ),
    "electra-both": ("electra", ("head", "detector"), {}, "ElectraForMaskedLM"),
    "electra-bare": ("electra", (), {}, "ElectraModel"),
    "deberta": ("deberta-v2", ("head",), {}, "DebertaV2ForMaskedLM"),
    "deberta-detector": ("deberta-v2", ("detector",), {}, "DebertaV2Model"),
    "deberta-v2": (
        "deberta-v2",
        ("head",),
        {
            "convolution_width": 3,
            "share_position_projections": False,
            "position_norm": False,
            "positions": "learned",
            "token_types": 2,
        },
        "DebertaV2ForMaskedLM",
    ),
    "gpt2": ("gpt2", ("head",), {}, "GPT2LMHeadModel"),
    "gpt2-bare": ("gpt2", (), {}, "GPT2Model"),
    "modernbert": ("modernbert", ("head",), {}, "ModernBertForMaskedLM"),
    "modernbert-bare": ("modernbert", (), {}, "ModernBertModel"),
    "modernbert-detector": ("modernbert", ("detector",), {}, "ModernBertModel"),
    "modernbert-long": (
        "modernbert",
        ("head",),
        {
            "rope_scaling": "yarn",
            "rope_factor": 4.0,
            "layer_kinds": ("local", "global"),
            "window": 6,
            "max_positions": 64,
        },
        "ModernBertForMaskedLM",
    ),
    "modernbert-decoder": (
        "modernbert-decoder",
        ("head",),
        {},
        "ModernBertDecoderForCausalLM",
    ),
    "eurobert": ("eurobert", ("head",), {}, "EuroBertForMaskedLM"),
    "eurobert-bare": ("eurobert", (), {}, "EuroBertModel"),
    "longformer": (
        "longformer",
        ("head",),
        {"window": 4, "global_tokens": "first"},
        "LongformerForMaskedLM",
    ),
    "longformer-bare": ("longformer", (), {"window": 6}, "LongformerModel"),
}


@functools.lru_cache(maxsize=64)
def draw(config, heads):
    """Random parameters of a model."""
    ids = jax.ShapeDtypeStruct((1, 1), np.int32)
    batch = dict.fromkeys(("tokens", "segments", "positions", "types"), ids)
    shapes = jax.eval_shape(
        lambda key, batch: init_model(config, key, batch, heads),
        jax.random.key(0),
        batch,
    )
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: random.normal(0, 0.1, leaf.shape).astype(np.float32), shapes
    )
