"""What a kernel module may launch, for compiling all of it ahead of time."""

import functools
from typing import Any, NamedTuple

import torch

__all__ = ["ARCHITECTURES", "Variant", "architecture", "pointer_type"]

# name: (Triton's backend, its architecture, threads of a warp)
ARCHITECTURES: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}


class Variant(NamedTuple):
    """One specialisation of a kernel.

    Attributes:
        label: unique in its module, e.g. "topk_confidence bf16 k8".
        kernel: the triton.jit function.
        types: the Triton type of each parameter by name ("*bf16", "i64", "i32", "fp32"), or
            "constexpr".
        constants: the value of each constexpr parameter.
        options: num_warps, num_stages.
        aligned: integer parameters that are multiples of 16 in the calls that matter, such as
            strides; pointers always count as aligned to 16 bytes.
    """

    label: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, int]
    aligned: tuple[str, ...] = ()


def pointer_type(dtype: str) -> str:
    """The Triton type of a pointer to "bfloat16", "float16" or "float32"."""
    return {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}[dtype]


@functools.cache
def architecture(device: torch.device) -> str:
    """The name under which variants() lists what runs on the device."""
    if device.type != "cuda":
        return "sm_90"  # the interpreter takes any tile
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
