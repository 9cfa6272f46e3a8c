"""lm_head_confidence: draws where the product is exact, scores where it is not, batches, shards."""

from collections.abc import Iterator
from functools import partial

import torch

import marco_fast as mf
from bench.gpu.machine import Case, Machine
from bench.gpu.parts.checks.results import assert_same, assert_scored, scores_of
from bench.gpu.parts.inputs import (
    BACKEND,
    FLOATS,
    hostile,
    keys_on,
    lm_head_inputs,
)
from marco_fast.kernels.lm_head_confidence import product
from marco_fast.ops.confidence.options import Head
from tests.support.draws import OPTIONS, check_draws, options_of


def check_lm_head_draws(
    machine: Machine, vocab_size: int, size: int, dtype: torch.dtype, names: tuple[str, ...]
) -> dict:
    """lm_head_confidence where the product is exact: each row of hidden picks one column."""
    rows, top_k = 2 if machine.dry else 7, min(5, vocab_size)
    rows = min(rows, size)
    _, weight = lm_head_inputs(machine, rows, vocab_size, size, dtype)
    picks = torch.eye(rows, size, dtype=dtype, device=machine.device)
    logits = hostile(machine, "normal", rows, vocab_size, dtype)
    if not machine.recording:
        weight[:, :rows] = logits.T
    for number, name in enumerate(names):
        keys = keys_on(machine, rows, number)
        options = {**options_of(name), **keys, "top_k": top_k, "backend": BACKEND}
        got = mf.lm_head_confidence(picks, weight, **options)
        if machine.recording:
            continue
        cpu_keys = {key: x.cpu() for key, x in keys.items()}
        check_draws(logits.cpu(), got.token_ids.cpu(), cpu_keys, options_of(name))
        assert_scored(scores_of(got), logits, got.token_ids.long(), top_k=top_k)
    return {"rows": rows * len(names)}


def check_lm_head_product(
    machine: Machine, rows: int, vocab_size: int, size: int, dtype: torch.dtype
) -> dict:
    """Scores of random rows: as near to float64 as 1.5 times the error of a library's product.

    Matrix units round their sums differently from float32 (some truncate after every 16 products),
    so a bound from float32's rounding alone would be wrong. A library that adds several partial
    products loses less, so half a unit per partial product of ours is allowed beside its error.
    """
    hidden, weight = lm_head_inputs(machine, rows, vocab_size, size, dtype)
    keys, top_k = keys_on(machine, rows), min(5, vocab_size)
    got = mf.lm_head_confidence(hidden, weight, **keys, top_k=top_k, backend=BACKEND)
    if machine.recording:
        return {}
    logits = hidden.double() @ weight.double().T
    exact, lse = logits.log_softmax(-1), logits.logsumexp(-1)
    library = product(Head(hidden, weight, None, torch.float32)).double().log_softmax(-1)
    error = (library - exact).abs().max().item()
    token = exact.gather(1, got.token_ids.long()[:, None])[:, 0]
    best = exact.topk(top_k).values
    allowed = 1.5 * error + 2.0**-20 * lse.abs().max().item()
    allowed += size / 16 * 2.0**-24 * logits.abs().max().item()
    found = {
        "token": (got.token_logprobs - token).abs().max().item(),
        "top k": (got.topk_logprobs - best).abs().max().item(),
        "lse": (got.lse - lse).abs().max().item(),
    }
    for name, value in found.items():
        assert value <= allowed, f"{name}: expected an error up to {allowed:.3g}, got {value:.3g}"
    return {"largest_error": max(found.values()), "library_error": error}


def check_lm_head_batches(machine: Machine, vocab_size: int, size: int, dtype: torch.dtype) -> dict:
    """Rows with different options, against each row alone, a library's product and three shards."""
    rows = 3 if machine.dry else 40
    hidden, weight = lm_head_inputs(machine, rows, vocab_size, size, dtype)
    values = torch.tensor([[*OPTIONS.values()][b % len(OPTIONS)] for b in range(rows)]).T
    drawn = dict(zip(options_of("plain"), values.to(machine.device), strict=True))
    drawn["sample_top_k"] = drawn["sample_top_k"].int()
    options = drawn | keys_on(machine, rows)
    fixed = {"top_k": min(5, vocab_size), "backend": BACKEND}
    got = mf.lm_head_confidence(hidden, weight, **options, **fixed)
    for b in range(0, rows, 2 if machine.dry else 7):
        own = {key: x[b : b + 1] for key, x in options.items()}
        alone = mf.lm_head_confidence(hidden[b : b + 1], weight, **own, **fixed)
        assert_same(machine, alone, got, slice(b, b + 1))
    twice = {key: torch.cat([x, x]) for key, x in options.items()}
    many = mf.lm_head_confidence(torch.cat([hidden, hidden]), weight, **twice, **fixed)
    shards = weight.split((vocab_size // 3 + 15) // 16 * 16)
    records, begin = [], 0
    for shard in shards:
        records.append(mf.lm_head_records(hidden, shard, begin, vocab_size, **drawn, **fixed))
        begin += len(shard)
    if machine.recording:
        return {}
    assert (many.lse[:rows] - got.lse).abs().max() < 1e-3
    merged = mf.merge_records(
        records,
        lambda shard, some: hidden[some].float() @ shards[shard].float().T,
        **options,
        top_k=fixed["top_k"],
    )
    assert (merged.token_ids != got.token_ids).sum() <= 1
    assert (merged.lse - got.lse).abs().max() < 1e-3
    return {"rows": rows}


def lm_head(machine: Machine) -> Iterator[Case]:
    """lm_head_confidence: draws where the product is exact, scores where it is not."""
    if machine.dry:
        yield Case("draws", partial(check_lm_head_draws, machine, 304, 64, FLOATS[0], ("top_p",)))
        return
    for vocab_size, size in ((151936, 896), (128256, 2048), (152064, 3584), (32000, 8192)):
        for dtype in FLOATS[:2] if size < 8192 else FLOATS[:1]:
            told = f"lm_head_confidence {size} x {vocab_size} {str(dtype)[6:]}"
            names = (*OPTIONS,)
            yield Case(
                f"{told}, draws",
                partial(check_lm_head_draws, machine, vocab_size, size, dtype, names),
            )
            yield Case(
                f"{told}, product",
                partial(check_lm_head_product, machine, 7, vocab_size, size, dtype),
            )
    yield Case(
        "lm_head_confidence, rows alone and in a batch, shards",
        partial(check_lm_head_batches, machine, 151936, 896, torch.bfloat16),
    )
    yield Case(
        "lm_head_confidence 225 x 4097 bfloat16, product",
        partial(check_lm_head_product, machine, 7, 4097, 225, torch.bfloat16),
    )
