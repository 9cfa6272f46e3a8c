"""Variants of architectures: fields that change the code of a layer, beside the defaults."""

from typing import Any

from tests.support.architectures import WINDOW

DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 1e4}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
EQUAL_HEADS = {"qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 32}
MIXED = ["full_attention", "sliding_attention"]
# name: (architecture, fields)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, GELU": ("llama", {"hidden_act": "gelu"}),
    "llama, wide heads": ("llama", {"head_dim": 48}),
    "llama, one KV head": ("llama", {"num_key_value_heads": 1}),
    "llama, linear RoPE": (
        "llama",
        {"rope_parameters": {**DEFAULT_ROPE, "rope_type": "linear", "factor": 2.0}},
    ),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "llama, dynamic RoPE": (
        "llama",
        {"rope_parameters": {**DEFAULT_ROPE, "rope_type": "dynamic", "factor": 2.0}},
    ),
    "llama, partial RoPE": (
        "llama",
        {"rope_parameters": {**DEFAULT_ROPE, "partial_rotary_factor": 0.5}},
    ),
    "llama, heads of 24": ("llama", {"head_dim": 24}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "qwen2, window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": MIXED},
    ),
    "qwen3, window": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": MIXED},
    ),
    "qwen3, biases": ("qwen3", {"attention_bias": True}),
    "qwen3_moe, dense layers": ("qwen3_moe", {"mlp_only_layers": [0], "norm_topk_prob": True}),
    "qwen2_moe, window": (
        "qwen2_moe",
        {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": MIXED},
    ),
    "gemma2, no soft cap": ("gemma2", {"attn_logit_softcapping": None}),
    "gemma3_text, soft cap": ("gemma3_text", {"attn_logit_softcapping": 50.0}),
    "gemma3_text, both directions": ("gemma3_text", {"use_bidirectional_attention": True}),
    "gemma, untied": ("gemma", {"tie_word_embeddings": False}),
    "gpt2, scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2, upcast": ("gpt2", {"reorder_and_upcast_attn": True}),
    "gpt2, no scale": ("gpt2", {"scale_attn_weights": False}),
    "gpt2, cross-attention": ("gpt2", {"add_cross_attention": True}),
    "gpt_bigcode, many KV heads": ("gpt_bigcode", {"multi_query": False}),
    "gpt_neo, global": ("gpt_neo", {"attention_types": [[["global"], 2]]}),
    "gpt_neox, sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "falcon, many KV heads": ("falcon", {"multi_query": False, "parallel_attn": False}),
    "falcon, new decoder": ("falcon", {"new_decoder_architecture": True}),
    "falcon, ALiBi": ("falcon", {"alibi": True}),
    "mpt, no ALiBi": ("mpt", {"attn_config": {"alibi": False}}),
    "stablelm, head norms": ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True}),
    "phi, head norms": ("phi", {"qk_layernorm": True}),
    "phi3, window": ("phi3", {"sliding_window": WINDOW}),
    "phi3, longrope": (
        "phi3",
        {
            "original_max_position_embeddings": WINDOW,
            "rope_parameters": {
                **DEFAULT_ROPE,
                "rope_type": "longrope",
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
                "original_max_position_embeddings": WINDOW,
            },
        },
    ),
    "olmo, clipped": ("olmo", {"clip_qkv": 1.0}),
    "cohere, head norms": ("cohere", {"use_qk_norm": True}),
    "opt, norms behind": ("opt", {"do_layer_norm_before": False}),
    "opt, projected": ("opt", {"word_embed_proj_dim": 32}),
    "starcoder2, window": ("starcoder2", {"sliding_window": WINDOW}),
    "minimax, attention alone": ("minimax", {"layer_types": ["full_attention"] * 2}),
    "minimax_m3_vl_text, sparse": (
        "minimax_m3_vl_text",
        {"layer_types": ["full_attention", "minimax_m3_sparse"]},
    ),
    "lfm2, convolutions": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "lfm3, attention alone": (
        "lfm3",
        {"layer_types": ["full_attention"] * 2, "num_hidden_layers": 2},
    ),
    "qwen3_next, attention alone": (
        "qwen3_next",
        {"layer_types": ["full_attention"] * 2, "num_hidden_layers": 2},
    ),
    "granitemoehybrid, attention alone": (
        "granitemoehybrid",
        {"layer_types": ["attention"] * 2, "num_hidden_layers": 2},
    ),
    "jamba, attention alone": (
        "jamba",
        {"attn_layer_period": 1, "attn_layer_offset": 0, "num_hidden_layers": 2},
    ),
    "recurrent_gemma, attention alone": ("recurrent_gemma", {"block_types": ["attention"]}),
    "deepseek_v3, equal sizes": ("deepseek_v3", EQUAL_HEADS | {"num_key_value_heads": 4}),
    "deepseek_v2, equal sizes": ("deepseek_v2", EQUAL_HEADS | {"num_key_value_heads": 4}),
    "bert, decoder": ("bert", {"is_decoder": True}),
    "electra, decoder": ("electra", {"is_decoder": True}),
    "roberta, decoder": ("roberta", {"is_decoder": True}),
    "bert-generation, decoder": ("bert-generation", {"is_decoder": True}),
    "xmod, decoder": ("xmod", {"is_decoder": True, "default_language": "en_XX"}),
    "llama4_text, RoPE everywhere": ("llama4_text", {"no_rope_layers": [1, 1, 1, 1]}),
    "smollm3, RoPE everywhere": ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}),
    "laguna, heads by layer": ("laguna", {"num_attention_heads_per_layer": [4, 8]}),
    "gemma3n_text, nothing shared": ("gemma3n_text", {"num_kv_shared_layers": 0}),
    "nemotron, heads of 32": ("nemotron", {"head_dim": 32}),
    "quantised": ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
}
