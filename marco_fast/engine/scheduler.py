"""Which branches decode together: refill, page pressure, and the decode step itself."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from marco_fast.engine.branches import Branch, Segment, Source, Verdict
from marco_fast.engine.engine import Engine
from marco_fast.engine.residency import Residency
from marco_fast.engine.runner import TreeBatch, plan_segments
from marco_fast.errors import ModelError
from marco_fast.ops.isolation import isolated

__all__ = ["Scheduler"]


class Scheduler:
    """Decodes the branches of one source with an engine until the source has no more.

    Args:
        engine: the model and its cache.
        source: hands out branches.
        options: of every draw: temperature, top_p, top_k and others of `sample_confidence`.
        max_branches: rows of a decode batch, at most the engine's.
    """

    def __init__(
        self, engine: Engine, source: Source, options: dict[str, Any], max_branches: int
    ) -> None:
        self.engine, self.source, self.options = engine, source, options
        self.cache = engine.cache
        self.max_branches = min(max_branches, engine.max_branches)
        self.residency = Residency(engine.runner, self.max_branches)
        self.active: list[Branch] = []
        self.waiting: deque[Branch] = deque()  # preempted for want of pages; the first goes first
        self.read: dict[Segment, None] = {}  # the segments that active branches read, parents first
        # A batch serves as many steps as its plan and the reserved pages suffice for. The cache is
        # told of the tokens that it wrote when it ends, not at every step.
        self.batch: TreeBatch | None = None
        self.steps_left = 0
        # KV tokens that all steps read: each segment once; each branch its whole path.
        self.unique_tokens = self.path_tokens = 0
        self._unique = self._path = 0

    def run(self) -> None:
        """Step until nothing is left to decode or the source ends the decoding."""
        while self._refill() and self.source.on_step():
            if self.active:
                self._step()

    def close(self) -> None:
        """Give every page back."""
        self.residency.close()
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
        """Give segments up that no branch uses and none will continue from."""
        self.residency.release(segments)

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
            path = branch.segment.path()
            if not self.residency.fits(path, branch.opened):
                self._end_full(branch, path)
            elif not self._admit(branch, path):
                self.waiting.appendleft(branch)
                if not self.active:
                    raise self.residency.full(path)
                break
        return bool(self.active)

    def _admit(self, branch: Branch, path: list[Segment]) -> bool:
        """Make the branch's path resident and open its segment; False when pages are short."""
        if not self.residency.admit(path, alone=not self.active):
            return False
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
        segment = self.residency.open(branch.segment, branch.position)
        self.read[segment] = None
        branch.segment = segment
        branch.path.append(segment)
        branch.opened = True
        branch.reserved = 0

    def _reserve(self) -> None:
        """Room for one more token of every active branch; the youngest may have to wait.

        A branch that is alone and fills the whole cache ends.
        """
        row = 0
        while row < len(self.active):
            branch = self.active[row]
            while branch.reserved == 0:
                alone = len(self.active) == 1
                branch.reserved = self.residency.reserve(branch.segment, alone=alone)
                if branch.reserved:
                    break
                if alone:
                    self._end_full(branch, branch.path)
                    return
                self._preempt(self.active[-1])
                if row == len(self.active):
                    return
            row += 1

    def _end_full(self, branch: Branch, path: list[Segment]) -> None:
        """The branch's path leaves no page for one more token of it."""
        self.source.on_full(branch, self.residency.full(path))
        if branch in self.active:
            self._remove(branch)
        if branch.opened:
            self.release([branch.segment])

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

    @isolated
    def _begin_batch(self) -> None:
        segments, leaves = list(self.read), [branch.segment for branch in self.active]
        self.steps_left = min(branch.reserved for branch in self.active)
        plan = plan_segments(self.engine.runner, segments, leaves, max_new_tokens=self.steps_left)
        self._leaf_nodes = np.array([each.kv for each in leaves], dtype=np.int64)
        self._slots = self.cache.slots_ahead(self._leaf_nodes, self.steps_left)
        self.batch = TreeBatch(plan, self._slots[0])
        self._unique = sum(len(each.tokens) for each in segments)
        self._path = sum(branch.position for branch in self.active)  # tokens in front of it

    def _end_batch(self) -> None:
        if self.batch is not None:
            self.batch = None
            self.cache.extend_many(self._leaf_nodes, len(self._slots) - self.steps_left)

    def _step(self) -> None:
        """Decode one token of every active branch, and let the source judge each."""
        if self.steps_left == 0:
            self._end_batch()
        if self.batch is None:
            self._reserve()
            if not self.active:
                return
            self._begin_batch()
        active = list(self.active)
        # Every branch takes its token before any is judged: a verdict may drop other branches.
        for branch, token, logprob, confidence in self._draw(active):
            branch.segment.tokens.append(branch.pending)
            branch.reserved -= 1
            branch.position += 1
            branch.take(token, logprob, confidence)
        for branch in active:
            if branch in self.active:
                self._settle(branch, self.source.on_token(branch))

    @isolated
    def _draw(self, active: list[Branch]) -> Iterator[tuple[Branch, int, float, float]]:
        """The next token of each branch, with its logprob and its confidence."""
        batch = self.batch
        assert batch is not None
        batch.slots = self._slots[-self.steps_left]
        batch.plan.advance()
        self.steps_left -= 1
        drawn = self.engine.sample(
            [branch.pending for branch in active],
            [branch.position for branch in active],
            batch,
            seeds=[branch.seed for branch in active],
            **self.options,
        )
        if any(drawn.status.tolist()):
            raise ModelError("expected finite logits, got NaN or infinity from the model")
        self._count(len(active))
        return zip(
            active,
            drawn.token_ids.tolist(),
            drawn.token_logprobs.tolist(),
            drawn.confidence.tolist(),
            strict=True,
        )

    def _settle(self, branch: Branch, verdict: Verdict) -> None:
        if verdict is Verdict.CUT:
            branch.begin_action()
            self._end_batch()
            self._open(branch)
        elif verdict is not Verdict.CONTINUE:
            segment = branch.segment
            self._remove(branch)
            if verdict is Verdict.CLOSE:
                self.release([segment])

    def _count(self, rows: int) -> None:
        """KV tokens this step reads: all segments once, and every branch's whole path."""
        self._unique += rows
        self._path += rows
        self.unique_tokens += self._unique
        self.path_tokens += self._path
