"""The float types that the operations take, and how C++ is told of a tensor."""

import torch

__all__ = ["DTYPE_CODES", "FLOATS", "cpp_view"]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/cpu/base/dtypes.h


def cpp_view(tensor: torch.Tensor) -> tuple[int, ...]:
    """A tensor as C++ reads it: address, sizes, strides (csrc/cpu/bind/bind.h)."""
    return (tensor.data_ptr(), *tensor.shape, *tensor.stride())
