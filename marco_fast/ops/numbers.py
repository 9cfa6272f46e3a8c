"""What counts as a number among the arguments: Python's, NumPy's, an array or a tensor of one."""

from operator import index
from typing import Any

import numpy as np
import torch

__all__ = ["described", "real", "whole", "whole_number"]


def whole(value: Any) -> int | None:
    """The value as an int, or None where it is no integer. A bool is none."""
    if type(value) is int:
        return value
    if _is_bool(value):
        return None
    try:
        return index(value)
    except (TypeError, ValueError, RuntimeError):  # a tensor without a value raises many kinds
        return None


def whole_number(name: str, value: Any) -> int:
    """The value as an int; ValueError where it is no integer."""
    number = whole(value)
    if number is None:
        raise ValueError(f"expected {name} as an integer, got {described(value)}")
    return number


def real(value: Any) -> float | None:
    """The value as a float or an int, or None where it is no real number. A bool is none."""
    kind = type(value)
    if kind is float or kind is int:
        return value
    if _is_bool(value):
        return None
    if isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 0:
        try:
            value = value.item()
        except (TypeError, ValueError, RuntimeError):  # as in `whole`
            return None
    if isinstance(value, (int, np.integer)):
        return int(value)
    return float(value) if isinstance(value, (float, np.floating)) else None


def described(value: Any) -> str:
    """A wrong value, short enough for a message. A tensor is not read: there may be no memory."""
    text = type(value).__name__ if isinstance(value, torch.Tensor) else repr(value)
    return text if len(text) <= 60 else type(value).__name__


def _is_bool(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    return isinstance(value, bool) or dtype is torch.bool or dtype == np.dtype(bool)
