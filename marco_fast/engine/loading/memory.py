"""How much memory there is, for the KV cache."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

__all__ = ["MEMORY_SHARE", "free_memory", "memory_of", "weights_size"]

MEMORY_SHARE = 0.25  # of the free memory, for the KV cache when kv_tokens is not given
UNKNOWN_MEMORY = 8 << 30  # of a system that psutil does not know: a small laptop's


def memory_of(device: torch.device) -> int:
    """Bytes of memory of the device; of the machine's, what a container's limit leaves."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return min([_machine(), *_limits()])


def weights_size(model: Any) -> int:
    """Bytes of a model's weights, quantised ones as they are packed."""
    packed = {id(each.packed): each.packed for each in model.modules() if hasattr(each, "packed")}
    parts = [part for each in packed.values() for part in each.parts if part is not None]
    return sum(each.nbytes for each in [*model.parameters(), *parts])


def free_memory(device: torch.device, weights: int, *, loaded: bool = True) -> int:
    """Bytes that are left for a KV cache beside a model's weights.

    Args:
        device: of both.
        weights: bytes of the weights. On a CPU they may be in a file that is mapped, and are then
            still to be packed: the memory of the machine must hold both.
        loaded: whether the weights are on the device.
    """
    if device.type == "cuda":
        return max(0, torch.cuda.mem_get_info(device)[0] - (0 if loaded else weights))
    free = _available() - (0 if loaded else weights)
    return max(0, min(free, memory_of(device) - weights))


def _available() -> int:
    try:
        import psutil

        return psutil.virtual_memory().available
    except (ImportError, AttributeError, OSError, NotImplementedError):
        return UNKNOWN_MEMORY


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
