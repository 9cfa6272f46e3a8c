"""solve() with few pages: slower, the same numbers, and the best so far where it runs out."""

import dataclasses

import pytest

from marco_fast import Engine, KVCacheFull, SearchConfig, solve
from marco_fast.engine.branches import Branch
from marco_fast.engine.native_runner import NativeRunner
from marco_fast.engine.scheduler import Scheduler
from marco_fast.search.marco import as_messages
from tests.support.models import CONFIGS
from tests.support.searches import ATOL, QUESTION, SMALL, count_calls, same_tree


def pages_of(result) -> int:
    """Pages that hold the prompt and every node that others may go on from."""
    tree = result.tree
    nodes = sum(
        -(-len(t) // 16) for t, end in zip(tree.token_ids, tree.terminal, strict=True) if not end
    )
    return -(-len(result.prompt_token_ids) // 16) + nodes


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_quarter_of_the_pages_only_makes_it_slower(folders, plain, kind):
    config = dataclasses.replace(SMALL, expansions=40, rollout_tokens=40, c_uct=5.0)
    with Engine.from_pretrained(folders[kind]) as engine:
        pages = pages_of(solve(QUESTION, engine, config))
    with Engine.from_pretrained(folders[kind], kv_tokens=16 * (pages // 4)) as engine:
        evictions = count_calls(engine.cache, "evict")
        result = solve(QUESTION, engine, config)
        assert engine.cache.used_pages == 0
        assert len(evictions) > 10
    assert result.stop_reason == "expansions"
    assert result.stats.expansions == 40
    assert plain(kind).check(result, ATOL) > 500


@pytest.mark.parametrize("kind", CONFIGS)
def test_with_one_branch_at_a_time_a_quarter_of_the_pages_gives_the_same_tree(folders, kind):
    config = dataclasses.replace(SMALL, expansions=30, rollout_tokens=40, parallel=1, c_uct=5.0)
    with Engine.from_pretrained(folders[kind]) as engine:
        roomy = solve(QUESTION, engine, config)
    with Engine.from_pretrained(folders[kind], kv_tokens=16 * (pages_of(roomy) // 4)) as engine:
        evictions = count_calls(engine.cache, "evict")
        tight = solve(QUESTION, engine, config)
        assert len(evictions) > 10
    assert same_tree(roomy, tight)


def test_branches_are_preempted_when_nothing_can_be_evicted(folders, plain, monkeypatch):
    """Six branches whose own segments alone need more pages than there are."""
    waited = []
    preempt = Scheduler._preempt

    def recorded(scheduler: Scheduler, branch: Branch) -> None:
        waited.append(branch)
        preempt(scheduler, branch)

    monkeypatch.setattr(Scheduler, "_preempt", recorded)
    config = dataclasses.replace(SMALL, step_tokens=64, rollout_tokens=0, expansions=8, children=8)
    with Engine.from_pretrained(folders["qwen2"], kv_tokens=16 * 14) as engine:
        result = solve(QUESTION, engine, config)
        assert engine.cache.used_pages == 0
    assert result.stats.expansions == 8
    assert waited
    assert plain("qwen2").check(result, ATOL) == 8 * 64


def test_a_full_cache_is_not_searched_for_every_page(monkeypatch):
    """The segments are looked through once for many evictions, not once for each."""
    with Engine.from_pretrained("nano-marco", kv_tokens=8192) as engine:
        looked = count_calls(engine.cache, "is_resident")
        config = SearchConfig(expansions=400, step_tokens=4, rollout_tokens=64, seed=2)
        result = solve(QUESTION, engine, config)
    segments = len(result.tree)
    evictions = segments - 512  # each node has a page at least
    assert evictions > 500
    assert len(looked) < 300 * segments


def test_a_prompt_without_a_page_for_one_branch_is_kv_cache_full(folders):
    with Engine.from_pretrained(folders["qwen2"], kv_tokens=32) as engine:
        engine.context = 512
        with pytest.raises(KVCacheFull, match=r"at least \d+ free KV pages, got 2 free") as caught:
            solve(QUESTION, engine, SMALL)
        prompt = len(engine.prompt_token_ids(as_messages(QUESTION), ""))
        assert (caught.value.needed, caught.value.total) == (-(-(prompt - 1) // 16) + 1, 2)
        assert "fewer branches" not in str(caught.value)
        assert engine.cache.used_pages == 0


def ends_full(engine, result) -> list[int]:
    """Nodes whose path was cut off because it fills the whole cache."""
    tree = result.tree
    pages = []
    for node in range(1, len(tree)):
        tokens = [len(tree.token_ids[each]) for each in tree.path(node)[1:]]
        prompt = -(-(len(result.prompt_token_ids) - 1) // 16)
        pages.append(prompt + sum(-(-count // 16) for count in tokens))
    text = [result.to_dict()["nodes"][node]["texts"] for node in range(1, len(tree))]
    cut = [
        node
        for node in range(1, len(tree))
        if tree.terminal[node]
        and not tree.children[node]
        and tree.token_ids[node][-1] not in engine.eos_ids
        and "</Output>" not in "".join(text[node - 1])
    ]
    assert all(pages[node - 1] == engine.cache.num_pages for node in cut)
    assert not any(tree.finished[node] for node in cut)
    return cut


@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("step_tokens", [1, 8, 40, 200])
def test_a_path_as_long_as_the_cache_ends_alone(folders, plain, parallel, step_tokens):
    config = dataclasses.replace(
        SMALL, step_tokens=step_tokens, rollout_tokens=200, parallel=parallel, children=3
    )
    with Engine.from_pretrained(folders["qwen2"], kv_tokens=16 * 9) as engine:
        engine.context = 512
        result = solve("why?", engine, config)
        assert engine.cache.used_pages == 0
        assert ends_full(engine, result)
    assert (result.stop_reason, result.error) in (("expansions", None), ("exhausted", None))
    assert not any(result.tree.virtual_visits)
    assert result.stats.tokens == sum(map(len, result.tree.token_ids))
    assert result.text
    assert plain("qwen2").check(result, ATOL) > 50


def test_a_transformers_model_ends_such_paths_alike(folders, plain, monkeypatch):
    monkeypatch.setattr(NativeRunner, "of", lambda model, cache: None)
    config = dataclasses.replace(SMALL, step_tokens=1, rollout_tokens=200, parallel=3)
    with Engine.from_pretrained(folders["qwen2"], kv_tokens=16 * 9) as engine:
        engine.context = 512
        result = solve("why?", engine, config)
        assert ends_full(engine, result)
    assert plain("qwen2").check(result, ATOL) > 20


def test_an_answer_that_needs_all_pages_but_one_is_reached():
    config = SearchConfig(expansions=4, temperature=0.0, children=1, step_tokens=400)
    with Engine.from_pretrained("nano-marco") as engine:
        roomy = solve(QUESTION, engine, config)
    pages = -(-(len(roomy.prompt_token_ids) - 1) // 16) + -(-len(roomy.tree.token_ids[1]) // 16)
    for spare in (0, 1):
        with Engine.from_pretrained("nano-marco", kv_tokens=16 * (pages + spare)) as engine:
            engine.context = 1024
            tight = solve(QUESTION, engine, dataclasses.replace(config, parallel=4))
        assert tight.answer == roomy.answer != ""
        assert same_tree(tight, roomy)


def test_a_list_is_answered_but_for_the_prompt_that_does_not_fit(folders, plain):
    questions = ["why?", "how " * 40, "who?"]
    with Engine.from_pretrained(folders["qwen2"], kv_tokens=16 * 8) as engine:
        engine.context = 512
        first, long, last = solve(questions, engine, SMALL)
        assert engine.cache.used_pages == 0
        with pytest.raises(KVCacheFull):
            solve(questions[1:2] * 2, engine, SMALL)
    assert (long.stop_reason, long.answer, len(long.tree)) == ("kv_full", "", 1)
    assert isinstance(long.error, KVCacheFull)
    assert long.error.needed > long.error.total == 8
    for result in (first, last):
        assert (result.stop_reason, result.stats.expansions) == ("expansions", 10)
        assert plain("qwen2").check(result, ATOL) > 100


def test_nodes_that_fill_the_cache_are_closed_when_they_are_selected(folders):
    """Each ends on the last page by its length, so that only its next child finds no page."""
    with Engine.from_pretrained(folders["qwen2"], kv_tokens=16 * 5) as engine:
        engine.context = 512
        prompt = len(engine.prompt_token_ids(as_messages("q"), "")) - 1
        pages = engine.cache.num_pages - -(-prompt // 16)
        config = dataclasses.replace(SMALL, step_tokens=16 * pages, rollout_tokens=0, children=2)
        result = solve("q", engine, config)
    assert (result.stop_reason, result.stats.expansions) == ("exhausted", 2)
    assert result.tree.terminal == [False, True, True]
    assert result.tree.end[:2] == [None, "kv_full"]


def test_running_out_in_mid_search_costs_neither_the_path_nor_the_rest(folders, plain):
    """The prompt and a start fit, one path to its end does not."""
    config = dataclasses.replace(SMALL, step_tokens=8, rollout_tokens=100, parallel=1)
    with Engine.from_pretrained(folders["qwen2"], kv_tokens=512) as engine:
        prompt = len(engine.prompt_token_ids(as_messages(QUESTION), ""))
    with Engine.from_pretrained(folders["qwen2"], kv_tokens=16 * (prompt // 16 + 6)) as engine:
        engine.context = 512
        result = solve(QUESTION, engine, config)
        assert engine.cache.used_pages == 0
    assert (result.stop_reason, result.stats.expansions) == ("expansions", 10)
    assert plain("qwen2").check(result, ATOL) > 200


def test_what_a_cache_held_before_does_not_change_which_segments_it_evicts(folders):
    """Ids of the cache are reused in another order then."""
    config = dataclasses.replace(SMALL, expansions=20, rollout_tokens=60, c_uct=5.0)
    with Engine.from_pretrained(folders["qwen2"], kv_tokens=16 * 24) as engine:
        evictions = count_calls(engine.cache, "evict")
        first = solve(QUESTION, engine, config)
        assert len(evictions) > 10
        solve("Another one?", engine, config)
        assert same_tree(first, solve(QUESTION, engine, config))
