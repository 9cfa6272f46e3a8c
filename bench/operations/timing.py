"""An operation and its peers timed in turns: what every benchmark of an operation records."""

import statistics
from collections.abc import Callable

import torch

from bench.common.roofline import interleaved, peak, read_bandwidth, with_threads

__all__ = ["compare"]

Call = Callable[[], object]


def compare(
    benchmark,
    ours: Call,
    peers: dict[str, Call],
    also: dict[str, Call] | None = None,
    *,
    threads: int,
    nbytes: int = 0,
    flops: int = 0,
    dtype: torch.dtype = torch.float32,
    rounds: int = 15,
    budget: float = 8.0,
) -> None:
    """Record medians, the fastest peer and the share of the floor, where there is one.

    Args:
        benchmark: the fixture of pytest-benchmark, whose extra_info gets the numbers.
        ours: the operation.
        peers: other ways to the same result; the ratio is to the fastest of them.
        also: ways that are timed and recorded beside the peers, but are none of them.
        threads: of computation, the same for all.
        nbytes, flops, dtype: what has to be read from memory, and computed in products of `dtype`;
            the floor is the longer of the two times. Without nbytes there is no floor.
        rounds, budget: as in `interleaved`.
    """
    calls = {**peers, **(also or {})}
    with with_threads(threads):
        mine, *theirs = interleaved(ours, *calls.values(), rounds=rounds, budget=budget)
        floor = nbytes and nbytes / read_bandwidth(threads)
        if flops:
            floor = max(floor, flops / peak(dtype, threads))
        benchmark.pedantic(ours, rounds=3, warmup_rounds=1)
    median = statistics.median(mine)
    medians = {name: statistics.median(x) for name, x in zip(calls, theirs, strict=True)}
    best = min(peers, key=medians.__getitem__)
    benchmark.extra_info |= {
        "us": median * 1e6,
        "us_quartiles": [q * 1e6 for q in statistics.quantiles(mine, n=4)],
        "peer": best,
        "peer_us": medians[best] * 1e6,
        "peers_us": {name: x * 1e6 for name, x in medians.items()},
        "ratio": medians[best] / median,
        "threads": threads,
    }
    told = [f"{name} {x * 1e6:.0f} us ({x / median:.2f}x)" for name, x in medians.items()]
    if floor:
        benchmark.extra_info |= {"floor_us": floor * 1e6, "floor_share": floor / median}
        told.append(f"floor {floor * 1e6:.0f} us ({floor / median:.0%})")
    print(f"\n{benchmark.name}: {median * 1e6:.0f} us; {'; '.join(told)}")
