"""lm_head_confidence on a CPU, beside a library product with sampling and scores by hand.

make bench, or: pytest bench/operations/bench_lm_head_confidence.py --benchmark-only -s
"""

import os

import pytest
import torch
from torch.nn.functional import linear

import marco_fast as mf
from bench.common.roofline import with_threads
from bench.operations import by_hand
from bench.operations.logits import VOCAB_SIZE
from bench.operations.timing import compare

THREADS = len(os.sched_getaffinity(0))
TEMPERATURE = 0.7


@pytest.mark.parametrize("rows", [1, 8, 16, 64])
@pytest.mark.parametrize("size", [896, 2048])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_lm_head_confidence(benchmark, dtype, size, rows):
    torch.manual_seed(0)
    weight = (3 * torch.randn(VOCAB_SIZE, size) / size**0.5).to(dtype)
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

    with with_threads(THREADS):
        want = linear(hidden.double(), weight.double()).logsumexp(-1)
        assert (ours().lse - want).abs().max() < 1e-4  # a wrong result is not timed
    compare(
        benchmark,
        ours,
        {"torch linear, softmax + multinomial, scores": by_torch},
        also={"linear and sample_confidence": by_ops},
        threads=THREADS,
        nbytes=weight.nbytes,
        flops=2 * rows * size * VOCAB_SIZE,
        dtype=dtype,
        rounds=9,
        budget=6.0,
    )
