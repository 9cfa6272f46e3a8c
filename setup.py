"""Builds marco_fast._C: the CPU kernels, each compiled once for every instruction set.

Needs a C++17 compiler and pybind11 only. Without a compiler the package still installs; its CPU
operations then run on the slower "torch" backend, and `marco-fast info` says so.
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = "csrc/cpu"
# Compiled once per instruction set.
KERNELS = [
    "confidence/topk_confidence",
    "confidence/lm_head_confidence",
    "attention/tree_attention",
    "decoder/linear",
    "decoder/norm_rope",
]
ISAS = {"scalar": []}
if platform.machine() in ("x86_64", "AMD64"):
    avx512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c", "-mavx2"]
    ISAS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    ISAS["avx512"] = avx512
    ISAS["avx512_bf16"] = [*avx512, "-mavx512bf16", "-mavx512vnni"]
FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]


class BuildKernels(build_ext):
    """Compiles KERNELS x ISAS with their own flags; the extension links the objects."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        ext.include_dirs = [pybind11.get_include(), CSRC]
        ext.extra_compile_args = [*FLAGS, *os.environ.get("MARCO_FAST_CXXFLAGS", "").split()]

        def compile_kernel(kernel: str, number: int, isa: str) -> list[str]:
            return self.compiler.compile(
                [f"{CSRC}/{kernel}.cpp"],
                output_dir=os.path.join(self.build_temp, isa),
                macros=[("MF_ISA", str(number)), ("MF_NS", isa)],
                include_dirs=ext.include_dirs,
                extra_postargs=[*ext.extra_compile_args, *ISAS[isa]],
                depends=ext.depends,
            )

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            units = [
                pool.submit(compile_kernel, kernel, number, isa)
                for number, isa in enumerate(ISAS)
                for kernel in KERNELS
            ]
            ext.extra_objects = [name for unit in units for name in unit.result()]
        super().build_extension(ext)


def files(suffixes: tuple[str, ...]) -> list[str]:
    """The files below CSRC whose names end so, in one order on every machine."""
    return sorted(path.as_posix() for path in Path(CSRC).rglob("*") if path.suffix in suffixes)


def compiled_once() -> list[str]:
    """The sources that need no flags of an instruction set."""
    return [name for name in files((".cpp",)) if name[len(CSRC) + 1 : -4] not in KERNELS]


setup(
    ext_modules=[
        Extension(
            "marco_fast._C",
            compiled_once(),
            depends=files((".h", ".cpp")),  # after a change of any of these it is built again
            extra_link_args=["-pthread"] if sys.platform == "linux" else [],
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
