"""Which architectures can be run as they are, by their configuration alone.

What a configuration does not tell, `attention_shape` and `ForwardCheck` find with the model there.
"""

from typing import Any

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from marco_fast.errors import ModelError

__all__ = ["check_architecture", "check_head_dim"]

RIGHT = "expected a model whose layers are all softmax attention over keys and values of their own"
# Kinds of layers, as configurations name them, that mix tokens by softmax attention or not at all.
SOFTMAX = {"full_attention", "sliding_attention", "chunked_attention", "attention"}
SOFTMAX |= {"global", "local", "moe", "mlp", "dense", "sparse"}
KINDS = ("layer_types", "layers_block_type", "block_types", "attention_layers", "attn_layers")
# What each layer has beside its attention, where no list of kinds says which layers have it.
STATE = ("mamba", "ssm", "conv_kernel", "linear_attn", "linear_num", "time_step", "lru_width")
SINKS = ("deepseek_v4", "flint", "gpt_oss", "granite_swa", "granitemoe_swa", "hy_v4")
LONGEST = 1 << 31  # positions of a path: more than any memory holds
NO_INTERFACE = "which does not use transformers' AttentionInterface"
# Fields that count or measure heads; those of some layers alone have such a name with a prefix.
HEADS = ("num_attention_heads", "num_key_value_heads", "head_dim")


def check_architecture(config: Any) -> None:
    """Refuse what the engine would run wrong, before any weight is read.

    Raises:
        ModelError: the configuration is of a model that cannot be run faithfully.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError("expected weights in float32, bfloat16 or float16, got quantised weights")
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"expected a decoder-only model, got {config.model_type!r}")
    _check_modalities(config)
    for cause in (_heads, _kinds, _sharing, _values, _bias, _class):
        if got := cause(config):
            raise ModelError(f"{RIGHT}, got {config.model_type!r}, {got}")
    size = _values_size(config) or getattr(config, "head_dim", None)
    check_head_dim(size or config.hidden_size // config.num_attention_heads)
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or not 1 <= positions < LONGEST:
        got = "no" if positions is None else f"{positions!r} as"
        raise ModelError(
            f"expected a model of a known context, got {config.model_type!r}, whose configuration "
            f"has {got} max_position_embeddings"
        )


def check_head_dim(size: int) -> None:
    """Refuse a size of heads that the attention kernels do not have."""
    if size % 16 or not 16 <= size <= 256:
        raise ModelError(f"expected a head size of 16 to 256 in steps of 16, got {size}")


def _check_modalities(config: Any) -> None:
    parts = [name for name in config.sub_configs if getattr(config, name, None) is not None]
    models = [name for name in parts if hasattr(getattr(config, name), "num_hidden_layers")]
    if models and ("text_config" in parts or not hasattr(config, "num_hidden_layers")):
        got = f"the multimodal or composite {config.model_type!r} ({', '.join(parts)})"
        if (text := getattr(config, "text_config", None)) is not None:
            try:
                check_architecture(text)
            except ModelError as error:
                raise ModelError(f"{error}, in {got}") from error
            got += "; its language model may run if saved as a model of its own"
        raise ModelError(f"expected a model of text alone, got {got}")


def _kinds(config: Any) -> str | None:
    """Layers of another kind than softmax attention."""
    if not hasattr(config, "num_attention_heads"):
        return "which has no attention at all"
    listed = False
    for field in KINDS:
        kinds = getattr(config, field, None)
        if isinstance(kinds, list | tuple) and kinds:
            listed = True
            if others := sorted({str(kind) for kind in kinds} - SOFTMAX):
                return f"whose {field} name {', '.join(map(repr, others))}"
    fields = [] if listed else [each for each in config.to_dict() if each.startswith(STATE)]
    if fields:
        return f"whose layers keep a state beside attention ({fields[0]})"
    return None


def _heads(config: Any) -> str | None:
    """Layers whose heads differ in number or in size."""
    fields = config.to_dict()
    if fields.get("per_layer_config"):
        return "whose layers differ from each other (per_layer_config)"
    for name in HEADS:
        for field, value in fields.items():
            if not field.endswith(name) and not field.startswith(name):
                continue
            if isinstance(value, list) and len(set(value)) > 1:
                return f"whose layers have different heads ({field})"
            known = field == name or isinstance(value, list)
            if field.startswith(("swa_", "global_", "sliding_", "full_")) and not known:
                whole = getattr(config, name, None)
                if value is not None and value != whole:
                    return f"whose layers have different heads ({field} is {value}, {name} {whole})"
    return None


def _sharing(config: Any) -> str | None:
    shared = getattr(config, "num_kv_shared_layers", None)
    return f"of which {shared} layers use keys and values of another layer" if shared else None


def _values_size(config: Any) -> int | None:
    """The size of a key where it is made of two parts (multi-head latent attention)."""
    parts = [getattr(config, name, None) for name in ("qk_nope_head_dim", "qk_rope_head_dim")]
    return None if None in parts else sum(parts)  # type: ignore[arg-type]


def _values(config: Any) -> str | None:
    """Values of another size than keys."""
    keys, values = _values_size(config), getattr(config, "v_head_dim", None)
    keys = keys or getattr(config, "head_dim", None)
    if keys and values and keys != values:
        return f"whose keys have {keys} elements and its values {values} (v_head_dim)"
    return None


def _bias(config: Any) -> str | None:
    """Attention that is more than a softmax of products."""
    for field, value in config.to_dict().items():
        capped = "softcap" in field or "soft_cap" in field
        if value and capped and field.startswith("att"):
            return f"which caps the logits of its attention ({field} is {value})"
        if field.startswith("position_bias"):
            return f"which adds a bias to the logits of its attention ({field})"
    parts = (config, getattr(config, "attn_config", None))
    if config.model_type == "bloom" or any(getattr(each, "alibi", False) for each in parts):
        return "which adds a bias to the logits of its attention (ALiBi)"
    if config.model_type in SINKS:
        return "whose attention has sinks"
    return None


def _class(config: Any) -> str | None:
    """What reads in both directions, and classes whose attention cannot be swapped."""
    if getattr(config, "use_bidirectional_attention", None) is True:
        return "which reads in both directions (use_bidirectional_attention)"
    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if encoder and not getattr(config, "is_decoder", False):
        return "an encoder, which reads in both directions (is_decoder is false)"
    known = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    swaps = getattr(known.get(type(config), None), "_can_set_attn_implementation", None)
    return NO_INTERFACE if swaps and not swaps() else None
