"""Tiny random models of all causal architectures, and what an engine does with each."""

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from marco_fast import Engine, ModelError, SearchConfig, solve
from marco_fast.engine.loading.architectures import check_architecture
from marco_fast.engine.native_runner import NativeRunner
from tests.support.models import PlainForward, save_tokenizer

NAMES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
CONTEXT, WINDOW = 512, 64  # tokens
# By the fields' names in a configuration; one that has no such field keeps its own.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim", "embedding_size"), 64),
    **dict.fromkeys(("input_embedding_size", "output_embedding_size", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "num_query_groups"), 2),
    **dict.fromkeys(("head_dim", "kv_channels", "dim_head", "attention_head_size"), 16),
    **dict.fromkeys(("intermediate_size", "ffn_hidden_size", "decoder_ffn_dim", "ffn_dim"), 96),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), CONTEXT),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("initializer_range", "init_std", "embed_init_std"), 0.2),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "local_attention"), WINDOW),
    "moe_intermediate_size": 32,
    "encoder_layers": 1,
    "vocab_size_per_layer_input": 512,
}
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_blocks")
KINDS = ("layer_types", "layers_block_type")  # properties of some configurations
# What the validation of some configurations wants beside small sizes.
NEEDED: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "dots1": {"n_shared_experts": 1},
    "dots3_note": {
        "audio_config": {},
        "text_config": {"model_type": "dots3_note_text"},
        "vision_config": {},
    },
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma4_assistant": {
        "text_config": {
            "model_type": "gemma4_text",
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
        }
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "reformer": {"is_decoder": True},
    "zaya": {"num_experts_per_tok": 1},
}
SEARCH = SearchConfig(expansions=3, children=2, step_tokens=6, rollout_tokens=0)


class Outcome(NamedTuple):
    """What an engine does with a model: "C++", "transformers", "refused", "not built" or "wrong".

    Attributes:
        kind: see above.
        window: tokens that the path may have, where that is less than the configuration's context.
        cause: why it was refused or not built, in one line.
    """

    kind: str
    window: int | None = None
    cause: str = ""


@functools.cache
def _tokenizer() -> tuple[Path, int]:
    folder = Path(tempfile.mkdtemp())
    return folder, save_tokenizer(folder)


def tiny_config(name: str, **changes: Any) -> Any:
    """A small configuration of an architecture: its defaults, but for what makes it large."""
    needed = NEEDED.get(name, {})
    try:
        default = transformers.AutoConfig.for_model(name)
    except Exception:  # of some the defaults do not fit together
        default = transformers.AutoConfig.for_model(name, **needed)
    return transformers.AutoConfig.for_model(name, **(_shrunk(default) | needed | changes))


def _shrunk(default: Any) -> dict[str, Any]:
    fields = default.to_dict()
    small = {name: size for name, size in SIZES.items() if _is_size(fields.get(name, ""))}
    small = {name: size for name, size in small.items() if size != WINDOW or fields[name]}
    layers = _layers([*fields.values(), *(getattr(default, name, 0) for name in KINDS)])
    depth = next((fields[name] for name in LAYERS if name in fields), None)
    for name, value in fields.items():
        if name in LAYERS:
            small[name] = layers
        elif isinstance(value, list) and len(value) == depth:
            small[name] = value[:layers]
    if "qk_rope_head_dim" in fields:  # head_dim is another name for it
        small.pop("head_dim", None)
    small |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if "vocab_size" in fields:
        small["vocab_size"] = _tokenizer()[1] + 8
    for part in default.sub_configs:
        if (sub := getattr(default, part, None)) is not None:
            small[part] = _shrunk(sub) | {"model_type": sub.model_type}
    return small


def _is_size(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _layers(values: list[Any]) -> int:
    """So many that every kind of layer of the default pattern occurs."""
    lists = [value for value in values if isinstance(value, list | tuple)]
    kinds = [value for value in lists if all(isinstance(each, str) for each in value)]
    return max([2, *(1 + value.index(each) for value in kinds for each in value)])


def save_tiny(config: Any, folder: Path) -> Path:
    """Random weights of that configuration, with the tests' tokenizer; the folder they are in."""
    for each in _tokenizer()[0].iterdir():
        shutil.copy(each, folder)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    # Biases and norms start at zero and one, which would hide a mistake in either.
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and parameter.is_floating_point():
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    model.save_pretrained(folder)
    return folder


def outcome(name: str, folder: Path, **changes: Any) -> Outcome:
    """What becomes of a tiny model of an architecture, whose searches are compared token by token.

    A configuration that is refused is refused without weights, so none are made.
    """
    try:
        config = tiny_config(name, **changes)
    except Exception as error:
        return Outcome("not built", cause=_line(error))
    try:
        check_architecture(config)
    except ModelError as error:
        return Outcome("refused", cause=str(error))
    try:
        save_tiny(config, folder)
    except Exception as error:
        return Outcome("not built", cause=_line(error))
    try:
        engine = Engine.from_pretrained(folder, kv_tokens=2 * CONTEXT)
    except ModelError as error:
        return Outcome("refused", cause=str(error))
    with engine:
        result = solve("abc", engine, SEARCH)
        assert engine.cache.used_pages == 0
        window = engine.context if engine.context < CONTEXT else None
        kind = "C++" if isinstance(engine.runner, NativeRunner) else "transformers"
    try:
        assert PlainForward(folder).check(result, 2e-4) >= 12
    except AssertionError as error:
        return Outcome("wrong", window, _line(error))
    return Outcome(kind, window)


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or repr(error))[:300]
