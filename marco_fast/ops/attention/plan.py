"""The plan of tree attention: which query reads which segment, from which pages.

Built once for many calls: each layer of a step, and with `max_new_tokens` each step of a mini-step.
"""

import math
from typing import Any

import numpy as np
import torch

from marco_fast.ops.attention import checks
from marco_fast.ops.attention.checks import Ints
from marco_fast.ops.attention.work_items import WorkItems, pack_again, work_items
from marco_fast.ops.backends import built, interpreting, load_backend
from marco_fast.ops.isolation import isolated
from marco_fast.ops.reference.plan import ReferencePlan

__all__ = ["TreeAttentionPlan", "plan_tree_attention"]

if built():
    from marco_fast import _C

    _make_plan: Any = _C.make_tree_plan
    _thread_words: Any = _C.tree_attention_words
else:
    _make_plan = ReferencePlan

    def _thread_words(queries: int, group: int, head_dim: int) -> int:
        return 0


def _array(name: str) -> Any:
    return property(lambda plan: getattr(plan.arrays, name))


def _lengths(name: str) -> Any:
    return property(lambda plan: getattr(plan._caught_up(), name))


class TreeAttentionPlan:
    """A forest of segments and the queries that end in them, ready for `tree_attention`.

    Queries are numbered depth first, so that the queries at or below a segment are one interval.
    Segments with no query at or below them are left out. A segments remain, ordered so that parents
    precede their children.

    Arrays (NumPy int32 views, to be read only; the lengths change with `advance`):
        query_order [Q]: the caller's index of query i.
        query_segment [Q]: index (in the arrays below) of the segment where query i ends.
        query_lens [Q]: how many tokens of that segment query i sees.
        path_lens [Q]: how many tokens query i sees in all.
        segment_ids [A]: the caller's number of segment a.
        segment_parents [A]: index of its parent in these arrays, -1 for a root.
        segment_lens [A]: tokens of it that some query reads.
        query_begin, own_end, query_end [A]: queries [query_begin, query_end) read the segment;
            of them [query_begin, own_end) end in it, by ascending query_lens.
        page_begin [A + 1], page_ids: pages page_ids[page_begin[a]:page_begin[a + 1]] hold it,
            those for max_new_tokens included.

    A plan belongs to one caller at a time: `advance` and `update` change it in place.

    Attributes:
        num_heads, num_kv_heads, head_dim, page_size, max_new_tokens, device, room: as planned.
        num_queries: Q.
        max_queries: the most that Q may become by `update`: room * Q as first planned, rounded up.
        scale: the default scale, 1 / sqrt(head_dim).
        arrays: the object that holds the arrays on the host.
    """

    __slots__ = (
        "_behind", "_checked", "_interpreting", "_items", "_pages", "_steps", "_thread_words",
        "arrays", "device", "head_dim", "max_new_tokens", "max_queries", "num_heads",
        "num_kv_heads", "num_queries", "page_size", "room", "scale",
    )  # fmt: skip

    def __init__(
        self,
        arrays: Any,
        num_queries: int,
        heads: tuple[int, int, int, int],
        *,
        max_new_tokens: int,
        device: torch.device,
        room: float = 1.0,
    ) -> None:
        self.arrays = arrays
        self.num_queries = num_queries
        self.max_queries = math.ceil(room * num_queries)
        self.room = room
        self.num_heads, self.num_kv_heads, self.head_dim, self.page_size = heads
        self.max_new_tokens = max_new_tokens
        self.device = device
        self.scale = self.head_dim**-0.5
        group = self.num_heads // self.num_kv_heads
        self._thread_words = _thread_words(self.max_queries, group, self.head_dim)
        self._checked: tuple[object, ...] | None = None  # the tensors that check() last passed
        self._pages = 2**31  # of the smallest cache that check() passed
        self._interpreting = interpreting()
        self._items: dict[torch.device, WorkItems] = {}
        self._steps = 0  # calls of advance
        self._behind = False  # whether only the device has lengths
        if device.type == "cuda":
            self.items(device)

    @isolated
    def advance(self, active: torch.Tensor | np.ndarray | None = None) -> None:
        """Adds one token to the leaf of every query, or of the queries where active [Q] is true.

        On a CUDA plan this is one small kernel and never waits; `active` may be there already.

        Raises:
            ValueError: `active` is not [Q] bool, or a leaf already has its max_new_tokens (on a
                CUDA plan: there were that many calls, active or not); nothing was changed.
        """
        mask = checks.active_mask(active, self.num_queries)
        if self.device.type == "cuda":
            self._advance_on_device(mask)
            return
        self.arrays.advance(None if mask is None else mask.cpu().numpy())
        # Copies elsewhere are old now.
        self._items = {at: items for at, items in self._items.items() if at.type == "cpu"}
        for items in self._items.values():
            for name in ("query_lens", "segment_lens"):
                lens = getattr(self.arrays, name)
                getattr(items.sections, name).numpy()[: len(lens)] = lens

    def _advance_on_device(self, active: torch.Tensor | None) -> None:
        if self._steps >= self.max_new_tokens:
            raise ValueError(
                f"expected at most max_new_tokens = {self.max_new_tokens} calls of advance"
            )
        self._steps += 1
        for device, items in self._items.items():
            mask = None if active is None else active.to(device, non_blocking=True)
            kernels = load_backend("triton", device, "tree_attention")
            kernels.advance(items.sections.query_lens, items.sections.query_order, mask)
        if active is None:
            self.arrays.advance(None)
        else:
            self._behind = True

    @isolated
    def update(
        self,
        parents: Ints,
        segment_lens: Ints,
        block_table: torch.Tensor | np.ndarray,
        leaves: Ints,
        *,
        leaf_lens: Ints | None = None,
    ) -> None:
        """Plans another forest in the place of this one, with the same heads and max_new_tokens.

        On a device the arrays keep their addresses: a CUDA graph that was captured with this plan
        attends over the new forest at its next replay. Never waits. Arguments as those of
        `plan_tree_attention`; tensors of later calls may keep their sizes, as long as q has
        num_queries to max_queries rows. Rows from num_queries on are neither read nor written.

        Raises:
            ValueError, IndexError: as plan_tree_attention; there is no room for the new forest; it
                names a page that a cache of earlier calls does not have. The plan is as it was.
        """
        leaf_array = checks.int_array(leaves, "leaves")
        if leaf_array.size > self.max_queries:
            raise ValueError(
                f"expected at most {self.max_queries} leaves, the plan's room, got "
                f"{leaf_array.size}"
            )
        inputs = checks.plan_inputs(parents, segment_lens, block_table, leaf_array, leaf_lens)
        arrays = _make_plan(*inputs, self.page_size, self.max_new_tokens)
        checks.check_pages(arrays.num_pages_needed, self._pages)
        packed = [pack_again(arrays, items) for items in self._items.values()]
        self.arrays, self.num_queries = arrays, leaf_array.size
        self._checked, self._steps, self._behind = None, 0, False
        for items, array in zip(self._items.values(), packed, strict=True):
            items.overwrite(array)

    @isolated
    def _caught_up(self) -> Any:
        """`arrays` with the lengths that the device has; waits for it where they differ."""
        if self._behind:
            self._behind = False
            lens = next(iter(self._items.values())).sections.query_lens.cpu().numpy()
            while (more := lens[: self.num_queries] > self.arrays.query_lens).any():
                active = np.empty(self.num_queries, bool)
                active[self.arrays.query_order] = more
                self.arrays.advance(active)
        return self.arrays

    @isolated
    def items(self, device: torch.device) -> WorkItems:
        """What the kernels on `device` read there; made at the first call for each device."""
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        items = self._items.get(device)
        if items is None:
            heads = (self.num_heads, self.num_kv_heads, self.head_dim, self.page_size)
            items = work_items(self._caught_up(), heads=heads, device=device, room=self.room)
            self._items[device] = items
        return items

    @property
    def workspace_numel(self) -> int:
        """float32 elements that `workspace` needs on the plan's device.

        On a CPU it grows with torch's present number of threads.
        """
        words = self._thread_words * torch.get_num_threads()
        if self.device.type == "cuda" or self._interpreting:
            partials = self.items(self.device).sizes.num_partials
            words = max(words, partials * self.num_heads * (self.head_dim + 2))
        return words

    def check(self, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor) -> None:
        """Raises ValueError unless the tensors are as planned; the last answer is remembered."""
        key = (
            q.shape, q.stride(), q.dtype, q.device, k_cache.shape, k_cache.stride(), k_cache.dtype,
            k_cache.device, v_cache.shape, v_cache.stride(), v_cache.dtype, v_cache.device,
        )  # fmt: skip
        if key != self._checked:
            checks.check_planned(self, q, k_cache, v_cache)
            self._checked = key
            self._pages = min(self._pages, k_cache.shape[0])

    def __repr__(self) -> str:
        return (
            f"TreeAttentionPlan({self.num_queries} queries, {len(self.segment_ids)} segments, "
            f"{int(self.segment_lens.sum())} tokens read for {int(self.path_lens.sum())} seen)"
        )

    query_order = _array("query_order")
    query_segment = _array("query_segment")
    query_lens = _lengths("query_lens")
    path_lens = _lengths("path_lens")
    segment_ids = _array("segment_ids")
    segment_parents = _array("segment_parents")
    segment_lens = _lengths("segment_lens")
    query_begin = _array("query_begin")
    own_end = _array("own_end")
    query_end = _array("query_end")
    page_begin = _array("page_begin")
    page_ids = _array("page_ids")


@isolated
def plan_tree_attention(
    parents: Ints,
    segment_lens: Ints,
    block_table: torch.Tensor | np.ndarray,
    leaves: Ints,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    leaf_lens: Ints | None = None,
    max_new_tokens: int = 0,
    room: float = 1.0,
    device: torch.device | str = "cpu",
) -> TreeAttentionPlan:
    """Plans attention of Q queries, each over all tokens from a root to the segment it ends in.

    Args:
        parents: [N] int, the parent of each segment or -1; parents stand before their children.
        segment_lens: [N] int >= 0, tokens of each segment.
        block_table: [N, max_pages] int32, the pages of each segment in order; entries beyond the
            tokens (and the reserve for max_new_tokens) are not read.
        leaves: [Q] int, the segment each query ends in, in the order of q and out. Any segment may
            be a leaf, and the same one may be several queries' leaf.
        num_heads: query heads, a multiple of num_kv_heads.
        num_kv_heads: KV heads.
        head_dim: a multiple of 16 in 16..256.
        page_size: tokens of a page.
        leaf_lens: [Q] int, how many of its leaf's tokens each query sees; all by default.
        max_new_tokens: tokens that each leaf may gain by `advance` without a new plan. If above 0,
            leaves are distinct and without children, their pages already in block_table.
        room: capacity factor, at least 1: a later plan that takes this one's place by `update` may
            have up to `room` times the queries, segments, pages and programs of this one.
        device: where the tensors of the calls will be.

    Raises:
        ValueError: a shape, dtype or length not as above; a parent after its child; too few pages
            in a row of block_table.
        IndexError: a parent, leaf or page id out of range.
    """
    heads = checks.check_heads(num_heads, num_kv_heads, head_dim)
    page_size, max_new_tokens = checks.plan_sizes(page_size, max_new_tokens)
    room, on = checks.plan_room(room), checks.plan_device(device)
    leaf_array = checks.int_array(leaves, "leaves")
    inputs = checks.plan_inputs(parents, segment_lens, block_table, leaf_array, leaf_lens)
    return TreeAttentionPlan(
        _make_plan(*inputs, page_size, max_new_tokens),
        leaf_array.size,
        (*heads, page_size),
        max_new_tokens=max_new_tokens,
        device=on,
        room=room,
    )
