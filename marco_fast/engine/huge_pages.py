"""Memory that every step reads, in huge pages: fewer addresses to look up."""

import mmap
from collections.abc import Sequence
from math import prod

import torch

__all__ = ["HUGE_PAGE", "empty"]

HUGE_PAGE = 2 << 20


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """torch.empty; on a CPU, from 2 MiB on, aligned to huge pages, which the system is asked for.

    What fills no whole huge page at the end is in small ones: else a model of many small matrices
    would take up to 2 MiB more for each. As with torch.empty, the system gives memory to a page when it is first written.

    Raises:
        RuntimeError: there is not so much memory, as torch.empty does.
    """
    size = prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    try:
        memory = mmap.mmap(-1, size + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        begin = -whole.data_ptr() % HUGE_PAGE
        memory.madvise(mmap.MADV_HUGEPAGE, begin, size // HUGE_PAGE * HUGE_PAGE)
    except (OSError, OverflowError):  # too large, or a system without huge pages
        return torch.empty(shape, dtype=dtype, device=device)
    return whole[begin : begin + size].view(dtype).view(*shape)
