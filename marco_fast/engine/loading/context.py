"""How long a path may be, and how much memory there is for its KV."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from marco_fast.errors import ModelError

__all__ = ["context_of", "memory_of"]

UNKNOWN_MEMORY = 8 << 30  # of a system that psutil does not know: a small laptop's


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
    """Bytes of memory of the device; of the machine's, what a container's limit leaves."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return min([_machine(), *_limits()])


def _machine() -> int:
    try:
        import psutil

        return psutil.virtual_memory().total
    except (ImportError, AttributeError, OSError, NotImplementedError):
        return UNKNOWN_MEMORY


def _limits(root: Path = Path("/")) -> Iterator[int]:
    """The limits of this process's control groups and of all that they are in, on Linux."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for group in groups:
        _, kinds, path = group.split(":", 2)
        if kinds == "":
            base, name = mount, "memory.max"
        elif "memory" in kinds.split(","):
            base, name = mount / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = base / path.strip("/")
        for each in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):  # "max": no limit
                yield int((each / name).read_text())
            if each == base:
                break
