"""The model of a GGUF file: transformers' own, whose matrices may stay quantised."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers

from marco_fast.engine.gguf.config import config_of
from marco_fast.engine.gguf.file import GgufFile, GgufTensor
from marco_fast.engine.gguf.header import read_gguf
from marco_fast.engine.gguf.rope import FREQUENCIES
from marco_fast.engine.gguf.tokenizer import Vocabulary, ending_ids, tokenizer_of
from marco_fast.engine.loading.architectures import check_architecture
from marco_fast.engine.quantized import (
    PackedWeight,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedWeight,
    quantizes,
)

__all__ = ["gguf_files", "gguf_parts", "load_gguf", "put_weights"]

EMBEDDING, HEAD = "token_embd", "output"
OUTSIDE = {EMBEDDING: "model.embed_tokens", HEAD: "lm_head", "output_norm": "model.norm"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TABLES = (FREQUENCIES, "attn_rot_embd.weight")  # which the model computes itself
QUANTIZED = (torch.float32, torch.bfloat16)  # activations that quantised weights are multiplied by


def gguf_files(folder: Path) -> list[Path]:
    """The GGUF files of a folder; of a split one the first part."""
    files = sorted(each for each in folder.iterdir() if each.suffix.lower() == ".gguf")
    return [each for each in files if "-of-" not in each.name or "-00001-of-" in each.name]


def load_gguf(path: Path, device: torch.device, dtype: torch.dtype | str) -> tuple[Any, Any]:
    """The transformers model, on its device, and its tokenizer.

    On a CPU, with the C++ extension, quantised matrices stay what they are; elsewhere the model has
    the numbers that they stand for, rounded to the dtype.

    Args:
        dtype: of all that is not quantised, and of activations; "auto": bfloat16, or float32 if the
            file's matrices are.

    Raises:
        ModelError: the file is not as its format says, or is of a model that cannot be run as it
            is; its weights were not read.
    """
    file, model, tokenizer = gguf_parts(path, dtype)
    tensors = file.tensors
    del file  # its fields hold every token and every merge
    _fill(model, tensors, device, model.dtype)
    return model.eval(), tokenizer


def gguf_parts(path: Path, dtype: torch.dtype | str) -> tuple[GgufFile, Any, Any]:
    """A file, the model that it is of, without weights, and its tokenizer; as load_gguf says."""
    file = read_gguf(path)
    config = config_of(file)
    check_architecture(config)
    vocabulary = Vocabulary(file)
    config.bos_token_id = vocabulary.id_of("bos")
    config.eos_token_id = ending_ids(vocabulary)
    config.pad_token_id = vocabulary.id_of("padding")
    tokenizer = tokenizer_of(vocabulary)
    if dtype == "auto":
        kinds = {each.kind for each in file.tensors.values()}
        dtype = torch.float32 if kinds == {"F32"} else torch.bfloat16
    assert isinstance(dtype, torch.dtype)
    return file, _empty(file, config, dtype), tokenizer


def _empty(file: GgufFile, config: Any, dtype: torch.dtype) -> Any:
    """The model without weights, whose file has all those that it needs, and no others."""
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    known = {*TABLES}
    for theirs, ours in _modules(model).items():
        for part, parameter in model.get_submodule(ours).named_parameters(recurse=False):
            name = f"{theirs}.{part}"
            known.add(name)
            if name in file.tensors or not _is_optional(config, part):
                file.check_shape(name, tuple(parameter.shape))
    if foreign := sorted({*file.tensors} - known):
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        got = f"{foreign[0]!r}{more}, which would not be run"
        raise file.refusal(f"weights of a {type(model).__name__} alone", got)
    return model


def _modules(model: Any) -> dict[str, str]:
    """The names of the modules that have weights, by those that a file has for them."""
    names = dict(OUTSIDE)
    for layer in range(model.config.num_hidden_layers):
        names |= {f"blk.{layer}.{t}": f"model.layers.{layer}.{o}" for t, o in LAYER.items()}
    if model.config.tie_word_embeddings:
        del names[HEAD]
    known = {name for name, _ in model.named_modules()}
    return {theirs: ours for theirs, ours in names.items() if ours in known}


def _is_optional(config: Any, part: str) -> bool:
    """Whether what a file leaves out is zero: a model with some biases has places for all."""
    return part == "bias" and config.model_type != "qwen2"


def _fill(
    model: Any, tensors: dict[str, GgufTensor], device: torch.device, dtype: torch.dtype
) -> None:
    """Reads the weights, a matrix at a time."""
    config = model.config
    stay = quantizes() and device.type == "cpu" and dtype in QUANTIZED
    heads = {}
    if config.model_type in ("llama", "mistral"):
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for theirs, ours in _modules(model).items():
        read: dict[str, Any] = {}
        for part, parameter in model.get_submodule(ours).named_parameters(recurse=False):
            tensor = tensors.get(f"{theirs}.{part}")
            if tensor is None:
                read[part] = torch.zeros(parameter.shape, dtype=dtype, device=device)
                continue
            count = heads.get(theirs.rpartition(".")[2])
            pieces: Any = [_in_halves(tensor.read(), count)] if count else tensor.pieces()
            if stay and tensor.quantized:
                read[part] = PackedWeight.of_pieces(pieces, tensor.shape[0])
            else:
                read[part] = _plain(pieces, tensor.shape, device, dtype)
        put_weights(model, ours, read, dtype)
    model.model.rotary_emb.to(device)


def _plain(
    pieces: Iterable[Any], shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """The numbers that pieces of a tensor stand for."""
    made, at = torch.empty(shape, dtype=dtype, device=device), 0
    for piece in pieces:
        values = piece.dequantize() if isinstance(piece, QuantizedWeight) else piece
        made[at : at + len(values)] = values.to(device, dtype)
        at += len(values)
    return made


def put_weights(model: Any, name: str, read: dict[str, Any], dtype: torch.dtype) -> None:
    """Gives a module its weights; quantised ones with a module of their own in its place.

    The embedding and a tied LM head get the same.

    Args:
        name: the module's. read: its parameters, by name; the weight may be quantised, or packed.
        dtype: of the activations.
    """
    module, weight = model.get_submodule(name), read["weight"]
    embeds = module is model.model.embed_tokens
    tied = embeds and model.config.tie_word_embeddings
    if not isinstance(weight, QuantizedWeight | PackedWeight):
        for part, values in read.items():
            setattr(module, part, torch.nn.Parameter(values, requires_grad=False))
        if tied:
            model.lm_head.weight = module.weight
        return
    if tied:
        model.lm_head = QuantizedLinear(weight, None)
        weight = model.lm_head.weight
    new = QuantizedEmbedding(weight, dtype) if embeds else QuantizedLinear(weight, read.get("bias"))
    model.set_submodule(name, new)


def _in_halves(values: Any, heads: int) -> Any:
    """The rows of every head as transformers has them: its two halves are turned together.

    In the files of Llamas it is neighbours that are turned together, so the halves alternate there.
    """
    rows = len(values.codes if isinstance(values, QuantizedWeight) else values)
    index = torch.arange(rows, device="cpu").view(heads, -1, 2).transpose(1, 2).flatten()
    return values.rows(index) if isinstance(values, QuantizedWeight) else values[index]
