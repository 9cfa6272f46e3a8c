"""The Triton append_kv: in the interpreter against the C++ kernel, and compiled ahead of time."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_append_kv import make, same

import marco_fast as mf

pytest.importorskip("triton")

COMPILE = """
import sys
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from marco_fast.kernels.append_kv import append_kv_kernel

kind, arch, warp, dtype, block_head, block_dim, out = sys.argv[1:]
target = GPUTarget(kind, int(arch) if arch.isdigit() else arch, int(warp))
names = append_kv_kernel.arg_names
types = {name: "i64" if name.startswith("stride_") else "i32" for name in names}
types |= {name: "*" + dtype for name in ("k_ptr", "v_ptr", "k_cache_ptr", "v_cache_ptr")}
types |= {"slot_mapping_ptr": "*i64", "BLOCK_HEAD": "constexpr", "BLOCK_DIM": "constexpr"}
source = ASTSource(
    append_kv_kernel, types, {"BLOCK_HEAD": int(block_head), "BLOCK_DIM": int(block_dim)}
)
compiled = triton.compile(source, target=target, options={"num_warps": 1})
binary = compiled.asm["cubin" if kind == "cuda" else "hsaco"]
Path(out).write_bytes(binary)
if kind == "hip":
    text = compiled.asm["amdgcn"]
    print(sum(int(line.split(":")[1]) for line in text.splitlines() if "spill_count:" in line))
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("tokens", "heads", "page_size", "head_dim"),
    [(0, 1, 16, 32), (1, 1, 16, 32), (5, 2, 8, 64), (7, 3, 24, 80), (4, 9, 1, 256)],
)
def test_interpreter_equals_the_cpu(tokens, heads, page_size, head_dim, dtype):
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("a GPU is here: Triton does not interpret")
    k, v, pool, slots = make(tokens, tokens, heads, page_size, head_dim, dtype, pages=8)
    slots[1:2] = -1
    want = pool.clone()
    mf.append_kv(k, v, want[0, :, 1 : heads + 1], want[1, :, :heads], slots, backend="cpu")
    mf.append_kv(k, v, pool[0, :, 1 : heads + 1], pool[1, :, :heads], slots, backend="triton")
    assert same(pool, want)


@pytest.mark.parametrize("slot", [-2, 96, 2**40])
def test_interpreter_refuses_a_slot_outside(slot):
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("a GPU is here: Triton does not interpret")
    k, v, pool, slots = make(1, 3, 2, 16, 32, torch.float32)
    slots[2] = slot
    with pytest.raises(IndexError, match=r"slot_mapping\[2\] in -1..95"):
        mf.append_kv(k, v, pool[0, :, :2], pool[1, :, :2], slots, backend="triton")
    assert pool.isnan().all()


@pytest.mark.parametrize("target", ["cuda 80 32", "cuda 90 32", "hip gfx942 64"])
@pytest.mark.parametrize(
    ("dtype", "tile"), [("fp32", "8 128"), ("bf16", "4 256"), ("fp16", "1 32")]
)
def test_compiles_ahead_of_time_without_spills(target, dtype, tile, tmp_path):
    out = tmp_path / "kernel"
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [*target.split(), dtype, *tile.split(), str(out)]
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, *arguments], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    if target.startswith("hip"):
        assert int(done.stdout) == 0
        return
    usage = subprocess.run(
        [cuobjdump(), "--dump-resource-usage", str(out)], capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"REG:\d+", usage)
    assert re.search(r"STACK:0 ", usage)
    assert re.search(r"LOCAL:0 ", usage)


def cuobjdump() -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
