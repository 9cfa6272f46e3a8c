"""A caller's own functions that fail or return nonsense: typed results, nothing lost, no harm."""

import dataclasses
import math
import signal
import sys
import time

import numpy as np
import pytest

from marco_fast import Reply, ReplyFormat, SearchConfig, solve
from tests.support.searches import QUESTION, same_tree

CONFIG = SearchConfig(expansions=6, step_tokens=16, rollout_tokens=200, parallel=3)
AFTER = SearchConfig(expansions=1, step_tokens=8, rollout_tokens=0)


def oldest(tree, config):
    """The oldest node with a free child slot."""
    free = (n for n in range(len(tree)) if tree.started[n] < tree.slots and not tree.terminal[n])
    return next(free, None)


WHOLE = ReplyFormat("own", b"", b"</Thought>", lambda text: Reply(text, text))


def options(name: str, function) -> dict:
    """Those of solve() with `function` as one of the caller's own functions."""
    if name == "progress":
        return {"config": CONFIG, "progress": function}
    value = WHOLE._replace(parse=function) if name == "reply" else function
    return {"config": dataclasses.replace(CONFIG, **{name: value})}


RIGHT = {
    "value": lambda tokens, confidences, text: 0.5,
    "select": oldest,
    "reply": WHOLE.parse,
    "answer": lambda tree, answers: min(answers),
    "progress": lambda progress: None,
}


class Failing:
    """One of the functions, until it fails for good."""

    def __init__(self, name: str, calls: int, act) -> None:
        self.right, self.calls, self.act = RIGHT[name], calls, act

    def __call__(self, *args):
        self.calls -= 1
        return self.act() if self.calls < 0 else self.right(*args)


def usable(engine) -> None:
    assert engine.cache.used_pages == 0
    assert not engine.lock.locked()
    assert solve(QUESTION, engine, AFTER).stats.expansions == 1


def whole(result) -> None:
    """The result says and saves what there is."""
    tree = result.tree
    assert not any(tree.virtual_visits)
    assert all(0 <= parent < node for node, parent in enumerate(tree.parent) if node)
    assert len(result.to_dict()["nodes"]) == len(tree)
    assert type(result.answer_node) is int
    assert isinstance(result.answer + result.thought + result.text, str)


@pytest.fixture
def often(monkeypatch):
    """Progress is reported after every step."""
    monkeypatch.setattr("marco_fast.forest.forest.REPORT_SECONDS", 0.0)


@pytest.mark.parametrize("calls", [0, 3])
@pytest.mark.parametrize("name", ["value", "select", "reply", "answer"])
@pytest.mark.parametrize(
    "failure", [ZeroDivisionError, MemoryError, RecursionError, StopIteration, OSError, Warning]
)
def test_a_function_that_fails_ends_the_search_with_what_it_has(nano, name, failure, calls):
    def fail():
        raise failure("mine")

    keywords = options(name, Failing(name, calls, fail))
    if (name, calls) == ("select", 0):  # nothing was decoded
        with pytest.raises(failure, match="mine"):
            solve(QUESTION, nano, **keywords)
    else:
        failing = (name, calls) not in [("answer", 3)]  # it is asked once
        result = solve(QUESTION, nano, **keywords)
        whole(result)
        assert (result.stop_reason, type(result.error)) == (
            ("error", failure) if failing else ("expansions", type(None))
        )
        assert result.stats.tokens > 0
        assert len(result.tree) > 1
        assert result.text
    usable(nano)


@pytest.mark.parametrize("calls", [0, 2])
@pytest.mark.parametrize("name", ["value", "select", "reply", "answer", "progress"])
def test_ctrl_c_in_a_function_ends_the_search_with_what_it_has(nano, often, name, calls):
    def interrupt():
        raise KeyboardInterrupt

    result = solve(QUESTION, nano, **options(name, Failing(name, calls, interrupt)))
    whole(result)
    if name != "answer":
        assert result.stop_reason == "interrupted"
    elif calls == 0:
        assert (result.stop_reason, type(result.error)) == ("error", KeyboardInterrupt)
        assert result.stats.expansions == 6
    usable(nano)


@pytest.mark.parametrize("calls", [0, 2])
@pytest.mark.parametrize("name", ["value", "select", "reply", "progress"])
@pytest.mark.parametrize("failure", [SystemExit, GeneratorExit])
def test_leaving_the_program_is_not_held_up(nano, often, name, failure, calls):
    def leave():
        raise failure

    with pytest.raises(failure):
        solve(QUESTION, nano, **options(name, Failing(name, calls, leave)))
    usable(nano)


@pytest.mark.parametrize("calls", [0, 2, 30])
def test_a_progress_function_that_fails_costs_the_search_nothing(nano, often, calls):
    def fail():
        raise BrokenPipeError("the terminal is gone")

    failing = Failing("progress", calls, fail)
    with pytest.warns(RuntimeWarning, match="BrokenPipeError: the terminal is gone"):
        result = solve(QUESTION, nano, CONFIG, progress=failing)
    assert failing.calls == -1  # it is called once more and then no more
    assert (result.stop_reason, result.error) == ("expansions", None)
    assert same_tree(result, solve(QUESTION, nano, CONFIG))


def test_an_error_of_a_progress_function_that_cannot_be_printed_costs_nothing_either(nano):
    class Mute(Exception):
        def __repr__(self) -> str:
            raise ZeroDivisionError

        __str__ = __repr__

    def fail():
        raise Mute

    with pytest.warns(RuntimeWarning, match="Mute: <exception str"):
        result = solve(QUESTION, nano, CONFIG, progress=Failing("progress", 0, fail))
    assert (result.stop_reason, result.error) == ("expansions", None)


class Odd:
    """An object whose every use is an error."""

    def __repr__(self) -> str:
        raise ZeroDivisionError

    __float__ = __index__ = __eq__ = __bool__ = __repr__
    __hash__ = None


EMPTY = Reply("", "")
NONSENSE = [
    "0.5", math.nan, math.inf, 1j, 10**400, [0.5], np.array([0.5, 0.5]), b"1", {}, Odd(), -1,
    10**9, 0.25, True, EMPTY, (None, None), Reply(1, None), Reply("", 5), Reply("", b"a"),
]  # fmt: skip
FINE = {
    "value": [-1, 10**9, 0.25, True],
    "reply": [EMPTY],
    "select": [],
    "answer": [],
}


@pytest.mark.parametrize("returned", NONSENSE, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("name", FINE)
def test_nonsense_from_a_function_is_an_error_that_says_what_was_expected(nano, name, returned):
    function = Failing(name, {"answer": 0, "select": 4}.get(name, 1), lambda: returned)
    result = solve(QUESTION, nano, **options(name, function))
    whole(result)
    if any(returned is each for each in FINE[name]):
        assert result.stop_reason in ("expansions", "exhausted")
    else:
        assert (result.stop_reason, type(result.error)) == ("error", ValueError)
        assert str(result.error).startswith("expected")
    usable(nano)


@pytest.mark.parametrize("name", ["value", "reply"])
def test_none_is_no_value_and_no_reply(nano, name):
    result = solve(QUESTION, nano, **options(name, lambda *args: None))
    whole(result)
    assert result.stop_reason == "error"
    assert "got None" in str(result.error)
    usable(nano)


def test_the_node_of_an_answer_rule_is_kept_as_an_int(nano):
    config = dataclasses.replace(CONFIG, answer=lambda tree, answers: np.int64(min(answers)))
    result = solve(QUESTION, nano, config)
    whole(result)
    assert result.answer_node == min(result.path_answers)


def test_a_rule_that_spoils_its_copy_of_the_answers_spoils_nothing(nano):
    def spoil(tree, answers) -> int:
        chosen = min(answers)
        answers.clear()
        return chosen

    result = solve(QUESTION, nano, dataclasses.replace(CONFIG, answer=spoil))
    assert result.answer == result.path_answers[result.answer_node] != ""


def test_an_error_among_several_questions_keeps_what_each_has(nano):
    def value(tokens, confidences, text) -> float:
        if len(calls) == 7:
            raise ZeroDivisionError
        calls.append(text)
        return 0.5

    calls: list[str] = []
    questions = [QUESTION, "What is 17 + 26?"]
    results = solve(questions, nano, dataclasses.replace(CONFIG, value=value))
    for result in results:
        whole(result)
        assert result.stop_reason == "error"
        assert isinstance(result.error, ZeroDivisionError)
    assert sum(result.stats.expansions for result in results) == 7
    usable(nano)


def test_a_slow_function_does_not_outlast_the_budget_of_time(nano):
    def value(tokens, confidences, text) -> float:
        time.sleep(0.05)
        return 0.5

    config = dataclasses.replace(CONFIG, value=value, expansions=1000, max_seconds=0.3)
    began = time.perf_counter()
    result = solve(QUESTION, nano, config)
    assert result.stop_reason == "seconds"
    assert time.perf_counter() - began < 5
    whole(result)


def test_a_value_as_bad_as_can_be_is_a_value(nano):
    def worst(tokens, confidences, text) -> float:
        return -sys.float_info.max

    config = dataclasses.replace(CONFIG, value=worst, expansions=40)
    result = solve(QUESTION, nano, config)
    assert result.stop_reason == "expansions"
    assert result.confidence == -sys.float_info.max
    whole(result)


def test_more_candidates_than_the_vocabulary_has_are_refused_before_the_search(nano, monkeypatch):
    monkeypatch.setattr(nano, "token_bytes", nano.token_bytes[:4])
    with pytest.raises(ValueError, match="expected top_k of at most 4, the model's vocabulary"):
        solve(QUESTION, nano, CONFIG)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
