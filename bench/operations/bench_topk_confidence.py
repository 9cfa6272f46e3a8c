"""topk_confidence on a CPU, beside PyTorch by hand and beside the time to read the logits.

make bench, or: pytest bench/operations/bench_topk_confidence.py --benchmark-only -s
"""

import pytest
import torch

from bench.operations import by_hand
from bench.operations.logits import VOCAB_SIZE, checked, logits_in_turn
from bench.operations.timing import compare
from marco_fast import ops


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 8, 64])
def test_topk_confidence(benchmark, rows, dtype):
    logits, ids = logits_in_turn(rows, dtype), torch.zeros(rows, dtype=torch.int64)
    checked(x := logits(), ops.topk_confidence(x, ids))
    ways = {
        "torch log_softmax + topk + gather": by_hand.scores,
        "torch topk first": by_hand.scores_topk_first,
    }
    if dtype != torch.float32:  # converted before instead of within: the faster one counts
        ways |= {
            "torch float, log_softmax + topk + gather": lambda x, t: by_hand.scores(x.float(), t),
            "torch float, topk first": lambda x, t: by_hand.scores_topk_first(x.float(), t),
        }
    compare(
        benchmark,
        lambda: ops.topk_confidence(logits(), ids),
        {name: lambda f=f: f(logits(), ids) for name, f in ways.items()},
        threads=1,  # no team to start, the same for both sides
        nbytes=rows * VOCAB_SIZE * dtype.itemsize,
    )
