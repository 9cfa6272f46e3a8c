"""Quantised weights: packed exactly, multiplied as their numbers are, in any batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import marco_fast as mf
from marco_fast.errors import BackendError
from marco_fast.ops import lm_head_confidence, lm_head_records
from marco_fast.ops.quantize import quantize
from marco_fast.ops.quantized import PackedWeight, QuantizedWeight
from tests.support.hostile import against_guard

_C = pytest.importorskip("marco_fast._C")
# (bits, zero, block, group or None, offsets): the formats of GGUF, by the names it has for them
FORMATS = {
    "Q4_0": (4, 8, 32, None, False),
    "Q4_1": (4, 0, 32, None, True),
    "Q5_0": (5, 16, 32, None, False),
    "Q5_1": (5, 0, 32, None, True),
    "Q8_0": (8, 128, 32, None, False),
    "Q4_K": (4, 0, 256, 32, True),
    "Q5_K": (5, 0, 256, 32, True),
    "Q6_K": (6, 32, 256, 16, False),
}
SIZES = [(1, 256), (33, 512), (100, 768)]


def random_weight(name: str, out: int, inputs: int) -> QuantizedWeight:
    bits, zero, block, group, offsets = FORMATS[name]
    torch.manual_seed(out + inputs)
    codes = torch.randint(0, 2**bits, (out, inputs), dtype=torch.uint8)
    scale, offset = (torch.randn(2, out, inputs // block) / 64).half()
    if group is None:
        return QuantizedWeight(codes, bits, zero, scale, offset if offsets else None)
    low = 0 if offsets else -128
    mult, offset_mult = torch.randint(low, 64, (2, out, inputs // group)).to(torch.int8)
    if not offsets:
        return QuantizedWeight(codes, bits, zero, scale, None, mult)
    return QuantizedWeight(codes, bits, zero, scale, offset, mult, offset_mult)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """x as 8 bits and a scale per 32 numbers hold it, float64."""
    groups = x.view(len(x), -1, 32)
    largest = groups.abs().amax(-1, keepdim=True)
    codes = (groups * torch.where(largest > 0, 127 / largest, 0)).round()
    return (codes.double() * (largest / 127).double()).view(x.shape)


@pytest.mark.parametrize("name", FORMATS)
def test_packed_rows_are_the_formula_exactly(isa, name):
    for out, inputs in SIZES:
        weight = random_weight(name, out, inputs)
        packed = PackedWeight.of(weight)
        made = weight.dequantize()
        assert torch.equal(packed.dequantize(), made)
        some = torch.tensor([[out - 1, 0], [out // 2, 0]])
        assert torch.equal(packed.rows(some), made[some])


@pytest.mark.parametrize("name", FORMATS)
def test_products_are_those_of_the_numbers_that_codes_stand_for(isa, name):
    for (out, inputs), rows in zip(SIZES, (1, 13, 97), strict=True):
        weight = random_weight(name, out, inputs)
        packed, numbers = PackedWeight.of(weight), weight.dequantize().double()
        x = against_guard(torch.randn(rows, inputs))
        size = x.double().abs() @ numbers.abs().T
        for rows_of, want, eps in (
            (x, x.double(), 2.0**-23),
            (x.bfloat16(), x.bfloat16().double(), 2.0**-8),
            (x.half(), x.half().double(), 2.0**-10),
        ):
            error = packed.product(rows_of).double() - want @ numbers.T
            assert (error.abs() <= 4 * eps * size).all()
        error = packed.with_int8_rows().product(x).double() - rounded(x) @ numbers.T
        assert (error.abs() <= 4 * 2.0**-23 * size).all()


@pytest.mark.parametrize("int8", [False, True])
def test_a_row_has_the_same_bits_in_any_batch_and_on_any_threads(isa, int8):
    for name in ("Q4_K", "Q6_K", "Q8_0"):
        packed = PackedWeight.of(random_weight(name, 70, 1024))
        packed = packed.with_int8_rows() if int8 else packed
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(50, 1024).to(dtype)
            whole, threads = packed.product(x), torch.get_num_threads()
            try:
                torch.set_num_threads(3 - min(2, threads))
                for begin, end in ((0, 1), (3, 16), (20, 50)):
                    assert torch.equal(packed.product(x[begin:end]), whole[begin:end])
            finally:
                torch.set_num_threads(threads)


def test_numbers_that_are_not_finite_reach_their_own_row_alone(isa):
    packed = PackedWeight.of(random_weight("Q4_0", 40, 256)).with_int8_rows()
    x = torch.randn(4, 256)
    want = packed.product(x)
    x[1, 40], x[2, 255] = torch.nan, -torch.inf
    got = packed.product(x)
    assert got[1:3].isnan().all()
    assert torch.equal(got[[0, 3]], want[[0, 3]])
    assert torch.equal(packed.product(torch.zeros(1, 256)), torch.zeros(1, 40))


def test_matrices_side_by_side_and_in_turns():
    for name in FORMATS:
        one, two = random_weight(name, 64, 512), random_weight(name, 64, 512)
        two = two.rows(torch.arange(63, -1, -1))
        packed = [PackedWeight.of(each) for each in (one, two)]
        numbers = [each.dequantize() for each in (one, two)]
        assert packed[0].joins(packed[1])
        assert torch.equal(packed[0].joined(packed[1]).dequantize(), torch.cat(numbers))
        halves = torch.stack([each.view(4, 16, 512) for each in numbers], 1).flatten(0, 2)
        assert torch.equal(packed[0].interleaved(packed[1]).dequantize(), halves)
    kinds = [PackedWeight.of(random_weight(name, 64, 512)) for name in FORMATS]
    joining = {(i, j) for i, a in enumerate(kinds) for j, b in enumerate(kinds) if a.joins(b)}
    assert joining == {(i, i) for i in range(len(kinds))}
    assert not PackedWeight.of(random_weight("Q4_0", 33, 512)).joins(kinds[0])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([4, 8]), st.integers(0, 2**31))
def test_quantising_misses_a_number_by_at_most_half_a_step(out, groups, bits, seed):
    torch.manual_seed(seed)
    weight = torch.randn(out, 32 * groups) * 10.0 ** torch.randint(-3, 3, (out, 1))
    made = quantize(weight, bits)
    error = (made.dequantize() - weight).view(out, groups, 32)
    inside = weight.view(out, groups, 32)
    span = inside.abs().amax(-1) / 127 if bits == 8 else (inside.amax(-1) - inside.amin(-1)) / 15
    if bits == 8:
        assert (error.abs() <= 0.51 * span[..., None] + 1e-7).all()
    # Leaving extremes out pays in the sum of squares alone.
    assert (error.square().sum(-1) <= 32 * (0.52 * span + 1e-7) ** 2).all()
    assert made.codes.dtype == torch.uint8
    assert int(made.codes.max()) < 2**bits


def test_groups_of_one_number_are_exact():
    weight = torch.cat([torch.zeros(2, 32), torch.full((2, 32), 0.75)], 1)
    for bits in (4, 8):
        assert torch.allclose(quantize(weight, bits).dequantize(), weight, rtol=1e-3)
    assert torch.equal(quantize(torch.zeros(3, 64), 8).dequantize(), torch.zeros(3, 64))


@pytest.mark.parametrize(
    ("weight", "bits"),
    [
        (torch.ones(4, 33), 4), (torch.ones(4, 0), 8), (torch.ones(32), 8), (torch.ones(4, 32), 5),
        (torch.full((4, 32), torch.nan), 4), (torch.full((4, 32), torch.inf), 8),
    ],
)  # fmt: skip
def test_what_cannot_be_quantised_is_refused(weight, bits):
    with pytest.raises(ValueError, match="expected"):
        quantize(weight, bits)


def test_parts_that_do_not_fit_are_refused():
    good = random_weight("Q4_K", 8, 512)
    for bad in (
        good._replace(codes=good.codes[:, :500]),
        good._replace(codes=good.codes.int()),
        good._replace(scale=good.scale.float()),
        good._replace(scale=good.scale[:7]),
        good._replace(mult=good.mult[:, :-1]),
        good._replace(offset=good.offset[:, :1]),
        good._replace(offset_mult=good.offset_mult.repeat_interleave(2, 1)),
    ):
        with pytest.raises(ValueError, match="expected"):
            PackedWeight.of(bad)
    packed = PackedWeight.of(good)
    with pytest.raises(IndexError, match="expected rows"):
        packed.rows(torch.tensor([8]))


def heads(dtype, int8=False, vocab=700):
    weight = random_weight("Q6_K", vocab, 256)
    packed = PackedWeight.of(weight)
    hidden = (torch.randn(9, 256) / 512).to(dtype)
    options = {"seeds": torch.arange(9), "positions": torch.full((9,), 3), "top_k": 7}
    return packed.with_int8_rows() if int8 else packed, weight.dequantize(), hidden, options


def test_what_is_no_operand_of_a_packed_weight_is_refused():
    weight = random_weight("Q8_0", 40, 256)
    packed = PackedWeight.of(weight)
    x = torch.ones(2, 256)
    for bad in (x[:, :32], x.double(), x.long(), x.to("meta"), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="expected x "):
            packed.product(bad)
    with pytest.raises(ValueError, match=r"expected bias \[40\]"):
        packed.product(x, torch.zeros(1))
    for bad in (torch.ones(2), torch.tensor([True]), torch.zeros(2, dtype=torch.int64).to("meta")):
        with pytest.raises(ValueError, match="expected index "):
            packed.rows(bad)
    rows = packed.rows(torch.tensor([39, 0], dtype=torch.int32))
    assert torch.equal(rows, weight.dequantize()[[39, 0]])
    meta = weight._replace(scale=weight.scale.to("meta"))
    for bad in (weight.dequantize(), weight._replace(bits=3), meta):
        with pytest.raises(ValueError, match=r"^expected "):
            PackedWeight.of(bad)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_an_lm_head_scores_by_the_numbers_that_codes_stand_for(isa, temperature):
    packed, numbers, hidden, options = heads(torch.float32)
    options |= {"temperature": temperature, "bias": torch.randn(700)}
    for filters in ({}, {"top_p": 0.9}, {"min_p": 0.2}, {"sample_top_k": 5}):
        got = lm_head_confidence(hidden, packed, **options, **filters)
        want = lm_head_confidence(hidden, numbers, **options, **filters)
        assert torch.equal(got.token_ids, want.token_ids)
        assert torch.equal(got.topk_ids, want.topk_ids)
        for name in ("confidence", "token_logprobs", "lse", "entropy", "topk_logprobs"):
            assert (getattr(got, name) - getattr(want, name)).abs().max() < 2e-5


@pytest.mark.parametrize("int8", [False, True])
def test_an_lm_heads_rows_have_the_same_bits_in_any_batch(isa, int8):
    packed, _, hidden, options = heads(torch.bfloat16, int8)
    whole = lm_head_confidence(hidden, packed, **options, temperature=2.0)
    for begin, end in ((0, 1), (2, 9)):
        part = {n: each[begin:end] for n, each in options.items() if n != "top_k"}
        some = lm_head_confidence(hidden[begin:end], packed, **part, top_k=7, temperature=2.0)
        assert all(map(torch.equal, some, [each[begin:end] for each in whole]))


def test_a_rounded_lm_head_is_near(isa):
    packed, numbers, hidden, options = heads(torch.float32, int8=True)
    got = lm_head_confidence(hidden, packed, **options, sample_top_k=600, temperature=5.0)
    logprobs = (rounded(hidden) @ numbers.double().T).log_softmax(-1)
    want = logprobs.gather(1, got.topk_ids.long())
    assert (got.topk_logprobs - want).abs().max() < 1e-4


def test_a_quantised_head_is_of_the_public_names_alone():
    weight = mf.quantize(torch.randn(40, 64), 8)
    assert isinstance(weight, mf.QuantizedWeight)
    hidden, options = torch.randn(3, 64), {"seeds": torch.arange(3), "positions": torch.arange(3)}
    got = mf.lm_head_confidence(hidden, mf.PackedWeight.of(weight), **options)
    want = mf.lm_head_confidence(hidden, weight.dequantize(), **options)
    assert torch.equal(got.token_ids, want.token_ids)


def test_a_shard_of_a_quantised_head_and_what_is_refused():
    packed, numbers, hidden, options = heads(torch.float32)
    got = lm_head_records(hidden, packed, 0, 700, top_k=5)
    want = lm_head_records(hidden, numbers, 0, 700, top_k=5)
    assert torch.equal(got.topk_ids[:, :5], want.topk_ids[:, :5])
    torch_backend = lm_head_confidence(hidden, packed, **options, backend="torch")
    own = lm_head_confidence(hidden, packed, **options)
    assert torch.equal(torch_backend.topk_ids, own.topk_ids)
    with pytest.raises(ValueError, match=r"expected hidden \[B, 256\] on a CPU"):
        lm_head_confidence(hidden[:, :128], packed, **options)
    with pytest.raises(BackendError, match="PackedWeight"):
        lm_head_confidence(hidden, packed, **options, backend="triton")


def test_rows_too_small_to_be_rounded_become_zero(isa):
    packed = PackedWeight.of(random_weight("Q4_0", 40, 256)).with_int8_rows()
    for size in (1e-30, 1e-38, 1e-44):
        assert packed.product(torch.full((1, 256), size)).abs().max() < 1e-28
