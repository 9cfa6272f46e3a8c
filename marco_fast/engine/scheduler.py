"""Which branches decode together: refill, page pressure, and the decode step itself.

A branch decodes one path. Its tokens belong to segments, one an action; while a segment is decoded
it is the branch's own, afterwards any number of branches may go on from it. **A segment's KV is
that of the token in front of it and of all its tokens but the last**: whoever goes on from it feeds
that last token, needs its logits anyway, and keeps its KV in its own segment. So nothing is ever
copied.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import numpy as np
import torch

from marco_fast.engine.engine import PREFILL_CHUNK, Engine
from marco_fast.engine.transformers_runner import TreeBatch
from marco_fast.errors import KVCacheFull, ModelError
from marco_fast.ops import plan_tree_attention

__all__ = ["Branch", "Sampling", "Scheduler", "Segment", "Source", "Verdict"]

EVICTED_SHARE = 16  # of the cache's pages, one in so many is freed when none is left
RESERVE_PAGES = 2  # pages an open segment asks for at a time: a mini-step of 32 tokens


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn and scored: as in marco_fast.sample_confidence."""

    temperature: float
    top_p: float
    top_k: int


@dataclass(eq=False)
class Segment:
    """Consecutive tokens with their KV.

    Attributes:
        parent: the segment in front, None for a root.
        start: position of the first token that has its KV here.
        tokens: the tokens whose KV is here, enough to compute it again.
        prompt: part of a prompt.
        kv: the node in the cache. users: branches that read it now.
        rank: visits of the tree node; what has fewest loses its KV first.
        row: its place in the newest plan that it is part of.
    """

    parent: "Segment | None"
    start: int
    tokens: list[int]
    prompt: bool = False
    kv: int = -1
    users: int = 0
    rank: int = 0
    row: int = -1

    def path(self) -> list["Segment"]:
        """From the root to this segment."""
        segments: list[Segment] = []
        segment: Segment | None = self
        while segment is not None:
            segments.append(segment)
            segment = segment.parent
        return segments[::-1]


@dataclass(eq=False)
class Branch:
    """One path being decoded.

    Attributes:
        owner: for the source's use.
        segment: where its tokens go: the open segment once it runs, before that the one it goes
            on from.
        pending: the newest token; its KV is computed by the next step. position: its index.
        seed: key of the draws of the open action.
        token_ids, logprobs, confidences: of the open action so far; the scores None where forced.
        forced: tokens to put next instead of drawn ones.
        path: the segments it reads. reserved: tokens its pages still hold.
        opened: whether `segment` is its own.
    """

    owner: Any
    segment: Segment
    pending: int
    position: int
    seed: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    confidences: list[float | None] = field(default_factory=list)
    forced: deque[int] = field(default_factory=deque)
    path: list[Segment] = field(default_factory=list)
    reserved: int = 0
    opened: bool = False

    def take(self, token: int, logprob: float, confidence: float) -> None:
        """The next token: the drawn one, unless a forced one is due."""
        forced = bool(self.forced)
        self.pending = self.forced.popleft() if forced else token
        self.token_ids.append(self.pending)
        self.logprobs.append(None if forced else logprob)
        self.confidences.append(None if forced else confidence)


class Verdict(Enum):
    """What a source says of a branch's newest token."""

    CONTINUE = 0
    CUT = 1  # the action is complete; the branch goes on in a new segment
    END = 2  # the branch is done; its segment stays, others may go on from it
    CLOSE = 3  # the branch is done and nothing can follow: its segment's KV is not needed


class Source(Protocol):
    """Where branches come from and what becomes of their tokens."""

    def next_branch(self) -> Branch | None:
        """One more branch to decode, or None when there is none just now."""

    def on_token(self, branch: Branch) -> Verdict:
        """A token was appended to the branch's lists."""

    def on_step(self) -> bool:
        """A step is over; False ends the run."""


class Scheduler:
    """Runs the branches of one source through an engine until the source has no more.

    Args:
        engine: the model and its cache.
        source: hands out branches.
        sampling: of every draw.
        max_branches: rows of a decode batch, at most the engine's.
    """

    def __init__(
        self, engine: Engine, source: Source, sampling: Sampling, max_branches: int
    ) -> None:
        self.engine, self.source, self.sampling = engine, source, sampling
        self.cache = engine.cache
        self.max_branches = min(max_branches, engine.max_branches)
        self.active: list[Branch] = []
        self.waiting: deque[Branch] = deque()  # preempted for want of pages; the first goes first
        self.segments: set[Segment] = set()
        self.read: dict[Segment, None] = {}  # those that active branches read, parents first
        # A batch serves as many steps as its plan and the reserved pages suffice for. What it
        # writes is told to the cache when it ends, not every step.
        self.batch: TreeBatch | None = None
        self.steps_left = 0
        self.unique_tokens = self.path_tokens = 0  # KV tokens read, each once; once a branch
        self.steps = 0
        self._unique = self._path = 0

    def run(self) -> None:
        """Step until nothing is left to decode or the source ends the run.

        Raises:
            KVCacheFull: not even one branch fits.
        """
        while self._refill() and self.source.on_step():
            if self.active:
                self._step()

    def close(self) -> None:
        """Give every page back."""
        for segment in self.segments:
            self.cache.release(segment.kv)
        self.segments.clear()
        self.read.clear()
        self.active.clear()
        self.waiting.clear()

    def drop(self, branches: list[Branch]) -> None:
        """Stop branches in mid-action; their open segments stay until close()."""
        for branch in branches:
            if branch in self.active:
                self._remove(branch)
            elif branch in self.waiting:
                self.waiting.remove(branch)

    def release(self, segments: list[Segment]) -> None:
        """Give up segments that no branch uses and none will go on from."""
        for segment in segments:
            self.segments.discard(segment)
            self.cache.release(segment.kv)

    def take_back(self, branch: Branch, kept: int, forced: list[int]) -> None:
        """Drop all but the first `kept` tokens of the open action and force others instead.

        The first forced token is the branch's newest when this returns. `kept` must leave out at
        least the newest token, and `forced` must not be empty.
        """
        self._end_batch()
        segment = branch.segment
        for column in (branch.token_ids, branch.logprobs, branch.confidences):
            del column[kept:]
        del segment.tokens[1 + kept :]
        self.cache.truncate(segment.kv, len(segment.tokens))
        branch.position = segment.start + 1 + kept
        branch.forced.extend(forced)
        branch.take(-1, 0.0, 0.0)
        branch.reserved = 0

    def _refill(self) -> bool:
        """Fill the batch; whether there is anything to decode."""
        while len(self.active) < self.max_branches:
            branch = self.waiting.popleft() if self.waiting else self.source.next_branch()
            if branch is None:
                break
            if not self._admit(branch):
                self.waiting.appendleft(branch)
                if not self.active:
                    raise self._full(branch)
                break
        return bool(self.active)

    def _admit(self, branch: Branch) -> bool:
        """Make the branch's path resident and open its segment; False when pages are short."""
        path = branch.segment.path()
        missing = [each for each in path if not self._resident(each)]
        needed = sum(self._pages(len(each.tokens)) for each in missing) + RESERVE_PAGES
        for each in path:
            each.users += 1
        if not self._make_room(needed):
            for each in path:
                each.users -= 1
            return False
        for each in missing:
            self._compute(each)
        branch.path = path
        self.read.update(dict.fromkeys(path))
        if not branch.opened:
            self._open(branch)
        branch.reserved = 0
        self._end_batch()
        self.active.append(branch)
        return True

    def _open(self, branch: Branch) -> None:
        """Start a new segment for the branch's next action."""
        parent = branch.segment
        segment = Segment(parent, branch.position, [], kv=self.cache.fork(parent.kv), users=1)
        self.segments.add(segment)
        self.read[segment] = None
        branch.segment = segment
        branch.path.append(segment)
        branch.opened = True
        branch.reserved = 0

    def _resident(self, segment: Segment) -> bool:
        return segment.kv >= 0 and self.cache.is_resident(segment.kv)

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.cache.page_size)

    def _make_room(self, pages: int) -> bool:
        """Evict what no branch reads, least visited first, until `pages` are free.

        Looking at every segment takes as long as a step once there are thousands: where it must
        be done, a part of the cache is freed at once.
        """
        if self.cache.free_pages >= pages:
            return True
        goal = max(pages, self.cache.num_pages // EVICTED_SHARE)
        unused = [each for each in self.segments if not each.users and self._resident(each)]
        unused.sort(key=lambda each: (each.rank, each.kv))
        for each in unused:
            self.cache.evict(each.kv)
            if self.cache.free_pages >= goal:
                break
        return self.cache.free_pages >= pages

    def _compute(self, segment: Segment) -> None:
        """Compute a segment's KV from its tokens: a new prompt, or one that was evicted."""
        if segment.kv < 0:
            parent = segment.parent
            segment.kv = self.cache.add_root() if parent is None else self.cache.fork(parent.kv)
            self.segments.add(segment)
            slots = self.cache.extend(segment.kv, len(segment.tokens))
        else:
            slots = self.cache.restore(segment.kv)
        path = segment.path()
        decoder = self.engine.decoder
        if segment.prompt and decoder is None:
            before = [self.cache.slot_mapping(each.kv) for each in path[:-1]]
            empty = torch.empty(0, dtype=torch.int64, device=self.engine.device)
            self.engine.prefill(segment.tokens, slots, torch.cat([empty, *before]), segment.start)
            return
        # A decoder's rows have the same bits in any batch. Without one no more rows at a time than
        # a decode batch: with one branch at a time the products are then those of decoding.
        rows = self.max_branches if decoder is None else PREFILL_CHUNK
        for begin in range(0, len(segment.tokens), rows):
            end = min(begin + rows, len(segment.tokens))
            leaf_lens = np.arange(begin + 1, end + 1)
            leaves = [segment] * (end - begin)
            batch = TreeBatch(
                self.cache, self._plan(path, leaves, leaf_lens=leaf_lens), slots[begin:end]
            )
            positions = list(range(segment.start + begin, segment.start + end))
            self.engine.forward(segment.tokens[begin:end], positions, batch, logits=False)

    def _full(self, branch: Branch) -> KVCacheFull:
        missing = [each for each in branch.segment.path() if not self._resident(each)]
        needed = sum(self._pages(len(each.tokens)) for each in missing) + RESERVE_PAGES
        return KVCacheFull(needed, self.cache.free_pages, self.cache.num_pages)

    def _reserve(self) -> None:
        """Room for one more token of every active branch; the youngest may have to wait."""
        row = 0
        while row < len(self.active):
            branch = self.active[row]
            if branch.reserved == 0:
                while not self._extend_reserve(branch):
                    if len(self.active) == 1:
                        raise KVCacheFull(1, self.cache.free_pages, self.cache.num_pages)
                    self._preempt(self.active[-1])
                    if row == len(self.active):
                        return
            row += 1

    def _extend_reserve(self, branch: Branch) -> bool:
        size = self.cache.page_size
        spare = -len(branch.segment.tokens) % size
        if not self._make_room(RESERVE_PAGES):
            return False
        branch.reserved = spare + RESERVE_PAGES * size
        self.cache.reserve(branch.segment.kv, branch.reserved)
        return True

    def _preempt(self, branch: Branch) -> None:
        self._remove(branch)
        self.waiting.append(branch)

    def _remove(self, branch: Branch) -> None:
        self._end_batch()
        self.active.remove(branch)
        for each in branch.path:
            each.users -= 1
            if not each.users:
                del self.read[each]

    def _plan(self, segments: list[Segment], leaves: list[Segment], **options: Any) -> Any:
        """A plan of these segments, parents first, with a query at each of the leaves."""
        for row, each in enumerate(segments):
            each.row = row
        parents = np.array([-1 if each.parent is None else each.parent.row for each in segments])
        nodes = np.array([each.kv for each in segments], dtype=np.int64)
        return plan_tree_attention(
            parents,
            self.cache.lengths(nodes),
            self.cache.block_table(nodes),
            np.array([each.row for each in leaves]),
            num_heads=self.engine.num_heads,
            num_kv_heads=self.engine.num_kv_heads,
            head_dim=self.engine.head_dim,
            page_size=self.cache.page_size,
            device=self.engine.device,
            **options,
        )

    def _begin_batch(self) -> None:
        segments, leaves = list(self.read), [branch.segment for branch in self.active]
        self.steps_left = min(branch.reserved for branch in self.active)
        plan = self._plan(segments, leaves, max_new_tokens=self.steps_left)
        self.batch = TreeBatch(self.cache, plan, torch.empty(0))
        self._leaf_nodes = np.array([each.kv for each in leaves], dtype=np.int64)
        self._slots = self.cache.slots_ahead(self._leaf_nodes, self.steps_left)
        self._unique = sum(len(each.tokens) for each in segments)
        self._path = sum(branch.position for branch in self.active)  # tokens in front of it

    def _end_batch(self) -> None:
        if self.batch is not None:
            self.batch = None
            self.cache.extend_many(self._leaf_nodes, len(self._slots) - self.steps_left)

    def _step(self) -> None:
        if self.steps_left == 0:
            self._end_batch()
        if self.batch is None:
            self._reserve()
            self._begin_batch()
        assert self.batch is not None
        active, batch = self.active, self.batch
        batch.slots = self._slots[-self.steps_left]
        batch.plan.advance()
        self.steps_left -= 1
        drawn = self.engine.sample(
            [branch.pending for branch in active],
            [branch.position for branch in active],
            batch,
            seeds=[branch.seed for branch in active],
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            top_k=self.sampling.top_k,
        )
        if any(drawn.status.tolist()):
            raise ModelError("expected finite logits, got NaN or infinity from the model")
        self._count(len(active))
        rows = zip(
            list(active),
            drawn.token_ids.tolist(),
            drawn.token_logprobs.tolist(),
            drawn.confidence.tolist(),
            strict=True,
        )
        # Every branch takes its token before any is judged: a verdict may drop other branches.
        for branch, token, logprob, confidence in rows:
            branch.segment.tokens.append(branch.pending)
            branch.reserved -= 1
            branch.position += 1
            branch.take(token, logprob, confidence)
        for branch in list(active):
            if branch in active:
                self._settle(branch, self.source.on_token(branch))

    def _settle(self, branch: Branch, verdict: Verdict) -> None:
        if verdict is Verdict.CUT:
            self._end_batch()
            self._open(branch)
        elif verdict is not Verdict.CONTINUE:
            segment = branch.segment
            self._remove(branch)
            if verdict is Verdict.CLOSE:
                self.release([segment])

    def _count(self, rows: int) -> None:
        """KV tokens this step reads: all segments once, and every branch's whole path."""
        self.steps += 1
        self._unique += rows
        self._path += rows
        self.unique_tokens += self._unique
        self.path_tokens += self._path
