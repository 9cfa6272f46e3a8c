"""Drawing a token of a row: by inverse CDF in id order, over the tokens that the filters keep.

Device code of sample_confidence and lm_head_confidence, run by the one program that finishes a row.
`decide_draw` says what both act on: the token, where the candidates hold it, or else how to find
it. A search by id (`draw_by_id`) finds the block by the blocks' masses, then reads that one block
again: first the sums of its tiles, then the entries of one tile.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from marco_fast.kernels.confidence_cut import LOWEST, Cut, kept_mass
from marco_fast.kernels.confidence_options import ALL_IDS, DRAW_CANDIDATES, filters_of
from marco_fast.kernels.confidence_records import (
    FOLD,
    INFS,
    KEPT,
    NAN_FLAG,
    SAMPLING_SUM,
    SUM,
    TOP,
    VOCAB_BLOCK,
    VOCAB_TILE,
    block_scales,
    fold_records,
    record_field,
)
from marco_fast.kernels.philox import philox_uniform
from marco_fast.kernels.topk_keys import key_id, key_value

__all__ = [
    "OUTSIDE",
    "Draw",
    "block_masses",
    "decide_draw",
    "draw_by_id",
    "drawn_mass",
    "find_block",
    "first_beyond",
]

OUTSIDE = tl.constexpr(-2)  # of a draw that the candidates do not decide


class Draw(NamedTuple):
    """A row's draw as far as it is decided without its logits.

    Where the token is OUTSIDE, it is the first in id order, of those inside the cut, whose
    cumulative mass exceeds `goal`. With the field KEPT the cut is still to be found (`cut_row`),
    and the goal is a share of the mass inside it.
    """

    token: Any  # int32; -1: nothing is above -inf
    field: Any  # int32, which field of the records holds the masses
    cut: Any  # Cut
    goal: Any  # float64
    mass: Any  # float64, of all V, where something is drawn


@triton.jit
def decide_draw(
    row,
    records,  # Records
    keys,  # [BLOCK_K], best first
    sums,  # RowSums
    own,  # RowOptions
    draws,  # Draws
    vocab_size,
    BLOCK_K: tl.constexpr,
):
    """The Draw of a row."""
    token = tl.full((), -1, tl.int32)
    field = tl.where(own.own_sums, SAMPLING_SUM, SUM)
    cut = tl.full((), LOWEST, tl.float32)
    goal = tl.full((), 0.0, tl.float64)
    mass = sums.total
    if own.greedy & (sums.top > float("-inf")):
        token = tl.max(tl.where(tl.arange(0, BLOCK_K) == 0, key_id(keys), -1), 0)
    elif sums.top > float("-inf"):
        token = tl.full((), OUTSIDE, tl.int32)
        mass = drawn_mass(records, sums, own)
        filters = filters_of(own, sums.top, mass, vocab_size)
        u = philox_uniform(tl.load(draws.seeds + row), tl.load(draws.positions + row), 0)
        goal = u * mass
        if sums.infs > 0:
            field = tl.full((), INFS, tl.int32)
            cut = tl.full((), float("inf"), tl.float32)
            goal = rank_among_infs(sums.infs, filters, u)
        elif filters.filtered:
            field = tl.full((), KEPT, tl.int32)
            goal = u
            token = draw_from_candidates(
                keys, sums.top, own.sampling_rate, filters, u, vocab_size, BLOCK_K
            )
    return Draw(token, field, Cut(cut, tl.full((), ALL_IDS, tl.int32)), goal, mass)


@triton.jit
def drawn_mass(
    records,  # Records
    sums,  # RowSums
    own,  # RowOptions
):
    """The sum of 2^y of the distribution that is drawn from, float64."""
    mass = sums.total
    if own.own_sums:
        mass, _ = fold_records(
            records, sums.top, sums.infs, own.sampling_rate, SAMPLING_SUM, HAS_WEIGHTED=False
        )
    return mass


@triton.jit
def rank_among_infs(
    infs,
    filters,  # Filters
    u,
):
    """Which of the entries of +inf is drawn, in id order: they share the probability."""
    kept = tl.minimum(infs, filters.most.to(tl.int64))
    if filters.top_p < 1.0:
        kept = tl.minimum(kept, tl.ceil(filters.target).to(tl.int64))
    return tl.minimum((u * kept.to(tl.float64)).to(tl.int64), kept - 1).to(tl.float64)


@triton.jit
def draw_from_candidates(
    keys,  # [BLOCK_K], best first
    top,
    rate,
    filters,  # Filters
    u,
    vocab_size,
    BLOCK_K: tl.constexpr,
):
    """The draw from the DRAW_CANDIDATES largest if the kept tokens lie inside them, else OUTSIDE.

    There may be more keys, where more are scored; the draw does not look at them.
    """
    slot = tl.arange(0, BLOCK_K)
    z = key_value(keys)
    here = (slot < DRAW_CANDIDATES) & (z > float("-inf"))
    count = tl.sum(here.to(tl.int32), 0)
    y = (z.to(tl.float64) - top.to(tl.float64)) * rate.to(tl.float64)
    mass = tl.where(here, tl.exp2(y), 0.0)
    before = tl.sum(tl.where(slot[None, :] < slot[:, None], mass[None, :], 0.0), 1)
    kept = (slot < filters.most) & (before < filters.target) & (z.to(tl.float64) >= filters.least)
    kept = here & (kept | (slot == 0))
    mass = tl.where(kept, mass, 0.0)
    total = tl.sum(mass, 0)
    complete = (count < DRAW_CANDIDATES) | (count == vocab_size)
    stopped = (tl.sum(kept.to(tl.int32), 0) < count) | (count >= filters.most)
    stopped |= total >= filters.target
    token = inverse_cdf(mass, key_id(keys), u * total)
    return tl.where(complete | stopped, token, OUTSIDE)


@triton.jit
def inverse_cdf(
    mass,  # [N] float64
    ids,  # [N] int32, distinct
    goal,
):
    """The first id whose cumulative mass in id order exceeds goal; else the last of any mass."""
    reached = tl.sum(tl.where(ids[None, :] <= ids[:, None], mass[None, :], 0.0), 1)
    found = tl.min(tl.where((reached > goal) & (mass > 0.0), ids, ALL_IDS), 0)
    last = tl.max(tl.where(mass > 0.0, ids, -1), 0)
    return tl.where(found < ALL_IDS, found, last)


@triton.jit
def draw_by_id(
    logits,  # LogitsRow
    records,  # Records
    field,
    scale,  # Scale
    cut,  # Cut
    goal,
):
    """The first kept token in id order whose cumulative mass exceeds goal (float64).

    A block's mass is in `field` of its record: KEPT and INFS as they are, sums relative to the
    block's largest logit.
    """
    block, inside = find_block(records, field, scale.top, scale.rate, goal)
    first_id = block * VOCAB_BLOCK
    lanes = tl.arange(0, VOCAB_TILE)
    offs = lanes[:, None] * VOCAB_TILE + lanes[None, :] + first_id
    mask = offs < logits.vocab_size
    x = tl.load(logits.ptr + offs, mask=mask, other=float("-inf")).to(tl.float32)
    tile, inside = first_beyond(tl.sum(kept_mass(x, offs, scale, cut), 1), inside)
    offs = lanes + tile * VOCAB_TILE + first_id
    mask = offs < logits.vocab_size
    x = tl.load(logits.ptr + offs, mask=mask, other=float("-inf")).to(tl.float32)
    at, _ = first_beyond(kept_mass(x, offs, scale, cut), inside)
    return first_id + tile * VOCAB_TILE + at


@triton.jit
def first_beyond(
    mass,  # [N] float32
    goal,
):
    """Where the cumulative mass first exceeds goal, and what of goal is left there.

    Where rounding puts goal at the end, it is the last index with any mass.
    """
    N: tl.constexpr = mass.shape[0]
    offs = tl.arange(0, N)
    wide = mass.to(tl.float64)
    reached = tl.cumsum(wide, 0)
    found = tl.min(tl.where((reached > goal) & (mass > 0.0), offs, N), 0)
    last = tl.max(tl.where(mass > 0.0, offs, 0), 0)
    at = tl.where(found < N, found, last)
    return at, goal - tl.sum(tl.where(offs < at, wide, 0.0), 0)


@triton.jit
def find_block(
    records,  # Records
    field,
    top,
    rate,
    goal,
):
    """The block in which the cumulative mass first exceeds goal, and what is left of goal."""
    offs = tl.arange(0, FOLD)
    before = tl.full((), 0.0, tl.float64)
    chosen = tl.full((), 0, tl.int32)
    left = goal
    begin = tl.full((), 0, tl.int32)
    while (begin < records.length) & (before <= goal):
        mass = block_masses(records, field, begin + offs, top, rate)
        sums = tl.cumsum(mass, 0)
        some = tl.max(mass, 0) > 0.0
        found = tl.min(tl.where((before + sums > goal) & (mass > 0.0), offs, FOLD), 0)
        at = tl.where(found < FOLD, found, tl.max(tl.where(mass > 0.0, offs, 0), 0))
        chosen = tl.where(some, begin + at, chosen)
        left = tl.where(some, goal - before - tl.sum(tl.where(offs < at, mass, 0.0), 0), left)
        before = tl.where(found < FOLD, float("inf"), before + tl.sum(mass, 0))
        begin += FOLD
    return chosen, left


@triton.jit
def block_masses(
    records,  # Records
    field,
    offs,  # [FOLD] blocks
    top,
    rate,
):
    """[FOLD] float64, relative to the row's largest logit."""
    value = record_field(records, field, offs, 0.0)
    tops = record_field(records, TOP, offs, float("-inf"))
    base = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    y, scale = block_scales(tops, base, rate)
    # The entries of such a block have no power that float32 holds: the search would find none.
    scaled = tl.where(y >= -126.0, value.to(tl.float64) * scale, 0.0)
    infs = value.to(tl.int32) & (NAN_FLAG - 1)
    as_it_is = tl.where(field == INFS, infs.to(tl.float64), value.to(tl.float64))
    return tl.where((field == INFS) | (field == KEPT), as_it_is, scaled)
