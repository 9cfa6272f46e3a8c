"""How long a path may be, and how much memory there is for its KV."""

import os
from typing import Any

import torch

from marco_fast.errors import ModelError

__all__ = ["context_of", "memory_of"]


def context_of(config: Any, kv_tokens: int | None) -> int:
    """The longest sequence; a sliding window must not be shorter."""
    context = int(config.max_position_embeddings)
    if kv_tokens is not None:
        context = min(context, kv_tokens)
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in kinds if kinds else window is not None
    if slides and window is not None and window < context:
        raise ModelError(
            f"expected a sliding window of at least the context ({context} tokens), got {window}; "
            f"kv_tokens={window} limits the context to the window"
        )
    return context


def memory_of(device: torch.device) -> int:
    """Bytes of memory of the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
