"""Loops: found with the token that completes one, and never asked for too late."""

import random

import pytest

from marco_fast.search.loops import LOOP_TOKENS, tokens_to_loop


def loops(tokens: list[int]) -> bool:
    """The last 64 tokens repeat one run of at most 16: by the definition."""
    tail = tokens[-64:]
    return len(tail) == 64 and any(tail[run:] == tail[:-run] for run in range(1, 17))


@pytest.mark.parametrize("run", [1, 2, 7, 15, 16])
def test_a_run_of_at_most_16_tokens_is_a_loop_from_64_tokens_on(run):
    before = [100, 101, 100, 99]
    repeated = (list(range(run)) * 64)[:64]
    assert tokens_to_loop((before + repeated)[-LOOP_TOKENS:]) == 0
    assert tokens_to_loop((before + repeated[:-1])[-LOOP_TOKENS:]) > 0
    assert tokens_to_loop([*repeated[:-1], 99]) > 0


def test_a_run_of_17_tokens_is_none():
    assert tokens_to_loop((list(range(17)) * 4)[-64:]) > 0


@pytest.mark.parametrize("seed", range(30))
def test_no_loop_comes_sooner_than_was_said_and_none_is_missed(seed):
    rng = random.Random(seed)
    tokens, look = [], 0
    for _ in range(12):
        run = [rng.randrange(3) for _ in range(rng.randint(1, 18))]
        tokens += (run * 80)[: rng.randint(0, 80)]
    looks = 0
    for end in range(1, len(tokens) + 1):
        if end < look:
            assert not loops(tokens[:end])
            continue
        left, looks = tokens_to_loop(tokens[max(0, end - 64) : end]), looks + 1
        assert (left == 0) == loops(tokens[:end])
        look = end + left
    assert looks < len(tokens)


def test_a_text_without_repetition_is_hardly_ever_looked_at():
    assert tokens_to_loop(list(range(64))) == 48
    assert tokens_to_loop([7]) == 63
