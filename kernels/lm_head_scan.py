"""The LM head's first kernel: logits a block at a time, of which a thirteenth stays.

A program multiplies BLOCK_B rows by blocks of BLOCK_V vocabulary entries. Of a block of logits
stay, for each row, the records of its tiles of VOCAB_TILE entries (largest logit, sums of
exponentials) and the program's best keys. Rows lie on the MMA's M side: then a row's logits are in
the registers of four threads, and what stays of them costs few registers and no exchange between
warps. Small batches leave most of M empty; they wait for the weights anyway.

A logit follows from the order of products along H, which every block takes in the same steps of the
matrix instruction, so a row's bits do not depend on its batch.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from marco_fast.kernels.confidence_options import options_of_rows
from marco_fast.kernels.confidence_records import KEPT, Records
from marco_fast.kernels.lm_head_tiles import keep_logits, no_keys_of_rows, store_keys_of_rows
from marco_fast.kernels.specialization import jit

__all__ = ["Epilogue", "HeadSizes", "HeadSpace", "Strides", "lm_head_scan_kernel", "logits_of"]


class Strides(NamedTuple):
    """How the operands of the product lie in memory."""

    hidden: Any
    weight: Any
    hidden_size: Any  # H


class Epilogue(NamedTuple):
    """What becomes of the sums of a product."""

    bias: Any  # [shard_size] float32, followed where there is one
    has_bias: Any  # 0 or 1
    round_logits: Any  # to 0 float32, 1 bfloat16, 2 float16
    rows: Any  # B
    shard_size: Any  # rows of the weight: V, or a shard of it


class HeadSpace(NamedTuple):
    """What the kernels of a call pass to each other."""

    records: Any  # [B, KEPT, vocab_tiles] float32: no field KEPT
    keys: Any  # [B, splits, BLOCK_K] int64


class HeadSizes(NamedTuple):
    """Into how many pieces a call is cut."""

    vocab_tiles: Any  # of the weight
    batch_tiles: Any  # of BLOCK_B rows
    splits: Any  # programs that share the weight
    vocab_size: Any  # V, of every shard together


@triton.jit
def logits_of(
    hidden,  # [B, H], a pointer or a tensor descriptor
    weight,  # [V, H], likewise
    strides,  # Strides
    epilogue,  # Epilogue
    first_row,
    first_id,
    BLOCK_V: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """[BLOCK_B, BLOCK_V] float32; -inf behind the vocabulary's end, anything behind the batch's."""
    acc = tl.zeros([BLOCK_B, BLOCK_V], tl.float32)
    ids = first_id + tl.arange(0, BLOCK_V)
    inside = ids < epilogue.shard_size
    if DESCRIPTORS:
        for begin in range(0, strides.hidden_size, BLOCK_H):
            x = hidden.load([first_row, begin])
            w = weight.load([first_id, begin])
            acc = tl.dot(x, w.T, acc)
    else:
        # Behind the ends the last one is read again, so that only H is masked.
        row = tl.minimum(first_row + tl.arange(0, BLOCK_B), epilogue.rows - 1).to(tl.int64)
        entry = tl.minimum(ids, epilogue.shard_size - 1).to(tl.int64)
        for begin in range(0, strides.hidden_size, BLOCK_H):
            offs = begin + tl.arange(0, BLOCK_H)
            mask = (offs < strides.hidden_size)[None, :]
            x_ptrs = hidden + row[:, None] * strides.hidden + offs[None, :]
            w_ptrs = weight + entry[:, None] * strides.weight + offs[None, :]
            x = tl.load(x_ptrs, mask=mask, other=0.0)
            w = tl.load(w_ptrs, mask=mask, other=0.0)
            acc = tl.dot(x, w.T, acc, input_precision="ieee")
    if epilogue.has_bias != 0:
        acc += tl.load(epilogue.bias + ids, mask=inside, other=0.0)[None, :]
    if epilogue.round_logits == 1:
        acc = acc.to(tl.bfloat16).to(tl.float32)
    elif epilogue.round_logits == 2:
        acc = acc.to(tl.float16).to(tl.float32)
    return tl.where(inside[None, :], acc, float("-inf"))


@jit(do_not_specialize=["epilogue", "sampling", "sizes"])
def lm_head_scan_kernel(
    hidden,  # [B, H], a pointer or a tensor descriptor
    weight,  # [V, H], likewise
    strides,  # Strides
    epilogue,  # Epilogue
    sampling,  # SamplingOptions
    space,  # HeadSpace, written
    sizes,  # HeadSizes
    BLOCK_V: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    # Programs of the same weights are neighbours, so that all but one find them in the L2 cache.
    first_row = tl.program_id(0) % sizes.batch_tiles * BLOCK_B
    split = tl.program_id(0) // sizes.batch_tiles
    row = first_row + tl.arange(0, BLOCK_B)
    here = row < epilogue.rows
    own = options_of_rows(sampling, row, here, sizes.vocab_size)
    sampling_rate = tl.where(own.own_sums, own.sampling_rate, 0.0)
    keys = no_keys_of_rows(tl.where(here, own.capacity, 0), BLOCK_K)
    row = row.to(tl.int64)
    records = Records(space.records + row * sizes.vocab_tiles * KEPT, sizes.vocab_tiles)
    blocks = tl.cdiv(epilogue.shard_size, BLOCK_V)
    for block in range(split * blocks // sizes.splits, (split + 1) * blocks // sizes.splits):
        first_id = block * BLOCK_V
        x = logits_of(
            hidden, weight, strides, epilogue, first_row, first_id, BLOCK_V, BLOCK_B, BLOCK_H,
            DESCRIPTORS,
        )  # fmt: skip
        keys = keep_logits(x, records, here, first_id, own.rate, sampling_rate, keys)
    key_ptrs = space.keys + (row * sizes.splits + split) * BLOCK_K
    store_keys_of_rows(key_ptrs, here, keys, BLOCK_K)
