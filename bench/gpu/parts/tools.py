"""What NVIDIA's tools, if installed, find in our kernels: hardware counters, bad accesses.

The tools start a process of their own: `python -m bench.gpu.parts.tools CASE` runs one small thing
without the machinery of a run.
"""

import csv
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from bench.gpu.machine import Case, Machine, Timing

__all__ = ["counters", "sanitizer"]

# Each name: the case of the run that is profiled, and the kernel in it.
COUNTED = {
    "attention": ("tree_attention qwen2-7b search 32 x 16 depth 12", "attend_kernel"),
    "attention, nothing shared": (
        "tree_attention qwen2-7b nothing shared 64 x 8192",
        "attend_kernel",
    ),
    "lm-head": ("lm_head_confidence 64 x 3584 x 152064 bfloat16", "lm_head_scan_kernel"),
    "confidence": ("topk_confidence 256 x 151936 bfloat16", "topk_confidence_kernel"),
}
SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "WarpStateStats", "Occupancy", "LaunchStats")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")


def counters(machine: Machine) -> Iterator[Case]:
    """Throughputs, occupancy and why warps wait, of one launch of each large kernel."""
    for name in COUNTED:
        yield Case(f"counters of {name}", partial(count, machine, name))


def count(machine: Machine, name: str) -> dict:
    tool = shutil.which("ncu")
    if machine.mode != "gpu" or tool is None:
        return {"skipped": "no ncu here"}
    sections = [word for section in SECTIONS for word in ("--section", section)]
    # Profiling does not change the clocks.
    done = run(
        [tool, "--clock-control", "none", "--csv", "--page", "details", *sections,
         "--kernel-name", COUNTED[name][1], "--launch-skip", "1", "--launch-count", "1"],
        name,
    )  # fmt: skip
    metrics = read_metrics(done.stdout)
    if not metrics:
        raise RuntimeError(f"expected metrics of ncu, got: {(done.stdout + done.stderr)[-1500:]}")
    return {"kernel": COUNTED[name][1], "metrics": metrics}


def read_metrics(text: str) -> dict[str, str]:
    """{"name [unit]": value} from ncu's table, which follows other lines."""
    begin = text.find('"ID"')
    rows = csv.DictReader(io.StringIO(text[begin:])) if begin >= 0 else ()
    return {
        f"{row['Metric Name']} [{row['Metric Unit']}]": row["Metric Value"]
        for row in rows
        if row.get("Metric Name")
    }


def sanitizer(machine: Machine) -> Iterator[Case]:
    """The smoke cases under each tool of compute-sanitizer, which must find no error."""
    for tool in SANITIZERS:
        yield Case(f"compute-sanitizer {tool}", partial(sanitize, machine, tool))


def sanitize(machine: Machine, name: str) -> dict:
    tool = shutil.which("compute-sanitizer")
    if machine.mode != "gpu" or tool is None:
        return {"skipped": "no compute-sanitizer here"}
    done = run([tool, "--tool", name], "smoke")
    found = re.search(r"ERROR SUMMARY: (\d+) error", done.stdout)
    told = (done.stdout + done.stderr)[-1500:]
    if found is None:
        raise RuntimeError(f"expected a summary of compute-sanitizer, got: {told}")
    assert found[1] == "0", f"{found[1]} errors: {told}"
    return {"errors": 0}


def run(tool: list[str], name: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*tool, sys.executable, "-m", "bench.gpu.parts.tools", name], capture_output=True, text=True
    )


def calls(name: str) -> Iterator[Callable[[], dict]]:
    """The calls that a name stands for."""
    from bench.gpu.parts import smoke, times

    machine = Machine("gpu")
    if name == "smoke":
        # The tools do not see the launches of a graph.
        yield from (case.run for case in smoke.cases(machine) if case.name != "a captured step")
        return
    part = getattr(times, name.partition(",")[0].replace("-", "_"))
    # Launched one by one: a graph would hide the kernel.
    machine.time = lambda *candidates, **options: [  # type: ignore[method-assign]
        launched(each) for each in candidates
    ]
    yield next(case.run for case in part(machine) if case.name == COUNTED[name][0])


def launched(candidate: Sequence[Callable[[], object]]) -> object:
    for _ in range(2):  # the first is skipped: it loads the kernel
        candidate[0]()
    return Timing([1.0], False)


def main() -> int:
    (name,) = sys.argv[1:]
    for call in calls(name):
        call()
    return 0


if __name__ == "__main__":
    sys.exit(main())
