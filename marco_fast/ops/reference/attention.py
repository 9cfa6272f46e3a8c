"""append_kv and tree_attention in PyTorch: the specification."""

from typing import TYPE_CHECKING

import torch

from marco_fast.ops.isolation import exact_products, isolated

if TYPE_CHECKING:
    from marco_fast.ops.attention.plan import TreeAttentionPlan

__all__ = ["append_kv", "tree_attention"]


@isolated
def append_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """cache[slot // page_size, :, slot % page_size] = row, for every slot but -1."""
    num_pages, _, page_size, _ = k_cache.shape
    bad = (slot_mapping < -1) | (slot_mapping >= num_pages * page_size)
    if bad.any():
        t = int(bad.nonzero()[0])
        raise IndexError(
            f"expected slot_mapping[{t}] in -1..{num_pages * page_size - 1}, "
            f"got {int(slot_mapping[t])}"
        )
    kept = slot_mapping >= 0
    slots = slot_mapping[kept]
    k_cache[slots // page_size, :, slots % page_size] = k[kept]
    v_cache[slots // page_size, :, slots % page_size] = v[kept]


@isolated
@exact_products
def tree_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: "TreeAttentionPlan",
    scale: float | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(scale * q k^T) v of each query over the tokens of its own path, gathered one by one.

    Computes in `dtype` (default: float64 for float64 inputs, else float32). A path without tokens
    gives 0 and -inf.

    Returns:
        out [Q, num_heads, head_dim] and lse [Q, num_heads] in the dtype of the computation.
    """
    if dtype is None:
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    scale = plan.scale if scale is None else scale
    result = torch.zeros(q.shape, dtype=dtype, device=q.device)
    sums = torch.full(q.shape[:2], -torch.inf, dtype=dtype, device=q.device)
    heads, page_size = k_cache.shape[1], k_cache.shape[2]
    for position, i in enumerate(plan.query_order.tolist()):
        slots = _path_slots(plan, position, page_size).to(q.device)
        if len(slots) == 0:
            continue
        k = k_cache[slots // page_size, :, slots % page_size].to(dtype)  # [tokens, kv_heads, dim]
        v = v_cache[slots // page_size, :, slots % page_size].to(dtype)
        grouped = q[i].to(dtype).unflatten(0, (heads, -1))  # [kv_heads, group, dim]
        scores = torch.einsum("hgd,thd->hgt", grouped, k) * scale
        result[i] = torch.einsum("hgt,thd->hgd", scores.softmax(-1), v).flatten(0, 1)
        sums[i] = scores.logsumexp(-1).flatten()
    return result, sums


def _path_slots(plan: "TreeAttentionPlan", position: int, page_size: int) -> torch.Tensor:
    """The slots that query `position` (depth-first number) sees, root first, [tokens] int64."""
    segment, length = int(plan.query_segment[position]), int(plan.query_lens[position])
    pieces = []
    while segment >= 0:
        pages = torch.from_numpy(plan.page_ids[plan.page_begin[segment] :].astype("int64"))
        tokens = torch.arange(length, device="cpu")
        pieces.append(pages[tokens // page_size] * page_size + tokens % page_size)
        segment = int(plan.segment_parents[segment])
        length = int(plan.segment_lens[segment])
    return torch.cat(pieces[::-1])
