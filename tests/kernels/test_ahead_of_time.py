"""Every kernel that a launcher may choose compiles for every architecture, without spills where
that is promised."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench.gpu.aot import NO_SPILLS_ON, spills
from bench.gpu.launches import ARCHITECTURES
from tests.support.compiling import compiling_python

ROOT = Path(__file__).parents[2]
SOURCES = "".join(path.read_text() for path in (ROOT / "kernels").glob("*.py"))
KERNELS = set(re.findall(r"^def (\w+_kernel)\(", SOURCES, re.M))
# The others read float32 logits, partial records or lengths.
TAKES_BFLOAT16 = KERNELS - {"lm_head_draw_kernel", "lm_head_summary_kernel", "advance_kernel"}


def compiled(arch: str, folder: Path, *options: str) -> list[dict]:
    """The rows of bench.gpu.aot, which must succeed and keep its promises about each kernel."""
    assert arch in ARCHITECTURES
    out = folder / "table.json"
    done = compiling_python(
        "-m",
        "bench.gpu.aot",
        "--arch",
        arch,
        "--out",
        out,
        *options,
        TRITON_CACHE_DIR=str(folder / "cache"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())
    assert max(Counter(row["kernel"] for row in rows).values()) == 1
    for row in rows:
        assert 0 < row["registers"] <= 512, row
        assert row["shared"] <= 163 * 1024, row
        assert not (spills(row) and arch in NO_SPILLS_ON), row
    return rows


# make test compiles all types for one architecture and bfloat16 for the others: all types take 100
# seconds of a core per architecture.
@pytest.mark.parametrize(
    "arch", ["sm_90", *(pytest.param(each, marks=pytest.mark.slow) for each in ("sm_80", "gfx942"))]
)
def test_compiles(arch, tmp_path):
    rows = compiled(arch, tmp_path)
    assert {row["kernel"].split()[0] for row in rows} == KERNELS


@pytest.mark.parametrize("arch", ["sm_80", "gfx942"])
def test_compiles_what_takes_bfloat16(arch, tmp_path):
    rows = compiled(arch, tmp_path, "--match", "*bf16 ")
    assert {row["kernel"].split()[0] for row in rows} == TAKES_BFLOAT16


def test_a_kernel_that_does_not_compile_fails():
    program = (
        "import sys, bench.gpu.aot as aot, bench.gpu.launches as launches\n"
        "def broken(found):\n"
        "    raise RuntimeError('no such instruction')\n"
        "launches.compile_for = broken\n"
        "sys.exit(aot.main(['--arch', 'sm_90', '--match', 'append_kv']))"
    )
    done = compiling_python("-c", program)
    assert done.returncode == 1
    assert "RuntimeError: no such instruction" in done.stdout
    assert "failed: sm_90 append_kv_kernel" in done.stderr


def test_a_kernel_that_spills_fails():
    program = (
        "import sys, bench.gpu.aot as aot\n"
        "usage = dict(registers=255, shared=0, stack=8, local=0, seconds=0.0)\n"
        "aot.resources = lambda found: dict(usage)\n"
        "sys.exit(aot.main(['--arch', sys.argv[1], '--match', 'append_kv']))"
    )
    assert compiling_python("-c", program, "sm_90").returncode == 1
    assert compiling_python("-c", program, "gfx942").returncode == 0  # promised for NVIDIA alone
