"""Where a row is cut by the filters when the kept tokens are more than the candidates at hand.

Device code of the draws. Ranked by (value descending, id ascending), the tokens kept are a prefix;
the cut is its last value and, among equals, its last id. The value is found by bisection: each pass
over the row counts and sums what lies above a pivot, blocks whose largest logit does not are
skipped, and once CUT_TILE entries or fewer are left between the bounds they are gathered and the
search ends inside them.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from marco_fast.kernels.confidence_options import ALL_IDS
from marco_fast.kernels.confidence_records import KEPT, TOP, VOCAB_BLOCK
from marco_fast.kernels.topk_keys import from_ordered, ordered

__all__ = ["CUT_TILE", "LOWEST", "Cut", "Scale", "cut_row", "kept_mass"]

CUT_TILE = tl.constexpr(1024)  # entries between the bounds that end the passes over the row

# Entries in registers at once: passes are rare and must not cost the scan its registers.
PART = tl.constexpr(1024)

LOWEST = tl.constexpr(-3.4028234663852886e38)


class Scale(NamedTuple):
    """The masses of a row: 2^((z - top) * rate), or 1 for each +inf where there are any."""

    top: Any
    rate: Any
    infs: Any


class Cut(NamedTuple):
    """Kept are the logits above `value`, and those equal to it up to `last_id`."""

    value: Any  # float32
    last_id: Any  # int32


class Bounds(NamedTuple):
    """The bisection's state: `low` is an ordered value that is too low, `high` one that is not;
    `above` and `mass` are the count and the mass of the entries above `high`."""

    low: Any  # int64, as is high
    high: Any
    above: Any  # int32
    mass: Any  # float64


@triton.jit
def powers(
    x,
    scale,  # Scale of a finite top
):
    """The mass of each entry, float32."""
    return tl.exp2((x - scale.top) * scale.rate)


@triton.jit
def kept_mass(
    x,
    ids,
    scale,  # Scale
    cut,  # Cut
):
    """The mass of each entry that is kept, else 0; of a row with +inf, 1 for each of them."""
    kept = (x > cut.value) | ((x == cut.value) & (ids <= cut.last_id))
    base = tl.where(tl.abs(scale.top) == float("inf"), 0.0, scale.top)
    each = tl.exp2((x - base) * scale.rate)
    return tl.where(kept, tl.where(scale.infs > 0, 1.0, each), 0.0)


@triton.jit
def cut_row(
    logits,  # LogitsRow
    records,  # Records; their field KEPT is written
    cut_keys_ptr,  # [CUT_TILE] int32, scratch
    scale,  # Scale of a finite top
    filters,  # Filters
    total,
):
    """The Cut that the filters make of a row whose mass is `total`, and the mass that they keep."""
    cut = find_cut(logits, records, cut_keys_ptr, scale, filters, total)
    return cut, store_kept_masses(logits, records, scale, cut)


@triton.jit
def find_cut(
    logits,  # LogitsRow
    records,  # Records
    cut_keys_ptr,  # [CUT_TILE] int32, scratch
    scale,  # Scale of a finite top
    filters,  # Filters
    total,
):
    """The Cut of a row whose mass is `total` (float64)."""
    low = lower_bound(logits.vocab_size, scale, filters, total)
    high = ordered(scale.top).to(tl.int64)
    above = tl.full((), 0, tl.int32)
    above_low = logits.vocab_size + above
    mass = tl.full((), 0.0, tl.float64)
    step = tl.full((), 0, tl.int32)
    while (high - low > 1) & (above_low - above > CUT_TILE):
        pivot = next_pivot(low, high, step, scale)
        count, reached = sum_above(logits, records, scale, pivot)
        kept = (count < filters.most) & (reached < filters.target)
        high, low = tl.where(kept, pivot, high), tl.where(kept, low, pivot)
        above, above_low = tl.where(kept, count, above), tl.where(kept, above_low, count)
        mass = tl.where(kept, reached, mass)
        step += 1
    if high - low > 1:
        gather(logits, records, cut_keys_ptr, low, high)
        bounds = Bounds(low, high, above, mass)
        high, above, mass = search_gathered(cut_keys_ptr, bounds, scale, filters)
    value = from_ordered(high.to(tl.int32))
    last_id = last_tie(logits, records, scale, value, filters.most - above, filters.target - mass)
    return Cut(value, last_id)


@triton.jit
def lower_bound(
    vocab_size,
    scale,  # Scale
    filters,  # Filters
    total,
):
    """An ordered value (int64) below every one that may be kept, or at which too much is kept."""
    floor = tl.maximum(filters.least, LOWEST).to(tl.float32)
    # The smallest float32 that is not below `least`.
    low = ordered(floor).to(tl.int64) + tl.where(floor.to(tl.float64) < filters.least, 1, 0) - 1
    # Below this logit all V together could not hold the mass that top_p leaves out; where little is
    # left out, that is too close to the rounding of the sums.
    left_out = 1.0 - filters.top_p.to(tl.float64)
    share = tl.where(left_out < 1e-4, 1.0, 0.9 * left_out * total / vocab_size)
    bound = scale.top.to(tl.float64) + tl.log2(share) / scale.rate
    # One less: the rounding to float32 may have gone up.
    bound = ordered(tl.maximum(bound, LOWEST).to(tl.float32)).to(tl.int64) - 1
    return tl.where(left_out < 1e-4, low, tl.maximum(low, bound))


@triton.jit
def next_pivot(low, high, step, scale):
    """Between low and high: by turns the middle of the values, which is near in masses, and the
    middle of the float32 numbers, which ends in 32 steps; without a lowest value, 2^step bits down.
    """
    floor = from_ordered(low.to(tl.int32))
    middle = 0.5 * floor + 0.5 * from_ordered(high.to(tl.int32))
    down = scale.top - tl.exp2(step.to(tl.float32)) / scale.rate
    guess = tl.where(floor < LOWEST, tl.maximum(down, LOWEST), middle)
    pivot = tl.where(step % 2 == 0, ordered(guess).to(tl.int64), (low + high) >> 1)
    return tl.maximum(low + 1, tl.minimum(pivot, high - 1))


@triton.jit
def block_top(records, block):
    return tl.load(records.ptr + records.length * TOP + block, cache_modifier=".cg")


@triton.jit
def load_part(
    logits,  # LogitsRow
    block,
    part,
):
    """Entries [PART] of a block from `part` on as float32, and their ids."""
    ids = tl.arange(0, PART) + part + block * VOCAB_BLOCK
    x = tl.load(logits.ptr + ids, mask=ids < logits.vocab_size, other=float("-inf"))
    return x.to(tl.float32), ids


@triton.jit
def sum_above(logits, records, scale, pivot):
    """How many entries are above the pivot, and their mass."""
    bound = from_ordered(pivot.to(tl.int32))
    count = tl.zeros((PART,), tl.int32)
    mass = tl.zeros((PART,), tl.float64)
    for block in range(0, records.length):
        if block_top(records, block) > bound:
            for part in range(0, VOCAB_BLOCK, PART):
                x, _ = load_part(logits, block, part)
                count += (x > bound).to(tl.int32)
                mass += tl.where(x > bound, powers(x, scale), 0.0).to(tl.float64)
    return tl.sum(count, 0), tl.sum(mass, 0)


@triton.jit
def gather(logits, records, cut_keys_ptr, low, high):
    """Writes the ordered values in (low, high], CUT_TILE of them at most, then `low` to the end."""
    floor, most = from_ordered(low.to(tl.int32)), from_ordered(high.to(tl.int32))
    offs = tl.arange(0, CUT_TILE)
    tl.store(cut_keys_ptr + offs, (offs & 0) + low.to(tl.int32))
    tl.debug_barrier()
    count = tl.full((), 0, tl.int32)
    for block in range(0, records.length):
        if block_top(records, block) > floor:
            for part in range(0, VOCAB_BLOCK, PART):
                x, _ = load_part(logits, block, part)
                inside = ((x > floor) & (x <= most)).to(tl.int32)
                at = count + tl.cumsum(inside, 0) - 1
                tl.store(cut_keys_ptr + at, ordered(x), mask=inside > 0)
                count += tl.sum(inside, 0)
    tl.debug_barrier()


@triton.jit
def search_gathered(
    cut_keys_ptr,  # [CUT_TILE] int32
    bounds,  # Bounds
    scale,  # Scale
    filters,  # Filters
):
    """The same bisection inside the gathered entries: the lowest kept value, and what is above."""
    low, high, above, mass = bounds
    tile = tl.load(cut_keys_ptr + tl.arange(0, CUT_TILE), cache_modifier=".cg")
    each = tl.where(tile > low, powers(from_ordered(tile), scale), 0.0)
    above_all, mass_all = above, mass
    while high - low > 1:
        pivot = (low + high) >> 1
        beyond = tile > pivot
        count = above_all + tl.sum(beyond.to(tl.int32), 0)
        reached = mass_all + tl.sum(tl.where(beyond, each, 0.0), 0).to(tl.float64)
        kept = (count < filters.most) & (reached < filters.target)
        high, low = tl.where(kept, pivot, high), tl.where(kept, low, pivot)
        above, mass = tl.where(kept, count, above), tl.where(kept, reached, mass)
    return high, above, mass


@triton.jit
def last_tie(logits, records, scale, value, most, room):
    """The id up to which entries equal to value are kept: `most` of them, while the mass of those
    before one is below `room`."""
    each = powers(value, scale).to(tl.float64)
    fit = tl.ceil(room / tl.where(each > 0.0, each, 1.0))
    fit = tl.where(each > 0.0, tl.minimum(fit, ALL_IDS), ALL_IDS).to(tl.int32)
    wanted = tl.maximum(1, tl.minimum(most, fit))
    last_id = tl.full((), ALL_IDS, tl.int32)
    count = tl.full((), 0, tl.int32)
    block = tl.full((), 0, tl.int32)
    while (block < records.length) & (count < wanted):
        if block_top(records, block) >= value:
            for part in range(0, VOCAB_BLOCK, PART):
                x, ids = load_part(logits, block, part)
                equal = (x == value).to(tl.int32)
                ranks = count + tl.cumsum(equal, 0)
                hit = tl.min(tl.where((equal > 0) & (ranks == wanted), ids, ALL_IDS), 0)
                last_id = tl.minimum(last_id, hit)
                count += tl.sum(equal, 0)
        block += 1
    return last_id


@triton.jit
def store_kept_masses(
    logits,  # LogitsRow
    records,  # Records
    scale,  # Scale of a finite top
    cut,  # Cut
):
    """Writes each block's kept mass into its record and returns the sum of all, float64."""
    total = tl.full((), 0.0, tl.float64)
    for block in range(0, records.length):
        masses = tl.zeros((PART,), tl.float32)
        if block_top(records, block) >= cut.value:
            for part in range(0, VOCAB_BLOCK, PART):
                x, ids = load_part(logits, block, part)
                masses += kept_mass(x, ids, scale, cut)
        mass = tl.sum(masses, 0)
        tl.store(records.ptr + records.length * KEPT + block, mass)
        total += mass
    tl.debug_barrier()
    return total
