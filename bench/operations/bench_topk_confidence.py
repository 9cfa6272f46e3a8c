"""Confidence from logits on a CPU, beside plain PyTorch and beside the time to read the logits.

make bench, or: pytest bench/operations/bench_topk_confidence.py --benchmark-only -s
"""

import statistics

import pytest
import torch

from bench.common.roofline import LARGE, interleaved, read_bandwidth, rotating
from bench.operations import by_hand
from marco_fast import ops
from marco_fast.ops import reference
from tests.support.tolerance import assert_close

THREADS = 1  # one thread each: no team to start, the same for both sides
VOCAB = 151936


def checked(logits: torch.Tensor, got) -> None:
    """Refuses to time a wrong result."""
    ids = got.token_ids.long() if hasattr(got, "token_ids") else torch.zeros(len(logits)).long()
    want = reference.topk_confidence(logits[:2], ids[:2])
    assert_close(got.confidence[:2], want.confidence)
    assert_close(got.topk_logprobs[:2], want.topk_logprobs, atol=1e-6)
    assert torch.equal(got.topk_ids[:2], want.topk_ids)


def run(benchmark, ours, peers: dict, nbytes: int) -> None:
    """Times `ours` against each peer in turns; records medians, the best peer and the floor."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        mine, *theirs = interleaved(ours, *peers.values())
        bandwidth = read_bandwidth(THREADS)
        benchmark.pedantic(ours, rounds=5, warmup_rounds=1)
    finally:
        torch.set_num_threads(before)
    median = statistics.median(mine)
    medians = {name: statistics.median(x) for name, x in zip(peers, theirs, strict=True)}
    best = min(medians, key=medians.__getitem__)
    floor = nbytes / bandwidth
    benchmark.extra_info |= {
        "us": median * 1e6,
        "us_quartiles": [q * 1e6 for q in statistics.quantiles(mine, n=4)],
        "peer": best,
        "peer_us": medians[best] * 1e6,
        "peers_us": {name: x * 1e6 for name, x in medians.items()},
        "ratio": medians[best] / median,
        "floor_us": floor * 1e6,
        "floor_share": floor / median,
        "read_gb_s": bandwidth / 1e9,
    }
    print(
        f"\n{benchmark.name}: {median * 1e6:.0f} us; {best} {medians[best] * 1e6:.0f} us "
        f"({medians[best] / median:.1f}x); floor {floor * 1e6:.0f} us ({floor / median:.0%})"
    )


def sampled(logits: torch.Tensor, temperature: float, top_p: float) -> tuple[torch.Tensor, ...]:
    return by_hand.scores(logits, by_hand.sample(logits, temperature, top_p))


def logits_in_turn(rows: int, dtype: torch.dtype):
    """The next logits to score; small ones in one buffer, as the LM head has just written them.

    Logits of 16 MB and more leave the caches before they are read: those rotate.
    """
    rng = torch.Generator().manual_seed(0)

    def make(_: int) -> torch.Tensor:
        return (3 * torch.randn(rows, VOCAB, generator=rng)).to(dtype)

    nbytes = rows * VOCAB * dtype.itemsize
    return rotating(make, nbytes, total=LARGE if nbytes >= 16 * 2**20 else nbytes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 8, 64])
def test_topk_confidence(benchmark, rows, dtype):
    logits, ids = logits_in_turn(rows, dtype), torch.zeros(rows, dtype=torch.int64)
    checked(x := logits(), ops.topk_confidence(x, ids))
    peers = {
        "torch log_softmax + topk + gather": by_hand.scores,
        "torch topk first": by_hand.scores_topk_first,
    }
    if dtype != torch.float32:  # converted before instead of within: the faster one counts
        peers |= {
            "torch float, log_softmax + topk + gather": lambda x, t: by_hand.scores(x.float(), t),
            "torch float, topk first": lambda x, t: by_hand.scores_topk_first(x.float(), t),
        }
    calls = {name: lambda f=f: f(logits(), ids) for name, f in peers.items()}
    run(
        benchmark,
        lambda: ops.topk_confidence(logits(), ids),
        calls,
        rows * VOCAB * dtype.itemsize,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.95)])
def test_sample_confidence(benchmark, temperature, top_p, rows, dtype):
    logits = logits_in_turn(rows, dtype)
    keys = {"seeds": torch.arange(rows), "positions": torch.arange(rows)}

    def ours():
        return ops.sample_confidence(logits(), temperature=temperature, top_p=top_p, **keys)

    checked(x := logits(), ops.sample_confidence(x, temperature=temperature, top_p=top_p, **keys))
    peers = {"torch softmax + multinomial": lambda: sampled(logits(), temperature, top_p)}
    run(benchmark, ours, peers, rows * VOCAB * dtype.itemsize)


@pytest.mark.parametrize("rows", [1, 16, 64])
def test_decode_step_of_a_small_model(benchmark, rows):
    """V = 1000: what a call costs when there is next to nothing to read."""
    logits = torch.randn(rows, 1000, generator=torch.Generator().manual_seed(0)) * 3
    keys = {"seeds": torch.arange(rows), "positions": torch.arange(rows)}

    def ours():
        return ops.sample_confidence(logits, temperature=0.7, **keys)

    checked(logits, ours())
    peers = {"torch softmax + multinomial": lambda: sampled(logits, 0.7, 1.0)}
    run(benchmark, ours, peers, logits.nbytes)
