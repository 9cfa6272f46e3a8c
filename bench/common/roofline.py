"""Floors measured in the same run as the kernels: how fast this machine reads and multiplies."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

__all__ = ["LARGE", "interleaved", "peak", "read_bandwidth", "rotating", "with_threads"]

TURN = 1e-3  # seconds that a turn takes at least
# Seconds between turns: after its last call an OpenMP team spins for up to 5 ms, on cores that the
# next candidate needs.
PAUSE = 6e-3
WARM = 4e-3  # seconds of untimed calls before a turn at least: cores and threads wake up
LARGE = 256 * 2**20  # bytes: several times the last-level cache of the machines we know


@contextmanager
def with_threads(count: int) -> Iterator[None]:
    """PyTorch and the C++ kernels compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache
def read_bandwidth(threads: int) -> float:
    """Bytes per second of a read-only sum over a large float32 buffer; the best of 9."""
    buffer = torch.rand(LARGE // 4)
    with with_threads(threads):
        return LARGE / min(_seconds(buffer.sum) for _ in range(9))


@lru_cache
def peak(dtype: torch.dtype, threads: int) -> float:
    """FLOP per second of a large matrix product, the best of 5.

    Where a machine has no products of `dtype`, float32's are faster in PyTorch: then those count.
    """
    if dtype != torch.float32:
        return max(_product(dtype, threads), peak(torch.float32, threads))
    return _product(dtype, threads)


def _product(dtype: torch.dtype, threads: int) -> float:
    a, b = torch.randn(2, 1536, 1536).to(dtype)
    with with_threads(threads):
        return 2 * 1536**3 / min(interleaved(lambda: a @ b, rounds=5)[0])


def _seconds(f: Callable[[], object], calls: int = 1) -> float:
    """Seconds per call, over so many calls."""
    start = time.perf_counter()
    for _ in range(calls):
        f()
    return (time.perf_counter() - start) / calls


def during(seconds: float, f: Callable[[], object] = lambda: None) -> None:
    """Call f at least once, and again until the time is over."""
    end = time.perf_counter() + seconds
    f()
    while time.perf_counter() < end:
        f()


def interleaved(
    *candidates: Callable[[], object], rounds: int = 15, budget: float = 8.0
) -> list[list[float]]:
    """Seconds per call in each round of each candidate; the candidates take turns.

    A turn of a short candidate is as many calls as fill a millisecond: single calls would be timed
    with the caches as the other candidate left them. Before each turn the threads of the previous
    candidate go to sleep, and untimed calls wake the next one's.

    Args:
        candidates: calls without arguments; each is warmed up.
        rounds: how often each runs at most, and at least 5 times.
        budget: seconds after which no further round starts.
    """
    for candidate in candidates:
        candidate()
    calls = [max(1, round(TURN / max(_seconds(each, 1), 1e-9))) for each in candidates]
    seconds: list[list[float]] = [[] for _ in candidates]
    start = time.perf_counter()
    for i in range(rounds):
        if i >= 5 and time.perf_counter() - start > budget:
            break
        for candidate, count, times in zip(candidates, calls, seconds, strict=True):
            during(PAUSE)
            during(WARM, candidate)
            times.append(_seconds(candidate, count))
    return seconds


def rotating(
    make: Callable[[int], torch.Tensor], nbytes: int, *, total: int = LARGE
) -> Callable[[], torch.Tensor]:
    """A function that returns the next of several tensors of one size, in turn.

    Args:
        make: the i-th tensor.
        nbytes: of one tensor.
        total: bytes of all of them together, at least; by default more than any cache holds.
    """
    tensors = [make(i) for i in range(max(1, -(-total // nbytes)))]
    turn = 0

    def following() -> torch.Tensor:
        nonlocal turn
        turn = (turn + 1) % len(tensors)
        return tensors[turn]

    return following
