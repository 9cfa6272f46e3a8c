"""Drawing a token of a row: by inverse CDF in id order, over the tokens that the filters keep.

Device functions of confidence_kernels.py and lm_head_kernels.py, run by the one program that
finishes a row; to the latter, a "chunk" of the records is a group of 64 entries. A draw finds
the chunk by the chunks' masses, then reads that one chunk again: first the sums of its groups of
GROUP entries, then the entries of one group.
"""

import triton
import triton.language as tl

from marco_fast.kernels.confidence_cut import find_cut, kept_mass, store_kept_masses
from marco_fast.kernels.online_softmax import (
    CHUNK,
    FOLD,
    INFS,
    KEPT,
    NAN_FLAG,
    SAMPLING_SUM,
    SUM,
    TOP,
    chunk_scales,
    rate_of,
    record_field,
)
from marco_fast.kernels.topk_keys import key_id, key_value

__all__ = [
    "ALL_IDS",
    "DRAW_CANDIDATES",
    "GROUP",
    "HAS_ACTIVE",
    "HAS_COUNTS",
    "HAS_MIN_P",
    "HAS_SAMPLE_TOP_K",
    "HAS_SUMS",
    "HAS_TEMPERATURE",
    "HAS_TOP_P",
    "LOWEST",
    "OUTSIDE",
    "chunk_masses",
    "draw",
    "draw_by_id",
    "draw_from_candidates",
    "filters_of",
    "find_chunk",
    "first_beyond",
    "load_options",
    "plan_rows",
    "rank_among_infs",
]

GROUP = tl.constexpr(64)  # entries; its square is CHUNK
# How many of the largest a filtered draw looks at before it reads the row again.
DRAW_CANDIDATES = tl.constexpr(16)

LOWEST = tl.constexpr(-3.4028234663852886e38)
ALL_IDS = tl.constexpr(0x7FFFFFFF)
OUTSIDE = tl.constexpr(-2)  # of a draw that the candidates do not decide
GREEDY_TEMPERATURE = tl.constexpr(1e-5)

# Bits of `given`: which of a draw's tensors there are. Without one, an option is the number that
# stands in its place, and a path is not added to.
HAS_SUMS = tl.constexpr(1)
HAS_COUNTS = tl.constexpr(2)
HAS_ACTIVE = tl.constexpr(4)
HAS_TEMPERATURE = tl.constexpr(8)
HAS_TOP_P = tl.constexpr(16)
HAS_MIN_P = tl.constexpr(32)
HAS_SAMPLE_TOP_K = tl.constexpr(64)


@triton.jit
def load_options(
    row,
    here,
    given,
    temperature_ptr,  # [B] float32
    top_p_ptr,  # [B] float32
    min_p_ptr,  # [B] float32
    sample_top_k_ptr,  # [B] int32
    temperature,
    top_p,
    min_p,
    sample_top_k,
):
    """The options of one row, or of several of which some are not `here`."""
    return (
        load_option(temperature_ptr + row, here, given & HAS_TEMPERATURE, temperature),
        load_option(top_p_ptr + row, here, given & HAS_TOP_P, top_p),
        load_option(min_p_ptr + row, here, given & HAS_MIN_P, min_p),
        load_option(sample_top_k_ptr + row, here, given & HAS_SAMPLE_TOP_K, sample_top_k),
    )


@triton.jit
def load_option(option_ptr, here, given, number):
    return tl.load(option_ptr, mask=here & (given != 0), other=number)


@triton.jit
def plan_rows(temperature, top_p, min_p, sample_top_k, vocab, top_k, tempered):
    """How one row, or each of several, is read.

    Returns:
        whether it is greedy; the temperature that is scored; the rates (`rate_of`) of that and of
        the sampling temperature; whether the draw needs sums of its own, at the second rate; how
        many of the largest are kept.
    """
    greedy = temperature < GREEDY_TEMPERATURE
    score_temperature = tl.where(tempered != 0, temperature, 1.0)
    rate = rate_of(score_temperature)
    sampling_rate = rate_of(tl.where(greedy, 1.0, temperature))
    # A draw that reads no total needs no sums of its own: filters by rank or by value alone.
    limited = ((sample_top_k > 0) & (sample_top_k < vocab)) | (min_p > 0.0)
    own_sums = (temperature != score_temperature) & ((top_p < 1.0) | (limited == 0)) & (greedy == 0)
    # Unfiltered rows draw by chunk: fewer candidates enter their keys.
    capacity = tl.maximum(top_k, DRAW_CANDIDATES)
    capacity = tl.where(limited | (top_p < 1.0), capacity, top_k)
    return greedy, score_temperature, rate, sampling_rate, own_sums, capacity


@triton.jit
def filters_of(temperature, top_p, min_p, sample_top_k, vocab, top, total):
    """(filtered, most, target, least): whether anything may be left out; a token is kept if fewer
    than `most` are ranked before it, their mass is below `target`, and its logit is not below
    `least`.

    The temperature, total and the last two are float64.
    """
    limited = (sample_top_k > 0) & (sample_top_k < vocab)
    most = tl.where(sample_top_k > 0, sample_top_k, ALL_IDS)
    target = tl.where(top_p < 1.0, top_p.to(tl.float64) * total, float("inf"))
    least = tl.log(tl.where(min_p > 0.0, min_p, 1.0).to(tl.float64)) * temperature
    least = tl.where(min_p > 0.0, least + top.to(tl.float64), float("-inf"))
    return limited | (top_p < 1.0) | (min_p > 0.0), most, target, least


@triton.jit
def rank_among_infs(infs, most, top_p, target, u):
    """Which of the entries of +inf is drawn, in id order: they share the probability."""
    kept = tl.minimum(infs, most.to(tl.int64))
    if top_p < 1.0:
        kept = tl.minimum(kept, tl.ceil(target).to(tl.int64))
    return tl.minimum((u * kept.to(tl.float64)).to(tl.int64), kept - 1).to(tl.float64)


@triton.jit
def draw(
    row_ptr,  # [V]
    record_ptr,  # [RECORD_FIELDS, chunks]
    cut_keys_ptr,  # [CUT_TILE] int32, scratch
    keys,  # [BLOCK_K], best first
    chunks,
    vocab,
    top,
    infs,
    total,
    own_sums,
    temperature,
    rate,
    top_p,
    min_p,
    sample_top_k,
    u,
    BLOCK_K: tl.constexpr,
):
    """The token of u in [0, 1), for a row with something above -inf and no greedy temperature.

    total: the mass of all V, float64. own_sums: whether the records hold it in SAMPLING_SUM.
    """
    filtered, most, target, least = filters_of(
        temperature, top_p, min_p, sample_top_k, vocab, top, total
    )
    token = tl.full((), OUTSIDE, tl.int32)
    field = tl.where(own_sums, SAMPLING_SUM, SUM)
    cut = tl.full((), LOWEST, tl.float32)
    last_id = tl.full((), ALL_IDS, tl.int32)
    goal = u * total
    if infs > 0:
        goal = rank_among_infs(infs, most, top_p, target, u)
        field = tl.full((), INFS, tl.int32)
        cut = tl.full((), float("inf"), tl.float32)
    elif filtered:
        token = draw_from_candidates(keys, vocab, top, rate, most, target, least, u, BLOCK_K)
        if token == OUTSIDE:
            cut, last_id = find_cut(
                row_ptr, record_ptr, cut_keys_ptr, chunks, vocab, top, rate, most, target, least,
                total, top_p,
            )  # fmt: skip
            goal = u * store_kept_masses(
                row_ptr, record_ptr, chunks, vocab, top, rate, cut, last_id
            )
            field = tl.full((), KEPT, tl.int32)
    if token == OUTSIDE:
        token = draw_by_id(
            row_ptr, record_ptr, field, chunks, vocab, top, infs, rate, cut, last_id, goal
        )
    return token


@triton.jit
def draw_from_candidates(
    keys,  # [BLOCK_K], best first
    vocab,
    top,
    rate,
    most,
    target,
    least,
    u,
    BLOCK_K: tl.constexpr,
):
    """The draw from the DRAW_CANDIDATES largest if the kept tokens lie inside them, else OUTSIDE.

    There may be more keys, where more are scored; the draw does not look at them.
    """
    slot = tl.arange(0, BLOCK_K)
    z = key_value(keys)
    ids = key_id(keys)
    here = (slot < DRAW_CANDIDATES) & (z > float("-inf"))
    count = tl.sum(here.to(tl.int32), 0)
    y = (z.to(tl.float64) - top.to(tl.float64)) * rate.to(tl.float64)
    mass = tl.where(here, tl.exp2(y), 0.0)
    before = tl.sum(tl.where(slot[None, :] < slot[:, None], mass[None, :], 0.0), 1)
    kept = (slot < most) & (before < target) & (z.to(tl.float64) >= least)
    kept = here & (kept | (slot == 0))
    mass = tl.where(kept, mass, 0.0)
    total = tl.sum(mass, 0)
    complete = (count < DRAW_CANDIDATES) | (count == vocab)
    stopped = (tl.sum(kept.to(tl.int32), 0) < count) | (count >= most) | (total >= target)
    return tl.where(complete | stopped, inverse_cdf(mass, ids, u * total, BLOCK_K), OUTSIDE)


@triton.jit
def inverse_cdf(
    mass,  # [N] float64
    ids,  # [N] int32, distinct
    target,
    N: tl.constexpr,
):
    """The first id whose cumulative mass in id order exceeds target; else the last of any mass."""
    reached = tl.sum(tl.where(ids[None, :] <= ids[:, None], mass[None, :], 0.0), 1)
    found = tl.min(tl.where((reached > target) & (mass > 0.0), ids, ALL_IDS), 0)
    last = tl.max(tl.where(mass > 0.0, ids, -1), 0)
    return tl.where(found < ALL_IDS, found, last)


@triton.jit
def draw_by_id(
    row_ptr,  # [V]
    record_ptr,  # [RECORD_FIELDS, chunks]
    field,
    chunks,
    vocab,
    top,
    infs,
    rate,
    cut,
    last_id,
    target,
):
    """The first token in id order whose cumulative mass exceeds target (float64).

    A chunk's mass is in `field` of its record: KEPT and INFS as they are, sums relative to the
    chunk's largest logit. Kept are logits above `cut`, and those equal to it up to `last_id`.
    """
    chunk, inside = find_chunk(record_ptr, field, chunks, top, rate, target)
    first_id = chunk * CHUNK
    lanes = tl.arange(0, GROUP)
    offs = lanes[:, None] * GROUP + lanes[None, :] + first_id
    x = tl.load(row_ptr + offs, mask=offs < vocab, other=float("-inf")).to(tl.float32)
    sums = tl.sum(kept_mass(x, offs, top, infs, rate, cut, last_id), 1)
    group, inside = first_beyond(sums, inside, GROUP)
    offs = lanes + group * GROUP + first_id
    x = tl.load(row_ptr + offs, mask=offs < vocab, other=float("-inf")).to(tl.float32)
    at, _ = first_beyond(kept_mass(x, offs, top, infs, rate, cut, last_id), inside, GROUP)
    return first_id + group * GROUP + at


@triton.jit
def first_beyond(
    mass,  # [N] float32
    target,
    N: tl.constexpr,
):
    """Where the cumulative mass first exceeds target, and what of target is left there.

    Where rounding puts target at the end, it is the last place with any mass.
    """
    offs = tl.arange(0, N)
    wide = mass.to(tl.float64)
    reached = tl.cumsum(wide, 0)
    found = tl.min(tl.where((reached > target) & (mass > 0.0), offs, N), 0)
    last = tl.max(tl.where(mass > 0.0, offs, 0), 0)
    at = tl.where(found < N, found, last)
    return at, target - tl.sum(tl.where(offs < at, wide, 0.0), 0)


@triton.jit
def find_chunk(record_ptr, field, chunks, top, rate, target):
    """The chunk in which the cumulative mass first exceeds target, and what is left of target."""
    offs = tl.arange(0, FOLD)
    before = tl.full((), 0.0, tl.float64)
    chosen = tl.full((), 0, tl.int32)
    left = target
    begin = tl.full((), 0, tl.int32)
    while (begin < chunks) & (before <= target):
        mass = chunk_masses(record_ptr, field, begin + offs, chunks, top, rate)
        sums = tl.cumsum(mass, 0)
        some = tl.max(mass, 0) > 0.0
        found = tl.min(tl.where((before + sums > target) & (mass > 0.0), offs, FOLD), 0)
        at = tl.where(found < FOLD, found, tl.max(tl.where(mass > 0.0, offs, 0), 0))
        chosen = tl.where(some, begin + at, chosen)
        left = tl.where(some, target - before - tl.sum(tl.where(offs < at, mass, 0.0), 0), left)
        before = tl.where(found < FOLD, float("inf"), before + tl.sum(mass, 0))
        begin += FOLD
    return chosen, left


@triton.jit
def chunk_masses(
    record_ptr,  # [RECORD_FIELDS, chunks]
    field,
    offs,  # [FOLD] chunks
    chunks,
    top,
    rate,
):
    """[FOLD] float64, relative to the row's largest logit."""
    value = record_field(record_ptr, field, offs, chunks, 0.0)
    tops = record_field(record_ptr, TOP, offs, chunks, float("-inf"))
    base = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    y, scale = chunk_scales(tops, base, rate)
    # The entries of such a chunk have no power that float32 holds: the search would find none.
    scaled = tl.where(y >= -126.0, value.to(tl.float64) * scale, 0.0)
    infs = value.to(tl.int32) & (NAN_FLAG - 1)
    plain = tl.where(field == INFS, infs.to(tl.float64), value.to(tl.float64))
    return tl.where((field == INFS) | (field == KEPT), plain, scaled)
