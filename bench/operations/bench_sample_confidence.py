"""sample_confidence on a CPU, beside sampling by hand and beside the time to read the logits.

make bench, or: pytest bench/operations/bench_sample_confidence.py --benchmark-only -s
"""

import pytest
import torch

from bench.operations import by_hand
from bench.operations.logits import VOCAB_SIZE, checked, logits_in_turn
from bench.operations.timing import compare
from marco_fast import ops

THREADS = 1  # no team to start, the same for both sides
PEER = "torch softmax + multinomial"


def keys(rows: int) -> dict[str, torch.Tensor]:
    return {"seeds": torch.arange(rows), "positions": torch.arange(rows)}


def sampled(logits: torch.Tensor, temperature: float, top_p: float) -> tuple[torch.Tensor, ...]:
    return by_hand.scores(logits, by_hand.sample(logits, temperature, top_p))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.95)])
def test_sample_confidence(benchmark, temperature, top_p, rows, dtype):
    logits, options = logits_in_turn(rows, dtype), {"temperature": temperature, "top_p": top_p}

    def ours(x: torch.Tensor | None = None) -> ops.SampledTokens:
        return ops.sample_confidence(logits() if x is None else x, **options, **keys(rows))

    checked(x := logits(), ours(x))
    peers = {PEER: lambda: sampled(logits(), temperature, top_p)}
    compare(benchmark, ours, peers, threads=THREADS, nbytes=rows * VOCAB_SIZE * dtype.itemsize)


@pytest.mark.parametrize("rows", [1, 16, 64])
def test_decode_step_of_a_small_model(benchmark, rows):
    """1,000 entries in the vocabulary: what a call costs when there is next to nothing to read."""
    logits = torch.randn(rows, 1000, generator=torch.Generator().manual_seed(0)) * 3

    def ours() -> ops.SampledTokens:
        return ops.sample_confidence(logits, temperature=0.7, **keys(rows))

    checked(logits, ours())
    peers = {PEER: lambda: sampled(logits, 0.7, 1.0)}
    compare(benchmark, ours, peers, threads=THREADS, nbytes=logits.nbytes)
