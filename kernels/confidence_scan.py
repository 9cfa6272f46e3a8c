"""Reading a row of logits: each program scans some of its blocks, and the last one goes on alone.

Device code of topk_confidence and sample_confidence. The programs of a row leave the records of
their blocks and their best keys in memory; the last program to arrive merges them.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from marco_fast.kernels.confidence_records import VOCAB_BLOCK, load_block, store_record
from marco_fast.kernels.topk_keys import no_keys, push_block, store_keys

__all__ = ["Shares", "arrive", "scan", "token_logit"]


class Shares(NamedTuple):
    """How the blocks of a row are shared out among programs."""

    blocks: Any  # of a row
    splits: Any  # programs of a row
    blocks_per_split: Any


@triton.jit
def scan(
    logits,  # LogitsRow
    records,  # Records, written for the blocks of this split
    keys_ptr,  # [BLOCK_K] int64, written
    begin,
    end,
    rate,
    sampling_rate,
    capacity,
    SAMPLE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Records of the blocks begin..end and the best keys among them."""
    keys, worst = no_keys(capacity, BLOCK_K)
    coming = load_block(logits, begin, begin < end)
    for block in range(begin, end):
        x = coming.to(tl.float32)
        # On its way while this one is summed.
        coming = load_block(logits, block + 1, block + 1 < end)
        x, top = store_record(records, block, x, rate, sampling_rate, SAMPLE)
        keys, worst = push_block(x, top, block * VOCAB_BLOCK, keys, worst)
    store_keys(keys_ptr, keys, BLOCK_K)


@triton.jit
def arrive(
    arrivals_ptr,  # [1] int32: how many of the row's programs were here; 0 again after the last
    splits,
):
    """Whether this program is the last of its row; then it sees what all of them wrote."""
    arrived = splits - 1
    # Every thread's stores come before the one thread's release, and its acquire before every load.
    tl.debug_barrier()
    if splits > 1:
        arrived = tl.atomic_add(arrivals_ptr, 1, sem="acq_rel", scope="gpu")
    tl.debug_barrier()
    last = arrived == splits - 1
    if last & (splits > 1):
        tl.store(arrivals_ptr, 0)
    return last


@triton.jit
def token_logit(
    logits,  # LogitsRow
    token,
    inside,
):
    """A logit as float32; -inf for a token that is not there, or a NaN."""
    logit = tl.load(logits.ptr + tl.where(inside, token, 0)).to(tl.float32)
    return tl.where(inside & (logit == logit), logit, float("-inf"))
