"""config.json of every family: published files, odd values, and what is refused."""

import dataclasses
import json

import pytest
from interop.cases import CASES

from plmjax import Exit, PlmjaxError
from plmjax.interop.config_json import TYPES, from_json, to_json
from plmjax.interop.config_keys import KEYS
from plmjax.models import PRESETS

# What stands beside the published weights.
PUBLISHED = {
    "albert-base-v2": """{"architectures": ["AlbertForMaskedLM"],
        "attention_probs_dropout_prob": 0, "bos_token_id": 2, "eos_token_id": 3,
        "classifier_dropout_prob": 0.1, "down_scale_factor": 1, "embedding_size": 128,
        "gap_size": 0, "hidden_act": "gelu_new", "hidden_dropout_prob": 0,
        "hidden_size": 768, "initializer_range": 0.02, "inner_group_num": 1,
        "intermediate_size": 3072, "layer_norm_eps": 1e-12, "model_type": "albert",
        "max_position_embeddings": 512, "net_structure_type": 0, "pad_token_id": 0,
        "num_attention_heads": 12, "num_hidden_groups": 1, "num_hidden_layers": 12,
        "num_memory_blocks": 0, "type_vocab_size": 2, "vocab_size": 30000}""",
    "distilbert-base": """{"activation": "gelu", "attention_dropout": 0.1,
        "architectures": ["DistilBertForMaskedLM"], "dim": 768, "dropout": 0.1,
        "hidden_dim": 3072, "initializer_range": 0.02, "max_position_embeddings": 512,
        "model_type": "distilbert", "n_heads": 12, "n_layers": 6, "pad_token_id": 0,
        "qa_dropout": 0.1, "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": false,
        "tie_weights_": true, "vocab_size": 30522}""",
    "electra-small": """{"architectures": ["ElectraForPreTraining"],
        "attention_probs_dropout_prob": 0.1, "embedding_size": 128,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 256,
        "initializer_range": 0.02, "intermediate_size": 1024, "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512, "model_type": "electra",
        "num_attention_heads": 4, "num_hidden_layers": 12, "pad_token_id": 0,
        "position_embedding_type": "absolute", "summary_activation": "gelu",
        "summary_last_dropout": 0.1, "summary_type": "first",
        "summary_use_proj": true, "type_vocab_size": 2, "vocab_size": 30522}""",
    "deberta-v3-base": """{"model_type": "deberta-v2",
        "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
        "intermediate_size": 3072, "max_position_embeddings": 512,
        "relative_attention": true, "position_buckets": 256,
        "norm_rel_ebd": "layer_norm", "share_att_key": true,
        "pos_att_type": "p2c|c2p", "layer_norm_eps": 1e-7,
        "max_relative_positions": -1, "position_biased_input": false,
        "num_attention_heads": 12, "num_hidden_layers": 12, "type_vocab_size": 0,
        "vocab_size": 128100}""",
    "deberta-v2-xlarge": """{"model_type": "deberta-v2",
        "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": 1536, "initializer_range": 0.02,
        "intermediate_size": 6144, "max_position_embeddings": 512,
        "relative_attention": true, "position_buckets": 256,
        "norm_rel_ebd": "layer_norm", "share_att_key": true,
        "pos_att_type": "p2c|c2p", "layer_norm_eps": 1e-7, "conv_kernel_size": 3,
        "conv_act": "gelu", "max_relative_positions": -1,
        "position_biased_input": false, "num_attention_heads": 24,
        "attention_head_size": 64, "num_hidden_layers": 24, "type_vocab_size": 0,
        "vocab_size": 128100}""",
    "longformer-base-4096": """{"attention_mode": "longformer",
        "attention_probs_dropout_prob": 0.1, "attention_window": [512, 512, 512, 512,
        512, 512, 512, 512, 512, 512, 512, 512], "bos_token_id": 0, "eos_token_id": 2,
        "gradient_checkpointing": false, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": 768, "ignore_attention_mask": false,
        "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 4098, "model_type": "longformer",
        "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1,
        "sep_token_id": 2, "type_vocab_size": 1, "vocab_size": 50265}""",
    "gpt2": """{"activation_function": "gelu_new", "architectures":
        ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
        "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024,
        "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
        "resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1,
        "summary_proj_to_labels": true, "summary_type": "cls_index",
        "summary_use_proj": true, "task_specific_params":
        {"text-generation": {"do_sample": true, "max_length": 50}},
        "vocab_size": 50257}""",
    "xlm-roberta-base": """{"architectures": ["XLMRobertaForMaskedLM"],
        "attention_probs_dropout_prob": 0.1, "bos_token_id": 0, "eos_token_id": 2,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768,
        "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 514, "model_type": "xlm-roberta",
        "num_attention_heads": 12, "num_hidden_layers": 12, "output_past": true,
        "pad_token_id": 1, "position_embedding_type": "absolute",
        "transformers_version": "4.17.0.dev0", "type_vocab_size": 1,
        "use_cache": true, "vocab_size": 250002}""",
}
# ModernBERT's files of transformers 4, and what those of Ettin and of version 5 change.
_OLD = json.loads("""{"_name_or_path": "ModernBERT-base", "architectures":
    ["ModernBertForMaskedLM"], "attention_bias": false, "attention_dropout": 0.0,
    "bos_token_id": 50281, "classifier_activation": "gelu", "classifier_bias": false,
    "classifier_dropout": 0.0, "classifier_pooling": "mean", "cls_token_id": 50281,
    "decoder_bias": true, "deterministic_flash_attn": false, "embedding_dropout": 0.0,
    "eos_token_id": 50282, "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0, "gradient_checkpointing": false,
    "hidden_activation": "gelu", "hidden_size": 768, "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02, "intermediate_size": 1152, "layer_norm_eps": 1e-05,
    "local_attention": 128, "local_rope_theta": 10000.0, "mlp_bias": false,
    "max_position_embeddings": 8192, "mlp_dropout": 0.0, "model_type": "modernbert",
    "norm_bias": false, "norm_eps": 1e-05, "num_attention_heads": 12,
    "num_hidden_layers": 22, "pad_token_id": 50283, "sep_token_id": 50282,
    "position_embedding_type": "absolute", "tie_word_embeddings": true,
    "torch_dtype": "float32", "transformers_version": "4.47.0.dev0",
    "vocab_size": 50368}""")
_ETTIN = {"causal_mask": False, "is_causal": False, "local_rope_theta": 160000.0}
_ETTIN |= {"max_position_embeddings": 7999, "position_embedding_type": "sans_pos"}
_ETTIN |= {"reference_compile": False, "repad_logits_with_grad": False}
_THIRD = ["full_attention", "sliding_attention", "sliding_attention"]
_EURO = json.loads("""{"architectures": ["EuroBertForMaskedLM"],
    "attention_bias": false, "attention_dropout": 0.0, "auto_map": {"AutoConfig":
    "configuration_eurobert.EuroBertConfig"}, "bos_token": "<|begin_of_text|>",
    "bos_token_id": 128000, "eos_token": "<|end_of_text|>", "eos_token_id": 128001,
    "hidden_act": "silu", "hidden_dropout": 0.0, "hidden_size": 768,
    "initializer_range": 0.02, "intermediate_size": 3072, "is_decoder": false,
    "mask_token": "<|mask|>", "mask_token_id": 128002, "model_type": "eurobert",
    "max_position_embeddings": 8192, "num_attention_heads": 12,
    "num_hidden_layers": 12, "num_key_value_heads": 12, "pad_token":
    "<|end_of_text|>", "pad_token_id": 128001, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 250000,
    "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 128256}""")


def _sized(body, width, layers, heads, ffn, **more):
    """The file of another size; None in `more` leaves a key out."""
    sizes = {"hidden_size": width, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": heads, "intermediate_size": ffn}
    changed = body | sizes | more
    return json.dumps({k: v for k, v in changed.items() if v is not None})


def _default(theta):
    return {"rope_type": "default", "rope_theta": theta}


_NEW = {  # version 5 writes these in place of three older keys
    "global_rope_theta": None,
    "local_rope_theta": None,
    "layer_types": (_THIRD * 10)[:28],
    "rope_parameters": {
        "full_attention": _default(160000.0),
        "sliding_attention": _default(10000.0),
    },
}
PUBLISHED |= {
    "modernbert-base": json.dumps(_OLD),
    "modernbert-large": _sized(_OLD, 1024, 28, 16, 2624, **_NEW),
    "ettin-encoder-17m": _sized(_OLD | _ETTIN, 256, 7, 4, 384),
    # Its windows: sliding_window alone, half of the encoder's local_attention.
    "ettin-decoder-400m": _sized(
        _OLD | _ETTIN | {"model_type": "modernbert-decoder", "bos_token": "[CLS]"},
        *(1024, 28, 16, 2624),
        causal_mask=True,
        is_causal=True,
        masked_prediction=False,
        sliding_window=64,
        local_attention=None,
        layer_types=(_THIRD * 10)[:28],
    ),
    "eurobert-210m": json.dumps(_EURO),
    "eurobert-610m": _sized(
        _EURO,
        *(1152, 26, 18, 4096),
        num_key_value_heads=6,
        rope_theta=None,
        rope_parameters=_default(250000),
        classifier_pooling="late",
        head_dim=64,
        is_causal=False,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_our_presets(name):
    config, _, notes = from_json(json.loads(PUBLISHED[name]), "config.json")
    assert config == PRESETS[name]
    assert [note for note in notes if "conv_kernel_size" not in note] == []


def test_the_published_nystromformer_asks_for_the_exact_softmax():
    """Of 64 landmarks and 64 tokens; its class then computes rows of any length."""
    body = json.loads("""{"attention_probs_dropout_prob": 0.1, "bos_token_id": 0,
        "conv_kernel_size": 65, "eos_token_id": 2, "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
        "intermediate_size": 3072, "inv_coeff_init_option": false,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 510,
        "model_type": "nystromformer", "num_attention_heads": 12,
        "num_hidden_layers": 12, "num_landmarks": 64, "pad_token_id": 1,
        "segment_means_seq_len": 64, "type_vocab_size": 2, "use_cache": true,
        "vocab_size": 30000}""")
    config, pad, notes = from_json(body, "config.json")
    exact = dataclasses.replace(PRESETS["nystromformer-512"], landmarks=510)
    assert (config, pad, notes) == (exact, 1, [])
    written = to_json(config, ["head"], 1, 0, 2)
    assert all(written[key] == body[key] for key in body.keys() - {"use_cache"})
    # By landmarks, rows are as long as a multiple of them.
    written = to_json(PRESETS["nystromformer-512"], ["head"], 1, 0, 2, length=300)
    assert (written["num_landmarks"], written["segment_means_seq_len"]) == (64, 256)
    with pytest.raises(PlmjaxError, match="supports only 'at most 50'"):
        to_json(PRESETS["nystromformer-512"], ["head"], 1, 0, 2, length=100)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives(name):
    config = PRESETS[name]
    pad = 1 if KEYS[config.family].offset else 0
    body = json.loads(json.dumps(to_json(config, ["head"], pad, 0, 2)))
    assert from_json(body, "config.json") == (config, pad, [])


# Keys that say how something is computed, generation's, private ones, and no values.
@pytest.mark.parametrize(
    "changes",
    [
        {"max_length": 20, "num_beams": 1, "do_sample": False, "output_scores": False},
        {"_attn_implementation_autoset": True, "attn_implementation": "sdpa"},
        {"torchscript": True, "chunk_size_feed_forward": 0, "prefix": None},
        {"rope_scaling": None, "adapters": {}, "quantization_config": None},
        {"adapters": {"adapters": {}, "config_map": {}}, "custom_list": []},
        {"auto_map": {}, "_flash_attn_2_enabled": False, "typical_p": 0.5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_keys_that_change_nothing_are_passed_over_in_one_line(written, changes):
    config, pad, notes = from_json(written("bert") | changes, "config.json")
    assert (config, pad, []) == from_json(written("bert"), "config.json")
    assert notes == [f"Passed over in config.json: {', '.join(sorted(changes))}."]


def test_what_every_older_file_holds_is_not_mentioned(written):
    old = {"eos_token_ids": 0, "output_past": True, "is_encoder_decoder": False}
    old |= {"_num_labels": 2, "_name_or_path": "x", "is_decoder": None}
    old |= {"task_specific_params": {"a": {"b": 1}}, "id2label": {"0": "A"}}
    body = written("bert")
    assert from_json(body | old, "config.json") == from_json(body, "config.json")
    with pytest.raises(PlmjaxError, match="is_encoder_decoder is True"):
        from_json(body | {"is_encoder_decoder": True}, "config.json")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rope_scaling": {"type": "linear"}}, "not know in bert: 'rope_scaling'"),
        ({"adapters": {"adapters": {"a": 1}}}, "not know in bert: 'adapters'"),
        ({"per_layer_config": {"0": {"a": 1}}}, "'per_layer_config'"),
        ({"some_switch": False}, "'some_switch'"),
        ({"some_size": 0}, "'some_size'"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings is None"),
        ({"quantization_config": {"bits": 4}}, "the weights are quantised"),
    ],
    ids=str,
)
def test_keys_that_may_change_the_model_are_refused(written, changes, message):
    with pytest.raises(PlmjaxError, match=message) as caught:
        from_json(written("bert") | changes, "config.json")
    assert caught.value.code == Exit.MODEL


@pytest.mark.peer
def test_every_key_of_transformers_own_classes_is_known(written):
    """All fields of its base class, of generation and of each family's class."""
    import transformers

    for family in FAMILIES:
        kind = TYPES.get(family, family)
        theirs = transformers.AutoConfig.for_model(kind)
        common = transformers.PretrainedConfig().to_dict()
        common |= transformers.GenerationConfig().to_dict()
        keys = (vars(theirs) | theirs.to_dict() | common).keys()
        body = {key: None for key in keys} | {"new_key": 1}
        with pytest.raises(PlmjaxError, match=r"know in \S+: 'new_key'\."):
            from_json({k: 1 for k in body} | {"model_type": kind}, "config.json")


FAMILIES = {family: case for case, (family, *_) in reversed(CASES.items())}


@pytest.fixture
def written(tiny):
    def body(family):
        model = tiny(FAMILIES[family])
        ids = (model.tokenizer.pad_id, model.tokenizer.cls_id, model.tokenizer.sep_id)
        heads = [name for name in model.params if name != "encoder"]
        return json.loads(json.dumps(to_json(model.config, heads, *ids)))

    return body


@pytest.mark.parametrize(
    "family, changes, message",
    [
        ("albert", {"num_hidden_groups": 2}, "2 does not divide num_hidden_layers 3"),
        ("albert", {"num_hidden_groups": 4}, "a whole number from 1 to 3"),
        ("albert", {"num_hidden_groups": 0}, "num_hidden_groups is 0"),
        ("albert", {"inner_group_num": 2}, "group_num is 2; plmjax supports only 1"),
        ("albert", {"embedding_size": 10}, "embedding_size is hidden_size"),
        ("albert", {"embedding_size": None}, "embedding_size is None"),
        ("distilbert", {"sinusoidal_pos_embds": True}, "sinusoidal_pos_embds is True"),
        ("distilbert", {"layer_norm_eps": 1e-5}, "not know in distilbert: 'layer_n"),
        ("distilbert", {"hidden_size": 10}, "not know in distilbert: 'hidden_size'"),
        ("electra", {"embedding_size": 0}, "embedding_size is 0"),
        ("deberta-v2", {"relative_attention": False}, "relative_attention is False"),
        ("deberta-v2", {"relative_attention": 1}, "relative_attention is 1"),
        ("deberta-v2", {"max_relative_positions": 12}, "12; plmjax supports only 24"),
        ("deberta-v2", {"position_buckets": -1}, "position_buckets is -1"),
        ("deberta-v2", {"pos_att_type": ["c2p"]}, r"pos_att_type is \['c2p'\]"),
        ("deberta-v2", {"pos_att_type": None}, "pos_att_type is None"),
        ("deberta-v2", {"norm_rel_ebd": "batch_norm"}, "norm_rel_ebd is 'batch_norm'"),
        ("deberta-v2", {"conv_kernel_size": 3}, "conv_act is 'tanh'"),
        (
            "deberta-v2",
            {"conv_kernel_size": 4, "conv_act": "gelu"},
            "model.convolution_width is 4; it must be odd",
        ),
        ("deberta-v2", {"conv_groups": 2}, "conv_groups is 2"),
        ("deberta-v2", {"embedding_size": 5}, "embedding_size is 5"),
        ("deberta-v2", {"attention_head_size": 3}, "3; plmjax supports only 2"),
        ("deberta-v2", {"legacy_": True}, "not know in deberta-v2: 'legacy_'"),
        ("longformer", {"attention_window": [4, 4, 6]}, "only one window in all lay"),
        ("longformer", {"attention_window": [4]}, "num_hidden_layers = 3 windows"),
        ("longformer", {"attention_window": 5}, "model.window is 5; it must be even"),
        ("longformer", {"global_tokens": "some"}, "global_tokens is 'some'; plmjax"),
        ("longformer", {"global_token_ids": [10**6]}, "global_token_ids is 1000000"),
        ("gpt2", {"embd_pdrop": 0.2}, "embd_pdrop is 0.2 and resid_pdrop 0.1"),
        ("gpt2", {"n_inner": 0}, "n_inner is 0"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is False"),
        (
            "gpt2",
            {"scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx is True",
        ),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("gpt2", {"n_head": 3}, "n_head 3 does not divide n_embd 10"),
        ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu'"),
        ("gpt2", {"hidden_size": 10}, "does not know in gpt2: 'hidden_size'"),
        ("bigbird", {"attention_type": "sparse"}, "attention_type is 'sparse'"),
        ("bigbird", {"block_size": 0}, "block_size is 0"),
        ("bigbird", {"num_random_blocks": -1}, "num_random_blocks is -1"),
        ("bigbird", {"use_bias": False}, "use_bias is False"),
        ("bigbird", {"rescale_embeddings": True}, "rescale_embeddings is True"),
        ("bigbird", {"is_decoder": True}, "is_decoder is True"),
        ("modernbert", {"local_attention": 7}, "window is 7; it must be even"),
        ("modernbert", {"sliding_window": 32}, "32; plmjax supports only 64"),
        ("modernbert", {"layer_types": ["linear_attention"] * 3}, "'linear_attention'"),
        ("modernbert", {"layer_types": ["full_attention"]}, "num_hidden_layers = 3"),
        ("modernbert", {"is_causal": True}, "is_causal is True"),
        (
            "modernbert",
            {"rope_parameters": None, "local_rope_theta": -1.0},
            "rope_theta is -1.0; it must be a positive number",
        ),
        ("modernbert-decoder", {"causal_mask": False}, "causal_mask is False"),
        (
            "eurobert",
            {"rope_parameters": None, "rope_theta": 0},
            "rope_theta is 0; it must be a positive number",
        ),
        ("eurobert", {"rope_scaling": {"type": "linear"}}, "rope_type is 'linear'"),
        ("eurobert", {"rope_scaling": {"rope_type": "llama3"}}, "type is 'llama3'"),
    ],
    ids=str,
)
def test_what_is_refused(written, family, changes, message):
    with pytest.raises(PlmjaxError, match=message) as caught:
        from_json(written(family) | changes, "config.json")
    assert caught.value.code == Exit.MODEL
    assert caught.value.hint


@pytest.mark.parametrize(
    "named, rule, ids",
    [
        ("MaskedLM", "none", ()),
        ("SequenceClassification", "first", ()),
        ("TokenClassification", "none", ()),
        ("QuestionAnswering", "question", (3,)),
        ("MultipleChoice", "second", (3,)),
    ],
)
def test_a_class_of_longformer_decides_which_tokens_are_global(
    written, named, rule, ids
):
    """What transformers does without a mask; a file of plmjax says it."""
    body = written("longformer") | {"sep_token_id": 3}
    body = {key: value for key, value in body.items() if "global" not in key}
    body["architectures"] = [f"LongformerFor{named}"]
    config, _, _ = from_json(body, "config.json")
    assert (config.global_tokens, config.global_ids) == (rule, ids)


def test_what_deberta_must_say(written):
    for key in ("relative_attention", "position_buckets", "pos_att_type"):
        body = written("deberta-v2")
        del body[key]
        with pytest.raises(PlmjaxError, match=key):
            from_json(body, "config.json")


@pytest.mark.parametrize("family", FAMILIES)
def test_odd_values_never_end_in_a_traceback(written, family):
    """One key at a time says something else, or is not there."""
    whole, refused = written(family), 0
    odd = [None, [], {}, "x", -1, 0, 1, 7, 10**400, 1e-3, True, False, ["a"], {"a": 1}]
    keys = sorted(KEYS[family].special | KEYS[family].fixed.keys() | whole.keys())
    for key in keys:
        bodies = [whole | {key: value} for value in odd]
        bodies.append({name: v for name, v in whole.items() if name != key})
        for body in bodies:
            try:
                from_json(body, "config.json")
            except PlmjaxError as error:
                refused += 1
                assert error.code == Exit.MODEL
                assert "\n" not in str(error)
    assert refused > 5 * len(keys)
