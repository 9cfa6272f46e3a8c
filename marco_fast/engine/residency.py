"""Residency: which segments have their KV in the cache. Evicts, restores, computes again."""

from collections.abc import Iterable

from marco_fast.engine.branches import Segment
from marco_fast.engine.runner import Runner
from marco_fast.errors import KVCacheFull
from marco_fast.ops.isolation import isolated

__all__ = ["RESERVE_PAGES", "Residency"]

EVICTED_SHARE = 16  # of the cache's pages, one in so many is freed when none is left
RESERVE_PAGES = 2  # pages that an open segment asks for at a time: a mini-step of 32 tokens


class Residency:
    """The segments of one run in a runner's cache.

    Args:
        runner: computes what is missing.
        rows: the most rows of a decode batch.
    """

    def __init__(self, runner: Runner, rows: int) -> None:
        self.runner, self.rows = runner, rows
        self.cache = runner.cache
        self.segments: set[Segment] = set()  # all that have a node in the cache

    def admit(self, path: list[Segment]) -> bool:
        """Bring a whole path into the cache and count its reader; False when pages are short."""
        for each in path:
            each.users += 1  # so that none of them is evicted for another
        if not self.make_room(self._needed(path)):
            for each in path:
                each.users -= 1
            return False
        for each in path:
            if not self._resident(each):
                self._compute(each)
        return True

    def open(self, parent: Segment, start: int) -> Segment:
        """A new segment below one that is in the cache, with one reader."""
        segment = Segment(parent, start, [], kv=self.cache.fork(parent.kv), users=1)
        self.segments.add(segment)
        return segment

    def reserve(self, segment: Segment) -> int:
        """Pages for more tokens of an open segment.

        Returns:
            How many more tokens it has room for; 0 when pages are short.
        """
        size = self.cache.page_size
        if not self.make_room(RESERVE_PAGES):
            return 0
        tokens = -len(segment.tokens) % size + RESERVE_PAGES * size
        self.cache.reserve(segment.kv, tokens)
        return tokens

    def make_room(self, pages: int) -> bool:
        """Evict segments that no branch reads, least visited first, until `pages` are free.

        Looking at every segment takes as long as a step once there are thousands: when it must be
        done, a part of the cache is freed at once.
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

    def release(self, segments: Iterable[Segment]) -> None:
        """Give segments up: no branch reads them and none will continue from them."""
        for segment in segments:
            self.segments.discard(segment)
            self.cache.release(segment.kv)

    def close(self) -> None:
        """Give every page back."""
        self.release(list(self.segments))

    def full(self, path: list[Segment]) -> KVCacheFull:
        """The error of a path that does not fit."""
        return KVCacheFull(self._needed(path), self.cache.free_pages, self.cache.num_pages)

    def _resident(self, segment: Segment) -> bool:
        return segment.kv >= 0 and self.cache.is_resident(segment.kv)

    def _needed(self, path: list[Segment]) -> int:
        """Pages to take for the missing segments of a path and a new one below it."""
        missing = [each for each in path if not self._resident(each)]
        pages = sum(-(-len(each.tokens) // self.cache.page_size) for each in missing)
        return pages + RESERVE_PAGES

    @isolated
    def _compute(self, segment: Segment) -> None:
        """Compute a segment's KV from its tokens: a new prompt, or a segment that was evicted."""
        if segment.kv < 0:
            parent = segment.parent
            segment.kv = self.cache.add_root() if parent is None else self.cache.fork(parent.kv)
            self.segments.add(segment)
            slots = self.cache.extend(segment.kv, len(segment.tokens))
        else:
            slots = self.cache.restore(segment.kv)
        self.runner.compute(segment, slots, self.rows)
