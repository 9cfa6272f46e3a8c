"""Launches tree attention: which tiles its kernels use where, and the calls themselves.

The device code is tree_attention_stages.py. The plan's arrays on the device (ops/tree_items.py) say
what there is to do; nothing here reads them, allocates or waits.
"""

import math
from typing import Any, NamedTuple

import torch
import triton

from marco_fast.kernels import launch
from marco_fast.kernels.tree_attention_stages import advance_kernel, attend_kernel, merge_kernel

__all__ = ["advance", "tree_attention"]

ADVANCE_BLOCK = 256
# Contractions are written out as tl.fma: a compiler that made its own would be free to round one
# formula differently in two kernels.
EXACT = {"enable_fp_fusion": False}


class Tile(NamedTuple):
    """Sizes of an attend_kernel program: rows, tokens a step, padded head_dim, warps, stages."""

    rows: int
    tokens: int
    dim: int
    warps: int
    stages: int


def tile(arch: str, dtype: torch.dtype, head_dim: int, tile_rows: int) -> Tile:
    """The tile of items of `tile_rows` rows (16 or 32), which it divides.

    A row's bits must not depend on the tile. The order of its sums does not: products follow the
    matrix instruction, mma.sync m16n8k16 in every tile (those of sm_90 and sm_100 that may add
    otherwise need 64 rows), and the weights are summed as one tree. So `tokens`, where a step ends,
    is all that must be the same for any number of rows. float32 is multiplied without the matrix
    units; one tile serves all.

    Found by compiling: the largest that fit in the registers.
    """
    dim = triton.next_power_of_2(head_dim)
    # Page ids are loaded a step ahead of K and V, which so have stages // 2 tiles in flight.
    stages = 2 if arch.startswith("gfx") else 5
    if dtype == torch.float32:
        return Tile(16, 16, dim, 8 if dim >= 128 else 4, 1 if dim == 256 else 2)
    if dim == 256:
        return Tile(16, 32, dim, 8, stages)
    rows = tile_rows if dim >= 64 else 16
    if arch == "sm_80" and dim == 128 and rows == 16:
        stages = 3
    return Tile(rows, 64, dim, 8 if rows == 32 else 4, stages)


def merge_tile(head_dim: int) -> tuple[int, int]:
    """BLOCK_HEADS and BLOCK_DIM of merge_kernel: few heads, so that a small batch fills the GPU."""
    return 4, triton.next_power_of_2(head_dim)


def division(divisor: int) -> tuple[int, int]:
    """(magic, shift) with n // divisor == n * magic >> shift for 0 <= n < 2^31."""
    shift = 31 + (divisor - 1).bit_length()
    return -(-(1 << shift) // divisor), shift


def options(arch: str, dtype: torch.dtype, warps: int, stages: int) -> dict[str, Any]:
    """Compiler options; on AMD one shape of the matrix instruction for all tiles of rows, on NVIDIA
    registers for float32, of which the assembler otherwise takes too few and spills."""
    chosen = {"num_warps": warps, "num_stages": stages, **EXACT}
    if arch.startswith("gfx"):
        chosen["matrix_instr_nonkdim"] = 16
    elif dtype == torch.float32:
        chosen["maxnreg"] = 168
    return chosen


def tree_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: Any,
    scale: float,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    workspace: torch.Tensor,
) -> None:
    """Launches both stages; arguments as marco_fast.tree_attention, already checked.

    `lse` may be None. `workspace` holds plan.workspace_numel float32.
    """
    items = plan.items(q.device)
    with launch.launching(q.device):
        if items.num_items:
            attend(q, k_cache, v_cache, items, scale, out, lse, workspace)
        if items.num_merges:
            merge(items, out, lse, workspace)


def attend(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    items: Any,
    scale: float,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    workspace: torch.Tensor,
) -> None:
    """Stage 1."""
    num_heads, head_dim = q.shape[1:]
    kv_heads, page_size = k_cache.shape[1:3]
    arch = launch.target_of(q.device).arch
    shape = tile(arch, q.dtype, head_dim, items.tile_rows)
    tiles_per_item = items.tile_rows // shape.rows
    attend_kernel[(items.num_items * tiles_per_item, kv_heads)](
        q,
        k_cache,
        v_cache,
        out,
        workspace if lse is None else lse,
        workspace,
        items.counts,
        items.items,
        items.chunks,
        items.partial_begin,
        items.query_order,
        items.query_lens,
        items.own_end,
        items.segment_lens,
        items.page_begin,
        items.page_ids,
        scale * math.log2(math.e),
        *q.stride()[:2],
        *k_cache.stride()[:2],
        *v_cache.stride()[:2],
        *out.stride()[:2],
        num_heads,
        num_heads // kv_heads,
        head_dim,
        page_size,
        *division(page_size),
        items.chunk_tokens,
        items.num_partials,
        tiles_per_item,
        int(lse is not None),
        BLOCK_ROWS=shape.rows,
        BLOCK_TOKENS=shape.tokens,
        BLOCK_DIM=shape.dim,
        PADDED=head_dim != shape.dim,
        **options(arch, q.dtype, shape.warps, shape.stages),
    )


def merge(items: Any, out: torch.Tensor, lse: torch.Tensor | None, workspace: torch.Tensor) -> None:
    """Stage 2."""
    num_heads, head_dim = out.shape[1:]
    block_heads, block_dim = merge_tile(head_dim)
    merge_kernel[(items.num_merges, triton.cdiv(num_heads, block_heads))](
        out,
        workspace if lse is None else lse,
        workspace,
        items.counts,
        items.partial_begin,
        items.merges,
        items.query_order,
        *out.stride()[:2],
        num_heads,
        head_dim,
        items.num_partials,
        int(lse is not None),
        BLOCK_HEADS=block_heads,
        BLOCK_DIM=block_dim,
        num_warps=4,
        **EXACT,
    )


def advance(
    query_lens: torch.Tensor, query_order: torch.Tensor, active: torch.Tensor | None
) -> None:
    """Adds one to query_lens [Q] int32, where active [Q] bool (in the caller's order) is true."""
    queries = len(query_lens)
    if queries == 0:
        return
    with launch.launching(query_lens.device):
        advance_kernel[(triton.cdiv(queries, ADVANCE_BLOCK),)](
            query_lens,
            query_order,
            query_order if active is None else active.view(torch.uint8),
            queries,
            ALL=active is None,
            BLOCK=ADVANCE_BLOCK,
            num_warps=4,
        )
