"""Reading a row of logits, and scoring a token with what was read.

Device functions of confidence_kernels.py; the scores also of lm_head_kernels.py. A program scans a
run of a row's chunks; the last one of the row to arrive merges everything and scores.
"""

import triton
import triton.language as tl

from marco_fast.kernels.confidence_draw import HAS_ACTIVE, HAS_COUNTS, HAS_SUMS
from marco_fast.kernels.online_softmax import CHUNK, load_chunk, store_record
from marco_fast.kernels.topk_keys import key_id, key_value, no_keys, push_chunk, store_keys

__all__ = ["arrive", "scan", "score", "score_draw"]

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def scan(
    row_ptr,  # [V]
    record_ptr,  # [RECORD_FIELDS, chunks] float32, written for the chunks of this split
    split_keys_ptr,  # [BLOCK_K] int64, written
    begin,
    end,
    chunks,
    vocab,
    rate,
    sampling_rate,
    capacity,
    SAMPLE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Records of the chunks begin..end and the best keys among them."""
    keys, worst = no_keys(capacity, BLOCK_K)
    coming = load_chunk(row_ptr, begin, vocab, begin < end)
    for chunk in range(begin, end):
        x = coming.to(tl.float32)
        # On its way while this one is summed.
        coming = load_chunk(row_ptr, chunk + 1, vocab, chunk + 1 < end)
        x, top = store_record(record_ptr, chunk, chunks, x, rate, sampling_rate, SAMPLE)
        keys, worst = push_chunk(x, top, chunk * CHUNK, keys, worst)
    store_keys(split_keys_ptr, keys, BLOCK_K)


@triton.jit
def arrive(
    ticket_ptr,  # [1] int32: how many of the row's programs were here; 0 again after the last
    splits,
):
    """Whether this program is the last of its row; then it sees what all of them wrote."""
    arrived = splits - 1
    # Every thread's stores come before the one thread's release, and its acquire before every load.
    tl.debug_barrier()
    if splits > 1:
        arrived = tl.atomic_add(ticket_ptr, 1, sem="acq_rel", scope="gpu")
    tl.debug_barrier()
    last = arrived == splits - 1
    if last & (splits > 1):
        tl.store(ticket_ptr, 0)
    return last


@triton.jit
def score(
    row,
    keys,  # [BLOCK_K], best first
    top,
    total,
    infs,
    nan,
    temperature,
    token_logit,
    status,
    top_k,
    union,
    confidence_ptr,  # [B] float32
    token_logprobs_ptr,  # [B] float32
    lse_ptr,  # [B] float32
    topk_logprobs_ptr,  # [B, top_k] float32
    topk_ids_ptr,  # [B, top_k] int32
    status_ptr,  # [B] int32
    BLOCK_K: tl.constexpr,
):
    """Writes the row's results and returns the confidence, all computed in float64.

    A masked token is given by a logit of -inf; `status` holds the bits known already.
    """
    slot = tl.arange(0, BLOCK_K)
    scored = slot < top_k
    z = key_value(keys)
    log_total = tl.log(tl.where(total > 0.0, total, 1.0))
    mass, log_mass = masses_of(z, top, infs, temperature)
    token_mass, token_log_mass = masses_of(token_logit, top, infs, temperature)
    denominator = tl.sum(tl.where(scored, mass, 0.0), 0)
    worst = tl.sum(tl.where(slot == top_k - 1, z, 0.0), 0)
    if (union != 0) & (token_logit < worst):
        denominator += token_mass
    confidence = token_mass / tl.where(denominator > 0.0, denominator, 1.0)
    confidence = confidence.to(tl.float32)
    out = row * top_k + slot
    tl.store(topk_logprobs_ptr + out, (log_mass - log_total).to(tl.float32), mask=scored)
    tl.store(topk_ids_ptr + out, tl.where(z > float("-inf"), key_id(keys), -1), mask=scored)
    tl.store(confidence_ptr + row, confidence)
    tl.store(token_logprobs_ptr + row, (token_log_mass - log_total).to(tl.float32))
    lse = (top.to(tl.float64) / temperature + log_total).to(tl.float32)
    tl.store(lse_ptr + row, lse)
    status |= nan | tl.where(infs > 0, 2, 0) | tl.where(top == float("-inf"), 4, 0)
    tl.store(status_ptr + row, status)
    return confidence


@triton.jit
def score_draw(
    row,
    token,
    logit,
    keys,  # [BLOCK_K], best first
    top,
    total,
    weighted,
    infs,
    nan,
    temperature,
    top_k,
    union,
    given,
    path_sums_ptr,
    path_counts_ptr,
    active_ptr,
    token_ids_ptr,
    confidence_ptr,
    token_logprobs_ptr,
    lse_ptr,
    topk_logprobs_ptr,
    topk_ids_ptr,
    status_ptr,
    entropy_ptr,
    BLOCK_K: tl.constexpr,
):
    """Writes what becomes of a row whose token is drawn, and adds to its path."""
    confidence = score(
        row, keys, top, total, infs, nan, temperature.to(tl.float64), logit, 0, top_k, union,
        confidence_ptr, token_logprobs_ptr, lse_ptr, topk_logprobs_ptr, topk_ids_ptr, status_ptr,
        BLOCK_K,
    )  # fmt: skip
    tl.store(token_ids_ptr + row, token)
    some = tl.where(total > 0.0, total, 1.0)
    entropy = tl.log(some) - weighted * LN_2 / some
    tl.store(entropy_ptr + row, tl.maximum(entropy, 0.0).to(tl.float32))
    add_to_path(row, confidence, given, path_sums_ptr, path_counts_ptr, active_ptr)


@triton.jit
def masses_of(z, top, infs, temperature):
    """exp((z - top) / T) and its logarithm, float64; the entries of +inf have 1 if there are any.

    The temperature is float64. With nothing above -inf, z is -inf and so has mass 0.
    """
    base = tl.where(tl.abs(top) == float("inf"), 0.0, top).to(tl.float64)
    shifted = (z.to(tl.float64) - base) / temperature
    shifted = tl.where(infs > 0, tl.where(z == float("inf"), 0.0, float("-inf")), shifted)
    return tl.exp(shifted), shifted


@triton.jit
def add_to_path(
    row,
    confidence,
    given,
    path_sums_ptr,  # [B] int64, units of 2^-40
    path_counts_ptr,  # [B] int32
    active_ptr,  # [B] uint8
):
    """Adds a confidence, rounded to nearest even, to its path."""
    active = True
    if (given & HAS_ACTIVE) != 0:
        active = tl.load(active_ptr + row) != 0
    scaled = confidence.to(tl.float64) * 1099511627776.0  # 2^40
    down = tl.floor(scaled)
    part = scaled - down
    fixed = down.to(tl.int64)
    up = (part > 0.5) | ((part == 0.5) & ((fixed & 1) == 1))
    fixed += up.to(tl.int64)
    if active & ((given & HAS_SUMS) != 0):
        tl.store(path_sums_ptr + row, tl.load(path_sums_ptr + row) + fixed)
    if active & ((given & HAS_COUNTS) != 0):
        tl.store(path_counts_ptr + row, tl.load(path_counts_ptr + row) + 1)
