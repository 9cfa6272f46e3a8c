"""The kernel of sample_confidence, launched by sample_confidence.py.

Programs share a row as those of topk_confidence do (topk_confidence_kernels.py). The last one of a
row to arrive merges what they left, draws the token, scores it and adds to the path.

A draw reads one vocabulary block again. Only where the filters keep more than the candidates at
hand does that same program go over the row a few times more (confidence_cut.py): which rows need it
is known on the device alone, and the other rows' programs go on meanwhile.
"""

import triton
import triton.language as tl

from marco_fast.kernels.confidence_cut import CUT_TILE, Scale, cut_row
from marco_fast.kernels.confidence_draw import OUTSIDE, decide_draw, draw_by_id
from marco_fast.kernels.confidence_options import filters_of, options_of_rows
from marco_fast.kernels.confidence_records import (
    KEPT,
    RECORD_FIELDS,
    LogitsRow,
    Records,
    sums_of_row,
)
from marco_fast.kernels.confidence_scan import arrive, scan, token_logit
from marco_fast.kernels.confidence_score import score_draw
from marco_fast.kernels.specialization import jit
from marco_fast.kernels.topk_keys import merge_keys

__all__ = ["sample_confidence_kernel"]


@jit(do_not_specialize=["sampling", "draws", "out", "shares"])
def sample_confidence_kernel(
    logits_ptr,  # [B, V]
    stride_logits_row,
    vocab_size,
    sampling,  # SamplingOptions
    draws,  # Draws
    out,  # SampledTokens, written
    space,  # Workspace
    shares,  # Shares
    BLOCK_K: tl.constexpr,
):
    row = (tl.program_id(0) // shares.splits).to(tl.int64)
    split = tl.program_id(0) % shares.splits
    logits = LogitsRow(logits_ptr + row * stride_logits_row, vocab_size)
    records = Records(space.records + row * shares.blocks * RECORD_FIELDS, shares.blocks)
    keys_ptr = space.keys + row * shares.splits * BLOCK_K
    own = options_of_rows(sampling, row, row >= 0, vocab_size)
    begin = split * shares.blocks_per_split
    end = tl.minimum(begin + shares.blocks_per_split, shares.blocks)
    sampling_rate = tl.where(own.own_sums, own.sampling_rate, 0.0)
    scan(
        logits, records, keys_ptr + split * BLOCK_K, begin, end, own.rate, sampling_rate,
        own.capacity, SAMPLE=True, BLOCK_K=BLOCK_K,
    )  # fmt: skip
    if arrive(space.arrivals + row, shares.splits):
        keys = merge_keys(keys_ptr, shares.splits * BLOCK_K, own.capacity, BLOCK_K)
        sums = sums_of_row(records, own.rate)
        drawn = decide_draw(row, records, keys, sums, own, draws, vocab_size, BLOCK_K)
        token = drawn.token
        if token == OUTSIDE:
            cut_keys_ptr = space.cut_keys + row * CUT_TILE
            token = find_token(logits, records, cut_keys_ptr, sums, own, drawn)
        logit = token_logit(logits, token, token >= 0)
        score_draw(
            row, token, logit, keys, sums, own.score_temperature, sampling, draws, out, BLOCK_K
        )


@triton.jit
def find_token(
    logits,  # LogitsRow
    records,  # Records
    cut_keys_ptr,  # [CUT_TILE] int32, scratch
    sums,  # RowSums
    own,  # RowOptions
    drawn,  # Draw whose token is OUTSIDE
):
    """The drawn token, for which the row is read again."""
    cut, goal = drawn.cut, drawn.goal
    if drawn.field == KEPT:
        filters = filters_of(own, sums.top, drawn.mass, logits.vocab_size)
        scale = Scale(sums.top, own.sampling_rate, 0)
        cut, kept = cut_row(logits, records, cut_keys_ptr, scale, filters, drawn.mass)
        goal *= kept
    scale = Scale(sums.top, own.sampling_rate, sums.infs)
    return draw_by_id(logits, records, drawn.field, scale, cut, goal)
