"""What lm_head_kernels.py keeps of tiles of logits: groups' records and the largest entries.

Device functions. A tile is [rows, entries]; every row has options of its own.
"""

import triton
import triton.language as tl

from marco_fast.kernels.confidence_draw import ALL_IDS, GROUP, LOWEST, chunk_masses
from marco_fast.kernels.online_softmax import (
    FOLD,
    INFS,
    LOWEST_POWER,
    NAN_FLAG,
    SAMPLING_SUM,
    SUM,
    TOP,
    WEIGHTED,
    record_field,
    sum_in_order,
)
from marco_fast.kernels.topk_keys import EMPTY_KEY, FULL_KEY, key_value, pack_key

__all__ = ["bound_of", "keep_tile", "no_keys_of_rows", "store_keys_of_rows"]


@triton.jit
def keep_tile(
    x,  # [rows, entries]
    record_ptrs,  # [rows]: each row's records [fields, groups]
    here,  # [rows]
    first_id,
    groups,
    rate,  # [rows]
    sampling_rate,  # [rows], 0: no sum of its own
    keys,  # [rows, BLOCK_K]
):
    """Writes the records of a tile's groups and returns the keys with its best entries in.

    A group at a time, so that what is computed of one needs few registers.
    """
    ENTRIES: tl.constexpr = x.shape[1]
    if ENTRIES > GROUP:
        halves = tl.permute(tl.reshape(x, [x.shape[0], 2, ENTRIES // 2]), [0, 2, 1])
        left, right = tl.split(halves)
        keys = keep_tile(left, record_ptrs, here, first_id, groups, rate, sampling_rate, keys)
        first_id += ENTRIES // 2
        keys = keep_tile(right, record_ptrs, here, first_id, groups, rate, sampling_rate, keys)
    else:
        group = first_id // GROUP
        x = store_group(
            x, record_ptrs + group, here & (group < groups), groups, rate, sampling_rate
        )
        keys = push_rows(x, first_id, keys)
    return keys


@triton.jit
def sums_of_group(x, top, rate):
    """Sums [rows] of 2^y and of 2^y * y over x [rows, GROUP], y = (x - top) * rate; NaN if an entry
    is NaN."""
    base = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    y = (x - base[:, None]) * rate[:, None]
    powers = tl.exp2(y)
    return sum_in_order(powers), sum_in_order(powers * tl.maximum(y, LOWEST_POWER))


@triton.jit
def store_group(x, record_ptrs, here, groups, rate, sampling_rate):
    """Writes the records of x [rows, GROUP] and gives it with NaN read as -inf."""
    top = tl.max(x, 1)
    total, weighted = sums_of_group(x, top, rate)
    flags = tl.zeros([x.shape[0]], tl.int32)
    unusual = (total != total) | (top == float("inf"))
    if tl.max(unusual.to(tl.int32), 0) != 0:
        nan = tl.max((x != x).to(tl.int32), 1)
        x = tl.where(x != x, float("-inf"), x)
        top = tl.max(x, 1)
        infs = tl.sum((x == float("inf")).to(tl.int32), 1)
        total, weighted = sums_of_group(x, top, rate)
        total = tl.where(infs > 0, infs.to(tl.float32), total)
        flags = infs + tl.where(nan > 0, NAN_FLAG, 0)
    tl.store(record_ptrs + TOP * groups, top, mask=here)
    tl.store(record_ptrs + SUM * groups, total, mask=here)
    tl.store(record_ptrs + WEIGHTED * groups, weighted, mask=here)
    tl.store(record_ptrs + INFS * groups, flags.to(tl.float32), mask=here)
    if tl.max(sampling_rate, 0) > 0.0:
        total, _ = sums_of_group(x, top, sampling_rate)
        tl.store(record_ptrs + SAMPLING_SUM * groups, total, mask=here)
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
def bound_of(record_ptr, field, groups, top, rate, total, top_p, most, least):
    """A logit that every token the filters keep reaches, from the groups' records alone (float32).

    At least `most` groups have an entry above it; or it is not above `least`; or so little mass is
    at or below it that what is above reaches top_p. Of a group whose largest entry is above, at
    most GROUP - 1 entries are below, none with more mass than the bound's.
    """
    offs = tl.arange(0, FOLD)
    left_out = 1.0 - top_p.to(tl.float64)
    # Where little is left out, that is too close to the rounding of the sums.
    spare = tl.where(left_out < 1e-4, -1.0, 0.999 * left_out * total)
    low = tl.full((), 0.0, tl.float32) + LOWEST
    high = top
    width = tl.full((), 1.0, tl.float32)
    for _ in range(0, 14):
        down = tl.maximum(top - width / rate, LOWEST)
        width *= 2.0
        pivot = tl.where(low == LOWEST, down, 0.5 * low + 0.5 * high)
        most_below = (GROUP - 1) * tl.exp2(
            (pivot.to(tl.float64) - top.to(tl.float64)) * rate.to(tl.float64)
        )
        below = tl.full((), 0.0, tl.float64)
        count = tl.full((), 0, tl.int32)
        for begin in range(0, groups, FOLD):
            tops = record_field(record_ptr, TOP, begin + offs, groups, float("-inf"))
            mass = chunk_masses(record_ptr, field, begin + offs, groups, top, rate)
            above = tops > pivot
            below += tl.sum(tl.where(above, tl.minimum(mass, most_below), mass), 0)
            count += tl.sum(above.to(tl.int32), 0)
        fits = (below <= spare) | (count >= most) | (pivot.to(tl.float64) <= least)
        low = tl.where(fits, pivot, low)
        high = tl.where(fits, high, pivot)
    return low
