"""The kernels of lm_head_confidence, launched by lm_head_confidence.py.

1. lm_head_scan_kernel: a program multiplies BLOCK_B rows by tiles of BLOCK_V vocabulary entries.
   Of a tile of logits stay, for each row, the records of its groups of GROUP entries (largest
   logit, sums of exponentials) and the program's best keys: about a thirteenth of the logits.
   Rows lie on the MMA's M side: then a row's logits are in the registers of four threads, and what
   stays of them costs few registers and no exchange between warps. Small batches leave most of M
   empty; they wait for the weights anyway.
2. lm_head_draw_kernel: a program a row merges them, draws and scores. Where the draw falls outside
   the candidates, it says which groups can hold the token.
3. lm_head_logits_kernel: the tiles with such groups once more; their logits go to memory.
4. lm_head_draw_kernel again, for those rows.

All are launched always: which rows need 3 and 4 is known on the device alone, and programs without
any end at once.

A row's bits do not depend on its batch. A logit follows from the order of products along H, which
every tile takes in the same steps of the matrix instruction; sums inside a group are one tree,
whatever the layout (`sum_in_order`); groups are merged in an order that V alone decides; and the
best keys are exact.
"""

import triton
import triton.language as tl

from marco_fast.kernels.confidence_cut import CUT_TILE, find_cut, kept_mass, store_kept_masses
from marco_fast.kernels.confidence_draw import (
    ALL_IDS,
    GROUP,
    LOWEST,
    OUTSIDE,
    draw_by_id,
    draw_from_candidates,
    filters_of,
    find_chunk,
    first_beyond,
    load_options,
    plan_rows,
    rank_among_infs,
)
from marco_fast.kernels.confidence_kernels import ROW_OPTIONS, ROW_RESULTS
from marco_fast.kernels.confidence_scan import score_draw
from marco_fast.kernels.lm_head_tiles import (
    bound_of,
    keep_tile,
    no_keys_of_rows,
    store_keys_of_rows,
)
from marco_fast.kernels.online_softmax import (
    CHUNK,
    INFS,
    KEPT,
    RECORD_FIELDS,
    SAMPLING_SUM,
    SUM,
    TOP,
    fold_records,
    largest_of_records,
)
from marco_fast.kernels.philox import philox_uniform
from marco_fast.kernels.topk_keys import key_id, key_value, merge_keys

__all__ = [
    "lm_head_draw_kernel",
    "lm_head_logits_kernel",
    "lm_head_record_kernel",
    "lm_head_scan_kernel",
]

# What a row wants of lm_head_logits_kernel: a group by its number, or one of
NOTHING = tl.constexpr(-1)
BY_BOUND = tl.constexpr(-2)  # every group whose largest logit reaches the row's bound


@triton.jit
def logits_of(
    hidden,  # [B, H], a pointer or a tensor descriptor
    weight,  # [V, H], likewise
    bias_ptr,  # [V] float32
    first_row,
    first_entry,
    rows,
    vocab,
    size,
    stride_hidden,
    stride_weight,
    biased,
    rounded,  # to 0 float32, 1 bfloat16, 2 float16
    BLOCK_V: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """[BLOCK_B, BLOCK_V] float32; -inf behind the vocabulary's end, anything behind the batch's."""
    acc = tl.zeros([BLOCK_B, BLOCK_V], tl.float32)
    entries = first_entry + tl.arange(0, BLOCK_V)
    if DESCRIPTORS:
        for begin in range(0, size, BLOCK_H):
            x = hidden.load([first_row, begin])
            w = weight.load([first_entry, begin])
            acc = tl.dot(x, w.T, acc)
    else:
        # Behind the ends the last one is read again, so that only H is masked.
        row = tl.minimum(first_row + tl.arange(0, BLOCK_B), rows - 1).to(tl.int64)
        entry = tl.minimum(entries, vocab - 1).to(tl.int64)
        for begin in range(0, size, BLOCK_H):
            offs = begin + tl.arange(0, BLOCK_H)
            inside = offs < size
            x_ptrs = hidden + row[:, None] * stride_hidden + offs[None, :]
            w_ptrs = weight + entry[:, None] * stride_weight + offs[None, :]
            x = tl.load(x_ptrs, mask=inside[None, :], other=0.0)
            w = tl.load(w_ptrs, mask=inside[None, :], other=0.0)
            acc = tl.dot(x, w.T, acc, input_precision="ieee")
    if biased != 0:
        acc += tl.load(bias_ptr + entries, mask=entries < vocab, other=0.0)[None, :]
    if rounded == 1:
        acc = acc.to(tl.bfloat16).to(tl.float32)
    elif rounded == 2:
        acc = acc.to(tl.float16).to(tl.float32)
    return tl.where((entries < vocab)[None, :], acc, float("-inf"))


@triton.jit(
    do_not_specialize=[
        "sample_top_k", "given", "rows", "vocab", "all_vocab", "groups", "batch_tiles", "splits",
        "top_k", "tempered", "biased", "rounded",
    ],
    do_not_specialize_on_alignment=[*ROW_OPTIONS[:4], "bias_ptr", "records_ptr"],
)  # fmt: skip
def lm_head_scan_kernel(
    hidden,  # [B, H]
    weight,  # [V, H]
    bias_ptr,  # [V] float32
    temperature_ptr,  # [B] float32
    top_p_ptr,  # [B] float32
    min_p_ptr,  # [B] float32
    sample_top_k_ptr,  # [B] int32
    records_ptr,  # [B, KEPT, groups] float32: no field KEPT
    keys_ptr,  # [B, splits, BLOCK_K] int64
    stride_hidden,
    stride_weight,
    temperature,
    top_p,
    min_p,
    sample_top_k,
    given,
    rows,
    vocab,
    all_vocab,  # of every shard together
    size,
    groups,
    batch_tiles,
    splits,
    top_k,
    tempered,
    biased,
    rounded,
    BLOCK_V: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    # Programs of the same weights are neighbours, so that all but one find them in the L2 cache.
    first_row = tl.program_id(0) % batch_tiles * BLOCK_B
    split = tl.program_id(0) // batch_tiles
    row = first_row + tl.arange(0, BLOCK_B)
    here = row < rows
    temperature, top_p, min_p, sample_top_k = load_options(
        row, here, given, temperature_ptr, top_p_ptr, min_p_ptr, sample_top_k_ptr, temperature,
        top_p, min_p, sample_top_k,
    )  # fmt: skip
    _, _, rate, sampling_rate, own_sums, capacity = plan_rows(
        temperature, top_p, min_p, sample_top_k, all_vocab, top_k, tempered
    )
    sampling_rate = tl.where(own_sums, sampling_rate, 0.0)
    keys = no_keys_of_rows(tl.where(here, capacity, 0), BLOCK_K)
    record_ptrs = records_ptr + row.to(tl.int64) * groups * KEPT
    tiles = tl.cdiv(vocab, BLOCK_V)
    for tile in range(split * tiles // splits, (split + 1) * tiles // splits):
        first_entry = tile * BLOCK_V
        x = logits_of(
            hidden, weight, bias_ptr, first_row, first_entry, rows, vocab, size, stride_hidden,
            stride_weight, biased, rounded, BLOCK_V, BLOCK_B, BLOCK_H, DESCRIPTORS,
        )  # fmt: skip
        keys = keep_tile(x, record_ptrs, here, first_entry, groups, rate, sampling_rate, keys)
    key_ptrs = keys_ptr + (row.to(tl.int64) * splits + split) * BLOCK_K
    store_keys_of_rows(key_ptrs, here, keys, BLOCK_K)


@triton.jit(
    do_not_specialize=["rows", "groups", "batch_tiles", "biased", "rounded"],
    do_not_specialize_on_alignment=["bias_ptr", "wanted_ptr", "bounds_ptr"],
)
def lm_head_logits_kernel(
    hidden,  # [B, H]
    weight,  # [V, H]
    bias_ptr,  # [V] float32
    records_ptr,  # [B, KEPT, groups] float32
    wanted_ptr,  # [B] int32
    bounds_ptr,  # [B] float32
    logits_ptr,  # [B, V] float32, written where a row wants it
    stride_hidden,
    stride_weight,
    rows,
    vocab,
    size,
    groups,
    batch_tiles,
    biased,
    rounded,
    BLOCK_V: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """A program is one group. Rows that want groups by their bound get -inf for all others."""
    tl.static_assert(BLOCK_V == GROUP)
    first_row = tl.program_id(0) % batch_tiles * BLOCK_B
    first_entry = tl.program_id(0) // batch_tiles * BLOCK_V
    row = first_row + tl.arange(0, BLOCK_B)
    here = row < rows
    wanted = tl.load(wanted_ptr + row, mask=here, other=NOTHING)
    if tl.max((wanted != NOTHING).to(tl.int32), 0) != 0:
        bound = tl.load(bounds_ptr + row, mask=here, other=float("inf"))
        row64 = row.to(tl.int64)
        group = first_entry // GROUP + tl.arange(0, BLOCK_V // GROUP)
        tops = tl.load(
            records_ptr + (row64 * KEPT + TOP)[:, None] * groups + group[None, :],
            mask=here[:, None] & (group < groups)[None, :],
            other=float("-inf"),
        )
        by_bound = wanted == BY_BOUND
        named = wanted[:, None] == group[None, :]
        needed = named | (by_bound[:, None] & (tops >= bound[:, None]))
        x = tl.full([BLOCK_B, BLOCK_V], float("-inf"), tl.float32)
        if tl.max(tl.max(needed.to(tl.int32), 1), 0) != 0:
            x = logits_of(
                hidden, weight, bias_ptr, first_row, first_entry, rows, vocab, size, stride_hidden,
                stride_weight, biased, rounded, BLOCK_V, BLOCK_B, BLOCK_H, DESCRIPTORS,
            )  # fmt: skip
        # By what a row needs itself, whatever its neighbours do: the cut that follows sums all that
        # is there.
        own = tl.max(needed.to(tl.int32), 1) != 0
        entries = first_entry + tl.arange(0, BLOCK_V)
        tl.store(
            logits_ptr + row64[:, None] * vocab + entries[None, :],
            tl.where((x == x) & own[:, None], x, float("-inf")),
            mask=(by_bound | own)[:, None] & (entries < vocab)[None, :],
        )


@triton.jit(
    do_not_specialize=[
        "sample_top_k", "given", "groups", "chunks", "splits", "top_k", "union", "tempered",
    ],
    do_not_specialize_on_alignment=[*ROW_RESULTS, *ROW_OPTIONS, "wanted_ptr", "bounds_ptr"],
)  # fmt: skip
def lm_head_draw_kernel(
    temperature_ptr,  # [B] float32
    top_p_ptr,  # [B] float32
    min_p_ptr,  # [B] float32
    sample_top_k_ptr,  # [B] int32
    seeds_ptr,  # [B] int64
    positions_ptr,  # [B] int64
    path_sums_ptr,  # [B] int64, units of 2^-40, added to
    path_counts_ptr,  # [B] int32, added to
    active_ptr,  # [B] uint8
    token_ids_ptr,  # [B] int32
    confidence_ptr,  # [B] float32
    token_logprobs_ptr,  # [B] float32
    lse_ptr,  # [B] float32
    topk_logprobs_ptr,  # [B, top_k] float32
    topk_ids_ptr,  # [B, top_k] int32
    status_ptr,  # [B] int32
    entropy_ptr,  # [B] float32
    records_ptr,  # [B, KEPT, groups] float32
    keys_ptr,  # [B, splits, BLOCK_K] int64
    wanted_ptr,  # [B] int32, written if not LATE
    bounds_ptr,  # [B] float32, written if not LATE
    logits_ptr,  # [B, V] float32: what was wanted
    chunk_records_ptr,  # [B, RECORD_FIELDS, chunks] float32, scratch
    cut_keys_ptr,  # [B, CUT_TILE] int32, scratch
    temperature,
    top_p,
    min_p,
    sample_top_k,
    given,
    vocab,
    groups,
    chunks,
    splits,
    top_k,
    union,
    tempered,
    LATE: tl.constexpr,  # the second time, for rows that wanted something
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    wants = True
    if LATE:
        wants = tl.load(wanted_ptr + row) != NOTHING
    if wants:
        record_ptr = records_ptr + row * groups * KEPT
        logits_row = logits_ptr + row * vocab
        temperature, top_p, min_p, sample_top_k = load_options(
            row, row >= 0, given, temperature_ptr, top_p_ptr, min_p_ptr, sample_top_k_ptr,
            temperature, top_p, min_p, sample_top_k,
        )  # fmt: skip
        greedy, score_temperature, rate, sampling_rate, own_sums, capacity = plan_rows(
            temperature, top_p, min_p, sample_top_k, vocab, top_k, tempered
        )
        keys = merge_keys(keys_ptr + row * splits * BLOCK_K, splits * BLOCK_K, capacity, BLOCK_K)
        top, infs, nan = largest_of_records(record_ptr, groups)
        total, weighted = fold_records(record_ptr, groups, top, infs, rate, SUM, HAS_WEIGHTED=True)
        token = tl.full((), -1, tl.int32)
        wanted = tl.full((), NOTHING, tl.int32)
        if greedy & (top > float("-inf")):
            token = tl.max(tl.where(tl.arange(0, BLOCK_K) == 0, key_id(keys), -1), 0)
        elif top > float("-inf"):
            mass = total
            field = tl.full((), SUM, tl.int32)
            if own_sums:
                field = tl.full((), SAMPLING_SUM, tl.int32)
                mass, _ = fold_records(
                    record_ptr, groups, top, infs, sampling_rate, SAMPLING_SUM, HAS_WEIGHTED=False
                )
            u = philox_uniform(tl.load(seeds_ptr + row), tl.load(positions_ptr + row), 0)
            filtered, most, target, least = filters_of(
                temperature.to(tl.float64), top_p, min_p, sample_top_k, vocab, top, mass
            )
            goal = u * mass
            cut = tl.full((), LOWEST, tl.float32)
            token = tl.full((), OUTSIDE, tl.int32)
            if infs > 0:
                goal = rank_among_infs(infs, most, top_p, target, u)
                field = tl.full((), INFS, tl.int32)
                cut = tl.full((), float("inf"), tl.float32)
            elif filtered:
                token = draw_from_candidates(
                    keys, vocab, top, sampling_rate, most, target, least, u, BLOCK_K
                )
            if token == OUTSIDE:
                if filtered & (infs == 0):
                    wanted = tl.full((), BY_BOUND, tl.int32)
                    if LATE:
                        token = draw_again(
                            logits_row, record_ptr,
                            chunk_records_ptr + row * chunks * RECORD_FIELDS,
                            cut_keys_ptr + row * CUT_TILE, groups, chunks, vocab, top,
                            sampling_rate, most, target, least, mass, top_p, u,
                        )  # fmt: skip
                    else:
                        bound = bound_of(
                            record_ptr, field, groups, top, sampling_rate, mass, top_p, most, least
                        )
                        tl.store(bounds_ptr + row, bound)
                else:
                    group, inside = find_chunk(record_ptr, field, groups, top, sampling_rate, goal)
                    wanted = group
                    if LATE:
                        group = tl.load(wanted_ptr + row)  # the one that was stored
                        offs = group * GROUP + tl.arange(0, GROUP)
                        z = tl.load(logits_row + offs, mask=offs < vocab, other=float("-inf"))
                        each = kept_mass(z, offs, top, infs, sampling_rate, cut, ALL_IDS)
                        at, _ = first_beyond(each, inside, GROUP)
                        token = group * GROUP + at
        if LATE:
            wanted = tl.full((), NOTHING, tl.int32)
            logit = tl.load(logits_row + token)
        else:
            tl.store(wanted_ptr + row, wanted)
            logit = tl.max(tl.where(key_id(keys) == token, key_value(keys), float("-inf")), 0)
        if wanted == NOTHING:
            score_draw(
                row, token, logit, keys, top, total, weighted, infs, nan, score_temperature, top_k,
                union, given, path_sums_ptr, path_counts_ptr, active_ptr, token_ids_ptr,
                confidence_ptr, token_logprobs_ptr, lse_ptr, topk_logprobs_ptr, topk_ids_ptr,
                status_ptr, entropy_ptr, BLOCK_K,
            )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "sample_top_k", "given", "all_vocab", "groups", "splits", "candidates", "tempered",
    ],
    do_not_specialize_on_alignment=[
        *ROW_OPTIONS[:4], "top_ptr", "sums_ptr", "infs_ptr", "nans_ptr", "topk_logits_ptr",
        "topk_ids_ptr",
    ],
)  # fmt: skip
def lm_head_record_kernel(
    temperature_ptr,  # [B] float32
    top_p_ptr,  # [B] float32
    min_p_ptr,  # [B] float32
    sample_top_k_ptr,  # [B] int32
    top_ptr,  # [B] float32
    sums_ptr,  # [B, 3] float64
    infs_ptr,  # [B] int32
    nans_ptr,  # [B] int32
    topk_logits_ptr,  # [B, candidates] float32
    topk_ids_ptr,  # [B, candidates] int32
    records_ptr,  # [B, KEPT, groups] float32
    keys_ptr,  # [B, splits, BLOCK_K] int64
    temperature,
    top_p,
    min_p,
    sample_top_k,
    given,
    all_vocab,
    groups,
    splits,
    candidates,
    tempered,
    BLOCK_K: tl.constexpr,
):
    """What other shards of the vocabulary need of a row, in place of the draw."""
    row = tl.program_id(0).to(tl.int64)
    record_ptr = records_ptr + row * groups * KEPT
    temperature, top_p, min_p, sample_top_k = load_options(
        row, row >= 0, given, temperature_ptr, top_p_ptr, min_p_ptr, sample_top_k_ptr, temperature,
        top_p, min_p, sample_top_k,
    )  # fmt: skip
    _greedy, score_temperature, rate, sampling_rate, own_sums, capacity = plan_rows(
        temperature, top_p, min_p, sample_top_k, all_vocab, candidates, tempered
    )
    keys = merge_keys(keys_ptr + row * splits * BLOCK_K, splits * BLOCK_K, capacity, BLOCK_K)
    top, infs, nan = largest_of_records(record_ptr, groups)
    total, weighted = fold_records(record_ptr, groups, top, infs, rate, SUM, HAS_WEIGHTED=True)
    mass = tl.where(temperature == score_temperature, total, 0.0)
    if own_sums:
        mass, _ = fold_records(
            record_ptr, groups, top, infs, sampling_rate, SAMPLING_SUM, HAS_WEIGHTED=False
        )
    tl.store(top_ptr + row, top)
    tl.store(sums_ptr + row * 3, total)
    tl.store(sums_ptr + row * 3 + 1, weighted)
    tl.store(sums_ptr + row * 3 + 2, mass)
    tl.store(infs_ptr + row, infs.to(tl.int32))
    tl.store(nans_ptr + row, nan)
    slot = tl.arange(0, BLOCK_K)
    z = key_value(keys)
    at = row * candidates + slot
    tl.store(topk_logits_ptr + at, z, mask=slot < candidates)
    ids = tl.where(z > float("-inf"), key_id(keys), -1)
    tl.store(topk_ids_ptr + at, ids, mask=slot < candidates)


@triton.jit
def draw_again(
    logits_row,  # [V]: every logit that may be kept, and -inf
    record_ptr,  # [KEPT, groups]
    chunk_record_ptr,  # [RECORD_FIELDS, chunks], scratch
    cut_keys_ptr,  # [CUT_TILE], scratch
    groups,
    chunks,
    vocab,
    top,
    rate,
    most,
    target,
    least,
    total,
    top_p,
    u,
):
    """The draw of a filtered row whose kept tokens are more than the candidates."""
    offs = tl.arange(0, CHUNK // GROUP)
    for chunk in range(0, chunks):
        group = chunk * (CHUNK // GROUP) + offs
        tops = tl.load(record_ptr + TOP * groups + group, mask=group < groups, other=float("-inf"))
        tl.store(chunk_record_ptr + TOP * chunks + chunk, tl.max(tops, 0))
    tl.debug_barrier()
    cut, last_id = find_cut(
        logits_row, chunk_record_ptr, cut_keys_ptr, chunks, vocab, top, rate, most, target, least,
        total, top_p,
    )  # fmt: skip
    kept = store_kept_masses(
        logits_row, chunk_record_ptr, chunks, vocab, top, rate, cut, last_id
    )  # fmt: skip
    return draw_by_id(
        logits_row, chunk_record_ptr, KEPT, chunks, vocab, top, 0, rate, cut, last_id, u * kept
    )
