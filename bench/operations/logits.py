"""Logits that the benchmarks of scoring and of drawing read, and the check of what came out."""

from collections.abc import Callable

import torch

from bench.common.roofline import LARGE, rotating
from marco_fast.ops import SampledTokens, TopKConfidence, reference
from tests.support.tolerance import assert_close

__all__ = ["VOCAB_SIZE", "checked", "logits_in_turn"]

VOCAB_SIZE = 151936  # Qwen2's


def logits_in_turn(rows: int, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """The next logits to score; small ones in one buffer, as the LM head has just written them.

    Logits of 16 MB and more leave the caches before they are read: those rotate.
    """
    rng = torch.Generator().manual_seed(0)

    def make(_: int) -> torch.Tensor:
        return (3 * torch.randn(rows, VOCAB_SIZE, generator=rng)).to(dtype)

    nbytes = rows * VOCAB_SIZE * dtype.itemsize
    return rotating(make, nbytes, total=LARGE if nbytes >= 16 * 2**20 else nbytes)


def checked(logits: torch.Tensor, got: TopKConfidence | SampledTokens) -> None:
    """Refuse to time a wrong result. The scored token is the drawn one, or token 0."""
    zeros = torch.zeros(len(logits), dtype=torch.int64)
    ids = got.token_ids.long() if isinstance(got, SampledTokens) else zeros
    want = reference.topk_confidence(logits[:2], ids[:2])
    assert_close(got.confidence[:2], want.confidence)
    assert_close(got.topk_logprobs[:2], want.topk_logprobs, atol=1e-6)
    assert torch.equal(got.topk_ids[:2], want.topk_ids)
