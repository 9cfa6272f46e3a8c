"""Small GGUF files of random weights, and the transformers models that they stand for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

from tests.support.models import CHAT, LLAMA3_ROPE, save_tokenizer

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
}
CONFIGS: dict[str, Callable[..., Any]] = {
    "llama": transformers.LlamaConfig,
    "llama3": lambda **size: transformers.LlamaConfig(
        rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True, **size
    ),
    "mistral": lambda **size: transformers.MistralConfig(
        head_dim=128, sliding_window=None, rope_theta=1e6, **size
    ),
    "qwen2": transformers.Qwen2Config,
    "qwen3": lambda **size: transformers.Qwen3Config(
        head_dim=128, tie_word_embeddings=True, **size
    ),
}
ARCHITECTURES = {"llama": "LLAMA", "llama3": "LLAMA", "mistral": "LLAMA"}
FLOATS = {"F32": np.float32, "F16": np.float16}


def random_blocks(kind: str, shape: tuple[int, int], draw: np.random.Generator) -> np.ndarray:
    """The bytes of a matrix of any quantised type, with numbers of the size of weights."""
    inputs, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = shape[1] // inputs
    raw = draw.integers(0, 256, (shape[0] * blocks, size), dtype=np.uint8)
    scales = {"Q6_K": [208], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q4_1": [0, 2], "Q5_1": [0, 2]}
    largest = {"Q6_K": 3e-5, "Q8_0": 1e-3, "Q4_K": 2e-4, "Q5_K": 1e-4}.get(kind, 1e-2)
    for at in scales.get(kind, [0]):
        drawn = draw.uniform(-largest, largest, len(raw)).astype(np.float16)
        raw[:, at : at + 2] = drawn.view(np.uint8).reshape(-1, 2)
    return raw.reshape(shape[0], blocks * size)


class GgufFolder:
    """A folder with a tokenizer, in which GGUF files of small models are written.

    Attributes:
        tokenizer: the transformers tokenizer that all of them have.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.vocabulary = save_tokenizer(folder)
        self.tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)

    def write(
        self,
        name: str,
        kind: str = "qwen2",
        weights: str = "Q8_0",
        change: Callable[[gguf.GGUFWriter], None] | None = None,
        parts: Path | None = None,
    ) -> tuple[Path, Any]:
        """A file, and the model that transformers makes of its numbers.

        Args:
            kind: a key of CONFIGS. weights: the type of all matrices.
            change: gets the writer before the file is written.
            parts: the folder in which the file is written in two parts.
        """
        torch.manual_seed(0)
        config = CONFIGS[kind](vocab_size=self.vocabulary + 8, **SIZES)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        arch = ARCHITECTURES.get(kind, kind.upper())
        path = (parts or self.folder) / name
        writer = gguf.GGUFWriter(path, arch.lower(), split_max_tensors=12 if parts else 0)
        self.describe(writer, config)
        _add_weights(writer, model, gguf.MODEL_ARCH[arch], weights)
        if change:
            change(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path, model

    def describe(self, writer: gguf.GGUFWriter, config: Any) -> None:
        """The fields of a converter's file."""
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        head_dim = getattr(config, "head_dim", None) or 64
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_rope_dimension_count(head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        described = json.loads((self.folder / "tokenizer.json").read_text())
        ids = described["model"]["vocab"] | {
            e["content"]: e["id"] for e in described["added_tokens"]
        }
        special = {each["id"] for each in described["added_tokens"]}
        tokens = sorted(ids, key=ids.__getitem__)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list([*tokens, *(f"[PAD{each}]" for each in range(8))])
        writer.add_token_types([3 if i in special else 1 for i in range(len(tokens))] + [5] * 8)
        writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(0)
        writer.add_chat_template(CHAT)


def _add_weights(writer: gguf.GGUFWriter, model: Any, arch: Any, weights: str) -> None:
    """Random weights, into the file and into the model."""
    config, draw = model.config, np.random.default_rng(0)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    if (config.rope_parameters or {}).get("rope_type") == "llama3":
        half = torch.arange(0, 64, 2, dtype=torch.float64) / 64
        plain = config.rope_parameters["rope_theta"] ** -half
        factors = (plain / model.model.rotary_emb.inv_freq.double()).float().numpy()
        writer.add_tensor("rope_freqs.weight", factors)
    for name, parameter in model.named_parameters():
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        shape, kind = tuple(parameter.shape), weights if parameter.dim() > 1 else "F32"
        if kind in FLOATS:
            mean = float("norm" in name)
            values = draw.normal(mean, 0.02 if parameter.dim() > 1 else 0.2, shape)
            raw = values.astype(FLOATS[kind])
            numbers = raw.astype(np.float32)
        elif kind == "BF16":
            numbers = draw.normal(0, 0.02, shape).astype(np.float32)
            raw = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType.BF16)
            numbers = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.BF16)
        else:
            raw = random_blocks(kind, shape, draw)
            numbers = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
        writer.add_tensor(known, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
        values = torch.from_numpy(numbers.reshape(shape))
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        if arch == gguf.MODEL_ARCH.LLAMA and name.split(".")[-2] in heads:
            values = _unpermuted(values, heads[name.split(".")[-2]])
        parameter.data.copy_(values)


def _unpermuted(values: torch.Tensor, heads: int) -> torch.Tensor:
    """What llama.cpp's converter of Llamas does to queries and keys, undone."""
    return values.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(values.shape)
