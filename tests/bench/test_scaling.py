"""How a decode step grows: the trees of the sweeps, and that a point is measured both ways."""

import pytest

import marco_fast as mf
from bench.engines import scaling


def test_deeper_combs_have_the_same_tokens():
    depths, trees = zip(*scaling.SWEEPS["depth"].trees.items(), strict=True)
    assert depths == (7, 38, 69, 100, 131, 162)
    assert len({sum(tree.lens) for tree in trees}) == 1
    assert {len(tree.leaves) for tree in trees} == {32}
    paths = [sum(scaling.alone(tree).lens) for tree in trees]
    assert paths == sorted(set(paths))


def test_a_tree_a_branch_shares_nothing():
    tree = scaling.questions(64, 64)
    assert sum(tree.lens) == sum(scaling.alone(tree).lens) == 64 * 576
    few = scaling.questions(4, 64)
    assert sum(few.lens) == 4 * 512 + 64 * 64
    assert [few.parents.count(root) for root in range(-1, 5)] == [4, 16, 16, 16, 16, 0]


@pytest.fixture(scope="module")
def engine():
    with mf.Engine.from_pretrained("nano-marco", kv_tokens=1024) as made:
        for layer in (*made.cache.k, *made.cache.v):
            layer.normal_()
        yield made


def test_a_point_is_measured_both_ways_and_leaves_nothing(engine):
    tree, page = scaling.prompt_and_branches(40, 3, 17), engine.cache.page_bytes
    assert scaling.check(engine, tree) < 1e-5
    point = scaling.measure(engine, tree, lambda kv, rows: kv + rows, rounds=2, budget=9.0)
    assert point["branches"] == 3
    assert engine.cache.used_pages == 0
    shared, unshared = point["shared"], point["unshared"]
    assert (shared["unique_tokens"], shared["path_tokens"]) == (91, 171)
    assert (unshared["unique_tokens"], unshared["path_tokens"]) == (171, 171)
    assert (shared["kv_bytes"], unshared["kv_bytes"]) == (9 * page, 12 * page)
    assert shared["floor_seconds"] == pytest.approx(91 * page // 16 + 3, rel=1e-4)
    assert shared["tokens_per_second"] == pytest.approx(3 / shared["seconds"], rel=1e-3)


def test_paths_that_differ_are_not_taken_for_equal(engine, monkeypatch):
    slots = scaling.Placed.path_slots
    monkeypatch.setattr(scaling.Placed, "path_slots", lambda *args: slots(*args)[1:])
    with pytest.raises(AssertionError, match="equal lse"):
        scaling.check(engine, scaling.prompt_and_branches(40, 2, 17))
