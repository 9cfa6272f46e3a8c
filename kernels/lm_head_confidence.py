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
from marco_fast.kernels.topk_confidence import key_slots, processors_of
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
    tile: tuple[Tile, Tile] | None = None,
    splits: int | None = None,
) -> None:
    """Launches the kernels; arguments as marco_fast.lm_head_confidence, already checked.

    Args:
        outputs: the fields of SampledTokens, in order.
        tile: in place of what `tiles` chooses; then also batches above MOST_ROWS go through it.
        splits: how many programs share the vocabulary, in place of two a multiprocessor.

    Raises:
        ValueError: top_k above 32.
    """
    rows, size = hidden.shape
    vocab, top_k = len(weight), outputs[4].shape[1]
    block_k = key_slots(top_k, sample=True)
    of_rows = temperature, top_p, min_p, sample_top_k, seeds, positions
    if rows > MOST_ROWS and tile is None:
        tensors = *of_rows, path_sums, path_counts, active, *outputs
        for begin in range(0, rows, PRODUCT_ROWS):
            end = begin + PRODUCT_ROWS
            part: list[Any] = [None if each is None else each[begin:end] for each in tensors]
            logits = product(hidden[begin:end], weight, bias, rounded)
            arguments = [*part[:6], tempered, union, *part[6:]]
            topk_confidence.sample_confidence(logits, *arguments)
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
    biases = temperature if bias is None else bias

    def draw(late: bool) -> None:
        bits = (path_sums is not None) + 2 * (path_counts is not None) + 4 * (active is not None)
        # A pointer that is not there is never followed; it only needs its type.
        sums = seeds if path_sums is None else path_sums
        counts = sample_top_k if path_counts is None else path_counts
        flags = (outputs[0] if active is None else active).view(torch.uint8)
        lm_head_draw_kernel[(rows,)](
            *of_rows, sums, counts, flags, *outputs, records, keys, wanted, bounds, logits,
            chunk_records, cut_keys, vocab, groups, chunks, splits, top_k, int(union),
            int(tempered), bits, LATE=late, BLOCK_K=block_k, **options(arch, DRAW_WARPS),
        )  # fmt: skip

    with launching(device):
        records, keys = scan(
            hidden, weight, bias, rounded, of_rows[:4], vocab, tempered, top_k, tile[0], splits
        )
        splits = keys.shape[1]
        draw(late=False)
        batch_tiles = triton.cdiv(rows, again.rows)
        lm_head_logits_kernel[(batch_tiles * triton.cdiv(vocab, again.entries),)](
            operand(hidden, again.rows, again), operand(weight, again.entries, again), biases,
            records, wanted, bounds, logits, hidden.stride(0), weight.stride(0), rows, vocab, size,
            groups, batch_tiles, int(bias is not None), ROUNDED[rounded], BLOCK_V=again.entries,
            BLOCK_B=again.rows, BLOCK_H=again.size, DESCRIPTORS=again.descriptors,
            **options(arch, again.warps, again.stages),
        )  # fmt: skip
        draw(late=True)


def scan(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rounded: torch.dtype,
    sampling: tuple[torch.Tensor, ...],
    all_vocab: int,
    tempered: bool,
    kept: int,
    tile: Tile,
    splits: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The records [B, KEPT, groups] of every group of 64 entries and the keys [B, splits, BLOCK_K].

    Args:
        sampling: temperature, top_p, min_p, sample_top_k.
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
        sampling[0] if bias is None else bias, *sampling, records, keys, hidden.stride(0),
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
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    sample_top_k: torch.Tensor,
    all_vocab: int,
    tempered: bool,
    *outputs: torch.Tensor,
) -> None:
    """Launches the kernels of one shard; arguments as marco_fast.lm_head_records, already checked.

    Args:
        outputs: the tensors of LMHeadRecords, in order.

    Raises:
        ValueError: more than 32 candidates.
    """
    rows, candidates = outputs[-1].shape
    sampling, arch = (temperature, top_p, min_p, sample_top_k), architecture(hidden.device)
    block_k = key_slots(candidates, sample=True)
    if rows == 0:
        return
    tile, _ = tiles(arch, hidden.dtype, fit_descriptors(arch, hidden, weight))
    with launching(hidden.device):
        records, keys = scan(
            hidden, weight, bias, rounded, sampling, all_vocab, tempered, candidates, tile
        )
        lm_head_record_kernel[(rows,)](
            *sampling, *outputs, records, keys, all_vocab, records.shape[2], keys.shape[1],
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
    """The parameters' types; integers without a mention are int32, pointers float32."""
    types = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in kernel.arg_names}
    for name in ("sample_top_k", "path_counts", "token_ids", "topk_ids", "status", "wanted"):
        types[f"{name}_ptr"] = "*i32"
    types |= {"infs_ptr": "*i32", "nans_ptr": "*i32", "sums_ptr": "*fp64"}
    for name in ("seeds", "positions", "path_sums", "keys"):
        types[f"{name}_ptr"] = "*i64"
    types |= {"cut_keys_ptr": "*i32", "active_ptr": "*u8"}
    types |= {"stride_hidden": "i64", "stride_weight": "i64"}
    for name, rows in (("hidden", "BLOCK_B"), ("weight", "BLOCK_V")):
        types[name] = pointer_type(dtype)
        if constants.get("DESCRIPTORS"):
            block = f"[{constants[rows]}, {constants['BLOCK_H']}]"
            types[name] = f"tensordesc<{pointer_type(dtype)[1:]}{block}>"
    types |= dict.fromkeys(constants, "constexpr")
    return {name: types[name] for name in kernel.arg_names}


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
