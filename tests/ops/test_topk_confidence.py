"""topk_confidence on every backend of a CPU, against the float64 reference."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from marco_fast import ops
from tests.support.confidence import assert_same_bits, check_scores, some_ids
from tests.support.hostile import DTYPES, LOGIT_KINDS, logits_of, padded_rows, poisoned, sparse_rows
from tests.support.tolerance import assert_close, assert_lse_close

VOCABS = (1, 2, 5, 63, 64, 65, 1000, 4095, 4096, 4097, 9001)


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("kind", LOGIT_KINDS)
@pytest.mark.usefixtures("isa")
def test_against_reference(kind, vocab):
    for dtype in DTYPES:
        logits = logits_of(kind, 7, vocab, dtype)
        check_scores(logits, some_ids(logits), top_k=min(5, vocab))


@pytest.mark.parametrize("vocab", [128256, 151936])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("isa")
def test_full_vocabulary(dtype, vocab):
    logits = logits_of("normal", 2, vocab, dtype)
    check_scores(logits, some_ids(logits))


@pytest.mark.parametrize("denominator", ["top_k", "union"])
@pytest.mark.parametrize("top_k", [1, 2, 3, 5, 16, 32])
@pytest.mark.parametrize("kind", ["normal", "ties", "few", "inf", "nan", "ascending"])
def test_every_k(kind, top_k, denominator):
    for vocab in (top_k, top_k + 1, 4099):
        logits = logits_of(kind, 9, vocab, seed=top_k)
        check_scores(logits, some_ids(logits), top_k=top_k, denominator=denominator)


@pytest.mark.parametrize("vocab", [1, 65, 4097, 20000])
@pytest.mark.parametrize("kind", ["normal", "equal", "masked"])
@pytest.mark.usefixtures("isa")
def test_k_is_the_vocabulary(kind, vocab):
    logits = logits_of(kind, 2, vocab)
    check_scores(logits, some_ids(logits), top_k=vocab)


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 0.1, 0.7, 1.0, 1.3, 50.0, 1e30])
@pytest.mark.parametrize("kind", ["normal", "ties", "masked", "inf", "shifted"])
@pytest.mark.usefixtures("isa")
def test_temperature(kind, temperature):
    logits = logits_of(kind, 6, 5000)
    if temperature == 1e-30:  # the lse would leave float32
        logits = logits - logits.nan_to_num(-torch.inf).amax(-1, keepdim=True)
        logits = logits.masked_fill(logits.isnan(), -torch.inf)
    check_scores(logits, some_ids(logits), temperature=temperature)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "ties", "nan", "inf", "few"])
def test_backend_torch(kind, dtype):
    logits = logits_of(kind, 6, 700, dtype)
    check_scores(logits, some_ids(logits), backend="torch", top_k=7, denominator="union")


@pytest.mark.parametrize("kind", ["normal", "ties", "nan", "inf", "few"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("isa")
def test_padded_rows_are_not_read(dtype, kind):
    logits = logits_of(kind, 5, 1003, dtype)
    ids = some_ids(logits)
    packed = ops.topk_confidence(logits, ids)
    for fill in (torch.nan, torch.inf):
        assert_same_bits(ops.topk_confidence(padded_rows(logits, fill=fill), ids), packed)


@pytest.mark.parametrize("kind", LOGIT_KINDS)
@pytest.mark.usefixtures("isa")
def test_every_output_is_written(kind):
    from marco_fast.ops import cpu_backend as cpu
    from marco_fast.ops.confidence.options import Scoring

    logits = logits_of(kind, 6, 321)
    want = ops.topk_confidence(logits, some_ids(logits))
    out = type(want)(*map(poisoned, want))
    cpu.topk_confidence(logits, some_ids(logits), Scoring(1.0, False), out)
    assert_same_bits(out, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1000, 4097, 30000])
@pytest.mark.usefixtures("isa")
def test_a_row_does_not_depend_on_its_batch(vocab, dtype):
    logits = torch.cat([logits_of(kind, 3, vocab, dtype) for kind in LOGIT_KINDS])
    ids = some_ids(logits)
    together = ops.topk_confidence(logits, ids)
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(1))
    permuted = ops.topk_confidence(logits[order], ids[order])
    assert_same_bits(permuted, type(together)(*[field[order] for field in together]))
    for b in range(0, len(logits), 5):
        alone = ops.topk_confidence(logits[b : b + 1], ids[b : b + 1])
        assert_same_bits(alone, type(together)(*[field[b : b + 1] for field in together]))


@pytest.fixture
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", ["normal", "ties", "inf", "nan", "few"])
@pytest.mark.usefixtures("restore_threads")
def test_thread_counts_give_the_same_bits(kind, rows):
    logits = logits_of(kind, rows, 70001)
    ids = some_ids(logits)
    torch.set_num_threads(1)
    want = ops.topk_confidence(logits, ids, top_k=9)
    for threads in (2, 3, 5, 16):
        torch.set_num_threads(threads)
        assert_same_bits(ops.topk_confidence(logits, ids, top_k=9), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", LOGIT_KINDS)
def test_instruction_sets_give_the_same_bits(kind, dtype):
    from marco_fast import _C

    logits, before, results = logits_of(kind, 6, 9001, dtype), _C.isa(), []
    for name in _C.supported_isas():
        _C.set_isa(name)
        results.append(ops.topk_confidence(logits, some_ids(logits), temperature=0.9))
    _C.set_isa(before)
    for result in results[1:]:
        assert_same_bits(result, results[0])


@pytest.mark.parametrize("shift", [-1000.0, 0.5, 4096.0])
def test_a_constant_added_to_a_row_moves_only_its_lse(shift):
    logits = torch.randint(-64, 64, (6, 5000)) / 8  # exact in float32 after the shift
    a, b = (ops.topk_confidence(x, some_ids(logits)) for x in (logits, logits + shift))
    for name in ("confidence", "token_logprobs", "topk_logprobs", "topk_ids"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert_lse_close(b.lse, a.lse.double() + shift)


def test_confidence_by_hand():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    e = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64).exp()
    for token in range(4):
        ids = torch.tensor([token])
        for denominator, outside in (("top_k", 0.0), ("union", e[token])):
            got = ops.topk_confidence(logits, ids, top_k=2, denominator=denominator)
            want = e[token] / (e[2] + e[3] + (outside if token < 2 else 0.0))
            assert_close(got.confidence, want[None])
            assert got.topk_ids.tolist() == [[3, 2]]


def test_int32_ids_and_rows_of_one_memory():
    logits = logits_of("normal", 1, 100).expand(8, 100)
    ids = torch.arange(16, dtype=torch.int32)[::2]
    assert_same_bits(
        ops.topk_confidence(logits, ids), ops.topk_confidence(logits.contiguous(), ids.long())
    )


def test_empty_batch():
    result = ops.topk_confidence(torch.empty(0, 10), torch.empty(0, dtype=torch.int64))
    assert [tuple(field.shape) for field in result] == [(0,), (0,), (0,), (0, 5), (0, 5), (0,)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("isa")
def test_offsets_beyond_2_to_31(dtype):
    logits = sparse_rows(4, 5000, 2**30 - 64, dtype)
    logits.copy_(logits_of("normal", 4, 5000, dtype))
    ids = some_ids(logits)
    assert_same_bits(
        ops.topk_confidence(logits, ids), ops.topk_confidence(logits.contiguous(), ids)
    )


GUARDED = """
import torch
from marco_fast import _C, ops
from tests.support.confidence import assert_same_bits, bits, check_scores, some_ids
from tests.support.hostile import DTYPES, against_guard, logits_of
for name in _C.supported_isas():
    _C.set_isa(name)
    for dtype in DTYPES:
        for vocab in (1, 2, 7, 15, 16, 31, 63, 64, 65, 100, 1000, 4095, 4097, 8200):
            logits = against_guard(logits_of("normal", 3, vocab, dtype))
            ids = against_guard(torch.tensor([0, vocab - 1, vocab // 2]))
            ops.topk_confidence(logits, ids, top_k=min(5, vocab))
            for temperature, top_p in ((1.0, 1.0), (0.8, 0.999), (5.0, 0.95)):
                ops.sample_confidence(
                    logits, temperature=temperature, top_p=top_p, seeds=ids, positions=ids, top_k=1
                )
print("inside")
"""


def test_nothing_is_read_behind_the_last_row():
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", GUARDED], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, "inside"), done.stderr


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("temperature", [2.5, 100.0, 1e30])
def test_logits_further_apart_than_the_largest_number(temperature, backend):
    most = torch.finfo(torch.float32).max
    logits = torch.tensor([[most, -most, 0.0, -torch.inf], [-most, -torch.inf, 0.5 * most, 0.0]])
    ids = torch.tensor([1, 0])
    got = ops.topk_confidence(logits, ids, top_k=4, temperature=temperature, backend=backend)
    want = ops.reference.topk_confidence(logits.double(), ids, top_k=4, temperature=temperature)
    assert torch.equal(got.topk_ids, want.topk_ids)
    assert got.token_logprobs.isfinite().all()
    for name in ("topk_logprobs", "token_logprobs", "lse", "confidence"):
        assert torch.allclose(getattr(got, name), getattr(want, name).float(), rtol=1e-6)
