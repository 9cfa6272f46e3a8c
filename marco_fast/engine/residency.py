"""Residency: which segments have their KV in the cache. Evicts, restores, computes again."""

import contextlib
from collections.abc import Iterable

from marco_fast.engine.branches import Segment
from marco_fast.engine.runner import Runner
from marco_fast.errors import KVCacheFull
from marco_fast.ops.isolation import isolated

__all__ = ["RESERVE_PAGES", "Residency"]

EVICTED_SHARE = 16  # of the cache's pages, one in so many is freed when none is left
# Pages that an open segment asks for at a time: a mini-step of 32 tokens. A branch that is alone
# makes do with fewer.
RESERVE_PAGES = 2


class Residency:
    """The segments of one run in a runner's cache.

    Args:
        runner: computes what is missing.
        rows: the most rows of a decode batch.
    """

    def __init__(self, runner: Runner, rows: int) -> None:
        self.runner, self.rows = runner, rows
        self.cache = runner.cache
        self.segments: dict[Segment, None] = {}  # all that have a node in the cache, oldest first

    def fits(self, path: list[Segment], opened: bool) -> bool:
        """Whether a branch can ever decode one more token behind this path.

        Args:
            path: from the root.
            opened: whether its last segment is the branch's own.
        """
        room = opened and len(path[-1].tokens) % self.cache.page_size > 0
        return self._pages(path) + (0 if room else 1) <= self.cache.num_pages

    def admit(self, path: list[Segment], *, alone: bool = False) -> bool:
        """Bring a whole path into the cache and count its reader; False when pages are short.

        A branch that is alone needs no more pages than its path has, in a cache that it fits.
        """
        for each in path:
            each.users += 1  # so that none of them is evicted for another
        admitted = self.make_room(self._missing_pages(path) + RESERVE_PAGES)
        if not admitted and alone:
            self._evict_spare(path)
            admitted = self.make_room(self._missing_pages(path))
        if not admitted:
            for each in path:
                each.users -= 1
            return False
        self._compute_missing(path)
        return True

    def open(self, parent: Segment, start: int) -> Segment:
        """A new segment below one that is in the cache, with one reader."""
        segment = Segment(parent, start, [], kv=self.cache.fork(parent.kv), users=1)
        self.segments[segment] = None
        return segment

    def reserve(self, segment: Segment, *, alone: bool = False) -> int:
        """Pages for more tokens of an open segment: RESERVE_PAGES, or what a lone branch can get.

        Returns:
            How many more tokens it has room for; 0 when pages are short.
        """
        size = self.cache.page_size
        room = -len(segment.tokens) % size
        if self.make_room(RESERVE_PAGES):
            self.cache.reserve(segment.kv, room + RESERVE_PAGES * size)
            return room + RESERVE_PAGES * size
        path = segment.path()
        if not alone or not self.fits(path, opened=True):
            return 0
        if not self.cache.free_pages:
            self._evict_spare(path[:-1])
            self._compute_missing(path)
        for tokens in range(room + (RESERVE_PAGES - 1) * size, 0, -size):
            with contextlib.suppress(KVCacheFull):  # it may hold pages from an earlier turn
                self.cache.reserve(segment.kv, tokens)
                return tokens
        return 0

    def make_room(self, pages: int) -> bool:
        """Evict segments that no branch reads, least visited first, until `pages` are free.

        Looking at every segment takes as long as a step once there are thousands: when it must be
        done, a part of the cache is freed at once.
        """
        if self.cache.free_pages >= pages:
            return True
        goal = max(pages, self.cache.num_pages // EVICTED_SHARE)
        unused = [each for each in self.segments if not each.users and self._resident(each)]
        unused.sort(key=lambda each: each.rank)  # of equal ones the oldest first
        for each in unused:
            self.cache.evict(each.kv)
            if self.cache.free_pages >= goal:
                break
        return self.cache.free_pages >= pages

    def release(self, segments: Iterable[Segment]) -> None:
        """Give segments up: no branch reads them and none will continue from them."""
        for segment in segments:
            self.cache.release(segment.kv)
            self.segments.pop(segment, None)

    def close(self) -> None:
        """Give every page back; called again, what an interrupt left over.

        Evicted first, a segment holds no page whatever else an interrupt left in the cache.
        """
        for segment in list(self.segments):
            with contextlib.suppress(ValueError, IndexError):  # an interrupt right behind a release
                if self._resident(segment):
                    self.cache.evict(segment.kv)
                self.cache.release(segment.kv)
            self.segments.pop(segment, None)

    def full(self, path: list[Segment]) -> KVCacheFull:
        """The error of a path behind which there is no page for one more token."""
        return KVCacheFull(self._pages(path) + 1, self.cache.free_pages, self.cache.num_pages)

    def _resident(self, segment: Segment) -> bool:
        return segment.kv >= 0 and self.cache.is_resident(segment.kv)

    def _pages(self, segments: Iterable[Segment]) -> int:
        """Pages that hold the tokens of some segments."""
        return sum(-(-len(each.tokens) // self.cache.page_size) for each in segments)

    def _missing_pages(self, path: list[Segment]) -> int:
        return self._pages(each for each in path if not self._resident(each))

    def _evict_spare(self, path: list[Segment]) -> None:
        """Evict what holds more pages than its tokens need: it was reserved more than it got."""
        for each in path:
            if self._resident(each):
                held = int((self.cache.block_table([each.kv]) >= 0).sum())
                if held > self._pages([each]):
                    self.cache.evict(each.kv)

    def _compute_missing(self, path: list[Segment]) -> None:
        for each in path:
            if not self._resident(each):
                self._compute(each)

    @isolated
    def _compute(self, segment: Segment) -> None:
        """Compute a segment's KV from its tokens: a new prompt, or a segment that was evicted."""
        if segment.kv < 0:
            parent = segment.parent
            segment.kv = self.cache.add_root() if parent is None else self.cache.fork(parent.kv)
            self.segments[segment] = None
            slots = self.cache.extend(segment.kv, len(segment.tokens))
        else:
            slots = self.cache.restore(segment.kv)
        self.runner.compute(segment, slots, self.rows)
