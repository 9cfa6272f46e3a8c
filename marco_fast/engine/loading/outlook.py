"""How a model would run, by its configuration, its tokenizer and the headers of its weights."""

import os
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from marco_fast.engine.gguf.model import gguf_parts
from marco_fast.engine.loading.context import context_of, limit_of
from marco_fast.engine.loading.load import (
    bundled,
    cpu_dtype,
    described,
    device_of,
    dtype_of,
    gguf_dtype,
    gguf_file,
    named,
)
from marco_fast.engine.loading.memory import affordable_tokens, free_memory, memory_of
from marco_fast.engine.loading.quantize import HEAD_BITS, check_quantized
from marco_fast.engine.loading.tokenizer import check_tokenizer, load_tokenizer
from marco_fast.engine.loading.weights import stored_dtypes
from marco_fast.engine.native_runner import FLOATS, KNOWN
from marco_fast.engine.quantized import check_activations, quantize, quantizes
from marco_fast.ops.backends import built

__all__ = ["Outlook", "outlook"]


class Outlook(NamedTuple):
    """How a model would run.

    Attributes:
        kind: "folder", "GGUF file" or "hub id". file_bytes: of its weights; 0 for a hub id.
        architecture: as the configuration names it. model_class: of transformers.
        parameters, layers: how many. stored: tensors of each number format in the files.
        device, dtype: where, and in what, it is computed. bits: that weights are quantised to at
            loading, or 0. activations: "int8" where these are rounded, or None.
        weights_bytes: of the weights then.
        runner: "C++" or "transformers".
        context: tokens of the longest path; limit: of the model's own, and limit_cause.
        kv_token_bytes: KV of one token. kv_tokens: what the cache would hold.
        memory, free: bytes of the device's memory, and what the weights would leave of it.
        chat_template: the model's, or None. tokenizer: the transformers object.
    """

    kind: str
    file_bytes: int
    architecture: str
    model_class: str
    parameters: int
    layers: int
    stored: dict[str, int]
    device: str
    dtype: str
    bits: int
    activations: str | None
    weights_bytes: int
    runner: str
    context: int
    limit: int
    limit_cause: str
    kv_token_bytes: int
    kv_tokens: int
    memory: int
    free: int
    chat_template: str | None
    tokenizer: Any

    @property
    def needed(self) -> int:
        """Bytes for the weights and a full KV cache."""
        return self.weights_bytes + self.kv_tokens * self.kv_token_bytes


def outlook(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    activations: str | None = None,
    max_branches: int = 64,
    context: int | None = None,
    kv_tokens: int | None = None,
) -> Outlook:
    """How `Engine.from_pretrained` with these arguments would run a model. No weight is read.

    What only a forward pass can tell, such as layers that differ from each other, is not known yet.

    Raises:
        ModelError, ValueError: as Engine.from_pretrained, as far as the files tell.
    """
    target = device_of(device)
    seen, bits = _seen(path, target, dtype)
    model, config = seen.model, seen.model.config
    check_activations(activations, bool(bits) or seen.quantized)
    check_tokenizer(seen.tokenizer, model, str(path))
    token_bytes = _kv_token_bytes(config, seen.dtype)
    limit = limit_of(config)
    longest = context_of(limit, str(path), context, kv_tokens)
    if kv_tokens is None:
        affordable = affordable_tokens(target, seen.weights_bytes, token_bytes, loaded=False)
        kv_tokens = max(16, min(max_branches * longest, affordable))
    # fmt: off
    return Outlook(
        **_of_files(seen), device=str(target), bits=bits, activations=activations,
        runner="C++" if _in_cpp(model, target, seen.dtype) else "transformers",
        context=longest if context else min(longest, kv_tokens),
        limit=limit.tokens, limit_cause=limit.cause,
        kv_token_bytes=token_bytes, kv_tokens=kv_tokens,
        memory=memory_of(target), free=free_memory(target, seen.weights_bytes, loaded=False),
    )
    # fmt: on


def _kv_token_bytes(config: Any, dtype: torch.dtype) -> int:
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * config.num_hidden_layers * kv_heads * size * dtype.itemsize)


def _of_files(seen: "_Seen") -> dict[str, Any]:
    """The fields of an Outlook that the files alone decide."""
    config = seen.model.config
    # fmt: off
    return {
        "kind": seen.kind, "file_bytes": seen.file_bytes,
        "architecture": config.model_type, "model_class": type(seen.model).__name__,
        "parameters": sum(each.numel() for each in seen.model.parameters()),
        "layers": config.num_hidden_layers,
        "stored": dict(Counter(seen.stored).most_common()),
        "dtype": str(seen.dtype).removeprefix("torch."), "weights_bytes": seen.weights_bytes,
        "chat_template": seen.tokenizer.chat_template, "tokenizer": seen.tokenizer,
    }
    # fmt: on


class _Seen(NamedTuple):
    """What the files say; the model has no weights."""

    kind: str
    model: Any
    tokenizer: Any
    dtype: torch.dtype
    weights_bytes: int
    file_bytes: int
    stored: list[str]
    quantized: bool = False  # whether matrices of the files stay so


def _seen(path: Any, device: torch.device, dtype: Any) -> tuple[_Seen, int]:
    """What the files say, and to how many bits loading quantises the weights; 0: it does not."""
    chosen, bits = dtype_of(dtype, device)
    source = bundled(path)
    file = gguf_file(source)
    if file is None:
        seen = _look(str(path), source, device, chosen)
        return (_quantized(seen, bits) if bits else seen), bits
    return _look_at_gguf(file, device, gguf_dtype(file, dtype, device)), 0


def _look(path: str, source: str, device: torch.device, dtype: torch.dtype | str) -> _Seen:
    """A folder, or the files of a hub's model that say what it is."""
    options: dict[str, Any] = {"trust_remote_code": False}
    config = named(path, "model", lambda: described(source, options))
    if dtype == "auto":
        dtype = cpu_dtype(config) if device.type == "cpu" else config.dtype or torch.float32
    assert isinstance(dtype, torch.dtype)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    stored, size = stored_dtypes(Path(source))
    return _Seen(
        kind="folder" if Path(source).is_dir() else "hub id",
        model=model,
        tokenizer=named(path, "tokenizer", lambda: load_tokenizer(source, options)),
        dtype=dtype,
        weights_bytes=sum(each.nbytes for each in model.parameters()),
        file_bytes=size,
        stored=stored,
    )


def _look_at_gguf(path: Path, device: torch.device, dtype: torch.dtype | str) -> _Seen:
    """A GGUF file, whose matrices stay what they are on a CPU."""
    file, model, tokenizer = named(path, "GGUF file", lambda: gguf_parts(path, dtype))
    stay = quantizes() and device.type == "cpu" and model.dtype in FLOATS
    tensors = list(file.tensors.values())
    sizes = [
        each.size if stay and each.quantized else prod(each.shape) * model.dtype.itemsize
        for each in tensors
    ]
    return _Seen(
        kind="GGUF file",
        model=model,
        tokenizer=tokenizer,
        dtype=model.dtype,
        weights_bytes=sum(sizes),
        file_bytes=sum(each.stat().st_size for each in {each.path for each in tensors}),
        stored=[each.kind for each in tensors],
        quantized=stay and any(each.quantized for each in tensors),
    )


def _quantized(seen: _Seen, bits: int) -> _Seen:
    """What loading makes of dtype="int8" and "int4": all but the matrices is float32."""
    check_quantized(seen.model, bits)
    size = 0.0
    for name, each in seen.model.named_parameters():
        one = bits if "layers." in name else HEAD_BITS
        size += each.numel() * (bytes_of(one) if each.dim() == 2 else torch.float32.itemsize)
    return seen._replace(dtype=torch.float32, weights_bytes=int(size))


def bytes_of(bits: int) -> float:
    """What one number of a quantised matrix takes, its share of the scales included."""
    weight = quantize(torch.zeros(32, 256, dtype=torch.float32, device="cpu"), bits)
    fields = (weight.scale, weight.offset, weight.mult, weight.offset_mult)
    shared = sum(each.nbytes for each in fields if each is not None)
    return bits / 8 + shared / weight.codes.numel()


def _in_cpp(model: Any, device: torch.device, dtype: torch.dtype) -> bool:
    """As NativeRunner.of, before there are weights."""
    config = model.config
    known = [getattr(transformers, name, None) for name in KNOWN]
    if not built() or type(model) not in known or dtype not in FLOATS or device.type != "cpu":
        return False
    if getattr(config, "hidden_act", "") != "silu":
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    turned = rope.get("partial_rotary_factor", 1) in (None, 1)
    return turned and not (config.hidden_size % 16 or config.intermediate_size % 16)
