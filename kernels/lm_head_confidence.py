"""lm_head_confidence: which tiles its kernels use where, and the launches.

The device code is lm_head_kernels.py. Nothing here waits for the device. Batches above MOST_ROWS
are a library's product and sample_confidence.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton

from marco_fast.kernels import topk_confidence
from marco_fast.kernels.confidence_cut import CUT_TILE
from marco_fast.kernels.confidence_draw import GROUP
from marco_fast.kernels.interpreter import launching
from marco_fast.kernels.lm_head_kernels import (
    lm_head_draw_kernel,
    lm_head_logits_kernel,
    lm_head_record_kernel,
    lm_head_scan_kernel,
)
from marco_fast.kernels.online_softmax import CHUNK, KEPT, RECORD_FIELDS
from marco_fast.kernels.topk_confidence import key_slots, processors_of, sampling_pointers
from marco_fast.kernels.variants import Variant, architecture, pointer_type

__all__ = ["lm_head_confidence", "lm_head_records", "variants"]

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


def tiles(arch: str, dtype: torch.dtype, descriptors: bool) -> tuple[Tile, Tile]:
    """The tiles of lm_head_scan_kernel and of lm_head_logits_kernel, for a batch of any size.

    Of those that fit two blocks on a multiprocessor without spills, the one that reads hidden least
    often: at 64 rows and 128 entries that is half of what is read of the weights, from the L2
    cache. float32 is multiplied without the matrix units, for which fewer rows are better.
    """
    if dtype == torch.float32:
        tile = Tile(64, 16, 32, 4, 2, False)
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
    """Whether the copy engine of sm_90 takes these: rows 16 bytes apart or a multiple."""
    return arch == "sm_90" and all(
        each.data_ptr() % 16 == 0
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
        sampling: a marco_fast.ops.confidence.Sampling.
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
                type(sampling)(*(None if each is None else each[part] for each in sampling)),
                tempered, union, *(each[part] for each in outputs),
            )  # fmt: skip
        return
    if rows == 0:
        return
    device, arch = hidden.device, architecture(hidden.device)
    _, again = tile = tile or tiles(arch, hidden.dtype, fit_descriptors(arch, hidden, weight))
    groups, chunks = triton.cdiv(vocab, GROUP.value), triton.cdiv(vocab, CHUNK.value)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    wanted, bounds = empty(rows, dtype=torch.int32), empty(rows)
    logits = empty(rows, vocab)  # written only where a row wants it
    chunk_records = empty(rows, RECORD_FIELDS.value, chunks)
    cut_keys = empty(rows, CUT_TILE.value, dtype=torch.int32)
    pointers, paths = sampling_pointers(sampling, outputs[0])

    def draw(late: bool) -> None:
        lm_head_draw_kernel[(rows,)](
            *pointers, *outputs, records, keys, wanted, bounds, logits, chunk_records, cut_keys,
            vocab, groups, chunks, splits, top_k, int(union), int(tempered), paths, LATE=late,
            BLOCK_K=block_k, **options(arch, DRAW_WARPS),
        )  # fmt: skip

    with launching(device):
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
    arch, groups = architecture(device), triton.cdiv(vocab, GROUP.value)
    batch_tiles, block_k = triton.cdiv(rows, tile.rows), key_slots(kept, sample=True)
    splits = splits or min(
        triton.cdiv(vocab, tile.entries), max(1, 2 * processors_of(device) // batch_tiles)
    )
    records = torch.empty((rows, KEPT.value, groups), device=device)
    keys = torch.empty((rows, splits, block_k), dtype=torch.int64, device=device)
    lm_head_scan_kernel[(batch_tiles * splits,)](
        operand(hidden, tile.rows, tile), operand(weight, tile.entries, tile),
        records if bias is None else bias, *sampling[:4], records, keys, hidden.stride(0),
        weight.stride(0), rows, vocab, all_vocab, size, groups, batch_tiles, splits, kept,
        int(tempered), int(bias is not None), ROUNDED[rounded], BLOCK_V=tile.entries,
        BLOCK_B=tile.rows, BLOCK_H=tile.size, BLOCK_K=block_k, DESCRIPTORS=tile.descriptors,
        **options(arch, tile.warps, tile.stages),
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
        sampling: a marco_fast.ops.confidence.Sampling.
        outputs: the tensors of LMHeadRecords, in order.

    Raises:
        ValueError: more than 32 candidates.
    """
    rows, candidates = outputs[-1].shape
    arch = architecture(hidden.device)
    block_k = key_slots(candidates, sample=True)
    if rows == 0:
        return
    tile, _ = tiles(arch, hidden.dtype, fit_descriptors(arch, hidden, weight))
    with launching(hidden.device):
        records, keys = scan(
            hidden, weight, bias, rounded, sampling, all_vocab, tempered, candidates, tile
        )
        lm_head_record_kernel[(rows,)](
            *sampling[:4], *outputs, records, keys, all_vocab, records.shape[2], keys.shape[1],
            candidates, int(tempered), BLOCK_K=block_k, **options(arch, DRAW_WARPS),
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


HALF = (torch.bfloat16, torch.float16)


def types_of(kernel: triton.JITFunction, constants: dict[str, Any], dtype: str) -> dict[str, str]:
    """The parameters' types; those that topk_confidence's kernels have too are of its types."""
    others = {
        "wanted_ptr": "*i32",
        "infs_ptr": "*i32",
        "nans_ptr": "*i32",
        "sums_ptr": "*fp64",
        "stride_hidden": "i64",
        "stride_weight": "i64",
    }
    for name, rows in (("hidden", "BLOCK_B"), ("weight", "BLOCK_V")):
        others[name] = pointer_type(dtype)
        if constants.get("DESCRIPTORS"):
            block = f"[{constants[rows]}, {constants['BLOCK_H']}]"
            others[name] = f"tensordesc<{pointer_type(dtype)[1:]}{block}>"
    others |= dict.fromkeys(constants, "constexpr")
    return topk_confidence.types_of(kernel, "float32", others)


def variants(arch: str) -> Iterator[Variant]:
    """Every specialisation that the launcher may choose."""
    aligned = ("stride_hidden", "stride_weight", "size")
    for dtype in (torch.float32, *HALF):
        name = str(dtype).removeprefix("torch.")
        choices = {tiles(arch, dtype, descriptors) for descriptors in {False, arch == "sm_90"}}
        for number, kernel in enumerate((lm_head_scan_kernel, lm_head_logits_kernel)):
            for tile in sorted({choice[number] for choice in choices}):
                for block_k in (16, 32) if number == 0 else (0,):
                    constants: dict[str, Any] = {
                        "BLOCK_V": tile.entries,
                        "BLOCK_B": tile.rows,
                        "BLOCK_H": tile.size,
                        "DESCRIPTORS": tile.descriptors,
                    }
                    constants |= {"BLOCK_K": block_k} if block_k else {}
                    what = f"scan k{block_k}" if block_k else "logits"
                    reads = "descriptors" if tile.descriptors else "pointers"
                    yield Variant(
                        f"lm_head_confidence {what} {name} rows{tile.rows} {reads}",
                        kernel,
                        types_of(kernel, constants, name),
                        constants,
                        options(arch, tile.warps, tile.stages),
                        aligned,
                    )
    for block_k in (16, 32):
        yield Variant(
            f"lm_head_confidence records k{block_k}",
            lm_head_record_kernel,
            types_of(lm_head_record_kernel, {"BLOCK_K": block_k}, "float32"),
            {"BLOCK_K": block_k},
            options(arch, DRAW_WARPS),
        )
    for late in (False, True):
        for block_k in (16, 32):
            constants = {"LATE": late, "BLOCK_K": block_k}
            yield Variant(
                f"lm_head_confidence draw k{block_k} {'late' if late else 'first'}",
                lm_head_draw_kernel,
                types_of(lm_head_draw_kernel, constants, "float32"),
                constants,
                options(arch, DRAW_WARPS),
            )
