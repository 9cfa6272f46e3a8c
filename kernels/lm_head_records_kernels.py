"""The kernel of lm_head_records that lm_head_records.py launches after lm_head_scan_kernel."""

import triton.language as tl

from marco_fast.kernels.confidence_draw import drawn_mass
from marco_fast.kernels.confidence_options import options_of_rows
from marco_fast.kernels.confidence_records import KEPT, Records, sums_of_row
from marco_fast.kernels.specialization import jit
from marco_fast.kernels.topk_keys import key_id, key_value, merge_keys

__all__ = ["lm_head_summary_kernel"]


@jit(do_not_specialize=["sampling", "out", "sizes"])
def lm_head_summary_kernel(
    sampling,  # SamplingOptions; top_k is the number of candidates
    out,  # LMHeadRecords, its tensors written; topk_ids are those inside the shard
    space,  # HeadSpace
    sizes,  # HeadSizes
    BLOCK_K: tl.constexpr,
):
    """What other shards of the vocabulary need of a row, in place of the draw."""
    row = tl.program_id(0).to(tl.int64)
    records = Records(space.records + row * sizes.vocab_tiles * KEPT, sizes.vocab_tiles)
    keys_ptr = space.keys + row * sizes.splits * BLOCK_K
    own = options_of_rows(sampling, row, row >= 0, sizes.vocab_size)
    keys = merge_keys(keys_ptr, sizes.splits * BLOCK_K, own.capacity, BLOCK_K)
    sums = sums_of_row(records, own.rate)
    # Without sums of its own a draw at another temperature than the score's reads no total.
    reads_total = own.own_sums | (own.temperature == own.score_temperature)
    mass = drawn_mass(records, sums, own)
    tl.store(out.top + row, sums.top)
    tl.store(out.sums + row * 3, sums.total)
    tl.store(out.sums + row * 3 + 1, sums.weighted)
    tl.store(out.sums + row * 3 + 2, tl.where(reads_total, mass, 0.0))
    tl.store(out.infs + row, sums.infs.to(tl.int32))
    tl.store(out.nans + row, sums.nan)
    slot = tl.arange(0, BLOCK_K)
    z = key_value(keys)
    at = row * sampling.top_k + slot
    tl.store(out.topk_logits + at, z, mask=slot < sampling.top_k)
    ids = tl.where(z > float("-inf"), key_id(keys), -1)
    tl.store(out.topk_ids + at, ids, mask=slot < sampling.top_k)
