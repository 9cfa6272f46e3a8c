"""Faults put into a search: the n-th call of any of its parts fails."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from marco_fast import Engine

Site = tuple[str, int]  # the part that is called, and which of its calls

CACHE = (
    "add_root", "fork", "reserve", "reserve_many", "extend", "extend_many", "slots_ahead",
    "truncate", "evict", "restore", "release", "block_table", "lengths",
)  # fmt: skip
RUNNER = ("sample", "write_kv", "compute")


class Faults:
    """Counts the calls of a search's parts, and makes one of them fail.

    Attributes:
        calls: how often each part was called since `arm`.
        hit: whether the armed call came.
    """

    def __init__(self) -> None:
        self.arm(None)

    def arm(self, site: Site | None, error: BaseException | None = None, *, late: bool = False):
        """Fail at this call from now on; `late`: when the call has done its work."""
        self.calls: Counter[str] = Counter()
        self.site, self.error, self.late, self.hit = site, error, late, False

    def wrapped(self, name: str, function: Callable) -> Callable:
        """The function, as a part that may fail."""

        def part(*args: Any, **options: Any) -> Any:
            due = self.site == (name, self.calls[name])
            self.calls[name] += 1
            if due and not self.late:
                self._fail()
            result = function(*args, **options)
            if due:
                self._fail()
            return result

        return part

    def _fail(self) -> None:
        self.hit = True
        assert self.error is not None
        raise self.error

    def watch(self, engine: Engine, patch: pytest.MonkeyPatch) -> None:
        """Every call into the model and every change of the cache is a part."""
        for target, names in ((engine.runner, RUNNER), (engine.cache, CACHE)):
            for name in names:
                patch.setattr(target, name, self.wrapped(name, getattr(target, name)))


def sites(calls: Counter[str], most: int) -> list[Site]:
    """Calls to fail, in a random order: each part's first and last, the rest thinned out evenly."""
    all_calls = [(name, index) for name in sorted(calls) for index in range(calls[name])]
    ends = {(name, index) for name in calls for index in (0, calls[name] - 1)}
    step = max(1.0, len(all_calls) / max(1, most - len(ends)))
    picked = ends | {all_calls[int(index * step)] for index in range(int(len(all_calls) / step))}
    return random.Random(1).sample(sorted(picked), len(picked))
