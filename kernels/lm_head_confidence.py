"""lm_head_confidence: which tiles its kernels use where, and the launches.

The device code is lm_head_kernels.py. Nothing here waits for the device. Batches above MOST_ROWS
are a library's product and sample_confidence.
"""

from typing import Any, NamedTuple

import torch
import triton

from marco_fast.kernels import launch, topk_confidence
from marco_fast.kernels.confidence_cut import CUT_TILE
from marco_fast.kernels.confidence_draw import GROUP
from marco_fast.kernels.lm_head_kernels import (
    lm_head_draw_kernel,
    lm_head_logits_kernel,
    lm_head_record_kernel,
    lm_head_scan_kernel,
)
from marco_fast.kernels.online_softmax import CHUNK, KEPT, RECORD_FIELDS
from marco_fast.kernels.topk_confidence import draw_arguments, key_slots, option_arguments

__all__ = ["lm_head_confidence", "lm_head_records"]

# By arithmetic, not measured: with a second tile of rows the weights go through the L2 cache twice,
# which takes longer than to write and read logits beside a library's larger tiles.
MOST_ROWS = 64
PRODUCT_ROWS = 256  # of a library's product: 150 MB of logits at a time
ROUNDED = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
DRAW_WARPS = 8  # also the shape of every sum: another number would change the last bits


class Tile(NamedTuple):
    """Sizes of a product: entries of the vocabulary, rows, elements of H a step, warps, stages."""

    entries: int
    rows: int
    size: int
    warps: int
    stages: int
    descriptors: bool


def tiles(arch: str, hidden: torch.Tensor, weight: torch.Tensor) -> tuple[Tile, Tile]:
    """The tiles of lm_head_scan_kernel and of lm_head_logits_kernel, for a batch of any size.

    Of those that fit two blocks on a multiprocessor without spills, the one that reads hidden least
    often: at 64 rows and 128 entries that is half of what is read of the weights, from the L2
    cache. float32 is multiplied without the matrix units, for which fewer rows are better. Rows
    that begin anywhere are loaded a number at a time, which takes registers: smaller tiles, of as
    many elements of H, so that the sums are the same.
    """
    descriptors = fit_descriptors(arch, hidden, weight)
    wide = all(n % 16 == 0 for n in (hidden.stride(0), weight.stride(0), hidden.shape[1]))
    if hidden.dtype == torch.float32:
        tile = Tile(64, 16, 32, 4 if wide else 8, 2, False)
        return tile, tile
    if not (wide or descriptors):
        # The matrix instructions of sm_90 need 64 rows, and must be those of the other tiles.
        tile = Tile(GROUP.value, 32 if arch.startswith("sm_8") else 64, 64, 4, 2, False)
        return tile, tile
    stages = 2 if arch.startswith("gfx") else 4
    logits = Tile(GROUP.value, 64, 64, 4, stages, descriptors)
    return logits._replace(entries=128 if arch in ("sm_90", "sm_100") else 64), logits


def options(arch: str, warps: int, stages: int = 2) -> dict[str, Any]:
    """Compiler options; on AMD one shape of the matrix instruction for all tiles, on NVIDIA room
    for two blocks of a multiprocessor: left alone, the assembler takes half and spills."""
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
    """What a kernel takes for a matrix of which it reads blocks [rows, tile.size]."""
    if not tile.descriptors:
        return matrix
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(matrix, matrix.shape, matrix.stride(), [rows, tile.size])


def lm_head_confidence(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rounded: torch.dtype,
    sampling: Any,
    tempered: bool,
    union: bool,
    *outputs: torch.Tensor,
    tile: tuple[Tile, Tile] | None = None,
    splits: int | None = None,
) -> None:
    """Launches the kernels; arguments as marco_fast.lm_head_confidence, already checked.

    Args:
        sampling: a marco_fast.ops.confidence.sample.Sampling.
        outputs: the fields of SampledTokens, in order.
        tile: in place of what `tiles` chooses; then also batches above MOST_ROWS go through it.
        splits: how many programs share the vocabulary, in place of two a multiprocessor.

    Raises:
        ValueError: top_k above 32.
    """
    rows, size = hidden.shape
    vocab, top_k = len(weight), outputs[4].shape[1]
    block_k = key_slots(top_k, sample=True)
    if rows > MOST_ROWS and tile is None:
        for begin in range(0, rows, PRODUCT_ROWS):
            part = slice(begin, begin + PRODUCT_ROWS)
            topk_confidence.sample_confidence(
                product(hidden[part], weight, bias, rounded),
                type(sampling)(
                    *(each[part] if isinstance(each, torch.Tensor) else each for each in sampling)
                ),
                tempered, union, *(each[part] for each in outputs),
            )  # fmt: skip
        return
    if rows == 0:
        return
    device, arch = hidden.device, launch.target_of(hidden.device).arch
    _, again = tile = tile or tiles(arch, hidden, weight)
    groups, chunks = triton.cdiv(vocab, GROUP.value), triton.cdiv(vocab, CHUNK.value)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    wanted, bounds = empty(rows, dtype=torch.int32), empty(rows)
    logits = empty(rows, vocab)  # written only where a row wants it
    chunk_records = empty(rows, RECORD_FIELDS.value, chunks)
    cut_keys = empty(rows, CUT_TILE.value, dtype=torch.int32)
    pointers, numbers = draw_arguments(sampling, outputs[1], outputs[0])

    def draw(late: bool) -> None:
        lm_head_draw_kernel[(rows,)](
            *pointers, *outputs, records, keys, wanted, bounds, logits, chunk_records, cut_keys,
            *numbers, vocab, groups, chunks, splits, top_k, int(union), int(tempered), LATE=late,
            BLOCK_K=block_k, **options(arch, DRAW_WARPS),
        )  # fmt: skip

    with launch.launching(device):
        records, keys = scan(
            hidden, weight, bias, rounded, sampling, vocab, tempered, top_k, tile[0], splits
        )
        splits = keys.shape[1]
        draw(late=False)
        batch_tiles = triton.cdiv(rows, again.rows)
        lm_head_logits_kernel[(batch_tiles * triton.cdiv(vocab, again.entries),)](
            operand(hidden, again.rows, again), operand(weight, again.entries, again),
            bounds if bias is None else bias, records, wanted, bounds, logits, hidden.stride(0),
            weight.stride(0), rows, vocab, size, groups, batch_tiles, int(bias is not None),
            ROUNDED[rounded], BLOCK_V=again.entries, BLOCK_B=again.rows, BLOCK_H=again.size,
            DESCRIPTORS=again.descriptors, **options(arch, again.warps, again.stages),
        )  # fmt: skip
        draw(late=True)


def scan(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rounded: torch.dtype,
    sampling: Any,
    all_vocab: int,
    tempered: bool,
    kept: int,
    tile: Tile,
    splits: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The records [B, KEPT, groups] of every group of 64 entries and the keys [B, splits, BLOCK_K].

    Args:
        all_vocab: entries of all shards together, of which `weight` is one.
        kept: how many of the largest are kept, at least.
    """
    (rows, size), vocab, device = hidden.shape, len(weight), hidden.device
    target, groups = launch.target_of(device), triton.cdiv(vocab, GROUP.value)
    batch_tiles, block_k = triton.cdiv(rows, tile.rows), key_slots(kept, sample=True)
    splits = splits or min(
        triton.cdiv(vocab, tile.entries), max(1, 2 * target.processors // batch_tiles)
    )
    records = torch.empty((rows, KEPT.value, groups), device=device)
    keys = torch.empty((rows, splits, block_k), dtype=torch.int64, device=device)
    pointers, numbers = option_arguments(sampling, records, keys.view(torch.int32))
    lm_head_scan_kernel[(batch_tiles * splits,)](
        operand(hidden, tile.rows, tile), operand(weight, tile.entries, tile),
        records if bias is None else bias, *pointers, records, keys, hidden.stride(0),
        weight.stride(0), *numbers, rows, vocab, all_vocab, size, groups, batch_tiles, splits, kept,
        int(tempered), int(bias is not None), ROUNDED[rounded], BLOCK_V=tile.entries,
        BLOCK_B=tile.rows, BLOCK_H=tile.size, BLOCK_K=block_k, DESCRIPTORS=tile.descriptors,
        **options(target.arch, tile.warps, tile.stages),
    )  # fmt: skip
    return records, keys


def lm_head_records(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rounded: torch.dtype,
    sampling: Any,
    all_vocab: int,
    tempered: bool,
    *outputs: torch.Tensor,
) -> None:
    """Launches the kernels of one shard; arguments as marco_fast.lm_head_records, already checked.

    Args:
        sampling: a marco_fast.ops.confidence.sample.Sampling.
        outputs: the tensors of LMHeadRecords, in order.

    Raises:
        ValueError: more than 32 candidates.
    """
    rows, candidates = outputs[-1].shape
    arch = launch.target_of(hidden.device).arch
    block_k = key_slots(candidates, sample=True)
    if rows == 0:
        return
    tile, _ = tiles(arch, hidden, weight)
    with launch.launching(hidden.device):
        records, keys = scan(
            hidden, weight, bias, rounded, sampling, all_vocab, tempered, candidates, tile
        )
        pointers, numbers = option_arguments(sampling, records, keys.view(torch.int32))
        lm_head_record_kernel[(rows,)](
            *pointers, *outputs, records, keys, *numbers, all_vocab, records.shape[2],
            keys.shape[1], candidates, int(tempered), BLOCK_K=block_k, **options(arch, DRAW_WARPS),
        )  # fmt: skip


def product(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, rounded: torch.dtype
) -> torch.Tensor:
    """Logits [rows, V] by the library, summed in float32."""
    if hidden.is_cuda and hidden.dtype != torch.float32:
        logits = torch.mm(hidden, weight.T, out_dtype=torch.float32)
    else:
        logits = hidden.float() @ weight.float().T
    if bias is not None:
        logits += bias
    return logits.to(rounded)
