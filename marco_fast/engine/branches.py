"""What the scheduler decodes: segments, branches, and the source that hands them out.

A branch decodes one path. Its tokens belong to segments, one per action; while a segment is decoded
it is the branch's own, afterwards any number of branches may go on from it. **A segment's KV is
that of the token before it and of all its tokens but the last.** A branch that continues from a
segment decodes that last token itself (it needs its logits anyway) and stores its KV in its own
segment, so nothing is ever copied.

Who writes which field, and when:

| field                           | written by | when                                              |
|---------------------------------|------------|---------------------------------------------------|
| Segment.parent, start, prompt   | both       | at creation: prompts by the source, actions by    |
|                                 |            | the scheduler                                     |
| Segment.tokens                  | scheduler  | each step; take_back()                            |
| Segment.rank                    | source     | after a backup: the visits of its node            |
| Segment.kv, users               | Residency  | admitted, opened, evicted, left                   |
| Segment.index                   | Runner     | whenever a plan is made                           |
| Branch.owner                    | source     | at creation                                       |
| Branch.seed                     | source     | at creation, and before it returns CUT            |
| Branch.segment, opened, path    | scheduler  | admitted, cut                                     |
| Branch.pending, position        | scheduler  | each step; take_back()                            |
| Branch.token_ids, logprobs,     | scheduler  | each step; take_back(); after CUT three new lists |
| confidences                     |            | (the source keeps the old ones)                   |
| Branch.forced                   | scheduler  | take_back(), and each step takes one              |
| Branch.reserved                 | scheduler  | admitted, each step, when pages are reserved      |
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from marco_fast.errors import KVCacheFull

__all__ = ["Branch", "Segment", "Source", "Verdict"]


@dataclass(eq=False)
class Segment:
    """Consecutive tokens with their KV.

    Attributes:
        parent: the segment in front, None for a root.
        start: position of the first token that has its KV here.
        tokens: the tokens whose KV is here, enough to compute it again.
        prompt: part of a prompt.
        kv: its node in the cache; -1 before the first time. users: branches that read it now.
        rank: visits of the tree node; the segment with fewest loses its KV first.
        index: its index in the newest plan that it is part of.
    """

    parent: "Segment | None"
    start: int
    tokens: list[int]
    prompt: bool = False
    kv: int = -1
    users: int = 0
    rank: int = 0
    index: int = -1

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
        segment: where its tokens go: the open segment once it runs, before that the segment that
            it continues from.
        pending: the newest token; its KV is computed by the next step. position: its index in the
            path.
        seed: key of the draws of the open action.
        token_ids, logprobs, confidences: of the open action so far; the scores None where forced.
        forced: tokens to put next instead of drawn ones.
        path: the segments it reads. reserved: tokens that its pages still have room for.
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
        """Append the next token: the drawn one, unless a forced one is due."""
        forced = bool(self.forced)
        self.pending = self.forced.popleft() if forced else token
        self.token_ids.append(self.pending)
        self.logprobs.append(None if forced else logprob)
        self.confidences.append(None if forced else confidence)

    def begin_action(self) -> None:
        """The next token is the first of a new action; the old lists stay as they are."""
        self.token_ids, self.logprobs, self.confidences = [], [], []


class Verdict(Enum):
    """What a source says about a branch's newest token."""

    CONTINUE = 0
    CUT = 1  # the action is complete; the branch goes on in a new segment
    END = 2  # the branch is done; its segment stays, others may go on from it
    CLOSE = 3  # the branch is done and nothing can follow: its segment's KV is not needed


class Source(Protocol):
    """Where branches come from and what becomes of their tokens.

    Inside next_branch, on_token and on_step the source may call Scheduler.drop and
    Scheduler.release, and inside on_token also Scheduler.take_back for the branch it was given.
    """

    def next_branch(self) -> Branch | None:
        """One more branch to decode, or None when there is none just now."""

    def on_token(self, branch: Branch) -> Verdict:
        """A token was appended to the branch's lists."""

    def on_full(self, branch: Branch, full: KVCacheFull) -> None:
        """The branch's path fills the whole cache, so that even alone it gets no further token.

        It is done, and nothing can follow. Where it has no token in the open action, nothing can
        follow the segment that it goes on from either. `full` says what it would have needed.
        """

    def on_step(self) -> bool:
        """A step is over; False ends the decoding."""
