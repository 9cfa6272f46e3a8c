"""The GPU run, rehearsed on a CPU: every part to its end; what goes wrong costs its rows alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from bench.gpu.run import PARTS
from bench.gpu.table import Results, read, table

ROOT = Path(__file__).parents[2]
EVERY_PART = [part.name for part in PARTS]
# The parts that plan, or load modules that no other part loads: without the extension they differ.
PLANNING = [
    "environment", "ceilings", "smoke", "attention", "sweep-attention", "step", "peers-attention",
    "search", "check-attention", "counters",
]  # fmt: skip
# A run of parts that misbehave, as a program: a part is a fork, which a process of pytest is too
# full of threads for.
PROGRAM = """
import os, sys, time
from dataclasses import dataclass
from bench.gpu import run
from bench.gpu.machine import Case, CaptureFailed


def broken_list(machine):
    yield Case("one", lambda: {"value": 1})
    raise KeyError("no such model")


def fail(error):
    raise error


PARTS = {
    "good": lambda m: [Case(f"case {i}", lambda i=i: {"value": i}) for i in range(3)],
    "raises": lambda m: [Case("a", lambda: {"value": 1}), Case("b", lambda: fail(ValueError("no"))),
                         Case("c", lambda: {"value": 3})],
    "crashes": lambda m: [Case("a", lambda: {"value": 1}), Case("b", lambda: os.abort()),
                          Case("c", lambda: {"value": 3})],
    "hangs": lambda m: [Case("a", lambda: {"value": 1}), Case("b", lambda: time.sleep(1000)),
                        Case("c", lambda: {"value": 3})],
    "poisons": lambda m: [Case("a", lambda: fail(CaptureFailed(str(os.getpid())))),
                          Case("b", lambda: {"value": os.getpid()})],
    "slow": lambda m: [Case(f"case {i}", lambda i=i: time.sleep(0.3) or {"value": i})
                       for i in range(100)],
    "broken": broken_list,
    "long": lambda m: PARTS["slow"](m),
    "last": lambda m: [Case("case", lambda: {"value": os.getpid()})],
}


@dataclass(frozen=True)
class Part:
    name: str
    seconds: float

    def cases(self, machine):
        return iter(PARTS[self.name](machine))


if __name__ == "__main__":
    names, arguments = sys.argv[1].split(","), sys.argv[2:]
    parts = [Part(name, 1.0 if name in ("hangs", "slow") else 20.0) for name in names]
    sys.exit(run.main(["--dry-run", *arguments], all_parts=parts))
"""


def run_parts(
    names: str, out: Path, *arguments: str, **options
) -> subprocess.CompletedProcess[str]:
    """A dry run of parts of PROGRAM."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, names, "--out", str(out), *arguments],
        capture_output=True, text=True, cwd=ROOT, timeout=60, **options,
    )  # fmt: skip


def told(out: Path) -> dict[str, list]:
    """Of each part the values or errors of its rows, and how it ended."""
    results = read(out / "gpu.jsonl")
    return {
        part: [row.get("value", row.get("error")) for row in rows] + [results.ends[part]["ended"]]
        for part, rows in results.rows.items()
    }


def dry_run(out: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--dry-run", "--out", str(out), *arguments],
        env=plain, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip


def assert_whole(out: Path, parts: list[str]) -> Results:
    """Every part ended with rows and without an error."""
    results = read(out / "gpu.jsonl")
    assert [*results.rows] == parts
    for part, rows in results.rows.items():
        assert results.ends[part]["ended"] == "ok", results.ends[part]
        assert rows, part
        assert all("error" not in row for row in rows), rows
    assert results.failures() == []
    return results


def test_a_dry_run_walks_every_part(tmp_path):
    done = dry_run(tmp_path, "--minutes", "30", "--commit", "0123abc")
    assert done.returncode == 0, done.stdout + done.stderr
    results = assert_whole(tmp_path, EVERY_PART)
    assert results.run["mode"] == "dry"
    assert results.environment()["commit"] == "0123abc"
    assert results.environment()["extension"] is True
    (compiled,) = results.rows["compile"]
    assert 40 <= compiled["specializations"] <= 60  # each is a second of compilation
    assert compiled["launches"] > 1000
    for part in ("confidence", "sampling", "lm-head", "attention", "append-kv"):
        for row in results.rows[part]:
            assert row["us"] > 0
            assert row["floor_us"] > 0
    for part in (part.name for part in PARTS if part.name.startswith("peers-")):
        for row in results.rows[part]:
            assert row["ratio"] == pytest.approx(row["peer_us"] / row["us"])
    assert (tmp_path / "table.txt").read_text() == table(results)
    assert done.stdout.endswith(table(results) + "\n")


@pytest.mark.parametrize(
    "parts", [PLANNING, pytest.param(EVERY_PART, marks=pytest.mark.slow)], ids=["planning", "all"]
)
def test_a_dry_run_without_the_extension_and_a_compiler(parts, tmp_path):
    """As on a machine that has the repository and its Python packages, and nothing else."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("bench", "kernels", "marco_fast", "tests", "setup.py"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(checkout / name)], check=True)
    for extension in checkout.rglob("_C*.so"):
        extension.unlink()
    # Without `site` an installation that points to this checkout is not found either.
    program = (
        "import sys; sys.path[:0] = ['.', sys.argv.pop(1)]\n"
        "for name in ('cpuinfo', 'pytest', 'hypothesis', 'pybind11'): sys.modules[name] = None\n"
        "from bench.gpu.run import main; sys.exit(main(sys.argv[1:]))"
    )
    packages, out = Path(torch.__file__).parents[1], tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, str(packages), "--dry-run", "--out", str(out),
         "--parts", *parts],
        env={"OMP_NUM_THREADS": "1", "PATH": "/nonexistent"},
        capture_output=True, text=True, cwd=checkout,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no C++ extension and no compiler" in done.stdout
    results = assert_whole(out, parts)
    assert results.environment()["extension"] is False
    assert results.environment()["instruction_set"] is None
    assert results.environment()["commit"] is None


def test_what_goes_wrong_costs_its_rows_alone(tmp_path):
    done = run_parts("good,raises,crashes,hangs,poisons,broken,last", tmp_path)
    assert done.returncode == 1, done.stderr
    got = told(tmp_path)
    assert got["good"] == [0, 1, 2, "ok"]
    assert got["raises"] == [1, "ValueError: no", 3, "ok"]
    assert got["crashes"] == [1, "crashed: SIGABRT", 3, "ok"]
    assert got["hangs"][:2] == [1, "killed: its time was over"]
    assert got["hangs"][2].startswith("out of time")
    wrong, other, ended = got["poisons"]
    assert wrong.startswith("CaptureFailed: ")
    assert wrong != f"CaptureFailed: {other}"  # the next case had a process of its own
    assert ended == "ok"
    assert got["broken"] == [1, "KeyError: 'no such model'"]
    assert got["last"][1] == "ok"
    assert got["last"][0] != other
    failed = read(tmp_path / "gpu.jsonl").failures()
    assert failed == [
        "raises: b", "crashes: b", "hangs: b", "poisons: a", "broken: KeyError: 'no such model'"
    ]  # fmt: skip
    assert "FAILED ValueError: no" in done.stdout
    row = next(r for r in read(tmp_path / "gpu.jsonl").rows["raises"] if "error" in r)
    assert "in fail" in row["traceback"]


def test_a_part_ends_with_its_budget(tmp_path):
    done = run_parts("slow,last", tmp_path)
    assert done.returncode == 0, done.stdout
    results = read(tmp_path / "gpu.jsonl")
    assert results.ends["slow"]["ended"] == "out of time"
    assert 1 <= len(results.rows["slow"]) <= 5  # a second of cases that take 0.3
    assert results.ends["slow"]["left"][-1] == "case 99"
    assert results.ends["last"]["ended"] == "ok"
    assert "not begun: " in done.stdout


def test_the_run_ends_with_its_minutes(tmp_path):
    begin = time.monotonic()
    done = run_parts("long,last", tmp_path, "--minutes", "0.1")
    assert time.monotonic() - begin < 10  # 6 of its own, and PyTorch's import
    assert done.returncode == 0, done.stdout
    ends = read(tmp_path / "gpu.jsonl").ends
    assert [ends[part]["ended"] for part in ("long", "last")] == ["out of time", "no time left"]


def test_chosen_parts_alone_and_earlier_rows_are_kept(tmp_path):
    assert run_parts("good,last", tmp_path).returncode == 0
    first = (tmp_path / "gpu.jsonl").read_text()
    for number in (1, 2):
        assert run_parts("good,last", tmp_path, "--parts", "last").returncode == 0
        assert [*told(tmp_path)] == ["last"]
        assert (tmp_path / "gpu.1.jsonl").read_text() == first
        assert (tmp_path / "gpu.2.jsonl").exists() == (number == 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_kill_at_any_moment_leaves_rows_and_a_table(tmp_path, number):
    rng = random.Random(number)
    for attempt in range(2):
        out = tmp_path / str(attempt)
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "good,slow,last", "--out", str(out)],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        for text in process.stdout:
            if text.startswith("== slow"):
                break
        time.sleep(rng.uniform(0.0, 0.8))
        process.send_signal(number)
        rest = process.stdout.read()
        code = process.wait(timeout=20)
        results = read(out / "gpu.jsonl")
        assert [row["value"] for row in results.rows["good"]] == [0, 1, 2]
        values = [row["value"] for row in results.rows.get("slow", [])]
        assert values == [*range(len(values))]
        assert "case 2" in table(results)
        assert "case 2" in (out / "table.txt").read_text()  # of the parts that had ended
        if number == signal.SIGTERM:
            assert code == 130
            assert results.ends["run"]["ended"] == "interrupted: SIGTERM"
            assert "failed: run: interrupted: SIGTERM" in rest


def test_a_killed_run_leaves_no_process_behind(tmp_path):
    mark = f"marco-{os.getpid()}-{time.monotonic()}"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "hangs", "--out", str(tmp_path), "--commit", mark],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    for text in process.stdout:
        if "value 1" in text:
            break
    assert marked(mark) == 2  # the run and its part
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert marked(mark) == 0


def marked(mark: str) -> int:
    """How many processes have this in their command line."""
    found = 0
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += mark in each.read_text()
        except OSError:
            continue
    return found


def test_without_a_gpu_it_says_so(tmp_path):
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES="")
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--out", str(tmp_path / "out")], env=environment,
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert "expected a CUDA GPU, found" in done.stderr
    assert not (tmp_path / "out").exists()
