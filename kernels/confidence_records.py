"""Device code that all confidence kernels share: the records of vocabulary blocks, and their fold.

A row is cut into blocks of VOCAB_BLOCK entries from V alone. The record of a block is its largest
logit m, the sum of 2^y over its entries, y = (z - m) * rate with rate = log2(e) / temperature, the
sum of 2^y * y (for the entropy), the sum at a second temperature, and what was unusual. Records are
merged in one fixed order that V alone decides, so a row has the same bits however its blocks were
shared out. The LM head keeps the same records of vocabulary tiles, which are shorter.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

__all__ = [
    "FOLD",
    "INFS",
    "KEPT",
    "LOWEST_POWER",
    "NAN_FLAG",
    "RECORD_FIELDS",
    "SAMPLING_SUM",
    "SUM",
    "TOP",
    "VOCAB_BLOCK",
    "VOCAB_TILE",
    "WEIGHTED",
    "LogitsRow",
    "Records",
    "RowSums",
    "block_scales",
    "fold_records",
    "largest_of_records",
    "load_block",
    "rate_of",
    "record_field",
    "store_record",
    "sum_in_order",
    "sums_of_row",
]

VOCAB_BLOCK = tl.constexpr(4096)  # entries
VOCAB_TILE = tl.constexpr(64)  # entries; its square is VOCAB_BLOCK
FOLD = tl.constexpr(256)  # records merged at once

# The fields of a record, each an array over the row's blocks.
TOP = tl.constexpr(0)
SUM = tl.constexpr(1)
WEIGHTED = tl.constexpr(2)
SAMPLING_SUM = tl.constexpr(3)
INFS = tl.constexpr(4)  # entries of +inf, plus NAN_FLAG where a NaN was seen
KEPT = tl.constexpr(5)  # the mass that the filters keep; written only by a cut
RECORD_FIELDS = tl.constexpr(6)
NAN_FLAG = tl.constexpr(8192)

LOWEST_POWER = tl.constexpr(-126.0)  # of 2 that float32 holds as a normal number
_LARGEST = tl.constexpr(3.4028234663852886e38)


class LogitsRow(NamedTuple):
    """One row of logits."""

    ptr: Any  # [V]
    vocab_size: Any


class Records(NamedTuple):
    """The records of one row's blocks, or of its tiles."""

    ptr: Any  # [RECORD_FIELDS, length] float32
    length: Any


class RowSums(NamedTuple):
    """What the records of one row say together; sums are relative to `top`."""

    top: Any  # float32, the largest logit; -inf: there is none
    infs: Any  # int64, entries of +inf
    nan: Any  # int32, 1 where a NaN was seen
    total: Any  # float64, the sum of 2^y of the scored distribution; `infs` where there are any
    weighted: Any  # float64, the sum of 2^y * y


@triton.jit
def rate_of(temperature):
    """log2(e) / temperature as a float32 below infinity; the temperature is a float32 scalar."""
    rate = 1.4426950408889634 / temperature.to(tl.float64)
    return tl.minimum(rate, _LARGEST).to(tl.float32)


@triton.jit
def sum_in_order(x):
    """x [rows, entries] summed over entries as a binary tree of neighbours, whatever the layout."""
    for _ in tl.static_range(8):
        if x.shape[1] > 1:
            x = tl.sum(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]), 2)
    return tl.reshape(x, [x.shape[0]])


@triton.jit
def load_block(
    logits,  # LogitsRow
    block,
    wanted,
):
    """Entries [VOCAB_BLOCK] in their own type; -inf behind the end, or if it is not wanted."""
    offs = tl.arange(0, VOCAB_BLOCK) + block * VOCAB_BLOCK
    mask = (offs < logits.vocab_size) & wanted
    return tl.load(logits.ptr + offs, mask=mask, other=float("-inf"))


@triton.jit
def block_sums(x, top, rate):
    """Sums of 2^y and 2^y * y over x [VOCAB_BLOCK], y = (x - top) * rate; NaN if an entry is."""
    # Nothing above -inf: every power is 2^-inf, the sums 0. A top of +inf is counted elsewhere.
    base = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    y = (x - base) * rate
    powers = tl.exp2(y)
    # A power below the normal numbers times its exponent is nothing; 0 * -inf would be NaN.
    return tl.sum(powers, 0), tl.sum(powers * tl.maximum(y, LOWEST_POWER), 0)


@triton.jit
def store_record(
    records,  # Records
    block,
    x,
    rate,
    sampling_rate,
    SAMPLE: tl.constexpr,
):
    """Writes the record of x [VOCAB_BLOCK]; gives x with NaN read as -inf, and its largest entry.

    rate and sampling_rate are float32; the fields that a draw needs are written with SAMPLE, the
    second sum where sampling_rate is not 0.
    """
    length = records.length
    top = tl.max(x, 0)
    total, weighted = block_sums(x, top, rate)
    infs = tl.full((), 0, tl.int32)
    unusual = (total != total) | (top == float("inf"))
    if unusual:
        nan = tl.sum((x != x).to(tl.int32), 0) > 0
        x = tl.where(x != x, float("-inf"), x)
        top = tl.max(x, 0)
        infs = tl.sum((x == float("inf")).to(tl.int32), 0)
        total, weighted = block_sums(x, top, rate)
        total = tl.where(infs > 0, infs.to(tl.float32), total)
        infs += tl.where(nan, NAN_FLAG, 0)
    tl.store(records.ptr + length * TOP + block, top)
    tl.store(records.ptr + length * SUM + block, total)
    tl.store(records.ptr + length * INFS + block, infs.to(tl.float32))
    if SAMPLE:
        tl.store(records.ptr + length * WEIGHTED + block, weighted)
        if sampling_rate > 0.0:
            sampling_total, _ = block_sums(x, top, sampling_rate)
            tl.store(records.ptr + length * SAMPLING_SUM + block, sampling_total)
    return x, top


@triton.jit
def record_field(
    records,  # Records
    field,
    offs,  # which records
    other,
):
    """One field of several records; past the L1, which may hold what another program overwrote."""
    at = records.ptr + records.length * field + offs
    return tl.load(at, mask=offs < records.length, other=other, cache_modifier=".cg")


@triton.jit
def largest_of_records(records):
    """The row's largest logit, how many are +inf (int64), and whether a NaN was seen (int32)."""
    offs = tl.arange(0, FOLD)
    top = tl.full((), float("-inf"), tl.float32)
    infs = tl.full((), 0, tl.int64)
    nan = tl.full((), 0, tl.int32)
    for begin in range(0, records.length, FOLD):
        tops = record_field(records, TOP, begin + offs, float("-inf"))
        top = tl.maximum(top, tl.max(tops, 0))
        seen = record_field(records, INFS, begin + offs, 0.0).to(tl.int32)
        nan = tl.maximum(nan, tl.max((seen >= NAN_FLAG).to(tl.int32), 0))
        infs += tl.sum((seen & (NAN_FLAG - 1)).to(tl.int64), 0)
    return top, infs, nan


@triton.jit
def block_scales(tops, top, rate):
    """log2 of what a block's sums count in the row's, and 2 to it: float64; 0, 0 if empty."""
    y = (tops.to(tl.float64) - top.to(tl.float64)) * rate.to(tl.float64)
    y = tl.where(tops > float("-inf"), y, 0.0)
    return y, tl.where(tops > float("-inf"), tl.exp2(y), 0.0)


@triton.jit
def fold_records(
    records,  # Records
    top,
    infs,
    rate,
    FIELD: tl.constexpr,
    HAS_WEIGHTED: tl.constexpr,
):
    """The row's sum of 2^y and of 2^y * y in float64; FIELD is SUM or SAMPLING_SUM.

    infs entries of +inf share the probability: their number is the sum. Nothing above -inf: 0.
    """
    offs = tl.arange(0, FOLD)
    total = tl.full((), 0.0, tl.float64)
    weighted = tl.full((), 0.0, tl.float64)
    base = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    for begin in range(0, records.length, FOLD):
        tops = record_field(records, TOP, begin + offs, float("-inf"))
        y, scale = block_scales(tops, base, rate)
        sums = record_field(records, FIELD, begin + offs, 0.0).to(tl.float64)
        total += tl.sum(scale * sums, 0)
        if HAS_WEIGHTED:
            products = record_field(records, WEIGHTED, begin + offs, 0.0)
            weighted += tl.sum(scale * (products.to(tl.float64) + y * sums), 0)
    shared = infs > 0
    return tl.where(shared, infs.to(tl.float64), total), tl.where(shared, 0.0, weighted)


@triton.jit
def sums_of_row(records, rate):
    """The RowSums of a row that is drawn from."""
    top, infs, nan = largest_of_records(records)
    total, weighted = fold_records(records, top, infs, rate, SUM, HAS_WEIGHTED=True)
    return RowSums(top, infs, nan, total, weighted)
