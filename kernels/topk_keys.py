"""Device functions for the k largest logits of a row: int64 keys that hold a logit and its id.

A larger key is better: value descending, then id ascending. A program keeps its best keys in
registers, in slots of no order, and inserts in place of the worst one; the merge of all programs'
keys puts them in order.
"""

import triton
import triton.language as tl

from marco_fast.kernels.confidence_records import VOCAB_BLOCK

__all__ = [
    "EMPTY_KEY",
    "FULL_KEY",
    "from_ordered",
    "key_id",
    "key_value",
    "merge_keys",
    "no_keys",
    "ordered",
    "pack_key",
    "push_block",
    "store_keys",
]

KEY_TILE = tl.constexpr(1024)  # keys merged at once

_ID_BITS = tl.constexpr(0x7FFFFFFF)
EMPTY_KEY = tl.constexpr(-2139095041 << 32)  # a logit of -inf; slots are told apart by their ids
FULL_KEY = tl.constexpr(2**63 - 1)  # a slot that may not be filled


@triton.jit
def ordered(x):
    """float32 as int32 in the same order; -0 equals +0. NaN is never passed."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def from_ordered(key):
    """The float32 of an int32 that `ordered` gave."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def pack_key(value, token_id):
    """float32 and int32 to a key."""
    return (ordered(value).to(tl.int64) << 32) | (token_id ^ _ID_BITS).to(tl.int64)


@triton.jit
def key_value(key):
    return from_ordered((key >> 32).to(tl.int32))


@triton.jit
def key_id(key):
    return (key & _ID_BITS).to(tl.int32) ^ _ID_BITS


@triton.jit
def no_keys(capacity, BLOCK_K: tl.constexpr):
    """[BLOCK_K] keys of which the first `capacity` slots may be filled, and the worst of them."""
    slot = tl.arange(0, BLOCK_K).to(tl.int64)
    keys = tl.where(slot < capacity, slot + EMPTY_KEY, FULL_KEY)
    return keys, tl.min(keys, 0)


@triton.jit
def insert_key(keys, worst, key):
    """Replaces the worst key, which is unique; the order of the slots means nothing."""
    keys = tl.where(keys == worst, key, keys)
    return keys, tl.min(keys, 0)


@triton.jit
def push_block(x, top, first_id, keys, worst):
    """Inserts what belongs among the keys: x [VOCAB_BLOCK] without NaN, `top` its largest.

    Blocks come in ascending order, so an entry that equals the worst key's value never enters.
    """
    offs = tl.arange(0, VOCAB_BLOCK)
    while top > key_value(worst):
        at = tl.min(tl.where(x == top, offs, VOCAB_BLOCK), 0)
        keys, worst = insert_key(keys, worst, pack_key(top, at + first_id))
        x = tl.where(offs == at, float("-inf"), x)
        top = tl.max(x, 0)
    return keys, worst


@triton.jit
def store_keys(
    keys_ptr,  # [BLOCK_K] int64
    keys,
    BLOCK_K: tl.constexpr,
):
    """Writes a program's keys; slots that could not be filled read as a logit of -inf."""
    keys = tl.where(keys == FULL_KEY, EMPTY_KEY, keys)
    tl.store(keys_ptr + tl.arange(0, BLOCK_K), keys)


@triton.jit
def merge_keys(
    keys_ptr,  # [count] int64
    count,
    capacity,
    BLOCK_K: tl.constexpr,
):
    """The `capacity` best of all keys in memory, [BLOCK_K], best first, then keys of -inf."""
    keys, worst = no_keys(capacity, BLOCK_K)
    offs = tl.arange(0, KEY_TILE)
    for begin in range(0, count, KEY_TILE):
        tile = tl.load(
            keys_ptr + begin + offs,
            mask=begin + offs < count,
            other=EMPTY_KEY,
            cache_modifier=".cg",
        )
        best = tl.max(tile, 0)
        while (best > worst) & (key_value(best) > float("-inf")):
            keys, worst = insert_key(keys, worst, best)
            tile = tl.where(tile == best, EMPTY_KEY, tile)
            best = tl.max(tile, 0)
    return sort_keys(keys, capacity, BLOCK_K)


@triton.jit
def sort_keys(keys, capacity, BLOCK_K: tl.constexpr):
    """Best first; slots that hold no token, and those from `capacity` on, have a logit of -inf."""
    slot = tl.arange(0, BLOCK_K)
    spare = slot.to(tl.int64) + EMPTY_KEY
    keys = tl.where(slot < capacity, keys, spare)
    better = keys[None, :] > keys[:, None]
    rank = tl.sum(better.to(tl.int32), 1)
    placed = tl.where(rank[:, None] == slot[None, :], keys[:, None], 0)
    return tl.sum(placed, 0)
