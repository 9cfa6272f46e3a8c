"""Compile what the run will launch, before anything is timed.

The cases of all parts are walked once without a GPU (bench/gpu/launches.py sees the launches), then
a pool of processes compiles each specialisation, and the stub that launches it, into Triton's
cache, where the other parts find them. `python -m bench.gpu.compilation [ARCH]`
lists what a run launches.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from bench.gpu.launches import ARCHITECTURES, Recording, Specialization, compile_for, recording
from bench.gpu.machine import Case, Machine
from bench.gpu.process import die_with_parent, in_child

__all__ = ["build_launcher", "cases", "compile_all", "launches_of_run"]

# Parts that launch none of our kernels, or the same as other parts; walking a whole model would
# take minutes on a CPU.
NOT_WALKED = (
    "environment", "ceilings", "compile", "engine", "search", "counters", "sanitizer",
)  # fmt: skip


def launches_of_run(arch: str) -> Recording:
    """Every launch of every case, as on a GPU of this architecture."""
    from bench.gpu.parts import skinny  # noqa: F401  (made for a GPU, outside of recording)
    from bench.gpu.run import PARTS

    machine = Machine("record")
    with recording(arch) as seen:
        for part in PARTS:
            if part.name not in NOT_WALKED:
                for case in part.cases(machine):
                    case.run()
    return seen


def build_launcher(compiled: object) -> None:
    """The stub that launches a kernel: C that Triton compiles, once per signature."""
    from triton.backends.nvidia import driver

    driver.CudaLauncher(compiled.src, compiled.metadata)  # type: ignore[attr-defined]


class Compiled(NamedTuple):
    """Result of one compilation: an error or "", whether the cache had it, seconds."""

    error: str
    found: bool
    seconds: float


_work: list[Specialization] = []  # in the processes of the pool, which are forks


def _compile(i: int) -> Compiled:
    from triton import knobs

    begin, hits = time.process_time(), []
    knobs.compilation.listener = lambda *, cache_hit, **others: hits.append(cache_hit)
    error = ""
    try:
        compiled = compile_for(_work[i])
        if _work[i].arch.startswith("sm_"):
            build_launcher(compiled)
    except Exception as wrong:  # the row tells it; the kernel's own case will fail
        error = f"{_work[i].label}: {type(wrong).__name__}: {wrong}"
    return Compiled(error, any(hits), time.process_time() - begin)


def compile_all(
    found: Sequence[Specialization], started: Callable[[], None] = die_with_parent
) -> dict[str, object]:
    """Compile in one process per core: (errors, how many specialisations were in the cache, the
    seconds of all processes together)."""
    _work[:] = found
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(os.cpu_count(), context, started) as pool:
        ended = [*pool.map(_compile, range(len(found)))]
    _work.clear()
    return {
        "errors": [each.error for each in ended if each.error],
        "in_cache": sum(each.found for each in ended),
        "cpu_seconds": round(sum(each.seconds for each in ended), 1),
    }


def cases(machine: Machine) -> Iterator[Case]:
    yield Case("compile", lambda: count_elsewhere() if machine.dry else compile_run())


def compile_run() -> dict:
    """Compile for the GPU of this machine, in a process that has not touched the GPU."""
    arch = in_child(capability)
    begin = time.monotonic()
    seen = launches_of_run(arch)
    walked = time.monotonic() - begin
    found = list(seen.specializations.values())
    row = compile_all(found)
    if row["errors"]:
        raise RuntimeError("; ".join(row["errors"]))  # type: ignore[arg-type]
    return {
        "arch": arch, "launches": seen.launches, "specializations": len(found),
        "walk_seconds": round(walked, 1), **row,
    }  # fmt: skip


def capability() -> str:
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def count_elsewhere() -> dict:
    """Count launches in another process: one that interprets kernels cannot record them."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu.compilation", "sm_90"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    labels = json.loads(done.stdout)
    return {"arch": "sm_90", "launches": labels["launches"],
            "specializations": len(labels["specializations"])}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    (arch,) = argv or sys.argv[1:] or ["sm_90"]
    if arch not in ARCHITECTURES:
        print(f"expected one of {[*ARCHITECTURES]}, got {arch!r}", file=sys.stderr)
        return 2
    seen = launches_of_run(arch)
    labels = sorted(each.label for each in seen.specializations.values())
    print(json.dumps({"launches": seen.launches, "specializations": labels}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
