"""A run that is interrupted, fails or meets a full disk, and is started again."""

import os
import signal
import time

import pytest

from marco_fast.data import journal as data_journal
from marco_fast.data.filters import Limits
from tests.support.data_runs import (
    fail,
    fake_solve,
    interrupted_run,
    make,
    searched,
    snapshot,
    stopping_after,
)


def cut_off(reason, error=None):
    def stop(chats):
        whole = fake_solve(chats, None, None, progress=lambda now: None)
        return [*whole[:-1], searched(chats[-1], [], stop_reason=reason, error=error)]

    return stop


@pytest.mark.parametrize(
    ("stop", "error"),
    [
        (fail, "no such luck"),
        (cut_off("error", RuntimeError("NaN")), "NaN"),
        (cut_off("kv_full", RuntimeError("full")), "full"),
        (cut_off("interrupted"), None),
    ],
)
def test_what_is_done_is_kept_and_resumed(stop, error, solve, source, tmp_path):
    make(source, tmp_path / "whole")
    solve(stopping_after(4, stop))
    summary = make(source, tmp_path / "out")
    assert (summary.done, summary.complete, summary.interrupted) == (12, False, error is None)
    assert error is None or error in str(summary.error)
    assert not (tmp_path / "out").exists()
    solve(stopping_after(10))
    summary = make(source, tmp_path / "out")
    assert (summary.done, summary.resumed, summary.complete) == (40, 12, True)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_ctrl_c_at_the_very_end_of_a_batch_is_not_lost(solve, source, tmp_path):
    searches = []

    def search(chats, *arguments, **options):
        searches.append(chats)
        results = fake_solve(chats, *arguments, **options)
        if len(searches) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return results

    before = signal.getsignal(signal.SIGINT)
    solve(search)
    summary = make(source, tmp_path / "out")
    assert summary.interrupted
    assert summary.done == 3
    assert len(searches) == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_during_a_search_ends_it(solve, source, tmp_path):
    def search(chats, *arguments, progress, **options):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(3):
            time.sleep(0.01)
            progress(snapshot(0, 3))
        pytest.fail("went on")

    solve(search)
    summary = make(source, tmp_path / "out")
    assert summary.interrupted
    assert summary.done == 0


def test_the_limits_may_change_on_the_way(solve, source, tmp_path):
    strict = Limits(0, 10**9, 1, 0.5, 0.8)
    whole = make(source, tmp_path / "whole", limits=strict)
    interrupted_run(solve, source, tmp_path / "out")
    summary = make(source, tmp_path / "out", limits=strict)
    assert summary.refused == whole.refused
    assert 0 < summary.kept < 40
    assert summary.refused["confidence"] > 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_full_disk_loses_nothing_that_was_done(solve, source, tmp_path, monkeypatch):
    make(source, tmp_path / "whole")
    real, calls = os.write, []

    def full(file, data):
        calls.append(0)
        if len(calls) == 6:
            return real(file, data[: len(data) // 2])
        if len(calls) == 7:
            raise OSError(28, "No space left on device")
        return real(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(data_journal.os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            make(source, tmp_path / "out")
    assert make(source, tmp_path / "out").resumed == 12
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
