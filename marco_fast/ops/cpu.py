"""The backend "cpu": torch tensors to the C++ kernels, as NumPy views that share their memory."""

import numpy as np
import torch

from marco_fast import _C
from marco_fast.ops.tree_plan import TreeAttentionPlan

__all__ = ["append_kv", "sample_confidence", "topk_confidence", "tree_attention"]

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/cpu/array.h


def _view(tensor: torch.Tensor) -> np.ndarray:
    """A NumPy view of the tensor's memory; bfloat16 as uint16, which NumPy can hold."""
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return tensor.detach().numpy() if tensor.requires_grad else tensor.numpy()


def append_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    _C.append_kv(
        _view(k),
        _view(v),
        _view(k_cache),
        _view(v_cache),
        slot_mapping.numpy(),
        torch.get_num_threads(),
    )


def tree_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: TreeAttentionPlan,
    scale: float,
    out: torch.Tensor,
    lse: torch.Tensor,
    workspace: torch.Tensor,
) -> None:
    _C.tree_attention(
        _view(q),
        _view(k_cache),
        _view(v_cache),
        plan.native,
        scale,
        _view(out),
        lse.numpy(),
        workspace.numpy(),
        torch.get_num_threads(),
        DTYPE_CODES[q.dtype],
    )


def topk_confidence(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    temperature: float,
    union: bool,
    *outputs: torch.Tensor,
) -> None:
    """outputs: the fields of TopKConfidence, in order."""
    _C.topk_confidence(
        _view(logits),
        token_ids.numpy(),
        temperature,
        union,
        *[output.numpy() for output in outputs],
        torch.get_num_threads(),
    )


def sample_confidence(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    sample_top_k: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    tempered: bool,
    union: bool,
    path_sums: torch.Tensor | None,
    path_counts: torch.Tensor | None,
    active: torch.Tensor | None,
    *outputs: torch.Tensor,
) -> None:
    """outputs: the fields of SampledTokens, in order."""
    _C.sample_confidence(
        _view(logits),
        temperature.numpy(),
        top_p.numpy(),
        min_p.numpy(),
        sample_top_k.numpy(),
        seeds.numpy(),
        positions.numpy(),
        tempered,
        union,
        None if path_sums is None else path_sums.numpy(),
        None if path_counts is None else path_counts.numpy(),
        None if active is None else active.numpy(),
        *[output.numpy() for output in outputs],
        torch.get_num_threads(),
    )
