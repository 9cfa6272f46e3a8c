"""How much memory there is, for the KV cache."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

__all__ = ["free_memory", "memory_of"]

UNKNOWN_MEMORY = 8 << 30  # of a system that psutil does not know: a small laptop's


def memory_of(device: torch.device) -> int:
    """Bytes of memory of the device; of the machine's, what a container's limit leaves."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return min([_machine(), *_limits()])


def free_memory(device: torch.device, weights: int) -> int:
    """Bytes that are left for a KV cache beside a model's weights.

    Args:
        device: of both.
        weights: bytes of the weights, which are on the device already, but on a CPU may be in a
            file that is mapped, and are then still to be packed.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return max(0, min(_available(), memory_of(device) - weights))


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
