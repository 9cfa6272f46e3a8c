"""Every kernel that a launcher may choose compiles for every architecture, without spills where
that is promised."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench.aot import NO_SPILLS_ON, kernel_modules, spills
from marco_fast.kernels.variants import ARCHITECTURES

ROOT = Path(__file__).parents[1]


# Those that are promised; the others of ARCHITECTURES are compiled by bench.aot, for its table.
PROMISED = ("sm_80", "sm_90", "gfx942")


@pytest.mark.parametrize("arch", PROMISED)
def test_compiles(arch, tmp_path):
    assert arch in ARCHITECTURES
    # A process of its own: this one may have set Triton to interpret.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    out = tmp_path / "table.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench.aot", "--arch", arch, "--out", str(out)],
        env=environment, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())
    assert max(Counter(row["kernel"] for row in rows).values()) == 1
    assert {row["kernel"].split()[0] for row in rows} >= set(kernel_modules())
    for row in rows:
        assert 0 < row["registers"] <= 512, row
        assert row["shared"] <= 163 * 1024, row
        assert not (spills(row) and arch in NO_SPILLS_ON), row


def test_a_kernel_that_does_not_compile_fails(tmp_path):
    module = tmp_path / "broken.py"
    module.write_text(
        "import triton\nimport triton.language as tl\n"
        "from marco_fast.kernels.variants import Variant\n"
        "@triton.jit\ndef broken_kernel(x_ptr):\n    tl.store(x_ptr, undefined_name)\n"
        "def variants(arch):\n"
        "    yield Variant('broken', broken_kernel, {'x_ptr': '*fp32'}, {}, {'num_warps': 1})\n"
    )
    program = (
        "import sys; from pathlib import Path; import bench.aot as aot, importlib\n"
        "sys.path.insert(0, sys.argv[1]); aot.KERNELS = Path(sys.argv[1])\n"
        "aot.importlib = type('x', (), {'import_module': staticmethod(\n"
        "    lambda name: importlib.import_module(name.rpartition('.')[2]))})\n"
        "sys.exit(aot.main(['--arch', 'sm_90']))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=environment, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1
    assert "failed: sm_90 broken" in done.stderr
