"""The live view of a library call: a terminal that goes away, and whose output is whose."""

import contextlib
import dataclasses
import io
import itertools
import os
import pty
import select
import sys
import threading

import pytest
from rich.cells import cell_len

from marco_fast import SearchConfig, solve
from marco_fast.forest.live import LiveView, SafeConsole, foretold
from marco_fast.forest.result import Progress
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


SEEN = Progress(
    question=0, questions=1, done=0, answer=None, thought="", live="We add 3 and 5.", value=0.0,
    final="", finished=False, support=0.0, finished_paths=0, remaining=None, expansions=0,
    target=64, tokens=704, seconds=4.2, branches=16, sharing=3.4,
)  # fmt: skip
CHINESE = "汤姆一共有多少个苹果？我们来算一下：3 + 5 = 8。所以汤姆有 8 个苹果。他把它们带回家。"
ANSWERED = dataclasses.replace(
    SEEN, answer=f"{CHINESE} 8", final="8", finished=True, support=0.81, value=0.913,
    finished_paths=6, remaining=41.3, expansions=12, live=CHINESE * 3,
)  # fmt: skip


def drawn(progress: Progress, width: int) -> list[str]:
    """The lines that a terminal of that width shows."""
    view, file = LiveView(), io.StringIO()
    view.console = SafeConsole(
        file=file, width=width, height=24, force_terminal=True, color_system=None
    )
    view.console.print(view.render(progress))
    return file.getvalue().splitlines()


def test_the_reply_is_shown_from_the_first_token():
    shown = "\n".join(drawn(SEEN, 80))
    assert "64 expansions; the time is known when the first path has ended" in shown
    assert "best so far  (no path has finished yet)" in shown
    assert "We add 3 and 5." in shown
    assert "tokens/s      168" in shown


def test_the_best_answer_is_its_final_with_its_support():
    lines = drawn(ANSWERED, 80)
    assert "about 40 s more for 64 expansions (--max-seconds N to stop earlier)" in lines
    assert "best so far  8  (support 0.81, confidence 0.91)" in lines
    assert any("所以汤姆有" in line for line in lines)


@pytest.mark.parametrize("width", [80, 56, 40, 20])
@pytest.mark.parametrize("progress", [SEEN, ANSWERED])
def test_no_line_is_wider_than_the_terminal_nor_the_view_higher(progress, width):
    lines = drawn(progress, width)
    assert max(map(cell_len, lines)) <= width
    assert len(lines) <= 24


def test_half_a_character_is_not_shown():
    assert "\ufffd" not in "".join(drawn(dataclasses.replace(SEEN, live="苹\ufffd"), 80))


def test_a_search_that_is_done_foretells_nothing():
    assert foretold(dataclasses.replace(ANSWERED, expansions=64)) == "64 expansions done"


def test_without_a_terminal_one_line_tells_how_long_it_takes(capsys):
    view = LiveView()
    for seconds, left in ((1.0, 50.0), (6.0, None), (7.0, 8.0), (8.0, 45.0), (9.0, 44.0)):
        view(dataclasses.replace(ANSWERED, seconds=seconds, remaining=left))
    told = "about 45 s more for 64 expansions (--max-seconds N to stop earlier)\n"
    assert capsys.readouterr().err == told


def test_a_search_tells_what_it_still_takes_and_what_is_being_written(nano, monkeypatch):
    monkeypatch.setattr("marco_fast.forest.forest.REPORT_SECONDS", 0)
    seen: list[Progress] = []
    solve(QUESTION, nano, CONFIG, progress=seen.append)
    assert seen[0].remaining is None
    assert any(each.remaining for each in seen)
    assert seen[-1].remaining == 0.0
    assert seen[-1].finished_paths > 0
    live = [each.live for each in seen if each.live]
    followed = [later.startswith(earlier) for earlier, later in itertools.pairwise(live)]
    assert sum(followed) > len(followed) / 2  # one path is followed until it ends
