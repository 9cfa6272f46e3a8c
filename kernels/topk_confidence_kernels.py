"""The kernel of topk_confidence, launched by topk_confidence.py.

The grid is rows x splits. A program scans some of its row's vocabulary blocks: their records
(largest logit, sums of exponentials) and its best keys go to a workspace of a few bytes per block.
The last program of a row to arrive merges them in the order of the blocks, scores the token, and
sets the row's arrivals back to 0. Blocks and the order of the merge follow from V alone, so a row's
bits do not depend on its batch or on the number of splits. (Rows that are not 16-byte aligned are
read by narrower loads, and summed in another order of lanes.)
"""

import triton.language as tl

from marco_fast.kernels.confidence_records import (
    RECORD_FIELDS,
    SUM,
    LogitsRow,
    Records,
    RowSums,
    fold_records,
    largest_of_records,
    rate_of,
)
from marco_fast.kernels.confidence_scan import arrive, scan, token_logit
from marco_fast.kernels.confidence_score import score
from marco_fast.kernels.specialization import jit
from marco_fast.kernels.topk_keys import merge_keys

__all__ = ["topk_confidence_kernel"]


@jit(do_not_specialize=["top_k", "include_token", "out", "shares"])
def topk_confidence_kernel(
    logits_ptr,  # [B, V]
    token_ids_ptr,  # [B] int32 or int64
    stride_logits_row,
    vocab_size,
    temperature,  # float32
    top_k,
    include_token,
    out,  # TopKConfidence, written
    space,  # Workspace
    shares,  # Shares
    BLOCK_K: tl.constexpr,
):
    row = (tl.program_id(0) // shares.splits).to(tl.int64)
    split = tl.program_id(0) % shares.splits
    logits = LogitsRow(logits_ptr + row * stride_logits_row, vocab_size)
    records = Records(space.records + row * shares.blocks * RECORD_FIELDS, shares.blocks)
    keys_ptr = space.keys + row * shares.splits * BLOCK_K
    temperature += tl.full((), 0.0, tl.float32)  # the interpreter passes a Python number
    rate = rate_of(temperature)
    begin = split * shares.blocks_per_split
    end = tl.minimum(begin + shares.blocks_per_split, shares.blocks)
    scan(
        logits, records, keys_ptr + split * BLOCK_K, begin, end, rate, rate, top_k, SAMPLE=False,
        BLOCK_K=BLOCK_K,
    )  # fmt: skip
    if arrive(space.arrivals + row, shares.splits):
        keys = merge_keys(keys_ptr, shares.splits * BLOCK_K, top_k, BLOCK_K)
        top, infs, nan = largest_of_records(records)
        total, _ = fold_records(records, top, infs, rate, SUM, HAS_WEIGHTED=False)
        token = tl.load(token_ids_ptr + row).to(tl.int64)
        inside = (token >= 0) & (token < vocab_size)
        score(
            row, token_logit(logits, token, inside), tl.where(inside, 0, 8), keys,
            RowSums(top, infs, nan, total, None), temperature.to(tl.float64), top_k,
            include_token, out, BLOCK_K,
        )  # fmt: skip
