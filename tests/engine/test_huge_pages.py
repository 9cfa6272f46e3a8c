"""marco_fast/engine/huge_pages.py: aligned memory, marked for huge pages, given back."""

import gc
import sys
from pathlib import Path

import pytest
import torch

from marco_fast.engine.huge_pages import HUGE_PAGE, empty

CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def flags_of(address):
    """What Linux says of the mapping around an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition("-")
        if rest and all(c in "0123456789abcdef" for c in first):
            inside = int(first, 16) <= address < int(rest.split()[0], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    return None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_tensors_are_aligned_and_whole(dtype):
    made = empty((3, 500_001), dtype, CPU)
    assert (made.shape, made.dtype) == ((3, 500_001), dtype)
    assert made.is_contiguous()
    assert made.data_ptr() % HUGE_PAGE == 0
    made.fill_(1.5)
    assert made.double().sum() == 1.5 * made.numel()


def test_small_tensors_are_ordinary():
    assert empty((4, 5), torch.float32, CPU).shape == (4, 5)
    assert empty((0, 5), torch.float32, CPU).numel() == 0


@pytest.mark.parametrize("size", [1 << 58, 1 << 61])
def test_too_much_is_the_error_of_torch(size):
    with pytest.raises(RuntimeError):
        empty((size,), torch.float32, CPU)


@linux
def test_the_system_is_asked_for_huge_pages_and_gets_them_back():
    made = empty((4, HUGE_PAGE), torch.uint8, CPU)
    address = made.data_ptr()
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("a kernel without huge pages")
    assert "hg" in flags_of(address)
    view = made[1:].view(torch.int32)
    del made
    gc.collect()
    view.fill_(7)
    assert view.max() == 7  # the memory lives as long as a view of it
    del view
    gc.collect()
    assert "hg" not in (flags_of(address) or [])
