"""Scoring a row's token with what was read of the row, and adding the score to its path.

Device code of every confidence kernel. `out` is the operation's result as the caller gets it.
"""

import triton
import triton.language as tl

from marco_fast.kernels.topk_keys import key_id, key_value

__all__ = ["score", "score_draw"]

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def score(
    row,
    token_logit,
    status,
    keys,  # [BLOCK_K], best first
    sums,  # RowSums
    temperature,
    top_k,
    include_token,
    out,  # TopKConfidence or SampledTokens, written
    BLOCK_K: tl.constexpr,
):
    """Writes the row's results and returns the confidence, all computed in float64.

    A masked token is given by a logit of -inf; `status` holds the bits known already.
    """
    slot = tl.arange(0, BLOCK_K)
    scored = slot < top_k
    z = key_value(keys)
    log_total = tl.log(tl.where(sums.total > 0.0, sums.total, 1.0))
    mass, log_mass = masses_of(z, sums, temperature)
    token_mass, token_log_mass = masses_of(token_logit, sums, temperature)
    denominator = tl.sum(tl.where(scored, mass, 0.0), 0)
    worst = tl.sum(tl.where(slot == top_k - 1, z, 0.0), 0)
    if (include_token != 0) & (token_logit < worst):
        denominator += token_mass
    confidence = token_mass / tl.where(denominator > 0.0, denominator, 1.0)
    confidence = confidence.to(tl.float32)
    at = row * top_k + slot
    tl.store(out.topk_logprobs + at, (log_mass - log_total).to(tl.float32), mask=scored)
    tl.store(out.topk_ids + at, tl.where(z > float("-inf"), key_id(keys), -1), mask=scored)
    tl.store(out.confidence + row, confidence)
    tl.store(out.token_logprobs + row, (token_log_mass - log_total).to(tl.float32))
    lse = (sums.top.to(tl.float64) / temperature + log_total).to(tl.float32)
    tl.store(out.lse + row, lse)
    status |= sums.nan | tl.where(sums.infs > 0, 2, 0)
    tl.store(out.status + row, status | tl.where(sums.top == float("-inf"), 4, 0))
    return confidence


@triton.jit
def score_draw(
    row,
    token,
    logit,
    keys,  # [BLOCK_K], best first
    sums,  # RowSums
    score_temperature,
    sampling,  # SamplingOptions
    draws,  # Draws
    out,  # SampledTokens, written
    BLOCK_K: tl.constexpr,
):
    """Writes what becomes of a row whose token is drawn, and adds to its path."""
    confidence = score(
        row, logit, 0, keys, sums, score_temperature.to(tl.float64), sampling.top_k,
        sampling.include_token, out, BLOCK_K,
    )  # fmt: skip
    tl.store(out.token_ids + row, token)
    some = tl.where(sums.total > 0.0, sums.total, 1.0)
    entropy = tl.log(some) - sums.weighted * LN_2 / some
    tl.store(out.entropy + row, tl.maximum(entropy, 0.0).to(tl.float32))
    add_to_path(row, confidence, draws)


@triton.jit
def masses_of(
    z,
    sums,  # RowSums
    temperature,
):
    """exp((z - top) / T) and its logarithm, float64; the entries of +inf have 1 if there are any.

    The temperature is float64. With nothing above -inf, z is -inf and so has mass 0.
    """
    base = tl.where(tl.abs(sums.top) == float("inf"), 0.0, sums.top).to(tl.float64)
    shifted = (z.to(tl.float64) - base) / temperature
    of_infs = tl.where(z == float("inf"), 0.0, float("-inf"))
    shifted = tl.where(sums.infs > 0, of_infs, shifted)
    return tl.exp(shifted), shifted


@triton.jit
def add_to_path(
    row,
    confidence,
    draws,  # Draws
):
    """Adds a confidence, rounded to nearest even, to its path."""
    active = True
    if draws.has_active != 0:
        active = tl.load(draws.active + row) != 0
    scaled = confidence.to(tl.float64) * 1099511627776.0  # 2^40
    down = tl.floor(scaled)
    part = scaled - down
    fixed = down.to(tl.int64)
    up = (part > 0.5) | ((part == 0.5) & ((fixed & 1) == 1))
    fixed += up.to(tl.int64)
    if active & (draws.has_sums != 0):
        tl.store(draws.path_sums + row, tl.load(draws.path_sums + row) + fixed)
    if active & (draws.has_counts != 0):
        tl.store(draws.path_counts + row, tl.load(draws.path_counts + row) + 1)
