"""topk_confidence: one launch, each logit read once from memory."""

from typing import TYPE_CHECKING

import torch

from marco_fast.kernels import launch
from marco_fast.kernels.confidence_launch import (
    Workspace,
    compiler_options,
    key_slots,
    make_workspace,
    shares_of,
)
from marco_fast.kernels.confidence_scan import Shares
from marco_fast.kernels.topk_confidence_kernels import topk_confidence_kernel

if TYPE_CHECKING:
    from marco_fast.ops.confidence.options import Scoring
    from marco_fast.ops.reference.confidence import TopKConfidence

__all__ = ["topk_confidence"]


def topk_confidence(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    scoring: "Scoring",
    out: "TopKConfidence",
    *,
    shares: Shares | None = None,
    workspace: Workspace | None = None,
) -> None:
    """Launches the kernel; arguments as marco_fast.topk_confidence, already checked.

    Args:
        out: filled.
        shares: in place of those of shares_of.
        workspace: memory of a call of the same shape.

    Raises:
        ValueError: top_k above 32.
    """
    (rows, vocab_size), top_k = logits.shape, out.topk_ids.shape[1]
    block_k = key_slots(top_k, sample=False)
    if rows == 0:
        return
    target = launch.target_of(logits.device)
    shares = shares or shares_of(rows, vocab_size, target.processors)
    with launch.launching(logits.device):
        space = workspace or make_workspace(logits, block_k, shares.splits, sample=False)
        topk_confidence_kernel[(rows * shares.splits,)](
            logits, token_ids, logits.stride(0), vocab_size, scoring.temperature, top_k,
            int(scoring.include_token), out, space, shares, BLOCK_K=block_k,
            **compiler_options(target, logits, block_k, sample=False),
        )  # fmt: skip
