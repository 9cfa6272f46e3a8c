"""lm_head_confidence on a CPU, beside a library product with sampling and scores by hand.

make bench, or: pytest bench/operations/bench_lm_head_confidence.py --benchmark-only -s
"""

import os
import statistics

import pytest
import torch
from torch.nn.functional import linear

import marco_fast as mf
from bench.common.roofline import interleaved, peak, read_bandwidth
from bench.operations import by_hand

THREADS = len(os.sched_getaffinity(0))
VOCAB = 151936
TEMPERATURE = 0.7


@pytest.mark.parametrize("rows", [1, 8, 16, 64])
@pytest.mark.parametrize("size", [896, 2048])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_lm_head_confidence(benchmark, dtype, size, rows):
    torch.manual_seed(0)
    weight = (3 * torch.randn(VOCAB, size) / size**0.5).to(dtype)
    hidden = torch.randn(rows, size).to(dtype)
    options = {
        "temperature": TEMPERATURE,
        "seeds": torch.arange(rows),
        "positions": torch.full((rows,), 7),
    }

    def ours() -> mf.SampledTokens:
        return mf.lm_head_confidence(hidden, weight, **options)

    def by_ops() -> mf.SampledTokens:
        return mf.sample_confidence(linear(hidden, weight), **options)

    def by_torch() -> tuple[torch.Tensor, ...]:
        logits = linear(hidden, weight)
        return by_hand.scores(logits, by_hand.sample(logits, TEMPERATURE, 1.0))

    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        got = ours()
        want = linear(hidden.double(), weight.double()).logsumexp(-1)
        assert (got.lse - want).abs().max() < 1e-4  # a wrong result is not timed
        mine, torchs, ops = map(
            statistics.median, interleaved(ours, by_torch, by_ops, rounds=9, budget=6)
        )
        bandwidth, flops = read_bandwidth(THREADS), peak(dtype, THREADS)
        benchmark.pedantic(ours, rounds=2, warmup_rounds=0)
    finally:
        torch.set_num_threads(before)
    floor = max(weight.nbytes / bandwidth, 2 * rows * size * VOCAB / flops)
    benchmark.extra_info |= {
        "us": mine * 1e6,
        "peer": "torch linear, softmax + multinomial, scores",
        "peer_us": torchs * 1e6,
        "ratio": torchs / mine,
        "linear_and_sample_confidence_us": ops * 1e6,
        "floor_us": floor * 1e6,
        "floor_share": floor / mine,
        "threads": THREADS,
    }
    print(
        f"\n{benchmark.name}: {mine * 1e3:.1f} ms; by hand {torchs * 1e3:.1f} ms "
        f"({torchs / mine:.2f}x), linear + sample_confidence {ops * 1e3:.1f} ms "
        f"({ops / mine:.2f}x); floor {floor / mine:.0%}"
    )
