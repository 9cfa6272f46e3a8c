"""The kernels of topk_confidence and sample_confidence, launched by topk_confidence.py.

The grid is rows x splits. A program scans a run of its row's chunks: a record a chunk (largest
logit, sums of exponentials) and the best keys of its run go to a workspace of a few bytes a chunk.
The last program of a row to arrive merges them in the order of the chunks, draws the token, scores
it, adds to the path and sets the row's ticket back to 0. Chunks and the order of the merge follow
from V alone, so a row's bits do not depend on its batch or on the number of splits. (Rows that are
not 16-byte aligned are read by narrower loads, and summed in another order of lanes.)

A draw reads one chunk again. Only where the filters keep more than the candidates at hand does that
same program go over the row a few times more (confidence_cut.py): which rows need it is known on
the device alone, and the other rows' programs go on meanwhile.
"""

import triton
import triton.language as tl

from marco_fast.kernels.confidence_cut import CUT_TILE
from marco_fast.kernels.confidence_draw import draw, load_options, plan_rows
from marco_fast.kernels.confidence_scan import arrive, scan, score, score_draw
from marco_fast.kernels.online_softmax import (
    RECORD_FIELDS,
    SAMPLING_SUM,
    SUM,
    fold_records,
    largest_of_records,
    rate_of,
)
from marco_fast.kernels.philox import philox_uniform
from marco_fast.kernels.topk_keys import key_id, merge_keys

__all__ = ["sample_confidence_kernel", "topk_confidence_kernel"]

# What is read or written a number at a time: how it is aligned changes no code.
ROW_RESULTS = [
    "token_ids_ptr", "confidence_ptr", "token_logprobs_ptr", "lse_ptr", "topk_logprobs_ptr",
    "topk_ids_ptr", "status_ptr", "entropy_ptr",
]  # fmt: skip
ROW_OPTIONS = [
    "temperature_ptr", "top_p_ptr", "min_p_ptr", "sample_top_k_ptr", "seeds_ptr", "positions_ptr",
    "path_sums_ptr", "path_counts_ptr", "active_ptr",
]  # fmt: skip


@triton.jit(
    do_not_specialize=["chunks", "splits", "chunks_per_split", "top_k", "union"],
    do_not_specialize_on_alignment=[*ROW_RESULTS, "tickets_ptr"],
)
def topk_confidence_kernel(
    logits_ptr,  # [B, V]
    token_ids_ptr,  # [B] int32 or int64
    confidence_ptr,  # [B] float32
    token_logprobs_ptr,  # [B] float32
    lse_ptr,  # [B] float32
    topk_logprobs_ptr,  # [B, top_k] float32
    topk_ids_ptr,  # [B, top_k] int32
    status_ptr,  # [B] int32
    records_ptr,  # [B, RECORD_FIELDS, chunks] float32
    keys_ptr,  # [B, splits, BLOCK_K] int64
    tickets_ptr,  # [B] int32, 0 before and after
    stride_logits_row,
    temperature,  # float32
    vocab,
    chunks,
    splits,
    chunks_per_split,
    top_k,
    union,
    BLOCK_K: tl.constexpr,
):
    row = (tl.program_id(0) // splits).to(tl.int64)
    split = tl.program_id(0) % splits
    row_ptr = logits_ptr + row * stride_logits_row
    record_ptr = records_ptr + row * chunks * RECORD_FIELDS
    key_ptr = keys_ptr + row * splits * BLOCK_K
    temperature += tl.full((), 0.0, tl.float32)  # the interpreter passes a Python number
    rate = rate_of(temperature)
    begin = split * chunks_per_split
    scan(
        row_ptr, record_ptr, key_ptr + split * BLOCK_K, begin,
        tl.minimum(begin + chunks_per_split, chunks), chunks, vocab, rate, rate, top_k,
        SAMPLE=False, BLOCK_K=BLOCK_K,
    )  # fmt: skip
    if arrive(tickets_ptr + row, splits):
        keys = merge_keys(key_ptr, splits * BLOCK_K, top_k, BLOCK_K)
        top, infs, nan = largest_of_records(record_ptr, chunks)
        total, _ = fold_records(record_ptr, chunks, top, infs, rate, SUM, HAS_WEIGHTED=False)
        token = tl.load(token_ids_ptr + row).to(tl.int64)
        inside = (token >= 0) & (token < vocab)
        logit = token_logit(row_ptr, token, inside)
        score(
            row, keys, top, total, infs, nan, temperature.to(tl.float64), logit,
            tl.where(inside, 0, 8), top_k, union, confidence_ptr, token_logprobs_ptr, lse_ptr,
            topk_logprobs_ptr, topk_ids_ptr, status_ptr, BLOCK_K,
        )  # fmt: skip


@triton.jit
def token_logit(row_ptr, token, inside):
    """A logit as float32; -inf for a token that is not there, or a NaN."""
    logit = tl.load(row_ptr + tl.where(inside, token, 0)).to(tl.float32)
    return tl.where(inside & (logit == logit), logit, float("-inf"))


@triton.jit(
    do_not_specialize=[
        "chunks", "splits", "chunks_per_split", "top_k", "union", "tempered", "given",
        "sample_top_k",
    ],
    do_not_specialize_on_alignment=[*ROW_RESULTS, *ROW_OPTIONS, "tickets_ptr"],
)  # fmt: skip
def sample_confidence_kernel(
    logits_ptr,  # [B, V]
    temperature_ptr,  # [B] float32
    top_p_ptr,  # [B] float32
    min_p_ptr,  # [B] float32
    sample_top_k_ptr,  # [B] int32
    seeds_ptr,  # [B] int64
    positions_ptr,  # [B] int64
    path_sums_ptr,  # [B] int64, units of 2^-40, added to
    path_counts_ptr,  # [B] int32, added to
    active_ptr,  # [B] uint8
    token_ids_ptr,  # [B] int32
    confidence_ptr,  # [B] float32
    token_logprobs_ptr,  # [B] float32
    lse_ptr,  # [B] float32
    topk_logprobs_ptr,  # [B, top_k] float32
    topk_ids_ptr,  # [B, top_k] int32
    status_ptr,  # [B] int32
    entropy_ptr,  # [B] float32
    records_ptr,  # [B, RECORD_FIELDS, chunks] float32
    keys_ptr,  # [B, splits, BLOCK_K] int64
    tickets_ptr,  # [B] int32, 0 before and after
    cut_keys_ptr,  # [B, CUT_TILE] int32
    stride_logits_row,
    temperature,
    top_p,
    min_p,
    sample_top_k,
    given,
    vocab,
    chunks,
    splits,
    chunks_per_split,
    top_k,
    union,
    tempered,
    BLOCK_K: tl.constexpr,
):
    row = (tl.program_id(0) // splits).to(tl.int64)
    split = tl.program_id(0) % splits
    row_ptr = logits_ptr + row * stride_logits_row
    record_ptr = records_ptr + row * chunks * RECORD_FIELDS
    key_ptr = keys_ptr + row * splits * BLOCK_K
    temperature, top_p, min_p, sample_top_k = load_options(
        row, row >= 0, given, temperature_ptr, top_p_ptr, min_p_ptr, sample_top_k_ptr, temperature,
        top_p, min_p, sample_top_k,
    )  # fmt: skip
    greedy, score_temperature, rate, sampling_rate, own_sums, capacity = plan_rows(
        temperature, top_p, min_p, sample_top_k, vocab, top_k, tempered
    )
    begin = split * chunks_per_split
    scan(
        row_ptr, record_ptr, key_ptr + split * BLOCK_K, begin,
        tl.minimum(begin + chunks_per_split, chunks), chunks, vocab, rate,
        tl.where(own_sums, sampling_rate, 0.0), capacity, SAMPLE=True, BLOCK_K=BLOCK_K,
    )  # fmt: skip
    if arrive(tickets_ptr + row, splits):
        keys = merge_keys(key_ptr, splits * BLOCK_K, capacity, BLOCK_K)
        top, infs, nan = largest_of_records(record_ptr, chunks)
        total, weighted = fold_records(record_ptr, chunks, top, infs, rate, SUM, HAS_WEIGHTED=True)
        token = tl.full((), -1, tl.int32)
        if greedy & (top > float("-inf")):
            token = tl.max(tl.where(tl.arange(0, BLOCK_K) == 0, key_id(keys), -1), 0)
        elif top > float("-inf"):
            mass = total
            if own_sums:
                mass, _ = fold_records(
                    record_ptr, chunks, top, infs, sampling_rate, SAMPLING_SUM, HAS_WEIGHTED=False
                )
            u = philox_uniform(tl.load(seeds_ptr + row), tl.load(positions_ptr + row), 0)
            token = draw(
                row_ptr, record_ptr, cut_keys_ptr + row * CUT_TILE, keys, chunks, vocab, top, infs,
                mass, own_sums, temperature.to(tl.float64), sampling_rate, top_p, min_p,
                sample_top_k, u, BLOCK_K,
            )  # fmt: skip
        logit = token_logit(row_ptr, token, token >= 0)
        score_draw(
            row, token, logit, keys, top, total, weighted, infs, nan, score_temperature, top_k,
            union, given, path_sums_ptr, path_counts_ptr, active_ptr, token_ids_ptr,
            confidence_ptr, token_logprobs_ptr, lse_ptr, topk_logprobs_ptr, topk_ids_ptr,
            status_ptr, entropy_ptr, BLOCK_K,
        )  # fmt: skip
