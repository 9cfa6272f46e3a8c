"""Whose turn it is on an engine: callbacks of its own search, threads, forked processes."""

import asyncio
import os
import signal
import threading

import pytest
import torch

from marco_fast import Engine, Reply, ReplyFormat, SearchConfig, solve
from tests.support.searches import QUESTION, same_tree

CONFIG = SearchConfig(expansions=3, step_tokens=8, rollout_tokens=8, parallel=2)


@pytest.fixture
def engine(qwen2):
    with Engine.from_pretrained(qwen2, kv_tokens=2048) as made:
        yield made


def calls_back(call) -> dict[str, dict]:
    """Options of solve() with which each of a caller's functions does `call()`."""

    def parse(text: str) -> Reply:
        call()
        return Reply("", text)

    form = ReplyFormat("own", b"", b"e", parse)
    whole = ReplyFormat("own", b"", b"e", lambda text: Reply("", text))
    return {
        "value": {"value": lambda tokens, confidences, text: call() or 0.5},
        "select": {"select": lambda tree, config: call()},
        "parse": {"reply": form},
        "answer": {"reply": whole, "answer": lambda tree, answers: call()},
    }


@pytest.mark.parametrize("name", calls_back(None))
@pytest.mark.parametrize("inner", ["solve", "close", "in a task"])
def test_a_search_inside_a_search_is_refused_at_once(engine, name, inner):
    async def task() -> None:
        solve("q", engine, CONFIG)

    calls = {
        "solve": lambda: solve("q", engine, CONFIG),
        "close": engine.close,
        "in a task": lambda: asyncio.run(task()),
    }
    seen = []

    def call() -> None:
        try:
            calls[inner]()
        except ValueError as error:
            seen.append(error)
            raise

    options = {"expansions": 40, "step_tokens": 8, "temperature": 1.0, "parallel": 2}
    config = SearchConfig(**options, **calls_back(call)[name])
    if name == "select":  # nothing was decoded yet
        with pytest.raises(ValueError, match="that is searching"):
            solve(QUESTION, engine, config)
    else:
        result = solve(QUESTION, engine, config)
        assert result.stop_reason == "error"
        assert result.error in seen
        assert len(result.tree) > 1
    assert "a function that a search calls needs an engine of its own" in str(seen[-1])
    assert engine.cache.used_pages == 0
    assert solve("q", engine, CONFIG).stats.expansions == 3


def test_a_progress_function_that_searches_is_refused_and_the_search_goes_on(engine):
    with pytest.warns(RuntimeWarning, match="that this thread does not use already"):
        result = solve("q", engine, CONFIG, progress=lambda _: solve("q", engine, CONFIG))
    assert result.stop_reason == "expansions"


def test_another_engine_may_judge(engine, qwen2):
    with Engine.from_pretrained(qwen2, kv_tokens=1024) as judge:

        def judged(tokens, confidences, text) -> float:
            return solve("q", judge, CONFIG).tree.value(0)

        result = solve("q", engine, SearchConfig(expansions=3, value=judged))
    assert result.stats.expansions == 3


def test_a_second_thread_waits_its_turn(engine):
    want = solve("q", engine, CONFIG)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(solve("q", engine, CONFIG)))
        for _ in range(4)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert all(same_tree(want, each) for each in results)
    assert len(results) == 4


def in_child(act) -> str:
    """What `act` returns in a forked child that is given ten seconds."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(10)
            os.write(writing, act().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        said = file.read().decode()
    os.waitpid(child, 0)
    return said


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_gets_an_error_while_the_parent_searches_and_else_an_engine(engine):
    def refused() -> str:
        try:
            solve("q", engine, CONFIG)
        except ValueError as error:
            return str(error)
        return "searched"

    said = []

    def value(tokens, confidences, text) -> float:
        said.append(in_child(refused))
        return 0.5

    solve("q", engine, SearchConfig(expansions=1, step_tokens=4, rollout_tokens=0, value=value))
    assert "expected an engine that was idle when this process was forked" in said[0]

    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    want = solve("q", engine, CONFIG)
    got = in_child(lambda: repr(solve("q", engine, CONFIG).tree.rows() == want.tree.rows()))
    torch.set_num_threads(torch_threads)
    assert got == "True"
    assert same_tree(solve("q", engine, CONFIG), want)
