"""Which module runs an operation on a device.

A backend is a module that has a function named after the operation, which takes the inputs, the
checked options and the result to fill, and returns None. Modules are imported at the first call
that needs them.
"""

import functools
import importlib
import importlib.util
import os
from types import ModuleType

import torch

from marco_fast.errors import BackendError

__all__ = ["BACKENDS", "OPERATIONS", "backend_status", "default_backend", "load_backend"]

OPERATIONS = [
    "topk_confidence",
    "sample_confidence",
    "lm_head_confidence",
    "lm_head_records",
    "append_kv",
    "tree_attention",
]

# "triton" keeps one module per operation, each of the others holds all of them.
BACKENDS = {
    "cpu": "marco_fast.ops.cpu_backend",
    "triton": "marco_fast.kernels.{op}",
    "torch": "marco_fast.ops.torch_backend",
}


def built() -> bool:
    """Whether the C++ extension was built."""
    return importlib.util.find_spec("marco_fast._C") is not None


def interpreting() -> bool:
    """Whether Triton kernels run in the interpreter, and so take CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def default_backend(device: torch.device, op: str) -> str:
    """The backend that runs `op` on `device` when none is named.

    "torch" serves only where no kernel can run: another kind of device, or the extension not built.
    """
    if device.type == "cpu":
        return "cpu" if _why_not("cpu", device, op) is None else "torch"
    if device.type == "cuda" and _why_not("triton", device, op) is None:
        return "triton"
    return "torch"


@functools.cache
def load_backend(name: str | None, device: torch.device, op: str) -> ModuleType:
    """The module that runs `op` on `device`.

    Args:
        name: a backend that must run, or None for the default of the device.
        device: where the inputs are.
        op: the operation's name.

    Raises:
        ValueError: the name is not a backend's.
        BackendError: the named backend cannot run here; the message says why.
    """
    if name is None:
        name = default_backend(device, op)
    if name not in BACKENDS:
        raise ValueError(f"expected backend to be one of {[*BACKENDS]}, got {name!r}")
    reason = _why_not(name, device, op)
    if reason is not None:
        raise BackendError(f"backend {name!r} cannot run {op} on {device}: {reason}")
    return importlib.import_module(BACKENDS[name].format(op=op))


def backend_status(device: torch.device, op: str) -> dict[str, str]:
    """For each backend: "ok", or why it cannot run `op` on `device`."""
    return {name: _why_not(name, device, op) or "ok" for name in BACKENDS}


def _why_not(name: str, device: torch.device, op: str) -> str | None:
    if name == "torch":
        return None
    if name == "cpu":
        if device.type != "cpu":
            return "the C++ kernels take CPU tensors"
        if not built():
            return "the C++ extension was not built (install again with a C++17 compiler)"
        return None
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if importlib.util.find_spec(BACKENDS[name].format(op=op)) is None:
        return f"there is no Triton kernel for {op}"
    if device.type != "cuda" and not (device.type == "cpu" and interpreting()):
        return "Triton kernels take CUDA tensors (CPU tensors with TRITON_INTERPRET=1)"
    return None
