"""The kernels of lm_head_confidence, launched by lm_head_confidence.py.

1. lm_head_scan_kernel (lm_head_scan.py) leaves records and the best keys of every row.
2. lm_head_draw_kernel: one program per row merges them, draws and scores. Where the draw falls
   outside the candidates, it says which tiles of the vocabulary can hold the token.
3. lm_head_logits_kernel: the products of such tiles once more; their logits go to memory.
4. lm_head_draw_kernel again, for those rows.

All are launched always: which rows need 3 and 4 is known on the device alone, and programs without
any end at once.

A row's bits do not depend on its batch: those of its logits do not (lm_head_scan.py); sums inside a
tile are one tree, whatever the layout (`sum_in_order`); tiles are merged in an order that V alone
decides; and the best keys are exact.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from marco_fast.kernels.confidence_cut import CUT_TILE, Scale, cut_row, kept_mass
from marco_fast.kernels.confidence_draw import (
    OUTSIDE,
    decide_draw,
    draw_by_id,
    find_block,
    first_beyond,
)
from marco_fast.kernels.confidence_options import filters_of, options_of_rows
from marco_fast.kernels.confidence_records import (
    KEPT,
    RECORD_FIELDS,
    SAMPLING_SUM,
    SUM,
    TOP,
    VOCAB_BLOCK,
    VOCAB_TILE,
    LogitsRow,
    Records,
    sums_of_row,
)
from marco_fast.kernels.confidence_score import score_draw
from marco_fast.kernels.lm_head_scan import logits_of
from marco_fast.kernels.lm_head_tiles import bound_of
from marco_fast.kernels.specialization import jit
from marco_fast.kernels.topk_keys import key_id, key_value, merge_keys

__all__ = ["Scratch", "Wanted", "lm_head_draw_kernel", "lm_head_logits_kernel"]

# What a row wants of lm_head_logits_kernel: a tile by its number, or one of
NOTHING = tl.constexpr(-1)
BY_BOUND = tl.constexpr(-2)  # every tile whose largest logit reaches the row's bound


class Wanted(NamedTuple):
    """Which logits the first draw leaves for the second."""

    tiles: Any  # [B] int32
    bounds: Any  # [B] float32


class Scratch(NamedTuple):
    """What a draw from stored logits needs for itself."""

    records: Any  # [B, RECORD_FIELDS, vocab_blocks] float32
    cut_keys: Any  # [B, CUT_TILE] int32


@jit(do_not_specialize=["epilogue", "wanted", "sizes"])
def lm_head_logits_kernel(
    hidden,  # [B, H], a pointer or a tensor descriptor
    weight,  # [V, H], likewise
    strides,  # Strides
    epilogue,  # Epilogue
    space,  # HeadSpace
    wanted,  # Wanted
    logits,  # LogitsRow, the first of [B, V] float32; written where a row wants it
    sizes,  # HeadSizes
    BLOCK_V: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """A program is one tile. Rows that want tiles by their bound get -inf for all others."""
    tl.static_assert(BLOCK_V == VOCAB_TILE)
    first_row = tl.program_id(0) % sizes.batch_tiles * BLOCK_B
    tile = tl.program_id(0) // sizes.batch_tiles
    row = first_row + tl.arange(0, BLOCK_B)
    here = row < epilogue.rows
    want = tl.load(wanted.tiles + row, mask=here, other=NOTHING)
    if tl.max((want != NOTHING).to(tl.int32), 0) != 0:
        bound = tl.load(wanted.bounds + row, mask=here, other=float("inf"))
        row64 = row.to(tl.int64)
        top_ptrs = space.records + (row64 * KEPT + TOP) * sizes.vocab_tiles + tile
        top = tl.load(top_ptrs, mask=here, other=float("-inf"))
        by_bound = want == BY_BOUND
        needed = (want == tile) | (by_bound & (top >= bound))
        x = tl.full([BLOCK_B, BLOCK_V], float("-inf"), tl.float32)
        if tl.max(needed.to(tl.int32), 0) != 0:
            x = logits_of(
                hidden, weight, strides, epilogue, first_row, tile * BLOCK_V, BLOCK_V, BLOCK_B,
                BLOCK_H, DESCRIPTORS,
            )  # fmt: skip
        # By what a row needs itself, not its neighbours: the cut that follows sums all of it.
        ids = tile * BLOCK_V + tl.arange(0, BLOCK_V)
        tl.store(
            logits.ptr + row64[:, None] * logits.vocab_size + ids[None, :],
            tl.where((x == x) & needed[:, None], x, float("-inf")),
            mask=(by_bound | needed)[:, None] & (ids < logits.vocab_size)[None, :],
        )


@jit(do_not_specialize=["sampling", "draws", "out", "wanted", "sizes"])
def lm_head_draw_kernel(
    sampling,  # SamplingOptions
    draws,  # Draws
    out,  # SampledTokens, written
    space,  # HeadSpace
    wanted,  # Wanted, written if not LATE
    logits,  # LogitsRow, the first of [B, V] float32: what was wanted
    scratch,  # Scratch
    sizes,  # HeadSizes
    LATE: tl.constexpr,  # the second time, for rows that wanted something
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    wants = True
    if LATE:
        wants = tl.load(wanted.tiles + row) != NOTHING
    if wants:
        vocab_size = logits.vocab_size
        records = Records(space.records + row * sizes.vocab_tiles * KEPT, sizes.vocab_tiles)
        keys_ptr = space.keys + row * sizes.splits * BLOCK_K
        own = options_of_rows(sampling, row, row >= 0, vocab_size)
        keys = merge_keys(keys_ptr, sizes.splits * BLOCK_K, own.capacity, BLOCK_K)
        sums = sums_of_row(records, own.rate)
        drawn = decide_draw(row, records, keys, sums, own, draws, vocab_size, BLOCK_K)
        token = drawn.token
        want = tl.full((), NOTHING, tl.int32)
        if LATE:
            mine = LogitsRow(logits.ptr + row * vocab_size, vocab_size)
            token = late_token(row, mine, records, wanted, scratch, sums, own, drawn)
            logit = tl.load(mine.ptr + token)
        else:
            if token == OUTSIDE:
                want = ask_for_logits(row, records, wanted, sums, own, drawn, vocab_size)
            tl.store(wanted.tiles + row, want)
            logit = tl.max(tl.where(key_id(keys) == token, key_value(keys), float("-inf")), 0)
        if want == NOTHING:
            score_draw(
                row, token, logit, keys, sums, own.score_temperature, sampling, draws, out, BLOCK_K
            )


@triton.jit
def ask_for_logits(
    row,
    records,  # Records of tiles
    wanted,  # Wanted; the bound is written
    sums,  # RowSums
    own,  # RowOptions
    drawn,  # Draw whose token is OUTSIDE
    vocab_size,
):
    """What the row wants of lm_head_logits_kernel."""
    if drawn.field == KEPT:
        field = tl.where(own.own_sums, SAMPLING_SUM, SUM)
        filters = filters_of(own, sums.top, drawn.mass, vocab_size)
        bound = bound_of(records, field, sums.top, own.sampling_rate, filters, drawn.mass)
        tl.store(wanted.bounds + row, bound)
        want = tl.full((), BY_BOUND, tl.int32)
    else:
        want, _ = find_block(records, drawn.field, sums.top, own.sampling_rate, drawn.goal)
    return want


@triton.jit
def late_token(
    row,
    logits,  # LogitsRow: what the row wanted
    records,  # Records of tiles
    wanted,  # Wanted
    scratch,  # Scratch
    sums,  # RowSums
    own,  # RowOptions
    drawn,  # Draw whose token is OUTSIDE
):
    """The token of a row whose logits are in memory as far as they can be drawn."""
    if drawn.field == KEPT:
        token = token_of_kept(row, logits, records, scratch, sums, own, drawn)
    else:
        tile = tl.load(wanted.tiles + row)
        _, inside = find_block(records, drawn.field, sums.top, own.sampling_rate, drawn.goal)
        ids = tile * VOCAB_TILE + tl.arange(0, VOCAB_TILE)
        x = tl.load(logits.ptr + ids, mask=ids < logits.vocab_size, other=float("-inf"))
        scale = Scale(sums.top, own.sampling_rate, sums.infs)
        at, _ = first_beyond(kept_mass(x, ids, scale, drawn.cut), inside)
        token = tile * VOCAB_TILE + at
    return token


@triton.jit
def token_of_kept(
    row,
    logits,  # LogitsRow: every logit that may be kept, and -inf
    records,  # Records of tiles
    scratch,  # Scratch
    sums,  # RowSums
    own,  # RowOptions
    drawn,  # Draw of the field KEPT
):
    """The token of a filtered row whose kept tokens are more than the candidates."""
    blocks = tl.cdiv(logits.vocab_size, VOCAB_BLOCK)
    block_records = Records(scratch.records + row * blocks * RECORD_FIELDS, blocks)
    store_block_tops(block_records, records)
    scale = Scale(sums.top, own.sampling_rate, 0)
    filters = filters_of(own, sums.top, drawn.mass, logits.vocab_size)
    cut_keys_ptr = scratch.cut_keys + row * CUT_TILE
    cut, kept = cut_row(logits, block_records, cut_keys_ptr, scale, filters, drawn.mass)
    return draw_by_id(logits, block_records, KEPT, scale, cut, drawn.goal * kept)


@triton.jit
def store_block_tops(
    block_records,  # Records of blocks, written
    records,  # Records of tiles
):
    """The largest logit of each block, from those of its tiles."""
    offs = tl.arange(0, VOCAB_BLOCK // VOCAB_TILE)
    for block in range(0, block_records.length):
        tile = block * (VOCAB_BLOCK // VOCAB_TILE) + offs
        top_ptrs = records.ptr + TOP * records.length + tile
        tops = tl.load(top_ptrs, mask=tile < records.length, other=float("-inf"))
        tl.store(block_records.ptr + TOP * block_records.length + block, tl.max(tops, 0))
    tl.debug_barrier()
