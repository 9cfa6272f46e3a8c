"""What lm_head_confidence and lm_head_records launch with: tiles, operands, the first kernel."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton

from marco_fast.kernels import launch
from marco_fast.kernels.confidence_options import SamplingOptions
from marco_fast.kernels.confidence_records import KEPT, VOCAB_TILE
from marco_fast.kernels.lm_head_scan import (
    Epilogue,
    HeadSizes,
    HeadSpace,
    Strides,
    lm_head_scan_kernel,
)

if TYPE_CHECKING:
    from marco_fast.ops.confidence.options import Head

__all__ = [
    "DRAW_WARPS",
    "Tile",
    "compiler_options",
    "epilogue_of",
    "fit_descriptors",
    "operand",
    "scan",
    "strides_of",
    "tiles_of",
]

ROUND_LOGITS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
DRAW_WARPS = 8  # also the shape of every sum: another number would change the last bits


class Tile(NamedTuple):
    """What a program multiplies at a time, and how it is compiled."""

    block_v: int  # entries of the vocabulary
    block_b: int  # rows
    block_h: int  # elements of H per step
    warps: int
    stages: int
    descriptors: bool


def tiles_of(arch: str, head: "Head") -> tuple[Tile, Tile]:
    """The tiles of lm_head_scan_kernel and of lm_head_logits_kernel, for a batch of any size.

    Of those that fit two blocks on a multiprocessor without spills, the one that reads hidden least
    often: at 64 rows and 128 entries that is half of what is read of the weights, from the L2
    cache. float32 is multiplied without the matrix units, for which fewer rows are better. Rows
    that begin anywhere are loaded a number at a time, which takes registers: smaller tiles, of as
    many elements of H, so that the sums are the same.
    """
    hidden, weight = head.hidden, head.weight
    descriptors = fit_descriptors(arch, hidden, weight)
    wide = all(n % 16 == 0 for n in (hidden.stride(0), weight.stride(0), hidden.shape[1]))
    if hidden.dtype == torch.float32:
        tile = Tile(64, 16, 32, 4 if wide else 8, 2, False)
        return tile, tile
    if not (wide or descriptors):
        # The matrix instructions of sm_90 need 64 rows, and must be those of the other tiles.
        tile = Tile(VOCAB_TILE.value, 32 if arch.startswith("sm_8") else 64, 64, 4, 2, False)
        return tile, tile
    stages = 2 if arch.startswith("gfx") else 4
    logits = Tile(VOCAB_TILE.value, 64, 64, 4, stages, descriptors)
    return logits._replace(block_v=128 if arch in ("sm_90", "sm_100") else 64), logits


def compiler_options(arch: str, warps: int, stages: int = 2) -> dict[str, Any]:
    """On AMD one shape of the matrix instruction for all tiles, on NVIDIA room for two blocks of a
    multiprocessor: left alone, the assembler takes half and spills."""
    if arch.startswith("gfx"):
        return {"num_warps": warps, "num_stages": stages, "matrix_instr_nonkdim": 16}
    return {"num_warps": warps, "num_stages": stages, "maxnreg": 255 if warps == 4 else 128}


def fit_descriptors(arch: str, *matrices: torch.Tensor) -> bool:
    """Whether the copy engine of sm_90 takes these, for the matrix units: rows 16 bytes apart or a
    multiple."""
    return arch == "sm_90" and all(
        each.dtype != torch.float32
        and each.data_ptr() % 16 == 0
        and each.stride(0) * each.element_size() % 16 == 0
        and each.stride(0) >= each.shape[1]
        for each in matrices
    )


def operand(matrix: torch.Tensor, rows: int, tile: Tile) -> Any:
    """What a kernel takes for a matrix of which it reads blocks [rows, tile.block_h]."""
    if not tile.descriptors:
        return matrix
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(matrix, matrix.shape, matrix.stride(), [rows, tile.block_h])


def strides_of(head: "Head") -> Strides:
    """As kernels take them."""
    return Strides(head.hidden.stride(0), head.weight.stride(0), head.hidden.shape[1])


def epilogue_of(head: "Head", floats: torch.Tensor) -> Epilogue:
    """As kernels take it; `floats` is float32 and stands where there is no bias."""
    return Epilogue(
        floats if head.bias is None else head.bias,
        int(head.bias is not None),
        ROUND_LOGITS[head.round_logits],
        len(head.hidden),
        len(head.weight),
    )


def scan(
    head: "Head",
    options: SamplingOptions,
    vocab_size: int,
    tile: Tile,
    block_k: int,
    splits: int | None = None,
) -> tuple[HeadSpace, HeadSizes]:
    """Launches lm_head_scan_kernel: the records of every vocabulary tile and the best keys.

    Args:
        vocab_size: V, of all shards together, of which `head.weight` is one.
        splits: how many programs share the weight, in place of two per multiprocessor.
    """
    (rows, _), shard_size, device = head.hidden.shape, len(head.weight), head.hidden.device
    target, batch_tiles = launch.target_of(device), triton.cdiv(rows, tile.block_b)
    blocks = triton.cdiv(shard_size, tile.block_v)
    splits = splits or min(blocks, max(1, 2 * target.processors // batch_tiles))
    sizes = HeadSizes(triton.cdiv(shard_size, VOCAB_TILE.value), batch_tiles, splits, vocab_size)
    space = HeadSpace(
        torch.empty((rows, KEPT.value, sizes.vocab_tiles), dtype=torch.float32, device=device),
        torch.empty((rows, splits, block_k), dtype=torch.int64, device=device),
    )
    lm_head_scan_kernel[(batch_tiles * splits,)](
        operand(head.hidden, tile.block_b, tile), operand(head.weight, tile.block_v, tile),
        strides_of(head), epilogue_of(head, space.records), options, space, sizes,
        BLOCK_V=tile.block_v, BLOCK_B=tile.block_b, BLOCK_H=tile.block_h, BLOCK_K=block_k,
        DESCRIPTORS=tile.descriptors, **compiler_options(target.arch, tile.warps, tile.stages),
    )  # fmt: skip
    return space, sizes
