"""The live view of a library call: a terminal that goes away, and whose output is whose."""

import contextlib
import io
import os
import pty
import select
import sys
import threading

import pytest

from marco_fast import SearchConfig, solve
from marco_fast.forest.live import SafeConsole
from tests.support.searches import QUESTION

CONFIG = SearchConfig(expansions=20, step_tokens=8)


@pytest.fixture
def terminal(monkeypatch):
    """Standard error on a terminal: its other end."""
    monkeypatch.setattr("marco_fast.forest.forest.REPORT_SECONDS", 0)
    monkeypatch.setenv("TERM", "xterm")
    ours, side = pty.openpty()
    stream = open(side, "w", encoding="utf-8")  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", stream)
    yield ours
    for close in (stream.close, lambda: os.close(ours)):
        with contextlib.suppress(OSError):  # gone
            close()


def test_a_terminal_that_goes_away_stops_no_search(nano, terminal, monkeypatch):
    drawn, real = [], nano.sample

    def sample(*arguments, **options):
        drawn.append(1)
        if len(drawn) == 10:
            os.close(terminal)
        return real(*arguments, **options)

    before, expected = sys.stdout, solve(QUESTION, nano, CONFIG)
    monkeypatch.setattr(nano, "sample", sample)
    result = solve(QUESTION, nano, CONFIG, progress=True)
    assert (result.answer, result.stop_reason) == (expected.answer, expected.stop_reason)
    assert sys.stdout is before


def test_a_reader_that_goes_away_ends_no_process(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb", buffering=0) as file:
        stream = io.TextIOWrapper(file, write_through=True)
        with pytest.raises(BrokenPipeError):
            SafeConsole(file=stream).print("x")


def test_what_a_function_of_the_caller_prints_stays_on_its_stream(nano, terminal, monkeypatch):
    def value(tokens, confidences, text):
        print("mine")
        return 0.5

    monkeypatch.setattr(sys, "stdout", io.StringIO())
    seen, ended = [], []

    def read():
        while not ended:
            if select.select([terminal], [], [], 0.01)[0]:
                seen.append(os.read(terminal, 65536))

    thread = threading.Thread(target=read)
    thread.start()
    config = SearchConfig(expansions=3, step_tokens=8, value=value)
    solve(QUESTION, nano, config, progress=True)
    ended.append(True)
    thread.join()
    assert sys.stdout.getvalue() == "mine\n" * 3
    assert b"best so far" in b"".join(seen)
