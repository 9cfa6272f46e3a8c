"""One action of solve(): steps, mini-steps, rollouts, reflection, the end of the context."""

import dataclasses

import pytest

from marco_fast import Engine, SearchConfig, solve
from marco_fast.search.marco import REFLECTION, as_messages
from tests.support.searches import ATOL, QUESTION, SMALL


def test_the_end_of_the_context_is_terminal(folders, plain):
    with Engine.from_pretrained(folders["qwen2"]) as engine:
        prompt = len(engine.prompt_token_ids(as_messages(QUESTION), ""))
        engine.context = prompt + 20
        result = solve(QUESTION, engine, dataclasses.replace(SMALL, rollout_tokens=100))
    lengths = {len(result.tree.path_token_ids(n)) for n, t in enumerate(result.tree.terminal) if t}
    assert max(lengths) == 20
    assert {result.tree.end[n] for n, t in enumerate(result.tree.terminal) if t} >= {"context"}
    assert plain("qwen2").check(result, ATOL) > 100


@pytest.mark.parametrize("step_tokens", [3, 4, 5, 32])
def test_reflection_takes_the_end_of_the_thought_back_once(nano, plain, step_tokens):
    """Also where a mini-step would end inside the tag."""
    config = SearchConfig(expansions=6, reflect=True, step_tokens=step_tokens)
    result = solve(QUESTION, nano, config)
    assert plain("nano-marco").check(result, ATOL) > 100
    tree = result.tree
    ends = [node for node, done in enumerate(tree.finished) if done]
    assert ends
    phrase = nano.tokenizer(REFLECTION, add_special_tokens=False)["input_ids"]
    for end in ends:
        text = nano.tokenizer.decode(tree.path_token_ids(end))
        assert text.count(REFLECTION.strip()) == 1
        assert text.count("</Thought>") == 1
        assert text.index(REFLECTION.strip()) < text.index("</Thought>")
        assert not text.partition(REFLECTION)[0].endswith(("<", "</", "</T", "</Th", "</Thought"))
        forced = sum(lp is None for node in tree.path(end) for lp in tree.logprobs[node])
        assert forced == len(phrase)


def test_no_reflection_that_the_context_would_cut_off(nano, monkeypatch):
    """It needs room for the phrase and for as long a thought again, token for token."""
    config = SearchConfig(expansions=1, temperature=0.0, reflect=True, rollout_tokens=900)
    plainly = solve(QUESTION, nano, dataclasses.replace(config, reflect=False))
    end = plainly.answer_node
    pieces = [nano.token_bytes[token] for token in plainly.tree.path_token_ids(end)]
    thought = next(n for n in range(len(pieces)) if b"</Thought>" in b"".join(pieces[: n + 1])) + 1
    phrase = len(nano.tokenizer(REFLECTION, add_special_tokens=False)["input_ids"])
    needed = len(plainly.prompt_token_ids) + thought + phrase + thought
    for context, reflects in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(nano, "context", context)
        result = solve(QUESTION, nano, config)
        tokens = result.tree.path_token_ids(result.answer_node)
        assert (REFLECTION.strip() in nano.tokenizer.decode(tokens)) == reflects
        if not reflects:
            assert tokens == plainly.tree.path_token_ids(end)
            assert result.answer == plainly.answer != ""


def test_steps_end_at_blank_lines(nano):
    result = solve(QUESTION, nano, SearchConfig(expansions=12, action="step"))
    tree = result.tree
    cut = [n for n in range(1, len(tree)) if tree.children[n] and not tree.terminal[n]]
    assert len(cut) >= 3
    for node in cut:
        text = nano.tokenizer.decode(tree.token_ids[node])
        assert "\n\n" in text.lstrip("\n")
        assert "\n\n" not in text.lstrip("\n").rstrip("\n")


def test_mini_steps_have_their_length_unless_the_path_ends(tiny):
    result = solve("q", tiny, dataclasses.replace(SMALL, rollout_tokens=20))
    tree = result.tree
    for node in range(1, len(tree)):
        assert len(tree.token_ids[node]) <= 8
        if tree.children[node]:
            assert len(tree.token_ids[node]) == 8
    ends = [n for n in range(1, len(tree)) if not tree.children[n] and not tree.terminal[n]]
    assert {len(tree.token_ids[n]) for n in ends} <= {4, 8}  # 8 + 8 + 8 + 4, or not rolled out


def test_without_rollouts_a_branch_is_one_action(tiny, plain):
    result = solve("q", tiny, dataclasses.replace(SMALL, rollout_tokens=0, expansions=30))
    assert len(result.tree) == 31
    assert result.stats.rollout_nodes == 0
    assert result.stats.kv_tokens_path > result.stats.kv_tokens_unique
    plain("qwen2").check(result, ATOL)
