"""The Triton topk_confidence in the interpreter, against the float64 reference."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from marco_fast import ops
from marco_fast.ops import reference
from marco_fast.ops.confidence.options import Scoring
from tests.support.confidence import assert_same_bits, check_scores, some_ids
from tests.support.hostile import DTYPES, LOGIT_KINDS, logits_of, padded_rows, poisoned, sparse_rows
from tests.support.tolerance import assert_scores

pytestmark = [
    pytest.mark.usefixtures("in_interpreter"),
    # NumPy warns of the infinities that a GPU computes with in silence.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
ROOT = Path(__file__).parents[2]


def launch(logits, ids, *, top_k=5, temperature=1.0, include_token=False, **private):
    """The launcher itself, into poisoned outputs."""
    from marco_fast.kernels import topk_confidence

    like = reference.topk_confidence(logits, ids, top_k=top_k, dtype=torch.float32)
    out = type(like)(*map(poisoned, like))
    scoring = Scoring(temperature, include_token)
    topk_confidence.topk_confidence(logits, ids, scoring, out, **private)
    return out


def shares(blocks, splits, blocks_per_split):
    from marco_fast.kernels.confidence_scan import Shares

    return Shares(blocks, splits, blocks_per_split)


@pytest.mark.parametrize("vocab", [1, 5, 17, 4097, 9001])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", LOGIT_KINDS)
def test_against_reference(kind, dtype, vocab):
    logits = logits_of(kind, 3 if vocab < 4000 else 2, vocab, dtype)
    check_scores(logits, some_ids(logits), backend="triton", top_k=min(5, vocab))


@pytest.mark.parametrize("denominator", ["top_k", "union"])
@pytest.mark.parametrize("top_k", [*range(1, 11), 16, 31, 32])
@pytest.mark.parametrize("kind", ["normal", "ties", "few"])
def test_every_k(kind, top_k, denominator):
    for vocab in (top_k, 4099):
        logits = logits_of(kind, 2, vocab, seed=top_k)
        check_scores(
            logits, some_ids(logits), backend="triton", top_k=top_k, denominator=denominator
        )


@pytest.mark.parametrize("top_k", [1, 5, 9, 32])
@pytest.mark.parametrize("kind", ["nan", "inf", "ascending", "zeros"])
def test_every_k_of_unusual_rows(kind, top_k):
    logits = logits_of(kind, 6, 300, seed=top_k)
    check_scores(logits, some_ids(logits), backend="triton", top_k=top_k, denominator="union")


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 0.7, 1.3, 50.0, 1e30])
@pytest.mark.parametrize("kind", ["normal", "ties", "masked", "inf", "shifted"])
def test_temperature(kind, temperature):
    logits = logits_of(kind, 3, 500)
    if temperature == 1e-30:  # the lse would leave float32
        logits = logits - logits.nan_to_num(-torch.inf).amax(-1, keepdim=True)
        logits = logits.masked_fill(logits.isnan(), -torch.inf)
    check_scores(logits, some_ids(logits), backend="triton", temperature=temperature)


@pytest.mark.parametrize("vocab", [4096, 8192, 16385, 20000])
def test_whole_and_broken_blocks(vocab):
    for kind in ("normal", "few"):
        logits = logits_of(kind, 2, vocab, torch.bfloat16)
        check_scores(logits, some_ids(logits), backend="triton", top_k=8)


@pytest.mark.parametrize("value", [torch.nan, -torch.inf, torch.inf])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_block_of_nothing_else(block, value):
    logits = logits_of("normal", 2, 9001)
    logits[:, 4096 * block : 4096 * (block + 1)] = value
    check_scores(logits, some_ids(logits), backend="triton")


@pytest.mark.parametrize("kind", LOGIT_KINDS)
@pytest.mark.usefixtures("poisoned_memory")
def test_every_output_is_written(kind):
    for vocab in (321, 4200):
        logits = logits_of(kind, 4, vocab)
        ids = some_ids(logits)
        want = reference.topk_confidence(logits, ids)
        plain = reference.topk_confidence(logits, ids, dtype=torch.float32)
        assert_scores(launch(logits, ids), want, plain)


@pytest.mark.parametrize(
    ("kind", "dtype"), [(kind, DTYPES[i % 3]) for i, kind in enumerate(LOGIT_KINDS)]
)
@pytest.mark.usefixtures("shuffled_programs")
def test_splits_give_the_same_bits(kind, dtype):
    logits = logits_of(kind, 2, 13001, dtype)
    ids = some_ids(logits)
    want = launch(logits, ids, top_k=6, shares=shares(4, 1, 4))
    for splits, each in ((4, 1), (2, 2), (2, 3)):
        assert_same_bits(launch(logits, ids, top_k=6, shares=shares(4, splits, each)), want)


def test_more_splits_than_a_merge_holds():
    """33 splits of 32 keys are merged in two tiles."""
    logits = logits_of("ascending", 1, 33 * 4096 - 4000)
    ids = some_ids(logits)
    want = reference.topk_confidence(logits, ids, top_k=32)
    plain = reference.topk_confidence(logits, ids, top_k=32, dtype=torch.float32)
    got = launch(logits, ids, top_k=32, shares=shares(33, 33, 1))
    assert_scores(got, want, plain)
    assert_same_bits(launch(logits, ids, top_k=32, shares=shares(33, 3, 11)), got)


def test_a_row_does_not_depend_on_its_batch():
    logits = torch.cat([logits_of(kind, 1, 5000) for kind in LOGIT_KINDS])
    ids = some_ids(logits)
    together = ops.topk_confidence(logits, ids, backend="triton")
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(1))
    permuted = ops.topk_confidence(logits[order], ids[order], backend="triton")
    assert_same_bits(permuted, type(together)(*[field[order] for field in together]))
    for b in range(len(logits)):
        alone = ops.topk_confidence(logits[b : b + 1], ids[b : b + 1], backend="triton")
        assert_same_bits(alone, type(together)(*[field[b : b + 1] for field in together]))


def test_a_workspace_serves_again():
    """As a captured graph replays: the arrivals are back at 0, whatever else is in the memory."""
    from marco_fast.kernels.confidence_launch import make_workspace

    logits = logits_of("normal", 3, 9001)
    space = make_workspace(logits, 8, 3, sample=False)
    for seed in range(3):
        logits.copy_(logits_of("normal", 3, 9001, seed=seed))
        ids = some_ids(logits, seed)
        got = launch(logits, ids, shares=shares(3, 3, 1), workspace=space)
        assert_same_bits(got, launch(logits, ids, shares=shares(3, 1, 3)))
        assert (space.arrivals == 0).all()


@pytest.mark.parametrize("bad", [-1, 4099, 2**40, -(2**40)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_ids_out_of_range_set_a_bit(bad, dtype):
    if dtype == torch.int32 and abs(bad) > 2**31:
        bad = 2**31 - 1 if bad > 0 else -(2**31)
    logits = logits_of("nan", 3, 4099)
    ids = torch.tensor([bad, 0, bad], dtype=dtype)
    want = reference.topk_confidence(logits, ids)
    plain = reference.topk_confidence(logits, ids, dtype=torch.float32)
    assert_scores(launch(logits, ids), want, plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "nan", "inf"])
def test_padded_rows_are_not_read(dtype, kind):
    for vocab in (1003, 4100):
        logits = logits_of(kind, 3, vocab, dtype)
        ids = some_ids(logits)
        packed = ops.topk_confidence(logits, ids, backend="triton")
        padded = padded_rows(logits, fill=torch.inf)
        assert_same_bits(ops.topk_confidence(padded, ids, backend="triton"), packed)


def test_int32_ids_and_rows_of_one_memory():
    logits = logits_of("normal", 1, 100).expand(6, 100)
    ids = torch.arange(12, dtype=torch.int32)[::2]
    assert_same_bits(
        ops.topk_confidence(logits, ids, backend="triton"),
        ops.topk_confidence(logits.contiguous(), ids.long(), backend="triton"),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_offsets_beyond_2_to_31(dtype):
    logits = sparse_rows(4, 5000, 2**30 - 64, dtype)
    logits.copy_(logits_of("normal", 4, 5000, dtype))
    ids = some_ids(logits)
    assert_same_bits(
        ops.topk_confidence(logits, ids, backend="triton"),
        ops.topk_confidence(logits.contiguous(), ids, backend="triton"),
    )


GUARDED = """
import warnings; warnings.simplefilter("ignore")
import torch
from marco_fast import ops
from tests.support.hostile import DTYPES, against_guard, logits_of
for dtype in DTYPES:
    for vocab in (1, 7, 65, 4097):
        logits = against_guard(logits_of("normal", 1, vocab, dtype))
        ids = against_guard(torch.tensor([vocab - 1]))
        ops.topk_confidence(logits, ids, top_k=min(5, vocab), backend="triton")
        for top_p in (1.0, 0.95):
            ops.sample_confidence(
                logits, temperature=5.0, top_p=top_p, seeds=ids, positions=ids, top_k=1,
                backend="triton",
            )
print("inside")
"""


def test_nothing_is_read_behind_the_last_row():
    done = subprocess.run(
        [sys.executable, "-c", GUARDED], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout.strip()) == (0, "inside"), done.stderr


def test_more_keys_than_registers():
    logits, ids = torch.zeros(2, 40), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match='expected top_k <= 32 for backend "triton", got 33'):
        ops.topk_confidence(logits, ids, top_k=33, backend="triton")
    with pytest.raises(ValueError, match='expected top_k <= 32 for backend "triton", got 33'):
        ops.sample_confidence(logits, seeds=ids, positions=ids, top_k=33, backend="triton")


def test_empty_batch():
    none = torch.empty(0, dtype=torch.int64)
    result = ops.topk_confidence(torch.empty(0, 10), none, backend="triton")
    assert [tuple(field.shape) for field in result] == [(0,), (0,), (0,), (0, 5), (0, 5), (0,)]


@pytest.mark.parametrize(
    ("rows", "blocks", "processors", "want"),
    [
        (1, 37, 132, (37, 1)),
        (16, 38, 132, (19, 2)),
        (64, 37, 132, (8, 5)),
        (9999, 37, 132, (1, 37)),
    ],
)
def test_every_split_has_a_block(rows, blocks, processors, want):
    from marco_fast.kernels.confidence_launch import shares_of

    assert shares_of(rows, 4096 * blocks, processors) == (blocks, *want)
    for blocks in range(1, 60):
        for rows in (1, 3, 20, 100, 600):
            found, splits, each = shares_of(rows, 4096 * blocks - 4095, processors)
            assert found == blocks
            assert (splits - 1) * each < blocks <= splits * each
