"""The Triton sample_confidence in the interpreter: draws, filters, scores and path sums."""

import math

import numpy as np
import pytest
import torch

from marco_fast import ops
from marco_fast.ops import reference
from marco_fast.ops.reference.philox import philox_uniform
from tests.support.confidence import assert_fits, assert_same_bits, check_sampled
from tests.support.draws import OPTIONS, check_draws, kept_masses, keyed, options_of, sampling_of
from tests.support.hostile import DTYPES, LOGIT_KINDS, logits_of, padded_rows, poisoned, sparse_rows

pytestmark = [
    pytest.mark.usefixtures("in_interpreter"),
    # NumPy warns of the infinities that a GPU computes with in silence.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def sample(logits, name, keys=None, **options):
    keys = keys or keyed(len(logits))
    return ops.sample_confidence(logits, **options_of(name), **keys, backend="triton", **options)


def launch(logits, name, keys, paths=(None, None, None), **private):
    """The launcher itself, into poisoned outputs."""
    from marco_fast.kernels import sample_confidence

    like = reference.sample_confidence(logits, **options_of(name), **keys, dtype=torch.float32)
    out = type(like)(*map(poisoned, like))
    sample_confidence.sample_confidence(logits, sampling_of(name, keys, paths), out, **private)
    return out


def shares(blocks, splits, blocks_per_split):
    from marco_fast.kernels.confidence_scan import Shares

    return Shares(blocks, splits, blocks_per_split)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for i, kind in enumerate(LOGIT_KINDS)
        for j, name in enumerate(OPTIONS)
        if (i + j) % 2 == 0
    ],
)
def test_against_brute_force(kind, name):
    check_sampled(logits_of(kind, 2, 400), name, backend="triton", top_k=5)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("vocab", [1, 17, 1500])
def test_small_vocabularies(vocab, name):
    logits = logits_of("normal", 1, vocab, torch.float16, seed=vocab)
    check_sampled(logits, name, backend="triton", seed=vocab, top_k=min(5, vocab))


@pytest.mark.parametrize("name", OPTIONS)
def test_several_blocks(name):
    check_sampled(logits_of("normal", 1, 9001, torch.bfloat16), name, backend="triton")


@pytest.mark.parametrize("name", ["hot", "wide top_p", "low min_p", "top_k 300", "all, wide"])
@pytest.mark.parametrize("kind", ["ties", "equal", "inf", "masked"])
def test_cuts_in_several_blocks(kind, name):
    check_sampled(logits_of(kind, 1, 9001), name, backend="triton")


@pytest.mark.parametrize("denominator", ["top_k", "union"])
@pytest.mark.parametrize("score", ["raw", "tempered"])
@pytest.mark.parametrize("top_k", [1, 17, 32])
@pytest.mark.parametrize("kind", ["normal", "nan", "inf", "few"])
def test_scores(kind, top_k, score, denominator):
    logits, name = logits_of(kind, 2, 300), "top_p" if top_k == 17 else "hot"
    check_sampled(logits, name, backend="triton", top_k=top_k, score=score, denominator=denominator)


@pytest.mark.parametrize("value", [torch.nan, -torch.inf, torch.inf])
@pytest.mark.parametrize("name", ["cool", "wide top_p", "top_k 300"])
def test_a_block_of_nothing_else(name, value):
    for block in range(2):
        logits = logits_of("normal", 1, 6000)
        logits[:, 4096 * block : 4096 * (block + 1)] = value
        check_sampled(logits, name, backend="triton", seed=block)


@pytest.mark.parametrize("kind", ["normal", "nan", "few"])
@pytest.mark.parametrize("name", ["cool", "wide top_p", "greedy"])
@pytest.mark.usefixtures("poisoned_memory")
def test_every_output_is_written(kind, name):
    logits, keys = logits_of(kind, 3, 4200), keyed(3)
    got = launch(logits, name, keys)
    check_draws(logits, got.token_ids, keys, options_of(name))
    assert_same_bits(launch(logits, name, keys, shares=shares(2, 2, 1)), got)
    assert not any(field.isnan().any() for field in got if field.dtype.is_floating_point)


@pytest.mark.parametrize("name", ["plain", "hot", "greedy", "wide top_p", "top_k 300", "low min_p"])
@pytest.mark.parametrize("kind", ["normal", "ties", "inf"])
@pytest.mark.usefixtures("shuffled_programs")
def test_splits_give_the_same_bits(kind, name):
    logits, keys = logits_of(kind, 2, 9001), keyed(2)
    want = launch(logits, name, keys, shares=shares(3, 1, 3))
    for splits, each in ((3, 1), (2, 2)):
        counts = torch.zeros(2, dtype=torch.int32)
        own = shares(3, splits, each)
        got = launch(logits, name, keys, (None, counts, None), shares=own)
        assert_same_bits(got, want)
        assert counts.tolist() == [1, 1]


def test_a_draw_does_not_depend_on_its_batch():
    """Neighbours have other options: their filters must not change how a row is drawn."""
    logits = logits_of("normal", len(OPTIONS), 700)
    keys = keyed(len(logits))
    columns = dict(zip(options_of("plain"), torch.tensor([*OPTIONS.values()]).T, strict=True))
    columns["sample_top_k"] = columns["sample_top_k"].int()
    together = ops.sample_confidence(logits, **columns, **keys, backend="triton")
    for b, name in enumerate(OPTIONS):
        own = {key: value[b : b + 1] for key, value in keys.items()}
        alone = sample(logits[b : b + 1], name, own)
        assert_same_bits(alone, type(together)(*[field[b : b + 1] for field in together]))


@pytest.mark.parametrize("top_k", [1, 32])
def test_the_draw_does_not_depend_on_what_is_scored(top_k):
    logits = logits_of("normal", 6, 300)
    for name in ("top_p", "wide top_p"):
        want = sample(logits, name).token_ids
        for score in ("raw", "tempered"):
            got = sample(logits, name, top_k=top_k, score=score)
            assert (got.token_ids != want).sum() <= 1


@pytest.mark.parametrize("name", OPTIONS)
def test_only_one_token_has_mass(name):
    logits = torch.full((1, 5000), -torch.inf)
    logits[:, 4097] = -3.0
    assert (sample(logits, name).token_ids == 4097).all()


@pytest.mark.parametrize("name", ["cool", "wide top_p"])
def test_chi_square(name):
    draws, vocab = 120, 6
    row = logits_of("normal", 1, vocab) / 1.5
    keys = {"seeds": torch.arange(draws) << 31, "positions": torch.arange(draws) % 3}
    got = sample(row.expand(draws, vocab), name, keys)
    values = map(float, np.float32(OPTIONS[name]))
    probability = torch.from_numpy(kept_masses(row[0].double().numpy(), *values))
    assert_fits(got.token_ids, probability / probability.sum())


# The seeds below 6e8 whose u at position 0 is the largest and the smallest.
@pytest.mark.parametrize("seed", [454088803, 585825483])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_ends_of_the_cdf(name, seed):
    logits = logits_of("normal", 1, 200) / 6
    logits[:, :50] = logits[:, -50:] = -torch.inf
    keys = {"seeds": torch.tensor([seed]), "positions": torch.tensor([0])}
    got = sample(logits, name, keys)
    for row, token in zip(logits.double().numpy(), got.token_ids, strict=True):
        values = {**options_of(name), "temperature": options_of(name)["temperature"] or 1.0}
        assert kept_masses(row, *map(float, np.float32([*values.values()])))[token] > 0


def test_equal_probabilities_at_the_top_p_boundary():
    """Equal logits: half the mass is exactly the smaller half of the ids."""
    keys = {"seeds": torch.tensor([585825483, 454088803]), "positions": torch.tensor([0, 0])}
    for vocab, top_p, kept in ((10, 0.5, 5), (10, 0.500001, 6), (10, 0.05, 1), (40, 0.5, 20)):
        row = torch.full((1, vocab), 1.5).expand(2, vocab)
        got = ops.sample_confidence(row, top_p=top_p, **keys, backend="triton")
        assert got.token_ids.tolist() == [0, kept - 1]


@pytest.mark.parametrize("vocab", [40, 5000])
@pytest.mark.parametrize("options", [{"sample_top_k": 20}, {"min_p": 0.98}, {"top_p": None}])
def test_the_last_kept_token(options, vocab):
    """Nearly equal logits in descending order: the smallest and the largest u draw both ends."""
    logits = (-torch.arange(vocab) / 1000)[None].expand(2, vocab).contiguous()
    mass = logits[0].double().exp()
    kept = 21 if "min_p" in options else 20
    if "top_p" in options:
        options = {"top_p": (mass[:19].sum() + mass[19] / 2).item() / mass.sum().item()}
    keys = {"seeds": torch.tensor([585825483, 454088803]), "positions": torch.tensor([0, 0])}
    got = ops.sample_confidence(logits, **options, **keys, backend="triton")
    assert got.token_ids.tolist() == [0, kept - 1]


@pytest.mark.parametrize(("kept", "vocab"), [(10, 40), (30, 40), (30, 5000)])
@pytest.mark.parametrize("temperature", [0.8, 1.0, 2.0])
@pytest.mark.parametrize("min_p", [0.05, 0.5, 0.98])
def test_the_smallest_logit_that_min_p_keeps(min_p, temperature, kept, vocab):
    """The float64 limit lies between two float32 logits: the upper is kept, the lower is not."""
    top, values = 2.0, (np.float32(temperature), np.float32(1.0), np.float32(min_p), 0)
    limit = top + math.log(min_p := float(values[2])) * float(values[0])
    nearest = np.float32(limit)
    upper = nearest if float(nearest) >= limit else np.nextafter(nearest, np.float32(top))
    lower = np.nextafter(upper, np.float32(-np.inf))
    logits = torch.full((2, vocab), -20.0)
    logits[:, :kept] = torch.linspace(top, float(upper), kept)
    logits[:, kept - 1 : kept + 1] = torch.from_numpy(np.array([upper, lower]))
    mass = kept_masses(logits[0].double().numpy(), *map(float, values))
    assert mass.nonzero()[0].max() == kept - 1
    keys = {"seeds": torch.tensor([585825483, 454088803]), "positions": torch.tensor([0, 0])}
    got = ops.sample_confidence(
        logits, temperature=temperature, min_p=min_p, **keys, backend="triton"
    )
    assert got.token_ids.tolist() == [0, kept - 1]


@pytest.mark.parametrize("block", [256, 257])
def test_more_blocks_than_are_merged_at_once(block):
    vocab, seeds = 258 * 4096, torch.arange(2000)
    tokens = philox_uniform(seeds, seeds * 0) * vocab
    inside = (tokens / 4096 - block - 0.5).abs() < 0.4
    keys = {"seeds": seeds[inside][:1], "positions": torch.tensor([0])}
    got = sample(torch.zeros(1, vocab), "plain", keys, top_k=1)
    assert abs(got.token_ids.item() - int(tokens[inside][0])) <= 1


@pytest.mark.parametrize("seed", [0, -1, 2**31, 2**32, -(2**63), 2**63 - 1, 0x123456789ABCDEF])
def test_random_numbers(seed):
    """With 4096 equal logits the token is the number's first 12 bits."""
    positions = torch.tensor([0, -1, 2**31, 2**32 + 5, 2**63 - 1])
    keys = {"seeds": torch.full_like(positions, seed), "positions": positions}
    got = sample(torch.zeros(1, 4096).expand(5, 4096), "plain", keys)
    want = philox_uniform(keys["seeds"], positions) * 4096
    assert got.token_ids.tolist() == want.int().tolist()


@pytest.mark.parametrize("kind", ["normal", "few", "nan", "peaked"])
def test_path_sums(kind):
    logits = logits_of(kind, 9, 400)
    sums = torch.arange(9) * 2**50
    counts = torch.arange(9, dtype=torch.int32)
    active = torch.arange(9) % 3 != 1
    paths = {"path_sums": sums.clone(), "path_counts": counts.clone(), "active": active}
    hot = {"temperature": 50.0, "backend": "triton", **keyed(9)}  # confidences down to 2^-30
    got = ops.sample_confidence(logits, **hot, **paths)
    added = (got.confidence.double() * 2.0**40).round().long()
    assert torch.equal(paths["path_sums"], sums + torch.where(active, added, 0))
    assert torch.equal(paths["path_counts"], counts + active.int())
    for alone in ({"path_sums": sums.clone()}, {"path_counts": counts.clone()}):
        ops.sample_confidence(logits, **hot, **alone)
        assert all(
            torch.equal(value, sums + added if name == "path_sums" else counts + 1)
            for name, value in alone.items()
        )


def test_a_workspace_serves_again():
    from marco_fast.kernels.confidence_launch import make_workspace

    logits, keys = logits_of("normal", 2, 6000), keyed(2)
    space = make_workspace(logits, 16, 2, sample=True)
    for seed in range(3):
        logits.copy_(logits_of("normal", 2, 6000, seed=seed))
        got = launch(logits, "wide top_p", keys, shares=shares(2, 2, 1), workspace=space)
        assert_same_bits(got, launch(logits, "wide top_p", keys, shares=shares(2, 1, 2)))
        assert (space.arrivals == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_padded_rows_are_not_read(dtype):
    logits = logits_of("normal", 2, 1003, dtype)
    for name in ("cool", "wide top_p", "min_p"):
        assert_same_bits(sample(padded_rows(logits, fill=torch.inf), name), sample(logits, name))


@pytest.mark.parametrize("name", ["cool", "wide top_p"])
def test_offsets_beyond_2_to_31(name):
    logits = sparse_rows(3, 5000, 2**30 + 64, torch.bfloat16)
    logits.copy_(logits_of("normal", 3, 5000, torch.bfloat16))
    assert_same_bits(sample(logits, name), sample(logits.contiguous(), name))


def test_empty_batch():
    none = torch.empty(0, dtype=torch.int64)
    got = ops.sample_confidence(
        torch.empty(0, 10), seeds=none, positions=none, top_k=3, backend="triton"
    )
    assert [len(field) for field in got] == [0] * 8
