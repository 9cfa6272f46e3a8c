"""A transformers folder of the Qwen2 architecture as one GGUF file, for engines that read GGUF.

Needs the gguf package and NumPy, neither transformers nor torch.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["WEIGHT_TYPES", "write_gguf"]

# What llama.cpp calls each type as a whole file ("LLAMA_FTYPE_...").
WEIGHT_TYPES = {"F32": 0, "F16": 1, "BF16": 32}
_NUMPY_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def write_gguf(model: Path, file: Path, weight_type: str) -> None:
    """Write the weights of a folder, matrices in one type; vectors stay float32 as engines expect.

    The vocabulary is placeholders: a reader of the file exchanges token ids, not text.

    Args:
        model: folder with config.json and *.safetensors.
        file: written anew.
        weight_type: a key of WEIGHT_TYPES.

    Raises:
        ValueError: an architecture other than Qwen2, or a tensor whose name GGUF does not know.
    """
    import gguf

    config = json.loads((model / "config.json").read_text())
    if config["model_type"] != "qwen2":
        raise ValueError(f"expected a Qwen2 model, got {config['model_type']}")
    writer = gguf.GGUFWriter(file, "qwen2")
    _describe(writer, config, weight_type)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    matrix_type = gguf.GGMLQuantizationType[weight_type]
    for name, values in _tensors(model):
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise ValueError(f"expected the name of a Qwen2 tensor, got {name}")
        kind = matrix_type if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(known, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any, config: dict[str, Any], weight_type: str) -> None:
    import gguf

    writer.add_file_type(WEIGHT_TYPES[weight_type])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or config
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"t{i}" for i in range(config["vocab_size"])])
    kinds = [int(gguf.TokenType.NORMAL)] * config["vocab_size"]
    # OpenVINO cannot compile the tokenizer of a vocabulary without control tokens.
    kinds[config["eos_token_id"]] = int(gguf.TokenType.CONTROL)
    writer.add_token_types(kinds)
    writer.add_token_merges(["t 1"])  # readers refuse a file without the list
    writer.add_eos_token_id(config["eos_token_id"])


def _tensors(model: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and float32 values of every tensor in the safetensors files of a folder.

    The files often hold bfloat16, which NumPy does not have, so they are decoded here.
    """
    for file in sorted(model.glob("*.safetensors")):
        with open(file, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            kind = np.dtype(_NUMPY_TYPES[entry["dtype"]])
            values = np.fromfile(
                file, dtype=kind, count=(end - begin) // kind.itemsize, offset=8 + size + begin
            )
            if entry["dtype"] == "BF16":
                values = (values.astype(np.uint32) << 16).view(np.float32)
            yield name, values.astype(np.float32).reshape(entry["shape"])
