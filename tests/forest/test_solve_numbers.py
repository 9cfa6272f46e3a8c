"""solve(), end to end: every number against a plain forward, every token against its draw."""

import dataclasses

import pytest
import torch

from marco_fast import Engine, SearchConfig, solve
from marco_fast.ops import reference
from tests.support.models import CONFIGS, PlainForward
from tests.support.searches import ATOL, QUESTION, SMALL, count_calls, same_tree

# nano-marco answers it in many ways, so that its paths hardly repeat each other.
HARD = (
    "Nora starts with 429 pencils. Luke takes 388 pencils from Nora. Luke gives Nora 552 pencils. "
    "Nora gives away 9 packs with 18 pencils each. She gives away 4 bags with 32 pencils each. "
    "Then she gets 421 pencils from Luke. Nora finds 48 more pencils. She loses 198 pencils. "
    "How many pencils does Nora have now?"
)


@pytest.mark.parametrize("action", ["step", "mini-step"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_number_equals_a_plain_forward(folders, plain, kind, action):
    config = dataclasses.replace(SMALL, action=action, max_step_tokens=12)
    with Engine.from_pretrained(folders[kind]) as engine:
        result = solve(QUESTION, engine, config)
        assert engine.cache.used_pages == 0
    assert result.stop_reason == "expansions"
    assert plain(kind).check(result, ATOL) > 150


@pytest.mark.parametrize("kind", ["qwen2", "llama3"])
def test_every_token_is_the_draw_of_its_nodes_seed_and_its_position(folders, plain, kind):
    """The definition's draws from a plain forward's logits give the tree's tokens."""
    with Engine.from_pretrained(folders[kind]) as engine:
        result = solve(QUESTION, engine, SMALL)
    tree, config, prompt = result.tree, result.config, result.prompt_token_ids
    drawn = other = 0
    for node in range(1, len(tree)):
        path = prompt + tree.path_token_ids(node)
        count = len(tree.token_ids[node])
        first = len(path) - count
        rows = plain(kind).logprobs(path)[first - 1 : -1]
        positions = torch.arange(first, len(path))
        options = {"temperature": config.temperature, "top_p": config.top_p, "positions": positions}
        for seed, is_its_own in ((tree.seed[node], True), (tree.seed[node] + 1, False)):
            seeds = torch.full((count,), seed)
            want = reference.sample_confidence(rows, seeds=seeds, **options).token_ids
            same = sum(a == b for a, b in zip(want.tolist(), tree.token_ids[node], strict=True))
            drawn += same if is_its_own else 0
            other += 0 if is_its_own else same
    total = sum(map(len, tree.token_ids))
    assert drawn >= 0.99 * total  # a draw within float32 rounding of a boundary may fall beside it
    assert other < 0.5 * total


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("action", ["step", "mini-step"])
def test_nano_marcos_numbers_equal_a_plain_forward(nano, plain, action, reflect):
    config = SearchConfig(
        expansions=12,
        action=action,
        reflect=reflect,
        step_tokens=16,
        max_step_tokens=48,
    )
    result = solve(HARD, nano, config)
    assert plain("nano-marco").check(result, ATOL) > 200
    assert nano.cache.used_pages == 0
    assert result.answer
    assert 0 < result.confidence <= 1
    assert result.thought


def test_the_same_call_gives_the_same_tree_and_another_seed_another(tiny):
    config = dataclasses.replace(SMALL, seed=3)
    first, second = (solve(QUESTION, tiny, config) for _ in range(2))
    assert same_tree(first, second)
    assert not same_tree(first, solve(QUESTION, tiny, dataclasses.replace(config, seed=4)))


def test_a_list_shares_batches_and_prompt_and_every_number_is_right(nano, plain):
    questions = [
        QUESTION,
        "How many times does the letter e occur in cheese?",
        "How many times does the letter o occur in moon?",
        QUESTION,
    ]
    config = SearchConfig(expansions=8, step_tokens=16, parallel=5)
    results = solve(questions, nano, config)
    assert [each.question for each in results] == questions
    for result in results:
        assert result.stats.expansions == 8
        assert plain("nano-marco").check(result, ATOL) > 30
    assert nano.cache.used_pages == 0
    assert solve([], nano, config) == []
    again = solve(questions, nano, config)
    assert all(same_tree(a, b) for a, b in zip(results, again, strict=True))


def test_a_prefix_that_all_prompts_share_is_one_node(tiny, plain):
    preamble = "Read this first: answer in as few words as you can. "
    questions = [preamble + each for each in ("Why?", "Who?", "When was that?", "")]
    roots = count_calls(tiny.cache, "add_root")
    results = solve(questions, tiny, dataclasses.replace(SMALL, expansions=4))
    assert len(roots) == 1
    for result in results:
        assert plain("qwen2").check(result, ATOL) > 30
    assert tiny.cache.used_pages == 0


def test_more_questions_than_branches(tiny, plain):
    tiny.max_branches = 3
    results = solve(
        [f"question {i}" for i in range(9)], tiny, dataclasses.replace(SMALL, expansions=3)
    )
    for result in results:
        assert result.stop_reason == "expansions"
        assert plain("qwen2").check(result, ATOL) > 20


def test_temperature_zero_is_the_most_likely_token(nano, plain):
    result = solve(QUESTION, nano, SearchConfig(expansions=1, temperature=0.0, step_tokens=400))
    (node,) = range(1, len(result.tree))
    tokens = result.tree.token_ids[node]
    logprobs = plain("nano-marco").logprobs(result.prompt_token_ids + tokens)
    greedy = logprobs[len(result.prompt_token_ids) - 1 : -1].argmax(-1)
    assert greedy.tolist() == tokens


def test_a_value_function_decides(nano):
    seen = []

    def longest(tokens, confidences, text) -> float:
        seen.append((len(tokens), len(confidences), text))
        return float(len(tokens))

    result = solve(QUESTION, nano, SearchConfig(expansions=6, value=longest, temperature=1.0))
    assert all(tokens == confidences for tokens, confidences, _ in seen)
    finished = [t for t, _, text in seen if "</Output>" in text]
    assert result.confidence == max(finished)
    assert len(result.tree.path_token_ids(result.answer_node)) == max(finished)


def test_bfloat16_numbers_are_nearer_to_the_exact_ones_than_a_bfloat16_forward(folders):
    """The decoder rounds what it multiplies; transformers rounds every result besides."""
    with Engine.from_pretrained(folders["qwen2"], dtype="bfloat16") as engine:
        result = solve(QUESTION, engine, SMALL)
    exact = PlainForward(folders["qwen2"], torch.bfloat16)
    exact.model.float()
    rounding = PlainForward(folders["qwen2"], torch.bfloat16)
    path = [*result.prompt_token_ids, *range(50, 80)]
    error = (rounding.logprobs(path) - exact.logprobs(path)).abs().max().item()
    assert exact.check(result, error) > 150
