"""Compiles every kernel that the launchers may choose, for GPUs that need not be here.

python -m bench.aot [--arch sm_90 ...] [--match TEXT] [--out FILE.json]

Prints a row a kernel: registers and shared memory of a block, bytes of stack and local memory a
thread (spills), and the compiler's time. Ends with 1 where a kernel does not compile, or spills on
an architecture that it must not spill on.
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from marco_fast.kernels.variants import ARCHITECTURES, Variant

NO_SPILLS_ON = ("sm_80", "sm_90")
KERNELS = Path(__file__).parents[1] / "kernels"


def kernel_modules() -> list[str]:
    """The modules that launch kernels."""
    return sorted(
        path.stem for path in KERNELS.glob("*.py") if "\ndef variants(" in path.read_text()
    )


def all_variants(arch: str, match: str = "") -> Iterator[Variant]:
    """Every variant of every module whose label holds `match`."""
    for name in kernel_modules():
        module = importlib.import_module(f"marco_fast.kernels.{name}")
        yield from (each for each in module.variants(arch) if match in each.label)


def compile_variant(variant: Variant, arch: str) -> dict[str, object]:
    """The resources of one compiled kernel; {"error": text} where it does not compile."""
    aligned = [
        (i,)
        for i, name in enumerate(variant.kernel.arg_names)
        if variant.types[name].startswith("*") or name in variant.aligned
    ]
    attributes = {path: [["tt.divisibility", 16]] for path in aligned}
    source = ASTSource(variant.kernel, variant.types, variant.constants, attributes)
    begin = time.perf_counter()
    try:
        compiled = triton.compile(
            source, target=GPUTarget(*ARCHITECTURES[arch]), options=variant.options
        )
    except Exception as error:  # whatever the compiler raises belongs in the table
        return {"error": f"{type(error).__name__}: {error}".strip()}
    usage = hip_usage(compiled.asm["amdgcn"]) if "amdgcn" in compiled.asm else {}
    usage = usage or cuda_usage(compiled.asm["cubin"])
    usage["shared"] = compiled.metadata.shared
    usage["warps"] = compiled.metadata.num_warps
    return usage | {"seconds": round(time.perf_counter() - begin, 2)}


def cuda_usage(cubin: bytes) -> dict[str, object]:
    """Registers a thread, bytes of stack and of local memory, from the binary itself."""
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


def hip_usage(assembly: str) -> dict[str, object]:
    """The same from the metadata of the assembly; scalar registers spill to vector registers."""

    def number(name: str) -> int:
        return sum(int(each) for each in re.findall(rf"\.{name}:\s*(\d+)", assembly))

    return {
        "registers": number("vgpr_count"),
        "stack": number("private_segment_fixed_size"),
        "local": 4 * number("vgpr_spill_count"),
    }


def spills(row: dict) -> bool:
    """Whether a thread of this kernel uses local memory."""
    return bool(row.get("stack") or row.get("local"))


def report(arch: str, match: str) -> list[dict]:
    """Compiles and prints; one dict a variant."""
    rows = []
    for variant in all_variants(arch, match):
        row = {"kernel": variant.label, "arch": arch} | compile_variant(variant, arch)
        rows.append(row)
        if "error" in row:
            print(f"{arch:7} {variant.label:56} {row['error']}", flush=True)
            continue
        print(
            f"{arch:7} {variant.label:56} {row['warps']:2} warps {row['registers']:4} regs "
            f"{row['shared']:7} B shared {row['stack']:4} stack {row['local']:4} local "
            f"{row['seconds']:6.2f} s",
            flush=True,
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.aot", description=__doc__)
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--match", default="", help="only the kernels whose label holds this")
    parser.add_argument("--out", type=Path, help="where to write the table as JSON")
    args = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("expected TRITON_INTERPRET unset: the interpreter does not compile")
    rows = [row for arch in args.arch for row in report(arch, args.match)]
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
    bad = [row for row in rows if "error" in row or (spills(row) and row["arch"] in NO_SPILLS_ON)]
    for row in bad:
        print(f"failed: {row['arch']} {row['kernel']}", file=sys.stderr)
    return 1 if bad or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
