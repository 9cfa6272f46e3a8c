"""What is carried to a GPU machine is found there, by launches to a driver that does nothing."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench.gpu import pack
from tests.support.compiling import compiling_python

CALLS = """
import torch
import marco_fast as mf


def calls():
    keys = torch.zeros(8, dtype=torch.int64)
    mf.topk_confidence(torch.zeros(8, 4096, dtype=torch.bfloat16), keys, backend="triton")
    hidden, weight = torch.zeros(2, 64).bfloat16(), torch.zeros(256, 64).bfloat16()
    mf.lm_head_records(hidden, weight, 0, 256, backend="triton")
    k, cache = torch.zeros(8, 1, 32), torch.zeros(4, 1, 16, 32)
    mf.append_kv(k, k, cache, cache, keys - 1, backend="triton")
"""
MAKE = (
    CALLS
    + """
import sys
from pathlib import Path
from bench.gpu import pack
from bench.gpu.launches import recording

with recording("sm_90") as seen:
    calls()
folder = Path(sys.argv[1])
folder.mkdir()
print(pack.make_cache(folder, [*seen.specializations.values()])["kernels"])
"""
)
# As on a GPU, but for the driver: Triton's own launches, from the arguments to the stub.
LAUNCH = (
    """
import contextlib, json, os, sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock
from bench.gpu import pack

told = [*pack.use(Path(sys.argv[1]))]
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime import build
from triton.runtime.driver import driver

seen = {"hits": [], "built": []}
knobs.compilation.listener = lambda *, cache_hit, **others: seen["hits"].append(cache_hit)
compiler = build._build
build._build = lambda name, *others, **more: seen["built"].append(name) or compiler(
    name, *others, **more)
utilities = nvidia.CudaUtils()
driver._active = SimpleNamespace(
    get_current_device=lambda: 0,
    get_current_stream=lambda device: 0,
    get_current_target=lambda: GPUTarget("cuda", 90, 32),
    launcher_cls=nvidia.CudaLauncher,
    utils=SimpleNamespace(
        load_binary=lambda *binary: (0, 1, 32, 0, 1024),
        get_device_properties=lambda device: {"max_shared_mem": 232448},
        fill_tma_descriptor=utilities.fill_tma_descriptor,
    ),
)
from bench.gpu.launches import import_kernels

import_kernels()
from marco_fast.kernels import launch
"""
    + CALLS
    + """
with contextlib.ExitStack() as stack:
    target = launch.Target("sm_90", 132)
    stack.enter_context(mock.patch.object(launch, "target_of", return_value=target))
    stack.enter_context(mock.patch.object(launch, "launching", contextlib.nullcontext))
    stack.enter_context(mock.patch.dict(os.environ, TRITON_INTERPRET="1"))
    calls()
print(json.dumps(seen | {"told": told}))
"""
)


def program(text: str, *arguments: object, **environment: str) -> str:
    """What it prints."""
    done = compiling_python("-c", text, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def a_driver_that_does_nothing(place: Path, stubs: list[Path]) -> None:
    """libcuda.so.1 with every function that the stubs ask for."""
    asked = subprocess.run(["nm", "-D", "-u", *stubs], capture_output=True, text=True, check=True)
    names = {*re.findall(r"\bcu[A-Z]\w*", asked.stdout), "cuLaunchKernelEx"}
    names |= {"cuTensorMapEncodeTiled", "cuOccupancyMaxActiveClusters"}
    source = place / "driver.c"
    source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(names)))
    subprocess.run(
        ["gcc", "-shared", "-fPIC", source, "-Wl,-soname,libcuda.so.1", "-o",
         place / "libcuda.so.1"],
        check=True,
    )  # fmt: skip


def test_launches_find_what_was_carried(tmp_path):
    kernels = int(program(MAKE, tmp_path / "made"))
    carried = tmp_path / "elsewhere" / "pack"
    shutil.move(tmp_path / "made", carried)
    stubs = [*carried.rglob("*.so")]
    assert len(stubs) >= 3
    a_driver_that_does_nothing(tmp_path, stubs)
    seen = json.loads(program(LAUNCH, carried, LD_LIBRARY_PATH=str(tmp_path)))
    assert seen["hits"] == [True] * kernels
    assert seen["built"] == []
    assert f"pack: {kernels} kernels for sm_90" in seen["told"][0]
    # And where a kernel is missing, Triton compiles.
    for each in carried.glob("triton/*/append_kv_kernel.*"):
        each.unlink()
    seen = json.loads(program(LAUNCH, carried, LD_LIBRARY_PATH=str(tmp_path)))
    assert sorted(seen["hits"]) == [False] + [True] * (kernels - 1)


@pytest.fixture
def no_environment(monkeypatch):
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)


@pytest.mark.usefixtures("no_environment")
def test_a_pack_of_another_python_is_not_used(tmp_path):
    manifest = {"arch": "sm_90", "kernels": 3, "triton": "3.6.0", "python": ["3", "1"]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"extension": "_C.so"}))
    assert "not used by Python" in next(pack.use(tmp_path))
    assert "TRITON_CACHE_DIR" not in os.environ


@pytest.mark.usefixtures("no_environment")
@pytest.mark.parametrize("text", [None, "{", "[]", '{"python": "x"}'])
def test_a_broken_pack_does_not_stop_a_run(tmp_path, text):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    told = [*pack.use(tmp_path)]
    assert "is not whole" in told[0] or "not used by Python" in told[0]
    assert "TRITON_CACHE_DIR" not in os.environ
    assert [*pack.use(tmp_path / "nothing")] == told[1:]
