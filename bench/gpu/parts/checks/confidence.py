"""topk_confidence and sample_confidence against float64, on hostile rows and large batches."""

import itertools
from collections.abc import Iterator
from functools import partial

import torch

import marco_fast as mf
from bench.gpu.machine import Case, Machine
from bench.gpu.parts.checks.results import assert_scored, scores_of
from bench.gpu.parts.inputs import (
    BACKEND,
    FLOATS,
    hostile,
    keys_on,
    random_logits,
)
from tests.support.draws import OPTIONS, check_draws, options_of
from tests.support.hostile import LOGIT_KINDS
from tests.support.tolerance import assert_lse_close, entropy_of

FULL_VOCABS = (128256, 151936, 152064)


def check_confidence(machine: Machine, logits: torch.Tensor) -> dict:
    """topk_confidence with few and with many keys; every third id is the row's largest entry."""
    vocab_size = logits.shape[1]
    ids = torch.zeros(len(logits), dtype=torch.int64, device=machine.device)
    if not machine.recording:
        ids.random_(0, vocab_size)
        ids[::3] = logits[::3].float().nan_to_num(-torch.inf).argmax(-1)
    for top_k, denominator in ((min(5, vocab_size), "top_k"), (min(32, vocab_size), "union")):
        options = {"top_k": top_k, "denominator": denominator}
        got = mf.topk_confidence(logits, ids, backend=BACKEND, **options)
        if not machine.recording:
            assert_scored(got, logits, ids, **options)
    return {"rows": 2 * len(logits)}


def check_sampling(machine: Machine, logits: torch.Tensor, names: tuple[str, ...]) -> dict:
    """sample_confidence: draws by brute force in float64, scores, entropy, sums of paths."""
    rows, top_k = len(logits), min(5, logits.shape[1])
    for number, name in enumerate(names):
        keys = keys_on(machine, rows, number)
        sums = torch.zeros(rows, dtype=torch.int64, device=machine.device)
        counts = torch.zeros(rows, dtype=torch.int32, device=machine.device)
        got = mf.sample_confidence(
            logits, **options_of(name), **keys, top_k=top_k, path_sums=sums, path_counts=counts,
            backend=BACKEND,
        )  # fmt: skip
        if machine.recording:
            continue
        cpu_keys = {key: x.cpu() for key, x in keys.items()}
        check_draws(logits.cpu(), got.token_ids.cpu(), cpu_keys, options_of(name))
        assert_scored(scores_of(got), logits, got.token_ids.long(), top_k=top_k)
        assert_lse_close(got.entropy.cpu(), entropy_of(logits, 1.0).cpu())
        assert torch.equal(sums, (got.confidence.double() * 2.0**40).round().long())
        assert counts.eq(1).all()
    return {"rows": rows * len(names)}


def confidence(machine: Machine) -> Iterator[Case]:
    """topk_confidence: hostile rows, and large batches of random ones."""
    for kind, vocab_size, dtype in hostile_cases(machine):
        name = f"topk_confidence {kind} 7 x {vocab_size} {str(dtype)[6:]}"
        rows = 2 if machine.dry else 7
        make = partial(hostile, machine, kind, rows, vocab_size, dtype)
        yield Case(name, lambda make=make: check_confidence(machine, make()))
    for rows, dtype in () if machine.dry else itertools.product((64, 1024), FLOATS[:2]):
        name = f"topk_confidence random {rows} x {FULL_VOCABS[2]} {str(dtype)[6:]}"
        make = partial(random_logits, machine, rows, FULL_VOCABS[2], dtype)
        yield Case(name, lambda make=make: check_confidence(machine, make()))


def hostile_cases(machine: Machine) -> Iterator[tuple[str, int, torch.dtype]]:
    """Every kind of logits; float16 and odd vocabularies on fewer of them."""
    if machine.dry:
        yield "nan", 4112, torch.bfloat16
        return
    for kind in LOGIT_KINDS:
        for dtype in FLOATS[:2]:
            yield kind, FULL_VOCABS[1], dtype
        yield kind, 4097, torch.bfloat16
    yield "normal", FULL_VOCABS[2], torch.float16


def sampling(machine: Machine) -> Iterator[Case]:
    """sample_confidence. At full size the brute force takes the host some 20 ms per row, so each
    case has a third of the options."""
    for number, (kind, vocab_size, dtype) in enumerate(hostile_cases(machine)):
        names = ("plain", "top_p") if machine.dry else (*OPTIONS,)[number % 3 :: 3]
        rows = 2 if machine.dry else 7
        make = partial(hostile, machine, kind, rows, vocab_size, dtype)
        yield Case(
            f"sample_confidence {kind} 7 x {vocab_size} {str(dtype)[6:]}",
            lambda make=make, names=names: check_sampling(machine, make(), names),
        )
