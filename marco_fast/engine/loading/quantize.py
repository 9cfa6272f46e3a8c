"""A loaded model's matrices in 8 or 4 bits: dtype="int8" and dtype="int4"."""

from typing import Any

import torch

from marco_fast.engine.gguf.model import put_weights
from marco_fast.engine.native_runner import KNOWN
from marco_fast.engine.quantized import quantize
from marco_fast.errors import ModelError

__all__ = ["HEAD_BITS", "check_quantized", "quantize_model"]

HEAD_BITS = 8  # of embedding and LM head, whatever the layers have: every logit is made of them


def check_quantized(model: Any, bits: int) -> None:
    """Refuses a model whose matrices C++ does not multiply by.

    Raises:
        ModelError: C++ does not run models of its kind.
    """
    kind = type(model).__name__
    if kind not in KNOWN:
        known = ", ".join(each.removesuffix("ForCausalLM") for each in KNOWN)
        raise ModelError(
            f"expected one of {known} for weights of {bits} bits, got {model.config.model_type!r}"
        )


def quantize_model(model: Any, bits: int) -> None:
    """Replaces the matrices of a model by quantised ones, one at a time; all else is float32.

    Raises:
        ModelError: C++ does not run models of its kind.
        ValueError: a matrix does not have a multiple of 32 inputs, or is not finite.
    """
    check_quantized(model, bits)
    for name, module in [*model.named_modules()]:
        linear, head = isinstance(module, torch.nn.Linear), name == "lm_head"
        if head and model.config.tie_word_embeddings:
            continue  # it came with the embedding
        if not linear and module is not model.model.embed_tokens:
            continue
        read: dict[str, Any] = {n: each.detach().float() for n, each in module.named_parameters()}
        read["weight"] = quantize(read["weight"], bits if linear and not head else HEAD_BITS)
        put_weights(model, name, read, torch.float32)
    model.float()
