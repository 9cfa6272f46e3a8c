"""Record what the launchers would launch on a GPU that is not here, and compile it.

Inside `recording("sm_90")` the Triton launchers take CPU tensors, choose as they would on that GPU,
and launch nothing: each launch leaves its specialisation, which is what Triton compiles (types of
the parameters, constants, which pointers and sizes are multiples of 16). A process that records
must have imported triton without TRITON_INTERPRET.
"""

import contextlib
import importlib
import os
import pkgutil
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from marco_fast.kernels import launch

__all__ = [
    "ARCHITECTURES",
    "Recording",
    "Specialization",
    "compile_for",
    "import_kernels",
    "recording",
    "resources",
]

# name: (Triton's backend, its architecture, threads of a warp, processors)
ARCHITECTURES: dict[str, tuple[str, int | str, int, int]] = {
    "sm_80": ("cuda", 80, 32, 108),
    "sm_90": ("cuda", 90, 32, 132),
    "sm_100": ("cuda", 100, 32, 148),
    "gfx942": ("hip", "gfx942", 64, 304),
}


@dataclass(frozen=True)
class Specialization:
    """One compiled form of a kernel, as `triton.compile` takes it."""

    kernel: Any
    arch: str
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], list]
    options: dict[str, Any]

    @property
    def label(self) -> str:
        """The kernel, the types of its pointers, its constants, and what is no multiple of 16."""
        named = {path: (name, kind) for path, name, kind in leaves(self.signature)}
        kinds = [kind for _, kind in named.values()]
        types = {kind: None for kind in kinds if kind.startswith(("*", "tensordesc"))}
        constants = [
            f"{named[path][0]}={getattr(value, 'value', value)}"
            for path, value in self.constants.items()
        ]
        loose = [
            name
            for path, (name, kind) in named.items()
            if kind not in ("constexpr", "fp32")
            and not kind.startswith("tensordesc")
            and not self.attributes.get(path)
            and not self.kernel.params[path[0]].do_not_specialize
            and not self.kernel.params[path[0]].do_not_specialize_on_alignment
        ]
        told = [self.kernel.__name__, *types, *constants, f"warps={self.options['num_warps']}"]
        told.append(f"stages={self.options['num_stages']}")
        return " ".join(told + [f"{name}%16" for name in loose])


def leaves(signature: dict[str, Any]) -> Iterator[tuple[tuple[int, ...], str, str]]:
    """The path, the name and the type of each parameter, of a tuple those of its fields."""
    for i, (name, kind) in enumerate(signature.items()):
        if isinstance(kind, tuple):
            fields = getattr(kind, "_fields", [str(j) for j in range(len(kind))])
            inside = leaves(dict(zip(fields, kind, strict=True)))
            yield from (((i, *path), f"{name}.{field}", each) for path, field, each in inside)
        else:
            yield (i,), name, kind


@dataclass
class Recording:
    """The number of launches, and each specialisation once, by its key."""

    launches: int = 0
    specializations: dict[tuple, Specialization] = field(default_factory=dict)


def import_kernels() -> None:
    """Import everything in kernels/ while Triton decorates for a GPU.

    Triton (3.6) keys a kernel in its cache by its source and that of the functions it calls, and
    the key depends on which of them had a key already. A process finds the kernels that another
    one compiled only if both compute the keys in the same order, which is fixed here.
    """
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise RuntimeError("expected TRITON_INTERPRET unset, got a process that interprets")
    package = importlib.import_module("marco_fast.kernels")
    for name in sorted(each.name for each in pkgutil.iter_modules(package.__path__)):
        module = importlib.import_module(f"marco_fast.kernels.{name}")
        for _, function in sorted(vars(module).items()):
            if isinstance(function, JITFunction):
                _ = function.cache_key


@contextlib.contextmanager
def recording(arch: str) -> Iterator[Recording]:
    """Inside this context launches over CPU tensors are recorded and do nothing."""
    import_kernels()
    # Not at the top: the parent of a GPU run imports this module before the extension is built.
    from marco_fast.kernels import lm_head_confidence
    from marco_fast.ops import backends
    from marco_fast.ops.confidence.options import Head

    def no_product(head: Head) -> torch.Tensor:
        return torch.empty(len(head.hidden), len(head.weight), dtype=head.round_logits)

    backend, number, warp, processors = ARCHITECTURES[arch]
    fake = SimpleNamespace(
        get_current_device=lambda: arch,  # kernels keep their compiled forms by device
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget(backend, number, warp),
    )
    seen = Recording()

    def record(kernel, key, signature, device, constants, options, attributes, warmup) -> None:
        seen.launches += 1
        found = Specialization(kernel, arch, signature, constants, attributes, options.__dict__)
        seen.specializations.setdefault((kernel.__name__, key), found)

    with contextlib.ExitStack() as stack:
        target = launch.Target(arch, processors)
        stack.enter_context(mock.patch.object(launch, "target_of", return_value=target))
        stack.enter_context(mock.patch.object(launch, "launching", contextlib.nullcontext))
        stack.enter_context(mock.patch.object(driver, "_active", fake))
        stack.enter_context(mock.patch.object(JITFunction, "_do_compile", record))
        # Above 64 rows a library computes the logits: unwritten memory stands for them.
        stack.enter_context(mock.patch.object(lm_head_confidence, "product", no_product))
        # Makes the operations accept CPU tensors; Triton itself read the variable at its import.
        stack.enter_context(mock.patch.dict(os.environ, TRITON_INTERPRET="1"))
        backends.load_backend.cache_clear()
        stack.callback(backends.load_backend.cache_clear)
        yield seen


def compile_for(found: Specialization) -> Any:
    """The compiled kernel, which is also put into Triton's cache, where a launch finds it."""
    source = ASTSource(found.kernel, found.signature, found.constants, found.attributes)
    target = GPUTarget(*ARCHITECTURES[found.arch][:3])
    return triton.compile(source, target=target, options=dict(found.options))


def resources(found: Specialization) -> dict[str, object]:
    """What a compiled kernel uses: registers and bytes of stack and local memory per thread,
    shared memory and warps per block; {"error": text} where it does not compile."""
    begin = time.perf_counter()
    try:
        compiled = compile_for(found)
    except Exception as error:  # any error of the compiler belongs in the table
        return {"error": f"{type(error).__name__}: {error}".strip()}
    if "amdgcn" in compiled.asm:
        usage = _hip_usage(compiled.asm["amdgcn"])
    else:
        usage = _cuda_usage(compiled.asm["cubin"])
    usage["shared"] = compiled.metadata.shared
    usage["warps"] = compiled.metadata.num_warps
    return usage | {"seconds": round(time.perf_counter() - begin, 2)}


def _cuda_usage(cubin: bytes) -> dict[str, object]:
    """Resource usage as the binary tells it."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return {
        "registers": int(found["REG"]),
        "stack": int(found["STACK"]),
        "local": int(found["LOCAL"]),
    }


def _hip_usage(assembly: str) -> dict[str, object]:
    """Resource usage from the assembly's metadata; scalar registers spill to vector registers."""

    def number(name: str) -> int:
        return sum(int(each) for each in re.findall(rf"\.{name}:\s*(\d+)", assembly))

    return {
        "registers": number("vgpr_count"),
        "stack": number("private_segment_fixed_size"),
        "local": 4 * number("vgpr_spill_count"),
    }
