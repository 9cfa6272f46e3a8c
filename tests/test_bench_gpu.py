"""The GPU run, rehearsed on a CPU: every part to its end, and a part that fails stands alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench.gpu import PART_NAMES, line, run_part

ROOT = Path(__file__).parents[1]


def test_dry_run_ends(tmp_path):
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--dry-run", "--out", str(tmp_path), "--minutes", "30"],
        env=environment, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["dry_run"] is True
    assert [part["part"] for part in written["parts"]] == list(PART_NAMES)
    for part in written["parts"]:
        assert part["rows"], part
        assert "error" not in part, part
    checks = [part for part in written["parts"] if part["part"].startswith("check")]
    counts = [next(v for k, v in part["rows"][0].items() if k != "case") for part in checks]
    assert all(count >= 2 for count in counts)
    for part in written["parts"]:
        for row in part["rows"] if part["part"].startswith("time") else []:
            assert row["peers"], row
            assert all("us" in peer for peer in row["peers"].values()), row


def test_a_failing_part_is_told(capsys):
    def broken() -> list[dict]:
        raise AssertionError("lse: expected 1, got 2")

    result = run_part("check", broken)
    assert result["error"] == "AssertionError: lse: expected 1, got 2"
    assert "broken" in result["traceback"]
    assert result["rows"] == []


def test_a_row_has_floor_and_peers():
    row = {
        "case": "x", "us": 10.0, "floor_us": 5.0,
        "peers": {"a": {"us": 30.0}, "b": {"error": "ImportError: no b"}},
    }  # fmt: skip
    text = line(row)
    assert "10.0 us" in text
    assert "50%" in text
    assert "a 3.00x" in text
    assert "b ImportError" in text


def test_without_a_gpu_it_says_so():
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES="")
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu"], env=environment, capture_output=True, text=True,
        cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert "expected a CUDA GPU, found none" in done.stderr
