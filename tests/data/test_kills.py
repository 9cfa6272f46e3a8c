"""Runs that are killed at random moments and at every operation on files leave no trace."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from marco_fast.data.generate import journal_of
from tests.support.data_processes import REAL, Children, command, wait_for_lines
from tests.support.data_runs import make, write_lines


def finished(out: Path) -> bool:
    return out.exists() and not journal_of(out).exists()


def test_fifty_kills_leave_no_trace(children, solve, source, tmp_path):
    make(source, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    rng, kills, runs, resumed = random.Random(0), 0, 0, set()
    while kills < 50:
        out = tmp_path / f"out{runs}"
        runs += 1
        while not finished(out):
            pid = children.start(source, out, 0.01)
            time.sleep(rng.uniform(0, 0.15))
            os.kill(pid, signal.SIGKILL)
            code = children.end()
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
            if journal_of(out).exists():
                resumed.add(journal_of(out).read_bytes().count(b"\n"))
        assert out.read_bytes() == whole
        assert not [*tmp_path.glob("*.journal"), *tmp_path.glob("*.tmp")]
    assert len(resumed) > 5  # they came at different moments


def test_a_kill_at_every_operation_on_files_leaves_no_trace(children, solve, tmp_path):
    lines = [{"question": f"What is {i} + {i * i}?"} for i in range(5)]
    source = write_lines(tmp_path / "q.jsonl", lines)
    make(source, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for deadly in range(1, 40):
        out = tmp_path / f"out{deadly}"
        children.start(source, out, 0, deadly)
        code = children.end()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        if not finished(out):
            make(source, out)
        assert out.read_bytes() == whole
        assert not [*tmp_path.glob("*.journal"), *tmp_path.glob("*.tmp")]
    assert deadly > 15


def test_the_lock_dies_with_its_process(children, solve, source, tmp_path):
    out = tmp_path / "out"
    pid = children.start(source, out, 30)
    while not journal_of(out).exists() or not journal_of(out).stat().st_size:
        time.sleep(0.01)
    with pytest.raises(ValueError, match="expected to be the only run"):
        make(source, out)
    os.kill(pid, signal.SIGKILL)
    children.end()
    assert make(source, out).kept == 40


def test_the_real_search_after_kills(real_source, tmp_path, capfd):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert command([real_source, "--out", whole, *REAL]) == 0
    assert "kept 8" in capfd.readouterr().out
    children = Children(real=True)
    for lines in (1, 3, 5):
        pid = children.ask(real_source, "--out", out, *REAL)
        wait_for_lines(journal_of(out), lines)
        time.sleep(random.Random(lines).uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        assert children.end() == -signal.SIGKILL
        assert not out.exists()
    children.close()
    assert command([real_source, "--out", out, *REAL]) == 0
    said = capfd.readouterr().out
    assert int(said.split("searched 8 (")[1].split()[0]) >= 4
    assert out.read_bytes() == whole.read_bytes()
