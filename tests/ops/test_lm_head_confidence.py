"""lm_head_confidence on every backend of a CPU: products, draws, scores, batches, bad input."""

import re

import pytest
import torch

import marco_fast as mf
from marco_fast import ops
from tests.support.confidence import as_product, assert_same_bits, random_product
from tests.support.draws import OPTIONS, check_draws, keyed, options_of
from tests.support.hostile import DTYPES, against_guard, logits_of
from tests.support.tolerance import assert_lse_close

FINITE = ("normal", "ties", "equal", "zeros")


def check_exact(logits: torch.Tensor, name: str, **options) -> None:
    """Draws as float64 does, and scores to the bit as topk_confidence scores the same logits."""
    keys = keyed(len(logits))
    hidden, weight = as_product(logits)
    got = ops.lm_head_confidence(hidden, weight, **options_of(name), **keys, **options)
    check_draws(logits, got.token_ids, keys, options_of(name))
    scored = ops.sample_confidence(logits.float(), **options_of(name), **keys, **options)
    same = got.token_ids == scored.token_ids  # but for a u beside a boundary
    assert same.sum() >= len(logits) - 1
    for ours, theirs in zip(got[1:], scored[1:], strict=True):
        assert torch.equal(ours[same], theirs[same])
    assert torch.equal(got.topk_ids, scored.topk_ids)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", FINITE)
@pytest.mark.usefixtures("isa")
def test_every_option_on_exact_logits(kind, name):
    for vocab, dtype in ((1, torch.float32), (6, torch.float16), (700, torch.bfloat16)):
        check_exact(logits_of(kind, 6, vocab, dtype), name, top_k=min(5, vocab))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", ["nan", "inf", "few", "masked"])
@pytest.mark.usefixtures("isa")
def test_one_row_of_anything(kind, name):
    """NaN and infinities in the weights are those of the logits, where H is 1."""
    for logits in logits_of(kind, 6, 900).split(1):
        check_exact(logits, name)


@pytest.mark.parametrize("name", ["plain", "cool", "top_p", "wide top_p", "top_k 300", "all, wide"])
@pytest.mark.parametrize("vocab", [63, 64, 65, 4095, 4096, 4097, 12345])
def test_chunks_and_groups(vocab, name):
    check_exact(logits_of("normal", 5, vocab, seed=vocab), name)


@pytest.mark.parametrize("denominator", ["top_k", "union"])
@pytest.mark.parametrize("score", ["raw", "tempered"])
@pytest.mark.parametrize("top_k", [1, 5, 200])
def test_scores(top_k, score, denominator):
    for name in ("plain", "hot", "top_p", "top_k 100"):
        logits = logits_of("normal", 8, 1500)
        check_exact(logits, name, top_k=top_k, score=score, denominator=denominator)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 20])
@pytest.mark.parametrize(("size", "vocab"), [(1, 5), (7, 70), (224, 1000), (257, 130), (2600, 77)])
def test_products_are_within_rounding_of_float64(isa, size, vocab, rows, dtype):
    hidden, weight = random_product(rows, size, vocab, dtype)
    bias = torch.randn(vocab)
    got = ops.lm_head_confidence(hidden, weight, bias=bias, **keyed(rows))
    logits = hidden.double() @ weight.double().T + bias.double()
    # As of any sum in one order (test_decoder.py), then the bias.
    error = 5 * 2.0**-24 * (hidden.double().abs() @ weight.double().abs().T + bias.abs()).max()
    logprobs = logits.log_softmax(-1)
    token = logprobs.gather(1, got.token_ids.long()[:, None])[:, 0]
    assert (got.token_logprobs - token).abs().max() <= 2 * error + 1e-6
    assert_lse_close(got.lse - 2 * error.float(), logits.logsumexp(-1) - 2 * error)
    best = logprobs.gather(1, got.topk_ids.long())
    assert (got.topk_logprobs - best).abs().max() <= 2 * error + 1e-6
    assert (best - logprobs.topk(5).values).abs().max() <= 2 * error


@pytest.mark.parametrize("name", ["plain", "cool", "top_p", "wide top_p", "all, wide"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_has_the_same_bits_in_any_batch_and_on_any_threads(isa, dtype, name):
    rows, vocab = 37, 9000
    hidden, weight = random_product(rows, 225, vocab, dtype)
    keys, before = keyed(rows), torch.get_num_threads()
    together = ops.lm_head_confidence(hidden, weight, **options_of(name), **keys)
    try:
        for threads, begin, end in ((1, 0, 1), (2, 5, 12), (5, 36, 37), (3, 0, 37)):
            torch.set_num_threads(threads)
            own = {key: value[begin:end] for key, value in keys.items()}
            part = ops.lm_head_confidence(hidden[begin:end], weight, **options_of(name), **own)
            assert_same_bits(part, type(together)(*[field[begin:end] for field in together]))
    finally:
        torch.set_num_threads(before)


def test_many_rows_and_padded_strides():
    """More rows than a window holds of chunks; rows that lie apart."""
    rows, size, vocab = 300, 33, 5000
    hidden, weight = random_product(rows, size + 5, vocab, torch.float32)
    apart = ops.lm_head_confidence(hidden[:, :size], weight[:, :size], **keyed(rows))
    close = ops.lm_head_confidence(
        hidden[:, :size].contiguous(), weight[:, :size].contiguous(), **keyed(rows)
    )
    assert_same_bits(apart, close)
    alone = ops.lm_head_confidence(hidden[299:, :size], weight[:, :size], **{
        key: value[299:] for key, value in keyed(rows).items()
    })  # fmt: skip
    assert_same_bits(alone, type(apart)(*[field[299:] for field in apart]))


@pytest.mark.parametrize("rounded", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_rounded_logits_are_those_of_an_engine_that_stores_them(rounded, backend):
    logits = logits_of("normal", 6, 800)
    hidden, weight = as_product(logits)
    keys = keyed(6)
    got = ops.lm_head_confidence(
        hidden, weight, round_logits=rounded, top_p=0.9, **keys, backend=backend
    )
    want = ops.sample_confidence(logits.to(rounded), top_p=0.9, **keys, backend=backend)
    assert_same_bits(got, want)


@pytest.mark.parametrize("name", OPTIONS)
def test_backend_torch_draws_the_same_tokens(name):
    hidden, weight = random_product(50, 40, 700, torch.float32)
    results = [
        ops.lm_head_confidence(hidden, weight, **options_of(name), **keyed(50), backend=backend)
        for backend in ("cpu", "torch")
    ]
    # A u within rounding of one of 700 boundaries is rarer than 1 in 100.
    assert (results[0].token_ids != results[1].token_ids).sum() <= 1


def test_the_reference_is_the_product_then_sample_confidence():
    hidden, weight = random_product(30, 40, 500, torch.bfloat16)
    bias = torch.randn(500)
    options = {**options_of("top_p"), **keyed(30)}
    want = mf.reference.lm_head_confidence(hidden, weight, bias=bias, **options)
    got = ops.lm_head_confidence(hidden, weight, bias=bias, **options)
    assert (got.token_ids != want.token_ids).sum() <= 1
    assert (got.lse - want.lse).abs().max() < 1e-5


def test_masked_entries_are_never_drawn():
    hidden, weight = random_product(64, 32, 300, torch.float32)
    bias = torch.zeros(300)
    bias[::2] = -torch.inf
    for name in ("hot", "wide top_p", "greedy", "all, wide"):
        got = ops.lm_head_confidence(hidden, weight, bias=bias, **options_of(name), **keyed(64))
        assert (got.token_ids % 2 == 1).all()
        assert (got.topk_ids % 2 == 1).all()
    nothing = ops.lm_head_confidence(
        hidden, weight, bias=torch.full((300,), -torch.inf), **keyed(64)
    )
    assert (nothing.token_ids == -1).all()
    assert (nothing.status == 4).all()


def test_paths_count_each_row_once():
    """Also rows that are drawn again from all of their logits (a nucleus of more than 128)."""
    flat = torch.zeros(3, 1000)
    peaked = flat.clone()
    peaked[:, 7] = 30.0
    logits = torch.cat([flat, peaked])
    hidden, weight = as_product(logits)
    sums, counts = torch.full((6,), 5), torch.full((6,), 2, dtype=torch.int32)
    active = torch.tensor([True, True, False, True, True, False])
    got = ops.lm_head_confidence(
        hidden, weight, top_p=0.9, **keyed(6), path_sums=sums, path_counts=counts, active=active
    )
    added = torch.where(active, (got.confidence.double() * 2.0**40).round().long(), 0)
    assert torch.equal(sums, 5 + added)
    assert torch.equal(counts, 2 + active.int())


@pytest.mark.parametrize("name", ["plain", "top_p", "top_k 7"])
def test_draws_have_the_distribution(name):
    """Pearson's chi-square of 1e5 draws below its 1 - 1e-6 quantile (normal approximation)."""
    from tests.support.draws import kept_masses

    torch.manual_seed(1)
    logits, draws = torch.randn(200), 100_000
    rows = torch.ones(1000, 1)
    counts = torch.zeros(200)
    for call in range(draws // 1000):
        keys = {"seeds": torch.arange(1000), "positions": torch.full((1000,), call)}
        got = ops.lm_head_confidence(rows, logits[:, None], **options_of(name), **keys)
        counts += torch.bincount(got.token_ids.long(), minlength=200)
    mass = torch.from_numpy(kept_masses(logits.double().numpy(), **options_of(name)))
    expected = draws * mass / mass.sum()
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    chi = ((counts - expected)[kept] ** 2 / expected[kept]).sum().item()
    freedom = int(kept.sum()) - 1
    assert chi < freedom + 4.8 * (2 * freedom) ** 0.5 + 10


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 8, 31, 33])
def test_reads_nothing_beyond_its_tensors(isa, size, dtype):
    hidden, weight = random_product(3, size, 70, dtype)
    bias = torch.randn(70)
    want = ops.lm_head_confidence(hidden, weight, bias=bias, **keyed(3))
    guarded = [against_guard(each) for each in (hidden, weight, bias)]
    got = ops.lm_head_confidence(*guarded[:2], bias=guarded[2], **keyed(3))
    assert_same_bits(got, want)


def test_no_rows():
    got = ops.lm_head_confidence(torch.zeros(0, 8), torch.zeros(9, 8), **keyed(0))
    assert got.token_ids.shape == (0,)
    assert got.topk_ids.shape == (0, 5)


HIDDEN, WEIGHT = torch.zeros(2, 8), torch.zeros(9, 8)
BAD = {
    "another H": ((HIDDEN, torch.zeros(9, 7)), {}, "[B, H] and weight [V, H]"),
    "1-D": ((HIDDEN[0], WEIGHT), {}, "[B, H] and weight [V, H]"),
    "no H": ((HIDDEN[:, :0], WEIGHT[:, :0]), {}, "H of at least 1"),
    "dtypes": ((HIDDEN, WEIGHT.bfloat16()), {}, "of one dtype on one device"),
    "float64": ((HIDDEN.double(), WEIGHT.double()), {}, "hidden as a tensor of float32"),
    "columns": ((HIDDEN, torch.zeros(8, 9).T), {}, "last dimension is contiguous"),
    "a list": (
        ([[1.0]], WEIGHT),
        {},
        "hidden as a tensor of float32, bfloat16 or float16, got list",
    ),
    "bias of another size": ((HIDDEN, WEIGHT), {"bias": torch.zeros(8)}, "bias [9]"),
    "bias, no tensor": ((HIDDEN, WEIGHT), {"bias": 0.5}, "got 0.5"),
    "rounding": ((HIDDEN, WEIGHT), {"round_logits": torch.int8}, "round_logits"),
    "top_k": ((HIDDEN, WEIGHT), {"top_k": 10}, "1 <= top_k <= 9 (V), got 10"),
    "score": ((HIDDEN, WEIGHT), {"score": "best"}, "'raw' or 'tempered'"),
    "top_p": ((HIDDEN, WEIGHT), {"top_p": 0.0}, "top_p in"),
    "seeds": ((HIDDEN, WEIGHT), {"seeds": torch.zeros(3).long()}, "seeds [2]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    tensors, options, message = BAD[case]
    with pytest.raises(ValueError, match=f"^expected .*{re.escape(message)}"):
        ops.lm_head_confidence(*tensors, **{**keyed(2), **options})
