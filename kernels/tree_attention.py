"""Launches tree attention: which tiles its kernels use where, and the calls themselves.

The device code is tree_attention_kernels.py. The packed plan on the device says what there is to
do; nothing here reads it, allocates or waits.
"""

import functools
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from marco_fast.kernels import launch
from marco_fast.kernels.attention_state import Result
from marco_fast.kernels.packed_plan import Plan
from marco_fast.kernels.tree_attention_kernels import (
    Caches,
    Queries,
    TileSizes,
    advance_kernel,
    attend_kernel,
    merge_kernel,
)

__all__ = ["advance", "tree_attention"]

ADVANCE_BLOCK = 256
# Contractions are written out as tl.fma: a compiler that made its own would be free to round one
# formula differently in two kernels.
EXACT = {"enable_fp_fusion": False}


class Tile(NamedTuple):
    """Sizes of one attend_kernel program: query heads, tokens per step, padded head_dim, warps,
    stages."""

    query_heads: int
    tokens: int
    dim: int
    warps: int
    stages: int


def tile(arch: str, dtype: torch.dtype, head_dim: int, tile_query_heads: int) -> Tile:
    """The program for work items of `tile_query_heads` (16 or 32), which its query heads divide.

    The bits of a query head must not depend on the tile. The order of its sums does not: products
    follow the matrix instruction, mma.sync m16n8k16 in every tile (those of sm_90 and sm_100 that
    may add otherwise need 64 rows), and the weights are summed as one tree. So `tokens`, where a
    step ends, is all that must be the same for any number of query heads. float32 is multiplied
    without the matrix units; one tile serves all.

    Found by compiling: the largest that fit in the registers.
    """
    dim = triton.next_power_of_2(head_dim)
    # Page ids are loaded a step ahead of K and V, which so have stages // 2 tiles in flight.
    stages = 2 if arch.startswith("gfx") else 5
    if dtype == torch.float32:
        return Tile(16, 16, dim, 8 if dim >= 128 else 4, 1 if dim == 256 else 2)
    if dim == 256:
        return Tile(16, 32, dim, 8, stages)
    query_heads = tile_query_heads if dim >= 64 else 16
    if arch == "sm_80" and dim == 128 and query_heads == 16:
        stages = 3
    return Tile(query_heads, 64, dim, 8 if query_heads == 32 else 4, stages)


def merge_tile(head_dim: int) -> tuple[int, int]:
    """BLOCK_HEADS and BLOCK_DIM of merge_kernel: few heads, so that a small batch fills the GPU."""
    return 4, triton.next_power_of_2(head_dim)


def division(divisor: int) -> tuple[int, int]:
    """(magic, shift) with n // divisor == n * magic >> shift for 0 <= n < 2^31."""
    shift = 31 + (divisor - 1).bit_length()
    return -(-(1 << shift) // divisor), shift


def compiler_options(arch: str, dtype: torch.dtype, chosen: Tile) -> dict[str, Any]:
    """On AMD one shape of the matrix instruction for all tiles, on NVIDIA registers for some tiles,
    of which the assembler otherwise takes too few and spills."""
    options = {"num_warps": chosen.warps, "num_stages": chosen.stages, **EXACT}
    if arch.startswith("gfx"):
        options["matrix_instr_nonkdim"] = 16
    elif dtype == torch.float32:
        options["maxnreg"] = 168
    elif arch == "sm_80" and chosen.dim <= 64 and chosen.warps == 4:
        options["maxnreg"] = 200
    return options


def tree_attention(inputs: Any, options: Any, result: Any) -> None:
    """Launches both stages.

    Args:
        inputs, options, result: AttentionInputs, AttentionOptions and AttentionResult of
            marco_fast.ops.attention.attend, checked.
    """
    work = inputs.plan.items(inputs.q.device)
    with launch.launching(inputs.q.device):
        if work.sizes.items:
            attend(inputs, options, result, work)
        if work.sizes.merges:
            merge(work, options, result)


def attend(inputs: Any, options: Any, result: Any, work: Any) -> None:
    """Stage 1. work: the WorkItems of the plan."""
    q, k_cache, v_cache, _ = inputs
    num_kv_heads, page_size, head_dim = k_cache.shape[1:]
    arch = launch.target_of(q.device).arch
    chosen = tile(arch, q.dtype, head_dim, work.sizes.tile_query_heads)
    tiles_per_item = work.sizes.tile_query_heads // chosen.query_heads
    attend_kernel[(work.sizes.items * tiles_per_item, num_kv_heads)](
        Queries(q, q.stride(0), q.stride(1), options.scale * math.log2(math.e)),
        Caches(k_cache, v_cache, *k_cache.stride()[:2], *v_cache.stride()[:2]),
        plan_of(work),
        filled(result, options),
        options.workspace,
        q.shape[1] // num_kv_heads,
        head_dim,
        page_size,
        *division(page_size),
        int(result.lse is not None),
        constants(*chosen[:3], head_dim, work.sizes.chunk_tokens),
        **compiler_options(arch, q.dtype, chosen),
    )


def merge(work: Any, options: Any, result: Any) -> None:
    """Stage 2. work: the WorkItems of the plan."""
    num_heads, head_dim = result.out.shape[1:]
    block_heads, block_dim = merge_tile(head_dim)
    merge_kernel[(work.sizes.merges, triton.cdiv(num_heads, block_heads))](
        plan_of(work),
        filled(result, options),
        options.workspace,
        num_heads,
        head_dim,
        int(result.lse is not None),
        BLOCK_HEADS=block_heads,
        BLOCK_DIM=block_dim,
        num_warps=4,
        **EXACT,
    )


@functools.cache
def constants(
    query_heads: int, tokens: int, dim: int, head_dim: int, chunk_tokens: int
) -> TileSizes:
    """The sizes that attend_kernel is compiled for."""
    sizes = (query_heads, tokens, dim, dim != head_dim, chunk_tokens)
    return TileSizes(*(tl.constexpr(size) for size in sizes))


def plan_of(work: Any) -> Plan:
    """The sections that the kernels read."""
    return Plan(*(getattr(work.sections, name.removesuffix("_ptr")) for name in Plan._fields))


def filled(result: Any, options: Any) -> Result:
    """The result as the kernels take it: without lse, a pointer that they do not follow."""
    lse = options.workspace if result.lse is None else result.lse
    return Result(result.out, result.out.stride(0), result.out.stride(1), lse)


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
            None if active is None else active.view(torch.uint8),
            queries,
            BLOCK=ADVANCE_BLOCK,
            num_warps=4,
        )
