"""The Triton lm_head_confidence in the interpreter: products, draws, batches, tiles, late draws."""

import pytest
import torch

from marco_fast import ops
from marco_fast.ops.confidence.options import Head
from tests.support.confidence import as_product, assert_same_bits, check_sampled, random_product
from tests.support.draws import OPTIONS, check_draws, keyed, options_of, sampling_of
from tests.support.hostile import DTYPES, LOGIT_KINDS, against_guard, logits_of, poisoned
from tests.support.tolerance import assert_lse_close

pytestmark = [
    pytest.mark.usefixtures("in_interpreter"),
    # NumPy warns of the infinities that a GPU computes with in silence.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
# Draws that go to memory for some logits: unfiltered, and filters that keep more than 16.
LATE = ("plain", "cool", "hot", "wide top_p", "nearly all", "low min_p", "top_k 300", "all, wide")


def lm_head(hidden, weight, name, keys=None, **options):
    keys = keys or keyed(len(hidden))
    return ops.lm_head_confidence(
        hidden, weight, **options_of(name), **keys, backend="triton", **options
    )


def draw(logits, **options):
    return ops.lm_head_confidence(*as_product(logits), **options)


def launch(hidden, weight, name, keys, bias=None, **private):
    """The launcher itself, into poisoned outputs."""
    from marco_fast.kernels import lm_head_confidence

    like = ops.lm_head_confidence(hidden, weight, bias=bias, **keys)
    out = type(like)(*map(poisoned, like))
    head = Head(hidden, weight, bias, torch.float32)
    lm_head_confidence.lm_head_confidence(head, sampling_of(name, keys), out, **private)
    return out


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for i, kind in enumerate(LOGIT_KINDS)
        for j, name in enumerate(OPTIONS)
        if (i + j) % 3 == 0
    ],
)
def test_exact_logits_against_brute_force(kind, name):
    """NaN and infinities in the weights are those of the logits, where H is 1."""
    check_sampled(logits_of(kind, 1, 200), name, backend="triton", draw=draw)


@pytest.mark.parametrize("name", ["plain", "greedy", "wide top_p", "top_k 100"])
@pytest.mark.parametrize("vocab", [1, 17, 63, 64, 65, 129])
def test_small_vocabularies(vocab, name):
    logits = logits_of("normal", 2, vocab, torch.float16, seed=vocab)
    check_sampled(logits, name, backend="triton", seed=vocab, draw=draw, top_k=min(5, vocab))


@pytest.mark.parametrize("name", ["top_p", *LATE])
def test_several_blocks(name):
    check_sampled(logits_of("normal", 1, 4500, torch.bfloat16), name, backend="triton", draw=draw)


@pytest.mark.parametrize(("score", "denominator"), [("raw", "union"), ("tempered", "top_k")])
@pytest.mark.parametrize("top_k", [1, 17, 32])
@pytest.mark.parametrize("name", ["hot", "top_p"])
def test_scores(name, top_k, score, denominator):
    logits = logits_of("normal", 2, 200)
    options = {"top_k": top_k, "score": score, "denominator": denominator}
    check_sampled(logits, name, backend="triton", draw=draw, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("size", "vocab", "rows"), [(1, 5, 1), (7, 70, 3), (64, 129, 17), (224, 300, 2), (257, 130, 33)]
)
def test_products_are_within_rounding_of_float64(size, vocab, rows, dtype):
    hidden, weight = random_product(rows, size, vocab, dtype)
    bias = torch.randn(vocab)
    got = lm_head(hidden, weight, "plain", bias=bias)
    logits = hidden.double() @ weight.double().T + bias.double()
    error = 5 * 2.0**-24 * (hidden.double().abs() @ weight.double().abs().T + bias.abs()).max()
    logprobs = logits.log_softmax(-1)
    token = logprobs.gather(1, got.token_ids.long()[:, None])[:, 0]
    assert (got.token_logprobs - token).abs().max() <= 2 * error + 1e-6
    assert_lse_close(got.lse - 2 * error.float(), logits.logsumexp(-1) - 2 * error)
    best = logprobs.gather(1, got.topk_ids.long())
    assert (got.topk_logprobs - best).abs().max() <= 2 * error + 1e-6
    assert (best - logprobs.topk(5).values).abs().max() <= 2 * error
    check_draws(logits, got.token_ids, keyed(rows), options_of("plain"))


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float32, "plain"),
        (torch.float16, "top_k 7"),
        (torch.bfloat16, "plain"),
        (torch.bfloat16, "wide top_p"),
    ],
    ids=str,
)
def test_a_row_has_the_same_bits_in_any_batch(dtype, name):
    """Of float32, 18 rows are two tiles."""
    hidden, weight = random_product(18, 70, 130, dtype)
    keys = keyed(18)
    together = lm_head(hidden, weight, name, keys)
    for begin, end in ((17, 18), (5, 8)):
        own = {key: value[begin:end] for key, value in keys.items()}
        part = lm_head(hidden[begin:end], weight, name, own)
        assert_same_bits(part, type(together)(*[field[begin:end] for field in together]))


@pytest.mark.parametrize("name", ["plain", "top_p", "wide top_p"])
@pytest.mark.usefixtures("shuffled_programs")
def test_tiles_and_splits_give_the_same_bits(name):
    from marco_fast.kernels.lm_head_launch import Tile

    hidden, weight = random_product(3, 130, 500, torch.bfloat16)
    keys = keyed(3)
    want = launch(hidden, weight, name, keys, splits=1)
    small = Tile(64, 2, 64, 4, 1, False)
    for tiles, splits in (((small, small), 3), ((Tile(256, 2, 64, 8, 1, False), small), 2)):
        assert_same_bits(launch(hidden, weight, name, keys, tiles=tiles, splits=splits), want)


def test_neighbours_with_other_options_do_not_change_a_row():
    names = ["greedy", "plain", "hot", "top_p", "wide top_p", "top_k 100"]
    logits = logits_of("normal", len(names), 400)
    hidden, weight = as_product(logits)
    keys = keyed(len(logits))
    values = torch.tensor([OPTIONS[name] for name in names]).T
    columns = dict(zip(options_of("plain"), values, strict=True))
    columns["sample_top_k"] = columns["sample_top_k"].int()
    together = ops.lm_head_confidence(hidden, weight, **columns, **keys, backend="triton")
    for b, name in enumerate(names):
        own = {key: value[b : b + 1] for key, value in keys.items()}
        alone = lm_head(hidden[b : b + 1], weight, name, own)
        assert_same_bits(alone, type(together)(*[field[b : b + 1] for field in together]))


@pytest.mark.parametrize("size", [64, 72])
def test_descriptors_and_pointers_give_the_same_bits(size):
    """Rows 16 bytes apart or a multiple go through descriptors, which sm_90 has."""
    hidden, weight = random_product(2, size + 1, 200, torch.bfloat16)
    aligned = [each[:, :size].contiguous() for each in (hidden, weight)]
    for name in ("plain", "wide top_p"):
        want = lm_head(*aligned, name)
        assert_same_bits(lm_head(hidden[:, :size], weight[:, :size], name), want)


def test_which_tensors_descriptors_fit():
    from marco_fast.kernels.lm_head_launch import fit_descriptors

    fits = torch.zeros(4, 64, dtype=torch.bfloat16)
    assert fit_descriptors("sm_90", fits, fits)
    assert not fit_descriptors("sm_80", fits, fits)
    for bad in (fits[:, 1:], fits[:, :3].contiguous(), fits[:1].expand(4, 64)):
        assert not fit_descriptors("sm_90", fits, bad)


def test_large_batches_are_a_library_product(monkeypatch):
    from marco_fast.kernels import lm_head_confidence

    monkeypatch.setattr(lm_head_confidence, "MOST_ROWS", 2)
    monkeypatch.setattr(lm_head_confidence, "PRODUCT_ROWS", 3)
    rows = 7
    hidden, weight = random_product(rows, 20, 150, torch.bfloat16)
    bias = torch.randn(150)
    keys = keyed(rows)
    sums, counts = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int32)
    got = lm_head(hidden, weight, "top_p", keys, bias=bias, path_sums=sums, path_counts=counts)
    logits = hidden.double() @ weight.double().T + bias.double()
    check_draws(logits, got.token_ids, keys, options_of("top_p"))
    assert torch.equal(sums, (got.confidence.double() * 2.0**40).round().long())
    assert (counts == 1).all()


@pytest.mark.parametrize("rounded", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["plain", "top_p", "top_k 100"])
def test_rounded_logits_are_those_of_an_engine_that_stores_them(name, rounded):
    logits = logits_of("normal", 3, 500)
    check_sampled(logits.to(rounded), name, backend="triton", draw=lambda _, **options: draw(
        logits, round_logits=rounded, **options
    ))  # fmt: skip


def test_masked_entries_are_never_drawn():
    hidden, weight = random_product(4, 32, 300, torch.float32)
    bias = torch.zeros(300)
    bias[::2] = -torch.inf
    for name in ("hot", "greedy", "all, wide"):
        got = lm_head(hidden, weight, name, bias=bias)
        assert (got.token_ids % 2 == 1).all()
        assert (got.topk_ids % 2 == 1).all()
    nothing = lm_head(hidden, weight, "plain", bias=torch.full((300,), -torch.inf))
    assert (nothing.token_ids == -1).all()
    assert (nothing.status == 4).all()


@pytest.mark.parametrize("name", ["greedy", "top_p", "cool", "wide top_p"])
@pytest.mark.usefixtures("poisoned_memory")
def test_every_output_is_written(name):
    hidden, weight = random_product(2, 16, 300, torch.float32)
    keys = keyed(2)
    got = launch(hidden, weight, name, keys)
    check_draws(hidden @ weight.T, got.token_ids, keys, options_of(name))
    assert not any(field.isnan().any() for field in got if field.dtype.is_floating_point)


@pytest.mark.parametrize("name", ["plain", "wide top_p"])
def test_paths_count_each_row_once(name):
    logits = torch.cat([torch.zeros(3, 100), logits_of("peaked", 3, 100)])
    hidden, weight = as_product(logits)
    sums, counts = torch.full((6,), 5), torch.full((6,), 2, dtype=torch.int32)
    active = torch.tensor([True, True, False, True, True, False])
    got = lm_head(hidden, weight, name, path_sums=sums, path_counts=counts, active=active)
    added = torch.where(active, (got.confidence.double() * 2.0**40).round().long(), 0)
    assert torch.equal(sums, 5 + added)
    assert torch.equal(counts, 2 + active.int())


@pytest.mark.parametrize("name", ["plain", "top_p", "wide top_p"])
def test_the_draws_of_sample_confidence(name):
    hidden, weight = random_product(12, 30, 500, torch.float32)
    got = lm_head(hidden, weight, name)
    want = ops.sample_confidence(hidden @ weight.T, **options_of(name), **keyed(12))
    assert (got.token_ids != want.token_ids).sum() <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reads_nothing_beyond_its_tensors(dtype):
    for size in (1, 33):
        hidden, weight = random_product(3, size, 70, dtype)
        bias = torch.randn(70)
        want = lm_head(hidden, weight, "plain", bias=bias)
        guarded = [against_guard(each) for each in (hidden, weight, bias)]
        assert_same_bits(lm_head(*guarded[:2], "plain", bias=guarded[2]), want)


def test_no_rows_and_too_many_keys():
    empty = torch.zeros(0, 8), torch.zeros(9, 8)
    got = lm_head(*empty, "plain")
    assert got.topk_ids.shape == (0, 5)
    with pytest.raises(ValueError, match="expected top_k <= 32"):
        lm_head(torch.zeros(1, 8), torch.zeros(99, 8), "plain", top_k=33)
