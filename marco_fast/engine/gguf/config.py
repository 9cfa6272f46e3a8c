"""The transformers configuration that a GGUF file describes."""

from typing import Any

import transformers

from marco_fast.engine.gguf.file import GgufFile
from marco_fast.engine.gguf.rope import rope_parameters

__all__ = ["config_of"]

# Architectures that are run, as files name them. A Mistral's file says "llama".
CONFIGS: dict[str, Any] = {
    "llama": transformers.LlamaConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}
# What changes a model's results, with the values that change nothing.
UNUSUAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "nextn_predict_layers": (0,),
    "attention.causal": (True,),
    "attention.scale": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.temperature_scale": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "logit_scale": (0, 1),
}


def config_of(file: GgufFile) -> Any:
    """The configuration of the model in a file, whose tensors have the sizes that it names.

    Raises:
        ModelError: with the cause: the architecture is not known, a field is missing or makes no
            sense, or the model does what its class in transformers does not.
    """
    arch = _architecture(file)
    for name, usual in UNUSUAL.items():
        got = file.fields.get(f"{arch}.{name}", usual[0])
        if got not in usual:
            raise file.refusal(f"a plain {arch} model", f"{arch}.{name} of {got}")
    heads = file.count(f"{arch}.attention.head_count")
    width = file.count(f"{arch}.embedding_length")
    kv_heads = file.count(f"{arch}.attention.head_count_kv", heads)
    head_dim = file.count(f"{arch}.attention.key_length", max(1, width // heads))
    values = file.count(f"{arch}.attention.value_length", head_dim)
    if values != head_dim or heads % kv_heads:
        got = f"{heads} of {head_dim}, over {kv_heads} of values of {values}"
        raise file.refusal("heads that share keys and values of one size", got)
    context = file.count(f"{arch}.context_length")
    eps = file.number(f"{arch}.attention.layer_norm_rms_epsilon")
    if eps < 0:
        raise file.refusal(f"{arch}.attention.layer_norm_rms_epsilon of at least 0", f"{eps}")
    if "token_embd.weight" not in file.tensors:
        raise file.refusal("a language model", "no tensor 'token_embd.weight'")
    options: dict[str, Any] = {
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_size": width,
        "intermediate_size": file.count(f"{arch}.feed_forward_length"),
        "num_hidden_layers": _layers(file, arch),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": context,
        "rms_norm_eps": float(eps),
        "rope_parameters": rope_parameters(file, arch, head_dim, context),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    _check_sizes(file, options)
    return _config(file, arch, options)


def _config(file: GgufFile, arch: str, options: dict[str, Any]) -> Any:
    window = file.fields.get(f"{arch}.attention.sliding_window", 0)
    biases = "blk.0.attn_q.bias" in file.tensors
    kind = CONFIGS[arch]
    if arch == "llama" and window:
        kind = transformers.MistralConfig
    elif arch == "llama":
        options |= {"attention_bias": biases, "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors}
    elif arch == "qwen3":
        options |= {"attention_bias": biases}
    if window:  # of which layers does not matter: no path is longer than it
        options["sliding_window"] = file.count(f"{arch}.attention.sliding_window")
    if arch != "llama":
        options |= {"use_sliding_window": bool(window), "max_window_layers": 0}
    return kind(**options)


def _architecture(file: GgufFile) -> str:
    kind = file.text("general.type") or "model"
    arch = file.text("general.architecture")
    if kind != "model" or arch in (None, "clip"):
        what = (
            "a projector of images or sound" if "mmproj" in kind or arch == "clip" else repr(kind)
        )
        raise file.refusal("a language model", what if arch else "no general.architecture")
    if arch not in CONFIGS:
        raise file.refusal(f"one of the architectures {', '.join(CONFIGS)}", repr(arch))
    return arch


def _layers(file: GgufFile, arch: str) -> int:
    """The number of layers, of which each has tensors in the file."""
    count = file.count(f"{arch}.block_count")
    found = {name.split(".")[1] for name in file.tensors if name.startswith("blk.")}
    if len(found) != count:
        raise file.refusal(f"tensors of {count} layers ({arch}.block_count)", f"{len(found)}")
    return count


def _check_sizes(file: GgufFile, options: dict[str, Any]) -> None:
    """Whether the first layer has the sizes that were named: no model of other sizes is built."""
    heads, kv_heads = options["num_attention_heads"], options["num_key_value_heads"]
    for name, rows in {
        "token_embd.weight": options["vocab_size"],
        "blk.0.attn_q.weight": heads * options["head_dim"],
        "blk.0.attn_k.weight": kv_heads * options["head_dim"],
        "blk.0.ffn_gate.weight": options["intermediate_size"],
    }.items():
        file.check_shape(name, (rows, options["hidden_size"]))
