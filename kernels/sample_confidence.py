"""sample_confidence: one launch, each logit read once from memory."""

from typing import TYPE_CHECKING

import torch

from marco_fast.kernels import launch
from marco_fast.kernels.confidence_launch import (
    Workspace,
    compiler_options,
    draws_of,
    key_slots,
    make_workspace,
    options_of,
    shares_of,
)
from marco_fast.kernels.confidence_scan import Shares
from marco_fast.kernels.sample_confidence_kernels import sample_confidence_kernel

if TYPE_CHECKING:
    from marco_fast.ops.confidence.options import Sampling
    from marco_fast.ops.reference.confidence import SampledTokens

__all__ = ["sample_confidence"]


def sample_confidence(
    logits: torch.Tensor,
    sampling: "Sampling",
    out: "SampledTokens",
    *,
    shares: Shares | None = None,
    workspace: Workspace | None = None,
) -> None:
    """Launches the kernel; arguments as marco_fast.sample_confidence, already checked.

    Args:
        out: filled.
        shares: in place of those of shares_of.
        workspace: memory of a call of the same shape.

    Raises:
        ValueError: top_k above 32.
    """
    (rows, vocab_size), top_k = logits.shape, out.topk_ids.shape[1]
    block_k = key_slots(top_k, sample=True)
    if rows == 0:
        return
    target = launch.target_of(logits.device)
    shares = shares or shares_of(rows, vocab_size, target.processors)
    options = options_of(sampling, top_k, out.confidence, out.token_ids)
    draws = draws_of(sampling, out.token_ids)
    with launch.launching(logits.device):
        space = workspace or make_workspace(logits, block_k, shares.splits, sample=True)
        sample_confidence_kernel[(rows * shares.splits,)](
            logits, logits.stride(0), vocab_size, options, draws, out, space, shares,
            BLOCK_K=block_k, **compiler_options(target, logits, block_k, sample=True),
        )  # fmt: skip
