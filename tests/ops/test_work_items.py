"""The work list of tree attention on a device: its specification, what it covers, its one copy."""

import numpy as np
import pytest
import torch

import marco_fast as mf
from marco_fast.ops.attention import work_items as module
from marco_fast.ops.attention.work_items import WorkItems, chunk_tokens, sizes_of, work_items
from marco_fast.ops.reference.plan import ReferencePlan
from marco_fast.ops.reference.work_items import (
    COUNTS,
    MAGIC,
    SECTIONS,
    VERSION,
    Sizes,
    pack_plan,
    section_words,
)
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


def items_of(plan: mf.TreeAttentionPlan, **options) -> WorkItems:
    heads = (plan.num_heads, plan.num_kv_heads, plan.head_dim, plan.page_size)
    return work_items(plan.arrays, heads=heads, device=CPU, **options)


def small_chunks(monkeypatch, tokens: int, group: int) -> None:
    monkeypatch.setattr(module, "chunk_tokens", lambda head_dim: tokens)
    monkeypatch.setattr(module, "TOKEN_GROUP", group)


def growing(seed: int):
    """Arguments of a plan whose leaves may gain 20 tokens."""
    rng = np.random.default_rng(seed)
    forest = forest_of(seed, nodes=20, partial=False, page_size=16)
    childless = np.setdiff1d(np.arange(20), forest.parents)
    leaves = rng.permutation(childless)[:5]
    table = rng.integers(0, 50, (20, 16)).astype(np.int32)
    return forest.parents, forest.lens, table, leaves


@pytest.mark.parametrize("tile_query_heads", [0, 16, 32])
@pytest.mark.parametrize("seed", range(40))
def test_equals_its_specification(seed, tile_query_heads):
    chunk, group, enough = [(8, 16, 1), (16, 64, 40), (128, 512, 512)][seed % 3]
    options = ((14, 2, 16, 8), chunk, group, tile_query_heads, enough)
    if seed % 4 == 0:
        arguments = (*growing(seed), None, 16, 20)
    else:
        forest = forest_of(seed)
        table = forest.tables()[0]
        arguments = (forest.parents, forest.lens, table, forest.leaves, forest.leaf_lens)
        arguments = (*arguments, forest.page_size, 0)
    extension = pytest.importorskip("marco_fast._C")
    native, reference = extension.make_tree_plan(*arguments), ReferencePlan(*arguments)
    for step in range(3 if arguments[-1] else 1):
        if step:
            active = np.arange(len(arguments[3])) % 2 == step % 2
            native.advance(active)
            reference.advance(active)
        got, want = extension.pack_plan(native, *options), pack_plan(reference, *options)
        assert got.tolist() == want.tolist()
        room = [2 * count + 1 for count in sizes_of(got)[-len(COUNTS) :]]
        got = extension.pack_plan(native, *options, room)
        assert got.tolist() == pack_plan(reference, *options, room).tolist()


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


def spans_of(items: WorkItems, group: int):
    """The distinct spans: (chunks, query_begin, query_end, ordinal_joins), their tiles checked."""
    words = items.sections.items.view(-1, 6).tolist()
    chunks = [tuple(chunk) for chunk in items.sections.chunks.view(-1, 2).tolist()]
    tiles: dict[tuple, list[int]] = {}
    for begin, end, query_begin, query_end, first, ordinal_joins in words:
        key = (tuple(chunks[begin:end]), query_begin, query_end, ordinal_joins)
        tiles.setdefault(key, []).append(first)
    tile = items.sizes.tile_query_heads
    for (_, query_begin, query_end, _), firsts in tiles.items():
        assert firsts == list(range(0, (query_end - query_begin) * group, tile))
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
    spans = spans_of(items, plan.num_heads)
    merged, partial_begin = items.sections.merges.tolist(), items.sections.partial_begin
    for i in range(plan.num_queries):
        mine = sorted((span for span in spans if span[1] <= i < span[2]), key=lambda span: span[3])
        assert [span[3] // 2 for span in mine] == list(range(len(mine)))
        partials = int(partial_begin[i + 1] - partial_begin[i])
        assert partials == (len(mine) if len(mine) > 1 else 0)
        assert (i in merged) == (len(mine) != 1)
        seen, starts = [], []
        for chunks, _, _, ordinal_joins in mine:
            for number, (segment, first) in enumerate(chunks):
                own = i < plan.own_end[segment]
                whole = int(plan.query_lens[i] if own else plan.segment_lens[segment])
                tokens = [(segment, t) for t in range(first, min(first + step, whole))]
                seen += tokens
                if tokens:
                    starts.append((segment, first, number == 0 and ordinal_joins % 2 == 0))
        assert seen == path_tokens(plan, i)
        # The later chunks of a span go on with its token group; the path says which start one.
        assert starts == chunk_groups(seen, step, group)
    assert items.sizes.num_partials == int(partial_begin[-1])


def test_a_chain_of_short_segments_is_one_span():
    tokens = torch.randn(2, 32, 1, 16)
    forest = random_forest(0, nodes=1, queries=1, heads=1, head_dim=16, roots=1.0)
    chain = type(forest)(
        np.arange(12) - 1, [tokens[0]] * 12, [tokens[1]] * 12, np.array([11]), forest.q, 16
    )
    items = items_of(chain.plan(), enough_items=1)
    assert items.sections.items.tolist() == [0, 12, 0, 1, 0, 0]
    assert items.sizes.num_partials == items.sizes.merges == 0
    spread = items_of(chain.plan(), enough_items=10**6)
    assert spread.sizes.items == spread.sizes.num_partials == 12


def test_longest_first_and_tiles_together(monkeypatch):
    small_chunks(monkeypatch, 64, 64)
    forest = forest_of(3, nodes=25, queries=20, heads=7, max_len=150, partial=False)
    plan = forest.plan()
    items = items_of(plan, tile_query_heads=16)
    chunks = items.sections.chunks.view(-1, 2)
    sizes = []
    for begin, end, *_ in items.sections.items.view(-1, 6).tolist():
        lens = plan.segment_lens[chunks[begin:end, 0]]
        sizes.append(int(np.minimum(lens - chunks[begin:end, 1].numpy(), 64).sum()) // 16)
    assert len(set(sizes)) > 2
    assert sizes == sorted(sizes, reverse=True)
    spans_of(items, 7)


@pytest.mark.parametrize(
    ("queries", "heads", "tile"), [(1, 7, 16), (2, 7, 16), (3, 7, 32), (16, 8, 32), (1, 1, 16)]
)
def test_the_tile_follows_the_query_heads(queries, heads, tile):
    forest = random_forest(1, nodes=1, queries=queries, heads=heads, head_dim=16, roots=1.0)
    rows = torch.randn(2, 40, 1, 16)
    forest = type(forest)(
        np.array([-1]), [rows[0]], [rows[1]], np.zeros(queries, int), forest.q, 16
    )
    assert items_of(forest.plan()).sizes.tile_query_heads == tile


@pytest.mark.parametrize("seed", range(5))
def test_growing_leaves_have_their_chunks_from_the_start(seed, monkeypatch):
    small_chunks(monkeypatch, 8, 32)
    parents, lens, table, leaves = growing(seed)
    shape = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "page_size": 16}
    plan = mf.plan_tree_attention(parents, lens, table, leaves, max_new_tokens=20, **shape)
    before = plan.items(CPU).sections
    chunks = before.chunks.view(-1, 2).tolist()
    for i, segment in enumerate(plan.query_segment.tolist()):
        room = int(plan.query_lens[i]) + 20
        assert [b for s, b in chunks if s == segment] == list(range(0, room, 8))
    for step in range(20):
        plan.advance(None if step % 2 else np.arange(len(leaves)) >= 0)
        assert before.query_lens.tolist() == plan.query_lens.tolist()
        assert before.segment_lens.tolist() == plan.segment_lens.tolist()
    full = items_of(plan).sections
    assert full.items.tolist() == before.items.tolist()


def test_sections_start_on_16_bytes_behind_a_header():
    plan = forest_of(5).plan(room=1.5)
    items = items_of(plan)
    base = items.packed.data_ptr()
    assert items.sections._fields == ("header", *SECTIONS)
    for array in items.sections:
        assert (array.data_ptr() - base) % 16 == 0
        assert array.dtype == torch.int32
    for name in SECTIONS[:10]:
        assert getattr(items.sections, name).tolist() == getattr(plan, name).tolist()
    header = items.packed[:24].tolist()
    counts = [plan.num_queries, len(plan.segment_ids), len(plan.page_ids)]
    counts += [len(items.sections.items) // 6, len(items.sections.chunks) // 2]
    counts += [len(items.sections.merges)]
    heads = [plan.num_heads, plan.num_kv_heads, plan.head_dim, plan.page_size, 256]
    sizes = [plan.arrays.num_pages_needed, int(items.sections.partial_begin[-1]), *counts]
    assert header[:7] == [MAGIC, VERSION, *heads]
    assert header[8:] == [*sizes, *counts, 0, 0]
    assert list(items.sizes) == header[2:16]


def test_chunks_follow_head_dim_alone():
    assert [chunk_tokens(d) for d in (16, 64, 80, 128, 256)] == [256, 256, 128, 128, 128]


@pytest.mark.parametrize("kind", ["reference", "extension"])
def test_room_is_kept_and_refused(kind):
    forest, pack, make = forest_of(7, queries=5), pack_plan, ReferencePlan
    if kind == "extension":
        extension = pytest.importorskip("marco_fast._C")
        pack, make = extension.pack_plan, extension.make_tree_plan
    table, lens = forest.tables()[0], forest.leaf_lens
    plan = make(forest.parents, forest.lens, table, forest.leaves, lens, forest.page_size, 0)
    options = ((3, 1, 16, 8), 16, 64, 0, 512)
    tight = pack(plan, *options)
    counts = tight[10:16].tolist()
    room = [count + 9 for count in counts]
    loose = pack(plan, *options, room)
    assert loose[:16].tolist() == tight[:16].tolist()
    assert loose[16:24].tolist() == [*room, 0, 0]
    at = from_ = 24
    for size, space in zip(section_words(counts), section_words(room), strict=True):
        assert loose[at : at + size].tolist() == tight[from_ : from_ + size].tolist()
        assert not loose[at + size : at + -(-space // 4) * 4].any()
        at, from_ = at + -(-space // 4) * 4, from_ + -(-size // 4) * 4
    assert (len(loose), len(tight)) == (at, from_)
    for number, name in enumerate(COUNTS):
        less = [*counts[:number], counts[number] - 1, *counts[number + 1 :]]
        with pytest.raises(ValueError, match=f"at most {less[number]} {name}, the plan's room"):
            pack(plan, *options, less)


def test_the_kernels_read_the_words_that_are_written():
    pytest.importorskip("triton")
    from marco_fast.kernels import packed_plan as kernels

    words = ("magic", "version", *Sizes._fields)
    for name, field in (
        ("TILE_QUERY_HEADS", "tile_query_heads"),
        ("NUM_PARTIALS", "num_partials"),
        ("NUM_ITEMS", "items"),
        ("NUM_MERGES", "merges"),
    ):
        assert words[getattr(kernels, name).value] == field
    assert {name.removesuffix("_ptr") for name in kernels.Plan._fields} <= {"header", *SECTIONS}


def test_workspace_holds_every_partial():
    plan = forest_of(9, queries=12).plan()
    partials = plan.items(CPU).sizes.num_partials
    assert plan.workspace_numel >= partials * plan.num_heads * (plan.head_dim + 2)
