"""append_kv and tree_attention: the calls over one layer's paged KV cache."""

from typing import Any, NamedTuple

import torch

from marco_fast.ops.attention.checks import check_caches
from marco_fast.ops.attention.plan import TreeAttentionPlan
from marco_fast.ops.backends import load_backend
from marco_fast.ops.dtypes import FLOATS
from marco_fast.ops.isolation import isolated
from marco_fast.ops.numbers import described, real
from marco_fast.ops.tensors import mark_written, tensor_of, written_tensor

__all__ = [
    "AttentionInputs", "AttentionOptions", "AttentionResult", "Caches", "NewTokens", "append_kv",
    "tree_attention",
]  # fmt: skip


LARGEST = torch.finfo(torch.float32).max


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


@isolated
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
    tokens = NewTokens(
        tensor_of("k", k), tensor_of("v", v), tensor_of("slot_mapping", slot_mapping)
    )
    caches = Caches(written_tensor("k_cache", k_cache), written_tensor("v_cache", v_cache))
    _check_append(tokens, caches)
    load_backend(backend, tokens.k.device, "append_kv").append_kv(tokens, caches)
    mark_written(*caches)


@isolated
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
    inputs = _attention_inputs(q, k_cache, v_cache, plan)
    result = _attention_result(inputs, out, return_lse)
    options = AttentionOptions(_scale(scale, plan), _workspace(workspace, plan, inputs.q.device))
    module = load_backend(backend, inputs.q.device, "tree_attention")
    module.tree_attention(inputs, options, result)
    if out is None:
        out = result.out
    else:
        mark_written(result.out)
        out = out if isinstance(out, torch.Tensor) else result.out
    return (out, result.lse) if result.lse is not None and return_lse else out


def _attention_inputs(q: Any, k_cache: Any, v_cache: Any, plan: Any) -> AttentionInputs:
    if not isinstance(plan, TreeAttentionPlan):
        raise ValueError(f"expected a plan of plan_tree_attention, got {type(plan).__name__}")
    inputs = AttentionInputs(
        tensor_of("q", q), tensor_of("k_cache", k_cache), tensor_of("v_cache", v_cache), plan
    )
    plan.check(*inputs[:3])
    return inputs


def _attention_result(inputs: AttentionInputs, out: Any, return_lse: bool) -> AttentionResult:
    """What is filled: rows that no query of the plan fills are 0 and -inf already."""
    q = inputs.q
    spare = q.shape[0] > inputs.plan.num_queries
    if out is None:
        out = (torch.zeros if spare else torch.empty)(q.shape, dtype=q.dtype, device=q.device)
    else:
        out = written_tensor("out", out)
        _check_out(out, q)
    lse = None
    if return_lse or q.device.type == "cpu":  # the C++ kernel always writes it
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        if spare:
            lse.fill_(-torch.inf)
    return AttentionResult(out, lse)


def _scale(scale: Any, plan: TreeAttentionPlan) -> float:
    if scale is None:
        return plan.scale
    number = real(scale)
    if number is None or not -LARGEST <= number <= LARGEST:
        raise ValueError(f"expected scale as a finite number, got {described(scale)}")
    return float(number)


def _workspace(given: Any, plan: TreeAttentionPlan, device: torch.device) -> torch.Tensor:
    if given is None:
        return torch.empty(plan.workspace_numel, dtype=torch.float32, device=device)
    workspace = written_tensor("workspace", given)
    _check_workspace(workspace, plan, device)
    return workspace


def _check_append(inputs: NewTokens, caches: Caches) -> None:
    (k, v, slot_mapping), (k_cache, v_cache) = inputs, caches
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
