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
    """A function that puts standard error on a terminal and returns the terminal's other end."""
    monkeypatch.setattr("marco_fast.forest.forest.REPORT_SECONDS", 0)
    monkeypatch.setenv("TERM", "xterm")
    ours, side = pty.openpty()
    stream = open(side, "w", encoding="utf-8")  # noqa: SIM115

    def put() -> int:  # when the test runs: until then pytest has streams of its own
        monkeypatch.setattr(sys, "stderr", stream)
        return ours

    yield put
    for close in (stream.close, lambda: os.close(ours)):
        with contextlib.suppress(OSError):  # gone
            close()


@contextlib.contextmanager
def watched(terminal: int):
    """What is drawn on the terminal, in pieces."""
    seen, ended = [], []

    def read():
        while not ended:
            if select.select([terminal], [], [], 0.01)[0]:
                seen.append(os.read(terminal, 65536))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield seen
    finally:
        ended.append(True)
        thread.join()


def test_a_terminal_that_goes_away_stops_no_search(nano, terminal, monkeypatch):
    ours, steps, real = terminal(), [], nano.sample

    def sample(*arguments, **options):
        steps.append(1)
        if len(steps) == 3:
            assert b"best so far" in os.read(ours, 65536)
            os.close(ours)
        return real(*arguments, **options)

    before, expected = sys.stdout, solve(QUESTION, nano, CONFIG)
    monkeypatch.setattr(nano, "sample", sample)
    result = solve(QUESTION, nano, CONFIG, progress=True)
    assert (result.answer, result.stop_reason) == (expected.answer, expected.stop_reason)
    assert len(steps) > 3
    assert sys.stdout is before


@pytest.mark.parametrize("columns", ["0", "1000000", "9" * 30])
def test_a_console_of_an_odd_width_is_drawn(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", columns)
    size = SafeConsole().size
    assert 80 <= size.width <= 1000
    assert 25 <= size.height <= 1000


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
    config = SearchConfig(expansions=3, step_tokens=8, value=value)
    with watched(terminal()) as seen:
        solve(QUESTION, nano, config, progress=True)
    assert sys.stdout.getvalue() == "mine\n" * 3
    assert b"best so far" in b"".join(seen)
