"""solve() with few pages: slower, the same numbers, and the best so far where it runs out."""

import dataclasses

import pytest

from marco_fast import Engine, KVCacheFull, SearchConfig, solve
from marco_fast.engine.branches import Branch
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


def test_too_few_pages_for_one_branch_is_kv_cache_full(folders):
    with Engine.from_pretrained(folders["qwen2"], kv_tokens=32) as engine:
        engine.context = 512
        with pytest.raises(KVCacheFull, match=r"expected at least \d+ free KV pages, got \d+"):
            solve(QUESTION, engine, SMALL)
        assert engine.cache.used_pages == 0


def test_running_out_in_mid_search_returns_the_best_so_far(folders, plain):
    """The prompt and a start fit, one path to its end does not."""
    config = dataclasses.replace(SMALL, step_tokens=8, rollout_tokens=100, parallel=1)
    with Engine.from_pretrained(folders["qwen2"], kv_tokens=512) as engine:
        prompt = len(engine.prompt_token_ids(as_messages(QUESTION), ""))
    with Engine.from_pretrained(folders["qwen2"], kv_tokens=16 * (prompt // 16 + 6)) as engine:
        engine.context = 512
        result = solve(QUESTION, engine, config)
        assert engine.cache.used_pages == 0
    assert result.stop_reason == "kv_full"
    assert isinstance(result.error, KVCacheFull)
    assert result.error.total == prompt // 16 + 6
    assert plain("qwen2").check(result, ATOL) > 16
