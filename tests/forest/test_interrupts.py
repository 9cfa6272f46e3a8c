"""Ctrl-C at any moment of a search, and whose signals are whose."""

import os
import signal
import sys
import threading
import time
from operator import mul

import pytest

from marco_fast import SearchConfig, solve
from marco_fast.forest import interrupts as module
from marco_fast.forest.interrupts import Interrupts, interrupts
from tests.support.searches import QUESTION

LONG = SearchConfig(expansions=10**6, children=100, step_tokens=400)


@pytest.fixture(autouse=True)
def listening(monkeypatch):
    """Signals as in a program that a person started; reports at every step."""
    monkeypatch.setattr("marco_fast.forest.forest.REPORT_SECONDS", 0)
    before = [
        (signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler)),
        (signal.SIGTERM, signal.signal(signal.SIGTERM, signal.SIG_DFL)),
        (signal.SIGHUP, signal.signal(signal.SIGHUP, signal.SIG_DFL)),
    ]
    yield
    for number, handler in before:
        signal.signal(number, handler)


def send(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def whole(result) -> bool:
    """Whether every decoded token is in the tree."""
    tree = result.tree
    return result.stats.tokens == sum(map(len, map(mul, tree.token_ids, tree.decoded)))


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("after", [0, 40, 320])
def test_ctrl_c_in_a_progress_function_keeps_what_is_in_flight(nano, after, times):
    sent = []

    def interrupt(progress):
        if progress.tokens > after and not sent:
            sent.append(progress)
            for _ in range(times):
                send()

    result = solve(QUESTION, nano, LONG, progress=interrupt)
    assert result.stop_reason == "interrupted"
    assert result.text
    assert whole(result)
    assert nano.cache.used_pages == 0


@pytest.mark.parametrize("step", [0, 1, 2, 30, 31])
def test_ctrl_c_in_the_model_keeps_what_is_in_flight(nano, monkeypatch, step):
    real, calls = nano.sample, []

    def sample(*arguments, **options):
        calls.append(1)
        if len(calls) == step + 1:
            send()
        return real(*arguments, **options)

    monkeypatch.setattr(nano, "sample", sample)
    result = solve([QUESTION, "What is 3 + 4?"], nano, LONG)
    for each in result:
        assert each.stop_reason == "interrupted"
        assert each.text
        assert whole(each)
    assert len(calls) == step + 1


def test_ctrl_c_at_every_moment_of_a_search_loses_nothing(nano):
    """Between any two lines of ours, from where Ctrl-C is a search's: sixty, spread over it."""
    config = SearchConfig(expansions=3, children=2, step_tokens=8, rollout_tokens=30)
    lines, due = [0], -1

    def trace(frame, event, argument):
        if "marco_fast" not in frame.f_code.co_filename:
            return None
        if event == "line" and signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            lines[0] += 1
            if lines[0] == due:
                send()
        return trace

    def traced():
        lines[0] = 0
        sys.settrace(trace)
        try:
            return solve(QUESTION, nano, config)
        finally:
            sys.settrace(None)

    traced()
    everything, ends = lines[0], set()
    for part in range(60):
        due = 1 + part * (everything - 1) // 60
        result = traced()
        ends.add(result.stop_reason)
        assert whole(result), due
        assert bool(result.text) == bool(result.stats.tokens), due
        assert nano.cache.used_pages == 0
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert ends <= {"interrupted", "expansions"}


def test_a_search_leaves_the_signals_of_a_program_alone(nano):
    heard = []
    mine = lambda number, frame: heard.append(number)  # noqa: E731
    signal.signal(signal.SIGTERM, mine)
    signal.signal(signal.SIGINT, mine)

    def watch(progress):
        if not heard:
            send()
            send(signal.SIGTERM)

    config = SearchConfig(expansions=30, step_tokens=8)
    result = solve(QUESTION, nano, config, progress=watch)
    assert result.stop_reason == "expansions"
    assert heard == [signal.SIGINT, signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is mine

    signal.signal(signal.SIGINT, signal.default_int_handler)
    seen = []
    solve(QUESTION, nano, config, progress=lambda _: seen.append(signal.getsignal(signal.SIGTERM)))
    assert set(seen) == {mine}


def test_ctrl_c_that_is_ignored_stays_ignored(nano):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    result = solve(QUESTION, nano, SearchConfig(expansions=4), progress=lambda _: send())
    assert result.stop_reason == "expansions"
    listening = Interrupts()
    with listening.listening(), interrupts() as event:
        send()
        assert not event.is_set()
        send(signal.SIGHUP)
        assert event.is_set()
    assert listening.number == signal.SIGHUP
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_search_in_another_thread_handles_no_signals(nano):
    seen = []
    ask = lambda: solve(  # noqa: E731
        QUESTION, nano, SearchConfig(expansions=2),
        progress=lambda _: seen.append(signal.getsignal(signal.SIGINT)),
    )  # fmt: skip
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert set(seen) == {signal.default_int_handler}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_ends_a_search_by_any_of_its_signals(nano, number):
    listening, sent = Interrupts(), []

    def watch(progress):
        if progress.tokens > 40 and not sent:
            sent.append(1)
            send(number)

    with listening.listening():
        result = solve(QUESTION, nano, LONG, progress=watch)
        assert (result.stop_reason, listening.number) == ("interrupted", number)
        assert whole(result)
        assert solve(QUESTION, nano, LONG).stop_reason == "interrupted"  # what it wanted to do next
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_second_signal_raises_but_for_one_that_comes_with_the_first(monkeypatch):
    listening = Interrupts()
    with listening.listening():
        with pytest.raises(KeyboardInterrupt):
            send()
        with interrupts() as event:
            send()
            assert not event.is_set()
            monkeypatch.setattr(module, "SAME_SECONDS", 0.0)
            with pytest.raises(KeyboardInterrupt):
                send(signal.SIGTERM)
    assert listening.number == signal.SIGINT


def test_until_it_is_held_a_signal_may_end_the_process_at_once():
    ended = []
    listening = Interrupts(ended.append)
    with listening.listening():
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
        assert ended == [signal.SIGTERM]
        with interrupts():
            send(signal.SIGTERM)
            time.sleep(0.01)
    assert ended == [signal.SIGTERM]
