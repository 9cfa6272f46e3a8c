"""Intervals of measured shares, and how well confidences separate right from wrong replies."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

__all__ = ["Share", "auroc", "gain", "reliability", "wilson"]


class Share(NamedTuple):
    """A proportion with its 95% Wilson interval."""

    right: int
    total: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """right / total; 0.0 if total is 0."""
        return self.right / self.total if self.total else 0.0

    @classmethod
    def of(cls, flags: Sequence[bool]) -> "Share":
        """The share of flags that are true."""
        return cls(sum(flags), len(flags), *wilson(sum(flags), len(flags)))


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a proportion, of 95% at z = 1.96; (0, 1) if total is 0."""
    if total == 0:
        return 0.0, 1.0
    share, spread = right / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / total + spread / (4 * total)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def gain(
    before: Sequence[bool], after: Sequence[bool], z: float = 1.96
) -> tuple[float, float, float]:
    """The difference of two shares of the same questions, with its interval.

    Args:
        before, after: whether each question is right, in the same order.
        z: 1.96 gives a 95% interval.

    Returns:
        (share of after - share of before, low, high), from the questions that changed (Bonett and
        Price, Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on
        Paired Data, 2012); (0, -1, 1) without a question.
    """
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    total, won, lost = len(before), sum(changed), len(changed) - sum(changed)
    if total == 0:
        return 0.0, -1.0, 1.0
    up, down = (won + 1) / (total + 2), (lost + 1) / (total + 2)
    half = z * ((up + down - (up - down) ** 2) / (total + 2)) ** 0.5
    return (won - lost) / total, max(-1.0, up - down - half), min(1.0, up - down + half)


def auroc(pairs: Sequence[tuple[float, bool]]) -> float | None:
    """The probability that a right reply has a higher confidence than a wrong one.

    Args:
        pairs: (confidence, whether the reply is right).

    Returns:
        The area under the ROC curve; a tie counts half. None if all replies are right or all wrong.
    """
    values = [value for value, _ in sorted(pairs)]
    right = [ok for _, ok in sorted(pairs)]
    good = sum(right)
    if not good or good == len(right):
        return None
    ranks: dict[float, list[int]] = {}
    for rank, value in enumerate(values, 1):
        ranks.setdefault(value, []).append(rank)
    total = sum(
        sum(ranks[v]) / len(ranks[v]) for v, ok in zip(values, right, strict=True) if ok
    )  # equal values get their mean rank
    return (total - good * (good + 1) / 2) / (good * (len(right) - good))


def reliability(
    pairs: Sequence[tuple[float, bool]], bins: int = 10
) -> tuple[list[tuple[float, Share]], float]:
    """Confidence beside accuracy, in bins that hold about the same number of replies.

    Args:
        pairs: (confidence, whether the reply is right).
        bins: at most so many.

    Returns:
        (rows, error). A row is (mean confidence, share of right replies) of a bin, in ascending
        order of confidence. The expected calibration error is the mean distance of the two in a
        row, weighted by the number of replies in the bin.
    """
    ordered = sorted(pairs)
    count = min(bins, len(ordered))
    edges = [len(ordered) * i // count for i in range(count + 1)] if count else []
    rows, error = [], 0.0
    for begin, end in pairwise(edges):
        part = ordered[begin:end]
        mean = sum(value for value, _ in part) / len(part)
        share = Share.of([ok for _, ok in part])
        rows.append((mean, share))
        error += abs(mean - share.share) * len(part) / len(ordered)
    return rows, error
