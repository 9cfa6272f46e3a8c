"""Where a row is cut by the filters when the kept tokens are more than the candidates at hand.

Device functions of confidence_draw.py. Ranked by (value descending, id ascending), the tokens kept
are a prefix; the cut is its last value and, among equals, its last id. The value is found by
bisection: each pass over the row counts and sums what lies above a pivot, chunks whose largest
logit does not are skipped, and once CUT_TILE entries or fewer are left between the bounds they are
gathered and the search ends inside them.
"""

import triton
import triton.language as tl

from marco_fast.kernels.online_softmax import CHUNK, KEPT, TOP
from marco_fast.kernels.topk_keys import from_ordered, ordered

__all__ = ["CUT_TILE", "find_cut", "kept_mass", "store_kept_masses"]

CUT_TILE = tl.constexpr(1024)  # entries between the bounds that end the passes over the row

# Entries in registers at once: passes are rare and must not cost the scan its registers.
PART = tl.constexpr(1024)

_ALL_IDS = tl.constexpr(0x7FFFFFFF)
_LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def powers(x, top, rate):
    """2^((x - top) * rate), float32; top is finite."""
    return tl.exp2((x - top) * rate)


@triton.jit
def kept_mass(x, ids, top, infs, rate, cut, last_id):
    """The mass of each entry that is kept, else 0; of a row with +inf, 1 for each of them."""
    kept = (x > cut) | ((x == cut) & (ids <= last_id))
    base = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    return tl.where(kept, tl.where(infs > 0, 1.0, powers(x, base, rate)), 0.0)


@triton.jit
def find_cut(
    row_ptr,  # [V]
    record_ptr,  # [RECORD_FIELDS, chunks]
    cut_keys_ptr,  # [CUT_TILE] int32, scratch
    chunks,
    vocab,
    top,
    rate,
    most,
    target,
    least,
    total,
    top_p,
):
    """(value, last_id): kept are the logits above value, and those equal to it up to last_id.

    A token is kept if fewer than `most` are ranked before it, their mass is below `target`, and its
    logit is `least` or more. In between, `low` is an ordered value that is too low, `high` one that
    is not; `above` and `mass` are the count and the mass of the entries above `high`.
    """
    low = lower_bound(vocab, top, rate, least, total, top_p)
    high = ordered(top).to(tl.int64)
    above = tl.full((), 0, tl.int32)
    above_low = vocab + above
    mass = tl.full((), 0.0, tl.float64)
    step = tl.full((), 0, tl.int32)
    while (high - low > 1) & (above_low - above > CUT_TILE):
        pivot = next_pivot(low, high, step, top, rate)
        count, reached = sum_above(row_ptr, record_ptr, chunks, vocab, top, rate, pivot)
        kept = (count < most) & (reached < target)
        high, low = tl.where(kept, pivot, high), tl.where(kept, low, pivot)
        above, above_low = tl.where(kept, count, above), tl.where(kept, above_low, count)
        mass = tl.where(kept, reached, mass)
        step += 1
    if high - low > 1:
        gather(row_ptr, record_ptr, cut_keys_ptr, chunks, vocab, low, high)
        high, above, mass = search_gathered(
            cut_keys_ptr, low, high, above, mass, most, target, top, rate
        )
    value = from_ordered(high.to(tl.int32))
    return value, last_tie(
        row_ptr, record_ptr, chunks, vocab, top, rate, value, most - above, target - mass
    )


@triton.jit
def lower_bound(vocab, top, rate, least, total, top_p):
    """An ordered value (int64) below every one that may be kept, or at which too much is kept."""
    floor = tl.maximum(least, _LOWEST).to(tl.float32)
    # The smallest float32 that is not below `least`.
    low = ordered(floor).to(tl.int64) + tl.where(floor.to(tl.float64) < least, 1, 0) - 1
    # Below this logit all V together could not hold the mass that top_p leaves out; where little is
    # left out, that is too close to the rounding of the sums.
    left_out = 1.0 - top_p.to(tl.float64)
    share = tl.where(left_out < 1e-4, 1.0, 0.9 * left_out * total / vocab)
    bound = top.to(tl.float64) + tl.log2(share) / rate
    # One less: the rounding to float32 may have gone up.
    bound = ordered(tl.maximum(bound, _LOWEST).to(tl.float32)).to(tl.int64) - 1
    return tl.where(left_out < 1e-4, low, tl.maximum(low, bound))


@triton.jit
def next_pivot(low, high, step, top, rate):
    """Between low and high: by turns the middle of the values, which is near in masses, and the
    middle of the float32 numbers, which ends in 32 steps; without a lowest value, 2^step bits down.
    """
    floor = from_ordered(low.to(tl.int32))
    middle = 0.5 * floor + 0.5 * from_ordered(high.to(tl.int32))
    down = top - tl.exp2(step.to(tl.float32)) / rate
    guess = tl.where(floor < _LOWEST, tl.maximum(down, _LOWEST), middle)
    pivot = tl.where(step % 2 == 0, ordered(guess).to(tl.int64), (low + high) >> 1)
    return tl.maximum(low + 1, tl.minimum(pivot, high - 1))


@triton.jit
def chunk_top(record_ptr, chunk, chunks):
    return tl.load(record_ptr + chunks * TOP + chunk, cache_modifier=".cg")


@triton.jit
def load_part(row_ptr, chunk, part, vocab):
    """Entries [PART] of a chunk from `part` on as float32, and their ids."""
    ids = tl.arange(0, PART) + part + chunk * CHUNK
    return tl.load(row_ptr + ids, mask=ids < vocab, other=float("-inf")).to(tl.float32), ids


@triton.jit
def sum_above(row_ptr, record_ptr, chunks, vocab, top, rate, pivot):
    """How many entries are above the pivot, and their mass."""
    bound = from_ordered(pivot.to(tl.int32))
    count = tl.zeros((PART,), tl.int32)
    mass = tl.zeros((PART,), tl.float64)
    for chunk in range(0, chunks):
        if chunk_top(record_ptr, chunk, chunks) > bound:
            for part in range(0, CHUNK, PART):
                x, _ = load_part(row_ptr, chunk, part, vocab)
                count += (x > bound).to(tl.int32)
                mass += tl.where(x > bound, powers(x, top, rate), 0.0).to(tl.float64)
    return tl.sum(count, 0), tl.sum(mass, 0)


@triton.jit
def gather(row_ptr, record_ptr, cut_keys_ptr, chunks, vocab, low, high):
    """Writes the ordered values in (low, high], CUT_TILE of them at most, then `low` to the end."""
    floor, most = from_ordered(low.to(tl.int32)), from_ordered(high.to(tl.int32))
    offs = tl.arange(0, CUT_TILE)
    tl.store(cut_keys_ptr + offs, (offs & 0) + low.to(tl.int32))
    tl.debug_barrier()
    count = tl.full((), 0, tl.int32)
    for chunk in range(0, chunks):
        if chunk_top(record_ptr, chunk, chunks) > floor:
            for part in range(0, CHUNK, PART):
                x, _ = load_part(row_ptr, chunk, part, vocab)
                inside = ((x > floor) & (x <= most)).to(tl.int32)
                at = count + tl.cumsum(inside, 0) - 1
                tl.store(cut_keys_ptr + at, ordered(x), mask=inside > 0)
                count += tl.sum(inside, 0)
    tl.debug_barrier()


@triton.jit
def search_gathered(
    cut_keys_ptr,  # [CUT_TILE] int32
    low,
    high,
    above,
    mass,
    most,
    target,
    top,
    rate,
):
    """The same bisection inside the gathered entries: the lowest kept value, and what is above."""
    tile = tl.load(cut_keys_ptr + tl.arange(0, CUT_TILE), cache_modifier=".cg")
    values = from_ordered(tile)
    each = tl.where(tile > low, powers(values, top, rate), 0.0)
    above_all, mass_all = above, mass
    while high - low > 1:
        pivot = (low + high) >> 1
        beyond = tile > pivot
        count = above_all + tl.sum(beyond.to(tl.int32), 0)
        reached = mass_all + tl.sum(tl.where(beyond, each, 0.0), 0).to(tl.float64)
        kept = (count < most) & (reached < target)
        high, low = tl.where(kept, pivot, high), tl.where(kept, low, pivot)
        above, mass = tl.where(kept, count, above), tl.where(kept, reached, mass)
    return high, above, mass


@triton.jit
def last_tie(row_ptr, record_ptr, chunks, vocab, top, rate, value, places, room):
    """The id up to which entries equal to value are kept: `places` of them, while the mass of those
    before one is below `room`."""
    each = powers(value, top, rate).to(tl.float64)
    fit = tl.ceil(room / tl.where(each > 0.0, each, 1.0))
    fit = tl.where(each > 0.0, tl.minimum(fit, _ALL_IDS), _ALL_IDS).to(tl.int32)
    wanted = tl.maximum(1, tl.minimum(places, fit))
    last_id = tl.full((), _ALL_IDS, tl.int32)
    count = tl.full((), 0, tl.int32)
    chunk = tl.full((), 0, tl.int32)
    while (chunk < chunks) & (count < wanted):
        if chunk_top(record_ptr, chunk, chunks) >= value:
            for part in range(0, CHUNK, PART):
                x, ids = load_part(row_ptr, chunk, part, vocab)
                equal = (x == value).to(tl.int32)
                ranks = count + tl.cumsum(equal, 0)
                hit = tl.min(tl.where((equal > 0) & (ranks == wanted), ids, _ALL_IDS), 0)
                last_id = tl.minimum(last_id, hit)
                count += tl.sum(equal, 0)
        chunk += 1
    return last_id


@triton.jit
def store_kept_masses(row_ptr, record_ptr, chunks, vocab, top, rate, cut, last_id):
    """Writes each chunk's kept mass into its record and returns the sum of all, float64."""
    total = tl.full((), 0.0, tl.float64)
    for chunk in range(0, chunks):
        masses = tl.zeros((PART,), tl.float32)
        if chunk_top(record_ptr, chunk, chunks) >= cut:
            for part in range(0, CHUNK, PART):
                x, ids = load_part(row_ptr, chunk, part, vocab)
                masses += kept_mass(x, ids, top, 0, rate, cut, last_id)
        mass = tl.sum(masses, 0)
        tl.store(record_ptr + chunks * KEPT + chunk, mass)
        total += mass
    tl.debug_barrier()
    return total
