"""How long a search still takes, from the lengths of the branches that have ended so far.

The branches in flight are as long as they are, or longer: the ended ones alone would foretell too
little, since the short ones end first. So lengths are estimated as lifetimes are, by Kaplan and
Meier's product (J. Am. Stat. Assoc. 53, 1958), in which a branch that still runs counts for every
length up to its own. A branch that is longer than all that have ended is taken to be half-way.
"""

import heapq
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

__all__ = ["Lengths", "Pace", "duration", "remaining_seconds"]

LATEST = 256  # branches that count and that are played: later ones, from deeper nodes, are shorter
WINDOW = 0.5  # share of the time so far whose pace counts
LEAST = 2.0  # seconds of that at least
PER_ROW = 3.0  # what the rows of a full batch add to a step, over what it takes without any
GOLDEN = 0.6180339887498949  # its multiples, modulo 1, are spread evenly however many there are


class Lengths:
    """How many tokens a branch decodes, as far as those so far tell.

    Args:
        ended: tokens of each branch that has ended, one at least.
        running: tokens so far of each branch in flight.
        longest: tokens that no branch can exceed.
    """

    def __init__(self, ended: Sequence[int], running: Sequence[int], longest: int) -> None:
        self.longest = longest
        self.points, self.alive = [0], [1.0]  # the share of branches longer than each point
        order = sorted([(each, 0) for each in ended] + [(each, 1) for each in running])
        alive, at_risk = 1.0, len(order)
        for length, still in order:
            if not still:
                alive *= 1 - 1 / at_risk
                self.points.append(length)
                self.alive.append(alive)
            at_risk -= 1
        self.falling = [-each for each in self.alive]

    def whole(self, tokens: int, share: float) -> float:
        """The length that this share of the branches of `tokens` or more does not exceed."""
        alive = self.alive[bisect_right(self.points, tokens) - 1]
        if alive > 0 and tokens < self.points[-1]:
            wanted = alive * (1 - share)
            if wanted >= self.alive[-1]:
                reached = bisect_right(self.falling, -wanted - 1e-12)
                return max(tokens, self.points[min(reached, len(self.points) - 1)])
            tokens, share = self.points[-1], 1 - wanted / self.alive[-1]
        # Half of what a branch will be, on average: a tail that falls with the square.
        return min(self.longest, tokens / max(1e-6, 1 - share) ** 0.5)


class Pace:
    """Steps and tokens a second, of late."""

    def __init__(self) -> None:
        self.seen: deque[tuple[float, int]] = deque()

    def per_second(self, seconds: float, tokens: int) -> float:
        """Tokens a second over the last half of the time so far; 0.0 before any token.

        Args:
            seconds, tokens: so far; neither may be less than at the call before.
        """
        self.seen.append((seconds, tokens))
        begin = seconds - max(LEAST, WINDOW * seconds)
        while len(self.seen) > 2 and self.seen[1][0] <= begin:
            self.seen.popleft()
        (first, before), passed = self.seen[0], seconds - self.seen[0][0]
        return (tokens - before) / passed if passed > 0 else tokens / max(seconds, first, 1e-9)


def remaining_seconds(
    ended: Sequence[int],
    running: Sequence[int],
    *,
    to_start: int,
    longest: int,
    pace: float,
) -> float | None:
    """Seconds until the last branch has ended; None where nothing is known yet.

    Args:
        ended: tokens of each branch that has ended. running: so far, of each in flight.
        to_start: branches that are still to be started, each as one in flight ends.
        longest: tokens that no branch can exceed.
        pace: tokens a second of all branches that run together.
    """
    if not ended or pace <= 0 or not (running or to_start):
        return 0.0 if ended and not (running or to_start) else None
    lengths = Lengths(ended[-LATEST:], running, longest)
    shares = [(GOLDEN * each) % 1 for each in range(1, LATEST + 1)]
    rows = max(1, len(running))
    ends = [
        lengths.whole(each, shares[index % LATEST]) - each for index, each in enumerate(running)
    ] or [0.0]
    heapq.heapify(ends)
    begun = 0.0
    for share in shares[: min(to_start, LATEST)]:
        begun = heapq.heappop(ends)
        heapq.heappush(ends, begun + lengths.whole(0, share))
    mean = sum(lengths.whole(0, each) for each in shares) / LATEST
    steps = begun + max(0, to_start - LATEST) * mean / rows
    # What is left when the last one has started: beside fewer and fewer others.
    for left, end in zip(range(len(ends), 0, -1), sorted(ends), strict=True):
        steps += max(0.0, end - begun) * (1 + PER_ROW * left / rows) / (1 + PER_ROW)
        begun = max(begun, end)
    return steps * rows / pace


def duration(seconds: float) -> str:
    """A time in words, as exact as an estimate is."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (129600, 3600, "h")):
        if seconds < limit:
            count = max(1, round(seconds / unit))
            step = 5 if count >= 20 else 1
            return f"{round(count / step) * step} {name}"
    return f"{round(seconds / 86400):,} days"
