"""The work list of tree attention on a device: its specification, what it covers, its one copy."""

import numpy as np
import pytest
import torch

import marco_fast as mf
from marco_fast.ops.attention import work_items as module
from marco_fast.ops.attention.work_items import SECTIONS, TreeItems, chunk_tokens, tree_items
from marco_fast.ops.reference.plan import PlainTreePlan
from marco_fast.ops.reference.work_items import pack_tree_items
from tests.support.trees import random_forest

CPU = torch.device("cpu")


def forest_of(seed: int, **changes):
    rng = np.random.default_rng(seed)
    options = {
        "nodes": int(rng.integers(1, 30)),
        "queries": int(rng.integers(0, 20)),
        "heads": int(rng.choice([1, 3, 7])),
        "head_dim": 16,
        "page_size": int(rng.choice([1, 8, 16])),
        "max_len": int(rng.choice([5, 40, 150])),
        "partial": bool(seed % 2),
        "roots": float(rng.choice([0.0, 0.3])),
    }
    return random_forest(seed, **{**options, **changes})


def items_of(plan: mf.TreeAttentionPlan, **options) -> TreeItems:
    return tree_items(
        plan.native,
        group=plan.num_heads // plan.num_kv_heads,
        num_kv_heads=plan.num_kv_heads,
        head_dim=plan.head_dim,
        device=CPU,
        **options,
    )


def small_chunks(monkeypatch, tokens: int, group: int) -> None:
    monkeypatch.setattr(module, "chunk_tokens", lambda head_dim: tokens)
    monkeypatch.setattr(module, "GROUP_TOKENS", group)


def growing(seed: int):
    """Arguments of a plan whose leaves may gain 20 tokens."""
    rng = np.random.default_rng(seed)
    forest = forest_of(seed, nodes=20, partial=False, page_size=16)
    childless = np.setdiff1d(np.arange(20), forest.parents)
    leaves = rng.permutation(childless)[:5]
    table = rng.integers(0, 50, (20, 16)).astype(np.int32)
    return forest.parents, forest.lens, table, leaves


@pytest.mark.parametrize("tile_rows", [0, 16, 32])
@pytest.mark.parametrize("seed", range(40))
def test_equals_its_specification(seed, tile_rows):
    options = (
        7,
        2,
        [8, 16, 128][seed % 3],
        [16, 64, 512][seed % 3],
        tile_rows,
        [1, 40, 512][seed % 3],
    )
    if seed % 4 == 0:
        arguments = (*growing(seed), None, 16, 20)
    else:
        forest = forest_of(seed)
        table = forest.tables()[0]
        arguments = (forest.parents, forest.lens, table, forest.leaves, forest.leaf_lens)
        arguments = (*arguments, forest.page_size, 0)
    extension = pytest.importorskip("marco_fast._C")
    native, plain = extension.make_tree_plan(*arguments), PlainTreePlan(*arguments)
    for step in range(3 if arguments[-1] else 1):
        if step:
            active = np.arange(len(arguments[3])) % 2 == step % 2
            native.advance(active)
            plain.advance(active)
        got, want = extension.pack_plan(native, *options), pack_tree_items(plain, *options)
        assert got.tolist() == want.tolist()


def path_tokens(plan: mf.TreeAttentionPlan, i: int) -> list[tuple[int, int]]:
    """(segment, token) of all that query i sees, root first."""
    segment, count, pieces = int(plan.query_segment[i]), int(plan.query_lens[i]), []
    while segment >= 0:
        pieces.append([(segment, t) for t in range(count)])
        segment = int(plan.segment_parents[segment])
        count = int(plan.segment_lens[segment])
    return [token for piece in pieces[::-1] for token in piece]


def chunk_groups(tokens: list[tuple[int, int]], step: int, group: int) -> list[tuple]:
    """(segment, first token, starts a group) of the chunks of a path, from the path alone."""
    chunks, fill = [], 0
    for segment, token in tokens:
        if token % step == 0:
            if fill >= group:
                fill = 0
            chunks.append((segment, token, fill == 0))
        fill += 1
    return chunks


def runs_of(items: TreeItems, group: int):
    """The distinct runs: (chunks, query_begin, query_end, place), after checking their tiles."""
    rows = items.items.view(-1, 6).tolist()
    chunks = [tuple(chunk) for chunk in items.chunks.view(-1, 2).tolist()]
    tiles: dict[tuple, list[int]] = {}
    for begin, end, query_begin, query_end, row, place in rows:
        key = (tuple(chunks[begin:end]), query_begin, query_end, place)
        tiles.setdefault(key, []).append(row)
    for (_, query_begin, query_end, _), firsts in tiles.items():
        assert firsts == list(range(0, (query_end - query_begin) * group, items.tile_rows))
    assert sum(len(key[0]) for key in tiles) == len(chunks)
    return list(tiles)


@pytest.mark.parametrize("enough_items", [1, 60, 10**6])
@pytest.mark.parametrize(("step", "group"), [(8, 24), (16, 16), (32, 100)])
@pytest.mark.parametrize("seed", range(12))
def test_every_token_once_in_the_order_of_the_path(seed, step, group, enough_items, monkeypatch):
    small_chunks(monkeypatch, step, group)
    forest = forest_of(seed)
    plan = forest.plan()
    items = items_of(plan, enough_items=enough_items)
    runs = runs_of(items, plan.num_heads)
    merged = items.merges.tolist()
    for i in range(plan.num_queries):
        mine = sorted((run for run in runs if run[1] <= i < run[2]), key=lambda run: run[3])
        assert [run[3] // 2 for run in mine] == list(range(len(mine)))
        partials = int(items.partial_begin[i + 1] - items.partial_begin[i])
        assert partials == (len(mine) if len(mine) > 1 else 0)
        assert (i in merged) == (len(mine) != 1)
        seen, starts = [], []
        for chunks, _, _, place in mine:
            for number, (segment, first) in enumerate(chunks):
                own = i < plan.own_end[segment]
                whole = int(plan.query_lens[i] if own else plan.segment_lens[segment])
                tokens = [(segment, t) for t in range(first, min(first + step, whole))]
                seen += tokens
                if tokens:
                    starts.append((segment, first, number == 0 and place % 2 == 0))
        assert seen == path_tokens(plan, i)
        # A run's later chunks go on with its group; and whether a chunk starts one is the path's.
        assert starts == chunk_groups(seen, step, group)
    assert items.num_partials == int(items.partial_begin[-1])


def test_a_chain_of_short_segments_is_one_run():
    tokens = torch.randn(2, 32, 1, 16)
    forest = random_forest(0, nodes=1, queries=1, heads=1, head_dim=16, roots=1.0)
    chain = type(forest)(
        np.arange(12) - 1, [tokens[0]] * 12, [tokens[1]] * 12, np.array([11]), forest.q, 16
    )
    items = items_of(chain.plan(), enough_items=1)
    assert items.items.tolist() == [0, 12, 0, 1, 0, 0]
    assert items.num_partials == items.num_merges == 0
    spread = items_of(chain.plan(), enough_items=10**6)
    assert spread.num_items == spread.num_partials == 12


def test_longest_first_and_tiles_together(monkeypatch):
    small_chunks(monkeypatch, 64, 64)
    forest = forest_of(3, nodes=25, queries=20, heads=7, max_len=150, partial=False)
    plan = forest.plan()
    items = items_of(plan, tile_rows=16)
    chunks = items.chunks.view(-1, 2)
    sizes = []
    for begin, end, *_ in items.items.view(-1, 6).tolist():
        lens = plan.segment_lens[chunks[begin:end, 0]]
        sizes.append(int(np.minimum(lens - chunks[begin:end, 1].numpy(), 64).sum()) // 16)
    assert len(set(sizes)) > 2
    assert sizes == sorted(sizes, reverse=True)
    runs_of(items, 7)


@pytest.mark.parametrize(
    ("queries", "heads", "tile_rows"), [(1, 7, 16), (2, 7, 16), (3, 7, 32), (16, 8, 32), (1, 1, 16)]
)
def test_tile_rows_follow_the_rows(queries, heads, tile_rows):
    forest = random_forest(1, nodes=1, queries=queries, heads=heads, head_dim=16, roots=1.0)
    rows = torch.randn(2, 40, 1, 16)
    forest = type(forest)(
        np.array([-1]), [rows[0]], [rows[1]], np.zeros(queries, int), forest.q, 16
    )
    assert items_of(forest.plan()).tile_rows == tile_rows


@pytest.mark.parametrize("seed", range(5))
def test_growing_leaves_have_their_chunks_from_the_start(seed, monkeypatch):
    small_chunks(monkeypatch, 8, 32)
    parents, lens, table, leaves = growing(seed)
    shape = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "page_size": 16}
    plan = mf.plan_tree_attention(parents, lens, table, leaves, max_new_tokens=20, **shape)
    before = plan.items(CPU)
    chunks = before.chunks.view(-1, 2).tolist()
    for i, segment in enumerate(plan.query_segment.tolist()):
        room = int(plan.query_lens[i]) + 20
        assert [b for s, b in chunks if s == segment] == list(range(0, room, 8))
    for step in range(20):
        plan.advance(None if step % 2 else np.arange(len(leaves)) >= 0)
        assert before.query_lens.tolist() == plan.query_lens.tolist()
    full = items_of(plan)
    assert full.items.tolist() == before.items.tolist()


def test_sections_start_on_16_bytes_and_counts_are_words():
    plan = forest_of(5).plan()
    items = items_of(plan)
    base = items.counts.data_ptr()
    for number, name in enumerate(SECTIONS):
        array = getattr(items, name)
        assert items.counts[number] == len(array)
        assert (array.data_ptr() - base) % 16 == 0
        assert array.dtype == torch.int32
    for name in ("query_order", "query_lens", "own_end", "segment_lens", "page_begin", "page_ids"):
        assert getattr(items, name).tolist() == getattr(plan, name).tolist()


def test_chunks_follow_head_dim_alone():
    assert [chunk_tokens(d) for d in (16, 64, 80, 128, 256)] == [256, 256, 128, 128, 128]


def test_room_is_kept_and_refused():
    extension = pytest.importorskip("marco_fast._C")
    plan = forest_of(7, queries=5).plan()
    options = (3, 1, 16, 64, 0, 512)
    tight = extension.pack_plan(plan.native, *options)
    sizes = tight[:10].tolist()
    room = [size + 9 for size in sizes]
    loose = extension.pack_plan(plan.native, *options, room)
    assert loose[:11].tolist() == tight[:11].tolist()
    at, from_ = 16, 16
    for size, space in zip(sizes, room, strict=True):
        assert loose[at : at + size].tolist() == tight[from_ : from_ + size].tolist()
        at, from_ = at + -(-space // 4) * 4, from_ + -(-size // 4) * 4
    room[4] = sizes[4] - 1
    with pytest.raises(ValueError, match="words of query_order, its room, got 5"):
        extension.pack_plan(plan.native, *options, room)


def test_workspace_holds_every_partial():
    plan = forest_of(9, queries=12).plan()
    partials = plan.items(CPU).num_partials
    assert plan.workspace_numel >= partials * plan.num_heads * (plan.head_dim + 2)
