"""The float types that the operations take, and how the C++ kernels call them."""

import torch

__all__ = ["DTYPE_CODES", "FLOATS"]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/cpu/base/dtypes.h
