"""How solve() ends: budgets, Ctrl-C, and errors that lose nothing."""

import dataclasses
import os
import signal

import pytest

from marco_fast import ModelError, SearchConfig, solve
from marco_fast.forest.result import Progress
from tests.support.searches import ATOL, QUESTION, SMALL


@pytest.mark.parametrize(("budget", "value"), [("max_tokens", 100), ("max_seconds", 0.3)])
def test_budgets_end_the_search_with_the_best_so_far(tiny, plain, budget, value):
    config = dataclasses.replace(SMALL, expansions=10**6, **{budget: value})
    result = solve("q", tiny, config)
    assert result.stop_reason == budget.removeprefix("max_")
    assert tiny.cache.used_pages == 0
    assert len(result.tree) > 1
    plain("qwen2").check(result, ATOL)
    if budget == "max_tokens":
        assert result.stats.tokens == sum(map(len, result.tree.token_ids)) == 100


@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_a_tree_whose_paths_all_end_grows_on_unless_it_is_greedy(nano, temperature):
    config = SearchConfig(expansions=50, children=2, step_tokens=400, temperature=temperature)
    result = solve(QUESTION, nano, config)
    done = ("expansions", 50) if temperature else ("exhausted", 1)
    assert (result.stop_reason, result.stats.expansions) == done
    tree = result.tree
    assert sum(tree.ended) == done[1] >= tree.distinct_paths == len(tree) - 1


@pytest.fixture
def listening():
    """Ctrl-C as at a terminal: a process that a script put into the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_returns_the_best_so_far_and_the_handler_is_put_back(nano, plain, listening):
    sent = []

    def interrupt(progress: Progress) -> None:
        if progress.tokens > 300 and not sent:
            sent.append(progress)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    config = SearchConfig(expansions=10**5, step_tokens=8, temperature=2.0)
    result = solve(QUESTION, nano, config, progress=interrupt)
    assert result.stop_reason == "interrupted"
    assert signal.getsignal(signal.SIGINT) is before
    assert nano.cache.used_pages == 0
    assert plain("nano-marco").check(result, ATOL) > 150
    assert solve(QUESTION, nano, SearchConfig(expansions=2)).answer  # the engine still works


@pytest.mark.parametrize("step", [0, 1, 7, 40])
def test_an_exception_in_the_model_ends_the_search_with_the_tree_intact(tiny, plain, step):
    calls, sample = 0, tiny.sample

    def failing(*args, **options):
        nonlocal calls
        calls += 1
        if calls > step:
            raise RuntimeError("the matrix is on fire")
        return sample(*args, **options)

    tiny.sample = failing
    if step == 0:
        with pytest.raises(RuntimeError, match="on fire"):
            solve("q", tiny, SMALL)
    else:
        result = solve("q", tiny, SMALL)
        assert result.stop_reason == "error"
        assert "on fire" in str(result.error)
        assert not any(result.tree.virtual_visits)
        plain("qwen2").check(result, ATOL)
    assert tiny.cache.used_pages == 0
    assert not tiny.lock.locked()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error_not_a_token(tiny, plain, value):
    step, calls = tiny.runner.step, []

    def spoiled(*args, **options):
        hidden = step(*args, **options)
        if len(hidden):
            calls.append(args)
        if len(calls) == 5:
            hidden[0, 7] = value
        return hidden

    tiny.runner.step = spoiled
    result = solve("q", tiny, SMALL)
    assert result.stop_reason == "error"
    assert isinstance(result.error, ModelError)
    assert tiny.cache.used_pages == 0
    plain("qwen2").check(result, ATOL)


def test_no_time_at_all_is_an_empty_answer(tiny):
    result = solve("q", tiny, dataclasses.replace(SMALL, max_seconds=0))
    assert (result.stop_reason, result.answer, result.confidence) == ("seconds", "", 0.0)
    assert len(result.tree) == 1
    assert tiny.cache.used_pages == 0


@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 7, 17, 50])
def test_a_budget_of_tokens_is_used_to_the_last_one(tiny, plain, budget, parallel):
    config = dataclasses.replace(SMALL, expansions=100, max_tokens=budget, parallel=parallel)
    result = solve("q", tiny, config)
    assert result.stop_reason == "tokens"
    assert result.stats.tokens == sum(map(len, result.tree.token_ids)) == budget
    assert plain("qwen2").check(result, ATOL) == budget
    assert not any(result.tree.virtual_visits)


@pytest.mark.parametrize("budget", range(60, 130, 5))
def test_a_reflection_never_exceeds_the_budget(nano, budget):
    config = SearchConfig(
        expansions=50, parallel=4, reflect=True, temperature=0.0, max_tokens=budget * 4
    )
    result = solve(QUESTION, nano, config)
    assert result.stats.tokens <= budget * 4
    if result.stop_reason == "tokens":
        assert result.stats.tokens == budget * 4


def test_a_budget_that_the_search_just_needs_does_not_stop_it(tiny):
    whole = solve("q", tiny, SMALL)
    config = dataclasses.replace(SMALL, max_tokens=whole.stats.tokens)
    result = solve("q", tiny, config)
    assert (result.stop_reason, result.stats.expansions) == ("expansions", SMALL.expansions)
    assert result.tree.rows() == whole.tree.rows()


@pytest.mark.parametrize("budget", [1, 30])
def test_every_question_has_the_budget_of_tokens(tiny, budget):
    for result in solve(["q", "why?", "who?"], tiny, dataclasses.replace(SMALL, max_tokens=budget)):
        assert (result.stop_reason, result.stats.tokens) == ("tokens", budget)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_what_is_in_flight_when_the_search_breaks_off_stays_in_the_tree(tiny, plain, failure):
    """Nothing had come to its end yet: the first rollouts are all there is."""
    calls, sample = [], tiny.runner.sample

    def failing(*args):
        calls.append(args)
        if len(calls) > 20:
            raise failure("broken off")
        return sample(*args)

    tiny.runner.sample = failing
    config = dataclasses.replace(SMALL, step_tokens=64, parallel=4)
    result = solve("q", tiny, config)
    assert result.stats.tokens == sum(map(len, result.tree.token_ids)) == 80
    assert result.text
    assert result.stop_reason == ("interrupted" if failure is KeyboardInterrupt else "error")
    assert plain("qwen2").check(result, ATOL) == 80
