"""What the LM head keeps of its logits: the records of vocabulary tiles, and the largest entries.

Device code. A block of logits is [rows, entries]; every row has options of its own.
"""

import triton
import triton.language as tl

from marco_fast.kernels.confidence_cut import LOWEST
from marco_fast.kernels.confidence_draw import block_masses
from marco_fast.kernels.confidence_options import ALL_IDS
from marco_fast.kernels.confidence_records import (
    FOLD,
    INFS,
    LOWEST_POWER,
    NAN_FLAG,
    SAMPLING_SUM,
    SUM,
    TOP,
    VOCAB_TILE,
    WEIGHTED,
    Records,
    record_field,
    sum_in_order,
)
from marco_fast.kernels.topk_keys import EMPTY_KEY, FULL_KEY, key_value, pack_key

__all__ = ["bound_of", "keep_logits", "no_keys_of_rows", "store_keys_of_rows"]


@triton.jit
def keep_logits(
    x,  # [rows, entries]
    records,  # Records, the pointer [rows]
    here,  # [rows]
    first_id,
    rate,  # [rows]
    sampling_rate,  # [rows], 0: no sum of its own
    keys,  # [rows, BLOCK_K]
):
    """Writes the records of a block's tiles and returns the keys with its best entries in.

    A tile at a time, so that what is computed of one needs few registers.
    """
    ENTRIES: tl.constexpr = x.shape[1]
    if ENTRIES > VOCAB_TILE:
        halves = tl.permute(tl.reshape(x, [x.shape[0], 2, ENTRIES // 2]), [0, 2, 1])
        left, right = tl.split(halves)
        keys = keep_logits(left, records, here, first_id, rate, sampling_rate, keys)
        first_id += ENTRIES // 2
        keys = keep_logits(right, records, here, first_id, rate, sampling_rate, keys)
    else:
        tile = first_id // VOCAB_TILE
        at = Records(records.ptr + tile, records.length)
        x = store_tile(x, at, here & (tile < records.length), rate, sampling_rate)
        keys = push_rows(x, first_id, keys)
    return keys


@triton.jit
def sums_of_tile(x, top, rate):
    """Sums [rows] of 2^y and of 2^y * y over x [rows, VOCAB_TILE], y = (x - top) * rate; NaN if an
    entry is NaN."""
    base = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    y = (x - base[:, None]) * rate[:, None]
    powers = tl.exp2(y)
    return sum_in_order(powers), sum_in_order(powers * tl.maximum(y, LOWEST_POWER))


@triton.jit
def store_tile(
    x,  # [rows, VOCAB_TILE]
    records,  # Records, the pointer [rows] at the tile's own
    here,
    rate,
    sampling_rate,
):
    """Writes a tile's record for each row, and gives x with NaN read as -inf."""
    tiles = records.length
    top = tl.max(x, 1)
    total, weighted = sums_of_tile(x, top, rate)
    flags = tl.zeros([x.shape[0]], tl.int32)
    unusual = (total != total) | (top == float("inf"))
    if tl.max(unusual.to(tl.int32), 0) != 0:
        nan = tl.max((x != x).to(tl.int32), 1)
        x = tl.where(x != x, float("-inf"), x)
        top = tl.max(x, 1)
        infs = tl.sum((x == float("inf")).to(tl.int32), 1)
        total, weighted = sums_of_tile(x, top, rate)
        total = tl.where(infs > 0, infs.to(tl.float32), total)
        flags = infs + tl.where(nan > 0, NAN_FLAG, 0)
    tl.store(records.ptr + TOP * tiles, top, mask=here)
    tl.store(records.ptr + SUM * tiles, total, mask=here)
    tl.store(records.ptr + WEIGHTED * tiles, weighted, mask=here)
    tl.store(records.ptr + INFS * tiles, flags.to(tl.float32), mask=here)
    if tl.max(sampling_rate, 0) > 0.0:
        total, _ = sums_of_tile(x, top, sampling_rate)
        tl.store(records.ptr + SAMPLING_SUM * tiles, total, mask=here)
    return x


@triton.jit
def no_keys_of_rows(capacity, BLOCK_K: tl.constexpr):
    """[rows, BLOCK_K] keys, of which the first `capacity` [rows] of each row may be filled."""
    slot = tl.arange(0, BLOCK_K)[None, :]
    return tl.where(slot < capacity[:, None], slot.to(tl.int64) + EMPTY_KEY, FULL_KEY)


@triton.jit
def push_rows(x, first_id, keys):
    """Inserts what belongs among the keys: x [rows, entries] without NaN.

    Tiles come in ascending order, so an entry that equals the worst key's value never enters.
    """
    ids = tl.arange(0, x.shape[1])
    worst = tl.min(keys, 1)
    best = tl.max(x, 1)
    enters = best > key_value(worst)
    while tl.max(enters.to(tl.int32), 0) != 0:
        at = tl.min(tl.where(x == best[:, None], ids[None, :], ALL_IDS), 1)
        key = tl.where(enters, pack_key(best, first_id + at), worst)
        keys = tl.where(keys == worst[:, None], key[:, None], keys)
        worst = tl.min(keys, 1)
        x = tl.where(ids[None, :] == at[:, None], float("-inf"), x)
        best = tl.max(x, 1)
        enters = best > key_value(worst)
    return keys


@triton.jit
def store_keys_of_rows(
    key_ptrs,  # [rows]: each row's keys [BLOCK_K]
    here,
    keys,
    BLOCK_K: tl.constexpr,
):
    """Writes a program's keys; slots that could not be filled read as a logit of -inf."""
    slot = tl.arange(0, BLOCK_K)
    keys = tl.where(keys == FULL_KEY, EMPTY_KEY, keys)
    tl.store(key_ptrs[:, None] + slot[None, :], keys, mask=here[:, None])


@triton.jit
def bound_of(
    records,  # Records of tiles
    field,
    top,
    rate,
    filters,  # Filters
    total,
):
    """A logit that every token the filters keep reaches, from the tiles' records alone (float32).

    At least `most` tiles have an entry above it; or it is not above `least`; or so little mass is
    at or below it that what is above reaches top_p. Of a tile whose largest entry is above, at most
    VOCAB_TILE - 1 entries are below, none with more mass than the bound's.
    """
    offs = tl.arange(0, FOLD)
    left_out = 1.0 - filters.top_p.to(tl.float64)
    # Where little is left out, that is too close to the rounding of the sums.
    spare = tl.where(left_out < 1e-4, -1.0, 0.999 * left_out * total)
    low = tl.full((), 0.0, tl.float32) + LOWEST
    high = top
    width = tl.full((), 1.0, tl.float32)
    for _ in range(0, 14):
        down = tl.maximum(top - width / rate, LOWEST)
        width *= 2.0
        pivot = tl.where(low == LOWEST, down, 0.5 * low + 0.5 * high)
        most_below = (VOCAB_TILE - 1) * tl.exp2(
            (pivot.to(tl.float64) - top.to(tl.float64)) * rate.to(tl.float64)
        )
        below = tl.full((), 0.0, tl.float64)
        count = tl.full((), 0, tl.int32)
        for begin in range(0, records.length, FOLD):
            tops = record_field(records, TOP, begin + offs, float("-inf"))
            mass = block_masses(records, field, begin + offs, top, rate)
            above = tops > pivot
            below += tl.sum(tl.where(above, tl.minimum(mass, most_below), mass), 0)
            count += tl.sum(above.to(tl.int32), 0)
        fits = (below <= spare) | (count >= filters.most)
        fits |= pivot.to(tl.float64) <= filters.least
        low = tl.where(fits, pivot, low)
        high = tl.where(fits, high, pivot)
    return low
