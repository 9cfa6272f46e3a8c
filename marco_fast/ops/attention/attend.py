"""append_kv and tree_attention: the calls over one layer's paged KV cache."""

from typing import NamedTuple

import torch

from marco_fast.ops.attention.checks import check_caches
from marco_fast.ops.attention.plan import TreeAttentionPlan
from marco_fast.ops.backends import load_backend
from marco_fast.ops.dtypes import FLOATS

__all__ = [
    "AttentionInputs", "AttentionOptions", "AttentionResult", "Caches", "NewTokens", "append_kv",
    "tree_attention",
]  # fmt: skip


class NewTokens(NamedTuple):
    """What a backend's append_kv reads: the arguments of the call, checked."""

    k: torch.Tensor
    v: torch.Tensor
    slot_mapping: torch.Tensor


class Caches(NamedTuple):
    """What a backend's append_kv fills."""

    k_cache: torch.Tensor
    v_cache: torch.Tensor


class AttentionInputs(NamedTuple):
    """What a backend's tree_attention reads: the arguments of the call, checked."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    plan: TreeAttentionPlan


class AttentionOptions(NamedTuple):
    """How a backend's tree_attention computes.

    Attributes:
        scale: of the scores.
        workspace: [plan.workspace_numel] float32 or more, scratch.
    """

    scale: float
    workspace: torch.Tensor


class AttentionResult(NamedTuple):
    """What a backend's tree_attention fills, as the public call returns it.

    Attributes:
        out: [Q, num_heads, head_dim].
        lse: [Q, num_heads] float32; None where nobody asked for it, never for the backend "cpu".
    """

    out: torch.Tensor
    lse: torch.Tensor | None


def append_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    *,
    backend: str | None = None,
) -> None:
    """Writes the K and V of T new tokens into their slots of one layer's paged cache.

    k_cache[slot // page_size, :, slot % page_size] = k[t], and so for v; slot -1 is skipped.

    Args:
        k: [T, num_kv_heads, head_dim] float, last dimension contiguous.
        v: as k, with strides of its own.
        k_cache: [num_pages, num_kv_heads, page_size, head_dim], of k's dtype, contiguous in its
            last two dimensions; written in place.
        v_cache: as k_cache.
        slot_mapping: [T] int64, contiguous; slots are distinct (of equal ones, which token stays
            is undefined).
        backend: who runs it; None: by device.

    Raises:
        ValueError: a shape, dtype, layout or device not as above.
        IndexError: a slot that is neither -1 nor in the cache; nothing was written.
    """
    _check_append(k, v, k_cache, v_cache, slot_mapping)
    tokens, caches = NewTokens(k, v, slot_mapping), Caches(k_cache, v_cache)
    load_backend(backend, k.device, "append_kv").append_kv(tokens, caches)


def tree_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: TreeAttentionPlan,
    *,
    scale: float | None = None,
    return_lse: bool = False,
    out: torch.Tensor | None = None,
    workspace: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention of each query over the tokens from a root of the forest to its leaf.

    out = softmax(scale * q k^T) v over the query's path, each segment's K and V read once for all
    queries below it. A query's bits depend on its path alone, not on what else is in the plan.

    Args:
        q: [Q, num_heads, head_dim] float32, bfloat16 or float16, last dimension contiguous. A plan
            with room takes up to max_queries rows. Rows after the plan's queries are ignored: not
            read, and left unchanged in `out`.
        k_cache: [num_pages, num_kv_heads, page_size, head_dim], of q's dtype, contiguous in its
            last two dimensions.
        v_cache: as k_cache.
        plan: from plan_tree_attention, with the same heads, head_dim and page_size.
        scale: of the scores; 1 / sqrt(head_dim) by default.
        return_lse: also return the logsumexp of the scores.
        out: filled and returned where given: shape, dtype and device of q, last dimension
            contiguous.
        workspace: float32, 1-D, contiguous, at least plan.workspace_numel elements, reused between
            calls; allocated by default.
        backend: who runs it; None: by device.

    Returns:
        out [Q, num_heads, head_dim] of q's dtype; with return_lse also lse [Q, num_heads] float32,
        natural log. A query whose whole path has no token, and a row after the plan's queries, has
        out 0 and lse -inf.

    Raises:
        ValueError: a shape, dtype, layout or device not as above or not as planned.
        IndexError: the plan names a page that the cache does not have.
        BackendError: the named backend cannot run here.

    Undefined: a cache that holds NaN or infinities where the query's path is; on a GPU also in V of
    tokens that leaf_lens hides from the query.
    """
    plan.check(q, k_cache, v_cache)
    spare = q.shape[0] > plan.num_queries
    if out is None:
        out = (torch.zeros if spare else torch.empty)(q.shape, dtype=q.dtype, device=q.device)
    else:
        _check_out(out, q)
    if workspace is None:
        workspace = torch.empty(plan.workspace_numel, dtype=torch.float32, device=q.device)
    else:
        _check_workspace(workspace, plan, q.device)
    lse = None
    if return_lse or q.device.type == "cpu":  # the C++ kernel always writes it
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        if spare:
            lse.fill_(-torch.inf)
    load_backend(backend, q.device, "tree_attention").tree_attention(
        AttentionInputs(q, k_cache, v_cache, plan),
        AttentionOptions(plan.scale if scale is None else scale, workspace),
        AttentionResult(out, lse),
    )
    return (out, lse) if lse is not None and return_lse else out


def _check_append(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    if k.ndim != 3 or k.shape != v.shape or k.stride(-1) != 1 or v.stride(-1) != 1:
        raise ValueError(
            "expected k and v [T, num_kv_heads, head_dim] with a contiguous last dimension, got "
            f"{list(k.shape)} and {list(v.shape)} with strides {k.stride()} and {v.stride()}"
        )
    tokens, heads, head_dim = k.shape
    check_caches(k_cache, v_cache, heads, head_dim)
    if not k.dtype == v.dtype == k_cache.dtype == v_cache.dtype or k.dtype not in FLOATS:
        raise ValueError(
            "expected k, v and the caches of one dtype, float32, bfloat16 or float16, got "
            f"{k.dtype}, {v.dtype}, {k_cache.dtype} and {v_cache.dtype}"
        )
    device = k.device
    if not device == v.device == k_cache.device == v_cache.device == slot_mapping.device:
        raise ValueError("expected every tensor on one device")
    if (
        slot_mapping.dtype != torch.int64
        or slot_mapping.shape != (tokens,)
        or not slot_mapping.is_contiguous()
    ):
        raise ValueError(
            f"expected slot_mapping [{tokens}] int64, contiguous, got {slot_mapping.dtype} "
            f"{list(slot_mapping.shape)}"
        )


def _check_out(out: torch.Tensor, q: torch.Tensor) -> None:
    same = out.shape == q.shape and out.dtype == q.dtype and out.device == q.device
    if not same or out.stride(-1) != 1:
        raise ValueError(
            f"expected out {list(q.shape)} {q.dtype} on {q.device} with a contiguous last "
            f"dimension, got {list(out.shape)} {out.dtype} on {out.device}"
        )


def _check_workspace(
    workspace: torch.Tensor, plan: TreeAttentionPlan, device: torch.device
) -> None:
    if (
        workspace.dtype != torch.float32
        or workspace.device != device
        or not workspace.is_contiguous()
        or workspace.numel() < plan.workspace_numel
    ):
        raise ValueError(
            f"expected workspace float32, contiguous, of at least {plan.workspace_numel} elements "
            f"on {device}, got {workspace.dtype} of {workspace.numel()} on {workspace.device}"
        )
