"""What counts as a tensor among the arguments, and what a kernel may do with one.

A kernel goes to an address: the tensor must be memory, and that memory what the tensor says. Every
operation asks here for each of its arguments. Results are never part of a graph: what requires grad
is taken without it.
"""

from typing import Any

import numpy as np
import torch

__all__ = ["mark_written", "tensor_of", "written_tensor"]

Tensor = torch.Tensor


def tensor_of(name: str, value: Any, wanted: str = "a tensor") -> Tensor:
    """The value as a plain tensor over the same memory.

    Args:
        name: of the argument; wanted: what it should be, for the error.
        value: a tensor, a NumPy array or what speaks DLPack. A subclass of Tensor is taken without
            what it adds; one whose values wait to be negated (is_neg) is the only one copied.

    Raises:
        ValueError: it is none of these, or a tensor without memory of its own: fake, meta, sparse,
            nested, inside a transform, or with its storage freed.
    """
    tensor = _memory(name, value, wanted)
    return tensor.resolve_neg() if tensor.is_neg() else tensor


def written_tensor(name: str, value: Any) -> Tensor:
    """`tensor_of` for an argument that is written in place.

    Raises:
        ValueError: as tensor_of, or the memory must not be written.
    """
    if isinstance(value, np.ndarray) and not value.flags.writeable:
        raise ValueError(f"expected {name} writable, got a read-only array")
    tensor = _memory(name, value, "a tensor")
    if tensor.is_neg():
        raise ValueError(f"expected {name} as its memory holds it, got a view that negates it")
    return tensor


def mark_written(*tensors: Tensor | None) -> None:
    """Tells autograd, which may have saved them, that a kernel wrote through their addresses."""
    for each in tensors:
        if each is not None:
            torch.autograd.graph.increment_version(each)


def _memory(name: str, value: Any, wanted: str) -> Tensor:
    """The value as a tensor that a kernel may follow the address of."""
    if type(value) is not Tensor:
        value = _plain(name, value, wanted)
    if value.requires_grad:
        value = value.detach()
    try:
        whole = value.untyped_storage().nbytes() == value.nbytes
        inside = (whole or _inside_storage(value)) and not value.is_nested
        if inside and (value.data_ptr() or not value.numel()):
            return value
    except (RuntimeError, NotImplementedError):  # as sparse and wrapped tensors answer
        pass
    raise _no_memory(name, wanted, _kind(value))


def _no_memory(name: str, wanted: str, got: str) -> ValueError:
    return ValueError(f"expected {name} as {wanted} with memory of its own, got {got}")


def _plain(name: str, value: Any, wanted: str) -> Tensor:
    """A torch.Tensor itself from a subclass, an array or another library's tensor."""
    if isinstance(value, Tensor):
        try:
            with torch._C.DisableTorchFunctionSubclass():
                plain = value.detach().as_subclass(Tensor)
        except Exception as error:  # whatever the subclass's own dispatch raises
            raise _no_memory(name, wanted, type(value).__name__) from error
        if type(plain) is not Tensor:
            raise _no_memory(name, wanted, type(value).__name__)
        return plain
    try:
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value if value.flags.writeable else _unlocked(value))
        if hasattr(value, "__dlpack__") and not isinstance(value, np.generic):
            return torch.from_dlpack(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise ValueError(
            f"expected {name} as {wanted} or an array that PyTorch can share, got "
            f"{type(value).__name__}: {error}"
        ) from error
    raise ValueError(f"expected {name} as {wanted}, got {type(value).__name__}")


class _Memory:
    """A read-only array's memory for torch.from_numpy, which warns of those; nobody writes it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def _unlocked(array: np.ndarray) -> np.ndarray:
    return np.asarray(_Memory(array))


def _inside_storage(value: Tensor) -> bool:
    """Whether the storage reaches to the tensor's last element."""
    last = sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
    end = (value.storage_offset() + last + 1) * value.element_size()
    return value.numel() == 0 or value.untyped_storage().nbytes() >= end


def _kind(value: Tensor) -> str:
    if value.layout is not torch.strided:
        return f"a tensor of layout {value.layout}"
    return "a nested tensor" if value.is_nested else f"one without, on {value.device}"
