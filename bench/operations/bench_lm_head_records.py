"""lm_head_records of half a vocabulary on a CPU, beside the product and its candidates by hand.

make bench, or: pytest bench/operations/bench_lm_head_records.py --benchmark-only -s
"""

import os

import pytest
import torch
from torch.nn.functional import linear

import marco_fast as mf
from bench.common.roofline import with_threads
from bench.operations.logits import VOCAB_SIZE
from bench.operations.timing import compare

THREADS = len(os.sched_getaffinity(0))
SHARD = VOCAB_SIZE // 2
CANDIDATES = 16  # what a record holds


@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_lm_head_records(benchmark, dtype, rows):
    torch.manual_seed(0)
    size = 896
    weight = (3 * torch.randn(SHARD, size) / size**0.5).to(dtype)
    hidden = torch.randn(rows, size).to(dtype)

    def ours() -> mf.LMHeadRecords:
        return mf.lm_head_records(hidden, weight, 0, VOCAB_SIZE)

    def by_torch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = linear(hidden, weight)
        return (logits.float().logsumexp(-1), *logits.topk(CANDIDATES))

    with with_threads(THREADS):  # a wrong result is not timed
        want = linear(hidden.double(), weight.double()).topk(CANDIDATES).values
        got = linear(hidden.double(), weight.double()).gather(1, ours().topk_ids.long())
        assert (got - want).abs().max() < 1e-4
    compare(
        benchmark,
        ours,
        {"torch linear, logsumexp, topk": by_torch},
        threads=THREADS,
        nbytes=weight.nbytes,
        flops=2 * rows * size * SHARD,
        dtype=dtype,
        rounds=9,
        budget=6.0,
    )
