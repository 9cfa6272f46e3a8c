"""The distribution of sample_confidence's draws, and the random numbers behind them."""

import itertools

import numpy as np
import pytest
import torch

from marco_fast import ops
from marco_fast.ops.reference.philox import philox4x32, philox_uniform
from tests.support.confidence import assert_fits
from tests.support.draws import OPTIONS, kept_masses, options_of
from tests.support.hostile import logits_of


@pytest.mark.parametrize("by", ["seeds", "positions", "high words"])
@pytest.mark.parametrize(
    "name", ["plain", "cool", "top_p", "wide top_p", "min_p", "top_k 7", "all"]
)
@pytest.mark.parametrize(("vocab", "dtype"), [(12, torch.float32), (900, torch.bfloat16)])
def test_chi_square(vocab, dtype, name, by):
    draws = 100_000
    row = logits_of("normal", 1, vocab, dtype) / 1.5
    numbers, fixed = torch.arange(draws), torch.full((draws,), 7)
    keys = {"seeds": numbers, "positions": fixed}
    if by == "positions":
        keys = {"seeds": fixed, "positions": numbers}
    if by == "high words":
        keys = {"seeds": numbers << 32, "positions": (numbers % 3) << 33}
    got = ops.sample_confidence(row.expand(draws, vocab), **options_of(name), **keys)
    values = map(float, np.float32(OPTIONS[name]))
    probability = torch.from_numpy(kept_masses(row[0].double().numpy(), *values))
    assert_fits(got.token_ids, probability / probability.sum())


# Found by search: the seeds below 6e8 whose u at position 0 is the largest and the smallest.
@pytest.mark.parametrize(("seed", "u"), [(454088803, 1 - 2.23e-10), (585825483, 1.17e-11)])
@pytest.mark.parametrize("vocab", [64, 200, 5000])
@pytest.mark.usefixtures("isa")
def test_the_ends_of_the_cdf_draw_a_token_that_is_kept(vocab, seed, u):
    """u beyond all rounded masses, or below them: masked and cut tokens at either end stay out."""
    rows = 100
    logits = logits_of("normal", rows, vocab) / 6
    logits[:, : vocab // 4] = logits[:, -vocab // 4 :] = -torch.inf
    seeds, positions = torch.full((rows,), seed), torch.zeros(rows, dtype=torch.int64)
    assert philox_uniform(seeds, positions)[0].item() == pytest.approx(u, abs=1e-12)
    for name, values in OPTIONS.items():
        got = ops.sample_confidence(logits, **options_of(name), seeds=seeds, positions=positions)
        if values[0] > 0:
            for row, token in zip(logits.double().numpy()[:20], got.token_ids, strict=False):
                assert kept_masses(row, *map(float, np.float32(values)))[token] > 0, name
        assert (logits.gather(1, got.token_ids.long()[:, None]) > -torch.inf).all(), name


def test_neighbouring_draws_are_independent():
    draws, vocab = 100_000, 8
    row = torch.zeros(1, vocab).expand(draws, vocab)
    for seeds, positions in (
        (torch.zeros(draws, dtype=torch.int64), torch.arange(draws)),
        (torch.arange(draws), torch.zeros(draws, dtype=torch.int64)),
    ):
        tokens = ops.sample_confidence(row, seeds=seeds, positions=positions).token_ids
        pairs = tokens[:-1] * vocab + tokens[1:]
        assert_fits(pairs, torch.full((vocab * vocab,), vocab**-2.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(counter, key, words):
    """The published known-answer vectors of Philox4x32-10."""
    got = philox4x32([torch.tensor(x) for x in counter], [torch.tensor(x) for x in key])
    assert [f"{int(word):08x}" for word in got] == words.split()


def test_philox_is_the_same_in_cpp():
    from marco_fast import _C

    edges = [0, 1, -1, 2**31, 2**32 - 1, 2**32, -(2**63), 2**63 - 1, 0x123456789ABCDEF]
    pairs = list(itertools.product(edges, edges))
    seeds, positions = (torch.tensor(values) for values in zip(*pairs, strict=True))
    got = [_C.philox_uniform(seed, position) for seed, position in pairs]
    assert philox_uniform(seeds, positions).tolist() == got
    assert len(set(got)) == len(pairs)
    assert 0 <= min(got) <= max(got) < 1
