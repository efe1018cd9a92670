"""The keys of each family's config.json: their meaning and their allowed values.

transformers' defaults are those of its configuration classes, version 5.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Keys(NamedTuple):
    """The config.json keys of one family.

    `sizes` {their key: our field} are required, as the shapes do not reveal a wrong
    number of heads. `options` is {their key: (our field, transformers' default)};
    `fixed` are keys that change the model, with the values that plmjax supports, the
    default first; `special` are keys for which config_json has a function; `idle` are
    keys that do not change what plmjax computes. `ours` are fields of EncoderConfig
    with one possible value in the family. `pad` is the default of pad_token_id;
    `names_ends` is True if bos and eos ids are written.
    """

    sizes: Mapping[str, str]
    options: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, tuple]
    ours: Mapping[str, Any]
    special: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()
    pad: int | None = 0
    names_ends: bool = False
    # The vocabulary head uses the exact GELU, whatever hidden_act is.
    exact_head: bool = False
    # Positions are counted from the padding id + 1.
    offset: bool = False


ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
# Our activation names, each with transformers' first name for it.
WRITTEN = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}

# Keys about the file, the tokenizer and the labels, which change neither encoder nor
# heads in any family.
IDLE = frozenset(
    """
    model_type architectures dtype torch_dtype transformers_version plmjax_version
    use_cache gradient_checkpointing return_dict output_attentions
    output_hidden_states output_past bos_token_id eos_token_id sep_token_id
    cls_token_id mask_token_id unk_token_id classifier_dropout id2label label2id
    num_labels problem_type finetuning_task task_specific_params pad_token_id
    tokenizer_class bos_token_ids eos_token_ids name_or_path _name_or_path _num_labels
    """.split()
)
# Keys that say how something is computed or returned, or how text is generated (the
# fields of transformers' GenerationConfig, which were keys of config.json up to version
# 4). They are not used, and import names them, as it does keys that begin with _
# (private attributes of transformers) and keys without a value.
UNUSED = frozenset(
    """
    attn_implementation experts_implementation torchscript use_bfloat16
    chunk_size_feed_forward tf_legacy_loss xla_device
    tie_last_hidden_states tie_encoder_decoder cross_attention_hidden_size
    sentence_transformers
    assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight
    assistant_lookbehind bad_words_ids begin_suppress_tokens cache_config
    cache_implementation compile_config constraints continuous_batching_config
    decoder_start_token_id disable_compile diversity_penalty do_sample dola_layers
    early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty
    epsilon_cutoff eta_cutoff exponential_decay_length_penalty force_words_ids
    forced_bos_token_id forced_eos_token_id generation_config guidance_scale
    is_assistant length_penalty low_memory max_cache_len max_length
    max_matching_ngram_size max_new_tokens max_time min_length min_new_tokens min_p
    no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule
    num_beam_groups num_beams num_return_sequences output_logits output_scores
    penalty_alpha prefill_chunk_size prefix prompt_lookup_num_tokens
    remove_invalid_values renormalize_logits repetition_penalty
    return_dict_in_generate sequence_bias speculation_type stop_strings
    suppress_tokens target_lookbehind temperature token_healing top_h top_k top_p
    typical_p use_mtp watermarking_config
    """.split()
)
# Blocks that exist only for weights stored in another way than as numbers.
QUANTISED = frozenset({"quantization_config", "compression_config", "quantization"})
_FIXED: dict[str, tuple] = {
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
    "position_embedding_type": ("absolute",),
    "pruned_heads": ({}, None),
}
# The fields of EncoderConfig that are the same for every BERT.
_PLAIN: dict[str, Any] = {
    "gated": False,
    "bias": True,
    "norm_place": "post",
    "sharing": "none",
    "attention": "full",
    "positions": "learned",
    "convolution_width": 0,
    "causal": False,
    "head": "transform",
    "kv_heads": None,
    "norm": "layer",
    "norm_embeddings": False,
    "layer_kinds": (),
    "global_tokens": "none",
}
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "ffn_width",
    "max_position_embeddings": "max_positions",
}
_OPTIONS: dict[str, tuple[str, Any]] = {
    "type_vocab_size": ("token_types", 2),
    "hidden_act": ("activation", "gelu"),
    "layer_norm_eps": ("norm_eps", 1e-12),
    "hidden_dropout_prob": ("dropout", 0.1),
    "attention_probs_dropout_prob": ("attention_dropout", 0.1),
    "initializer_range": ("init_std", 0.02),
}
_FACTORISED = {**_SIZES, "embedding_size": "embedding_width"}
_SUMMARY = frozenset(
    """
    summary_type summary_use_proj summary_activation summary_last_dropout
    summary_first_dropout summary_proj_to_labels
    """.split()
)


def _without(mapping: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in names}


_MODERN = Keys(
    _SIZES,
    {
        "hidden_activation": ("activation", "gelu"),
        "norm_eps": ("norm_eps", 1e-5),
        "mlp_dropout": ("dropout", 0.0),
        "attention_dropout": ("attention_dropout", 0.0),
        "initializer_range": ("init_std", 0.02),
    },
    _without(_FIXED, "position_embedding_type")
    | {
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "norm_bias": (False,),
        "decoder_bias": (True,),
        "classifier_bias": (False,),
        "classifier_activation": ("gelu",),
    },
    _without(_PLAIN, "layer_kinds")
    | {
        "gated": True,
        "bias": False,
        "norm_place": "pre",
        "norm_embeddings": True,
        "positions": "rope",
        "token_types": 0,
    },
    special=frozenset(
        """
        layer_types local_attention sliding_window rope_parameters embedding_dropout
        rope_scaling global_attn_every_n_layers global_rope_theta local_rope_theta
        """.split()
    ),
    # The first two stand in the published files of ModernBERT, whose classes never read
    # them.
    idle=frozenset(
        """
        layer_norm_eps position_embedding_type classifier_pooling reference_compile
        repad_logits_with_grad sparse_prediction sparse_pred_ignore_index
        deterministic_flash_attn initializer_cutoff_factor
        """.split()
    ),
    pad=50283,
    names_ends=True,
)

_ROBERTA = Keys(
    _SIZES,
    _OPTIONS,
    _FIXED,
    _PLAIN,
    pad=1,
    names_ends=True,
    exact_head=True,
    offset=True,
)

# What transformers takes as an argument is written, too: which tokens are global.
_LONGFORMER = _ROBERTA._replace(
    ours=_without(_PLAIN, "global_tokens") | {"layer_kinds": ("local",)},
    special=frozenset(
        "attention_window global_tokens global_token_ids global_token_limit".split()
    ),
    # Of the conversion to TensorFlow and ONNX, and the name of a kernel.
    idle=frozenset({"onnx_export", "attention_mode", "ignore_attention_mask"}),
)

KEYS: dict[str, Keys] = {
    "bert": Keys(
        _SIZES,
        _OPTIONS,
        _FIXED,
        _PLAIN,
        idle=frozenset(
            """
            directionality pooler_fc_size pooler_num_attention_heads
            pooler_num_fc_layers pooler_size_per_head pooler_type
            """.split()
        ),
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "longformer": _LONGFORMER,
    "albert": Keys(
        _FACTORISED,
        _OPTIONS
        | {
            "hidden_act": ("activation", "gelu_new"),
            "hidden_dropout_prob": ("dropout", 0.0),
            "attention_probs_dropout_prob": ("attention_dropout", 0.0),
        },
        _FIXED | {"inner_group_num": (1,)},
        _without(_PLAIN, "sharing"),
        special=frozenset({"num_hidden_groups"}),
        idle=frozenset(
            """
            classifier_dropout_prob down_scale_factor gap_size net_structure_type
            num_memory_blocks layers_to_keep
            """.split()
        ),
        names_ends=True,
    ),
    "distilbert": Keys(
        {
            "vocab_size": "vocab_size",
            "dim": "width",
            "n_layers": "layers",
            "n_heads": "heads",
            "hidden_dim": "ffn_width",
            "max_position_embeddings": "max_positions",
        },
        {
            "activation": ("activation", "gelu"),
            "dropout": ("dropout", 0.1),
            "attention_dropout": ("attention_dropout", 0.1),
            "initializer_range": ("init_std", 0.02),
        },
        _FIXED | {"sinusoidal_pos_embds": (False,), "tie_weights_": (True,)},
        _PLAIN | {"token_types": 0, "norm_eps": 1e-12},
        idle=frozenset({"qa_dropout", "seq_classif_dropout"}),
    ),
    "electra": Keys(
        _FACTORISED, _OPTIONS, _FIXED, _PLAIN, idle=_SUMMARY, exact_head=True
    ),
    "deberta-v2": Keys(
        _SIZES,
        _OPTIONS
        | {
            "type_vocab_size": ("token_types", 0),
            "layer_norm_eps": ("norm_eps", 1e-7),
            "share_att_key": ("share_position_projections", False),
            "conv_kernel_size": ("convolution_width", 0),
        },
        # Our relative positions are fixed; transformers' default is to have none.
        _without(_FIXED, "position_embedding_type") | {"conv_groups": (1,)},
        _without(_PLAIN, "positions", "convolution_width")
        | {"attention": "disentangled"},
        special=frozenset(
            """
            relative_attention max_relative_positions position_buckets norm_rel_ebd
            pos_att_type position_biased_input conv_act embedding_size
            attention_head_size
            """.split()
        ),
        idle=frozenset(
            """
            legacy pooler_dropout pooler_hidden_act pooler_hidden_size padding_idx
            cls_dropout
            """.split()
        ),
    ),
    "gpt2": Keys(
        {
            "vocab_size": "vocab_size",
            "n_embd": "width",
            "n_layer": "layers",
            "n_head": "heads",
            "n_positions": "max_positions",
        },
        {
            "activation_function": ("activation", "gelu_new"),
            "layer_norm_epsilon": ("norm_eps", 1e-5),
            "resid_pdrop": ("dropout", 0.1),
            "attn_pdrop": ("attention_dropout", 0.1),
            "initializer_range": ("init_std", 0.02),
        },
        _without(_FIXED, "is_decoder", "position_embedding_type")
        | {
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "reorder_and_upcast_attn": (False,),
        },
        _PLAIN
        | {"norm_place": "pre", "causal": True, "head": "plain", "token_types": 0},
        special=frozenset({"n_inner", "embd_pdrop"}),
        idle=_SUMMARY | {"n_ctx", "n_special", "predict_special_tokens"},
        pad=None,
        names_ends=True,
    ),
    "modernbert": _MODERN,
    "modernbert-decoder": _MODERN._replace(ours={**_MODERN.ours, "causal": True}),
    "eurobert": Keys(
        _SIZES,
        {
            "hidden_act": ("activation", "silu"),
            "rms_norm_eps": ("norm_eps", 1e-5),
            "attention_dropout": ("attention_dropout", 0.0),
            "initializer_range": ("init_std", 0.02),
        },
        _without(_FIXED, "position_embedding_type", "tie_word_embeddings")
        | {
            "tie_word_embeddings": (False,),
            "attention_bias": (False,),
            "mlp_bias": (False,),
            "pretraining_tp": (1,),
        },
        _without(_PLAIN, "kv_heads")
        | {
            "gated": True,
            "bias": False,
            "norm": "rms",
            "norm_place": "pre",
            "positions": "rope",
            "token_types": 0,
            "head": "untied",
        },
        special=frozenset(
            """
            num_key_value_heads head_dim rope_parameters rope_theta rope_scaling
            """.split()
        ),
        idle=frozenset({"classifier_pooling", "clf_pooling", "auto_map"}),
        pad=128001,
        names_ends=True,
    ),
}
