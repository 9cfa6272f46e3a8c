"""docs/how-it-works.md: each number of its drawing comes out of the code."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from marco_fast.engine.branches import Branch, Segment
from marco_fast.engine.kv_cache import PagedKVCache
from marco_fast.engine.residency import Residency
from marco_fast.engine.runner import plan_segments
from marco_fast.search.config import SearchConfig
from marco_fast.search.mcts import Search

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-it-works.md").read_text(encoding="utf-8")
PAGE_SIZE = 4
NAMES = ("prompt", "A", "C", "D", "B", "E")  # depth first, as the drawing lists them


def tokens(name: str, count: int) -> list[str]:
    return [f"{name}{i}" for i in range(count)]


class Drawn:
    """The state that the page draws, made by the parts that a real search uses.

    Attributes:
        search: A and B are its nodes 1 and 2; C, E and D are in flight.
        segments, branches: by the name in the drawing.
        cache: where their KV is. slots: where each branch's newest token goes.
        plan: of the step that decodes the newest tokens.
    """

    def __init__(self) -> None:
        chosen = iter([0, 0, 1, 0, 1])  # which node each ticket expands: A, B, C, E, D
        config = SearchConfig(select=lambda tree, config: next(chosen))
        self.search = Search("a question", config)
        for name, count, value in (("a", 5, 0.9), ("b", 3, 0.7)):
            (ticket,) = self.search.ask()
            self.search.grow(ticket, tokens(name, count), [0.0] * count, [0.5] * count)
            self.search.tell(ticket, value)
        self.cache = PagedKVCache(
            1, 32, page_size=PAGE_SIZE, num_kv_heads=2, head_dim=16, dtype=torch.float32,
            device="cpu",
        )  # fmt: skip
        runner = SimpleNamespace(cache=self.cache, num_heads=4, compute=lambda *_: None)
        self.residency = Residency(runner, rows=3)
        prompt = Segment(None, 0, tokens("p", 7)[:-1], prompt=True)
        self.residency.admit([prompt])
        self.segments = {"prompt": prompt}
        self.branches: dict[str, Branch] = {}
        self.decode("A", prompt, "p6", tokens("a", 5))
        self.decode("B", prompt, "p6", tokens("b", 3))
        a = self.segments["A"]
        self.decode("C", a, "a4", tokens("c", 3))
        self.decode("E", prompt, "p6", tokens("e", 2))
        self.decode("D", a, "a4", tokens("d", 1))
        self.search.ask(3)
        self.branches = {name: self.branches[name] for name in "CED"}
        read = [self.segments[name] for name in ("prompt", "A", "C", "E", "D")]
        leaves = [branch.segment for branch in self.branches.values()]
        self.plan = plan_segments(runner, read, leaves, max_new_tokens=1)
        slots = self.cache.slots_ahead([leaf.kv for leaf in leaves], 1)
        self.slots = dict(zip(self.branches, slots[0].tolist(), strict=True))
        self.plan.advance()

    def decode(self, name: str, parent: Segment, last: str, drawn: list[str]) -> None:
        """Decode as Scheduler does: a step stores the KV of the newest token and draws the next."""
        position = parent.start + len(parent.tokens)
        segment = self.residency.open(parent, position)
        branch = Branch(None, segment, last, position, seed=0)
        for token in drawn:
            segment.tokens.append(branch.pending)
            branch.position += 1
            branch.take(token, 0.0, 0.0)
        self.cache.extend(segment.kv, len(segment.tokens))
        self.segments[name], self.branches[name] = segment, branch

    def kv(self, name: str) -> list[str]:
        """The tokens whose KV a segment holds in this step; the newest in brackets."""
        newest = [f"[{self.branches[name].pending}]"] if name in self.slots else []
        return [*self.segments[name].tokens, *newest]

    def cached(self) -> Iterator[str]:
        """The rows of the drawing's second part."""
        for name in NAMES:
            segment = self.segments[name]
            held = self.cache.slot_mapping(segment.kv).tolist()
            held += [self.slots[name]] if name in self.slots else []
            assert held == list(range(held[0], held[-1] + 1))
            pages = self.cache.block_table([segment.kv])[0]
            used = pages[: -(-len(held) // PAGE_SIZE)]
            last = segment.start + len(held) - 1
            yield (
                f"{name} {' '.join(map(str, used))} {held[0]}-{held[-1]} "
                f"{segment.start}-{last} {' '.join(self.kv(name))}"
            )

    def planned(self) -> Iterator[str]:
        """The rows of the drawing's third part, in the order of the plan's segments."""
        plan = self.plan
        names = {self.segments[name].index: name for name in ("prompt", "A", "C", "E", "D")}
        for a in range(len(plan.segment_ids)):
            begin, end = plan.page_begin[a], plan.page_begin[a + 1]
            yield (
                f"{a} {names[int(plan.segment_ids[a])]} {plan.segment_parents[a]} "
                f"{plan.segment_lens[a]} {' '.join(map(str, plan.page_ids[begin:end]))} "
                f"[{plan.query_begin[a]}, {plan.query_end[a]})"
            )

    def queries(self) -> Iterator[str]:
        """The rows of the drawing's fourth part."""
        plan, names = self.plan, list(self.branches)
        parents = plan.segment_parents.tolist()
        for i, given in enumerate(plan.query_order.tolist()):
            path = [int(plan.query_segment[i])]
            while parents[path[-1]] >= 0:
                path.append(parents[path[-1]])
            name = names[given]
            read = " + ".join(str(plan.segment_lens[a]) for a in reversed(path))
            yield (
                f"{i} {name} {given} {self.branches[name].pending} "
                f"{' '.join(map(str, reversed(path)))} {read} = {plan.path_lens[i]}"
            )


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return Drawn()


def rows(part: int) -> list[str]:
    """The rows of a part of the drawing without its lines, one blank between two words."""
    (drawing,) = re.findall(r"```text\n(1  The search.*?)```", PAGE, re.DOTALL)
    lines = re.split(r"^\d  The .*\n.*\n", drawing, flags=re.MULTILINE)[part].splitlines()
    return [" ".join(re.sub("[│├└─]", " ", line).split()) for line in lines if line.strip()]


def test_the_search_is_as_drawn(drawn):
    tree = drawn.search.tree
    assert tree.parent == [-1, 0, 0]
    assert [ticket.node for ticket in drawn.search.in_flight] == [1, 0, 1]
    shown = rows(1)
    for node, name, text in ((0, "prompt", "p"), (1, "A", "a"), (2, "B", "b")):
        count = {"p": 7, "a": 5, "b": 3}[text]
        visits = f"{tree.visits[node]} + {tree.virtual_visits[node]}"
        assert f"{node} {name} {' '.join(tokens(text, count))} {visits}" in shown
    for name, text, count in (("C", "c", 3), ("D", "d", 1), ("E", "e", 2)):
        assert f"{name} {' '.join(tokens(text, count))} ..." in shown
    assert len(shown) == len(NAMES)


def test_the_segments_and_pages_are_as_drawn(drawn):
    assert rows(2) == list(drawn.cached())


def test_the_plan_is_as_drawn(drawn):
    assert rows(3) == list(drawn.planned())


def test_the_queries_are_as_drawn(drawn):
    assert rows(4) == list(drawn.queries())


def test_the_tokens_are_counted_as_said(drawn):
    unique, seen = int(drawn.plan.segment_lens.sum()), int(drawn.plan.path_lens.sum())
    assert f"{unique} tokens are read for {seen} that the queries see" in " ".join(PAGE.split())


def test_the_work_items_are_as_said(drawn):
    sections = drawn.plan.items(torch.device("cpu")).sections
    per_query = sections.partial_begin.diff().tolist()[:3]
    told = f"{len(sections.items) // 6} work items per KV head"
    told += f", and {sum(per_query)} partials: {per_query[0]}, {per_query[1]} and {per_query[2]}"
    assert told in " ".join(PAGE.split())
