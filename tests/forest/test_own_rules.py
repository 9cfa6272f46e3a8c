"""solve() with rules of the caller's own: selection, reply format, answer."""

import pytest

from marco_fast import Engine, Reply, ReplyFormat, SearchConfig, SearchTree, solve

QUESTION = "How many times does the letter r occur in strawberry?"
SMALL = {"expansions": 8, "step_tokens": 16, "parallel": 4}


@pytest.fixture(scope="module")
def nano():
    with Engine.from_pretrained("nano-marco") as engine:
        yield engine


def broad(tree: SearchTree, config: SearchConfig) -> int | None:
    """The oldest node with a free child slot."""
    free = (n for n in range(len(tree)) if tree.started[n] < tree.slots and not tree.terminal[n])
    return next(free, None)


def test_a_selection_rule_of_ones_own(nano):
    result = solve(QUESTION, nano, SearchConfig(**SMALL, children=8, select=broad))
    assert result.tree.started[0] == 8
    assert result.to_dict()["config"]["select"] == "broad"


def test_a_selection_rule_that_fails_loses_nothing(nano):
    def failing(tree: SearchTree, config: SearchConfig) -> int | None:
        if tree.visits[0] > 2:
            raise ZeroDivisionError("my rule")
        return broad(tree, config)

    result = solve(QUESTION, nano, SearchConfig(**SMALL, select=failing))
    assert result.stop_reason == "error"
    assert isinstance(result.error, ZeroDivisionError)
    assert result.tree.visits[0] > 2
    assert nano.cache.used_pages == 0


def last_line(text: str) -> Reply:
    return Reply(text, text.splitlines()[-1] if text.endswith("</Thought>") else None)


def test_a_reply_format_of_ones_own_ends_paths_elsewhere(nano):
    form = ReplyFormat("thought alone", b"", b"</Thought>", last_line)
    result = solve(QUESTION, nano, SearchConfig(**SMALL, reply=form))
    assert result.answer == "</Thought>"
    assert result.text.endswith("</Thought>")
    assert "<Output>" not in result.text
    assert result.thought == result.text
    assert result.to_dict()["config"]["reply"] == "thought alone"


def test_a_reply_format_that_fails_loses_nothing(nano):
    def failing(text: str) -> Reply:
        raise ZeroDivisionError("my format")

    form = ReplyFormat("failing", b"", b"</Thought>", failing)
    result = solve(QUESTION, nano, SearchConfig(**SMALL, reply=form))
    assert (result.stop_reason, result.finished, result.thought) == ("error", False, "")
    assert result.answer == result.text.strip()
    assert "my format" in str(result.error)
    assert result.stats.tokens > 0
    assert nano.cache.used_pages == 0


def test_an_answer_rule_of_ones_own(nano):
    config = SearchConfig(**SMALL, answer=lambda tree, answers: min(answers, key=len_of(answers)))
    result = solve(QUESTION, nano, config)
    assert len(result.answer) == min(map(len, result.path_answers.values()))


def len_of(answers: dict[int, str]):
    return lambda node: (len(answers[node]), node)


@pytest.mark.parametrize("progress", [False, lambda progress: None])
def test_an_answer_rule_that_fails_loses_nothing(nano, progress):
    def failing(tree: SearchTree, answers: dict[int, str]) -> int:
        raise ZeroDivisionError("my rule")

    result = solve(QUESTION, nano, SearchConfig(**SMALL, answer=failing), progress=progress)
    assert result.stop_reason == "error"
    assert "my rule" in str(result.error)
    assert result.stats.expansions == SMALL["expansions"]
    assert result.path_answers
    assert (result.finished, result.answers, result.final, result.support) == (False, [], "", 0.0)
