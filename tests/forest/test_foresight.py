"""How long a search still takes: recorded ones, and lengths whose answer is known."""

import json
from pathlib import Path

import pytest

from marco_fast.forest.foresight import Lengths, Pace, duration, remaining_seconds

RECORDED = json.loads((Path(__file__).parent / "recorded_searches.json").read_text())
SNAPSHOTS = [
    pytest.param(run["longest"], each, id=f"{name}, {each['seconds']} s")
    for name, run in RECORDED.items()
    for each in run["snapshots"]
]


@pytest.mark.parametrize(("longest", "seen"), SNAPSHOTS)
def test_after_a_fifth_of_the_work_the_time_is_right_within_a_half(longest, seen):
    left = remaining_seconds(
        seen["ended"], seen["running"], to_start=seen["to_start"], longest=longest,
        pace=seen["pace"],
    )  # fmt: skip
    ratio = (left + seen["seconds"]) / (seen["left"] + seen["seconds"])
    assert 0.5 <= ratio <= 1.5


def test_nothing_is_foretold_before_a_branch_has_ended():
    assert remaining_seconds([], [30] * 16, to_start=48, longest=8192, pace=100.0) is None
    assert remaining_seconds([], [], to_start=64, longest=8192, pace=0.0) is None


def test_the_end_takes_no_time():
    assert remaining_seconds([20, 30], [], to_start=0, longest=8192, pace=100.0) == 0.0


def test_branches_of_one_length_take_what_is_left_of_them():
    # 16 at 50 of 100 tokens, 32 to come, 160 tokens/s: 10 steps/s, 50 + 2 * 100 steps
    left = remaining_seconds([100] * 4, [50] * 16, to_start=32, longest=8192, pace=160.0)
    assert left == pytest.approx(25, rel=0.01)


def test_the_short_ones_that_ended_first_do_not_shorten_the_others():
    # Half are of 10 tokens, half of 200: those that run are all of the long kind.
    ended, running = [10] * 16 + [200] * 8, [100] * 16
    left = remaining_seconds(ended, running, to_start=0, longest=8192, pace=160.0)
    assert left == pytest.approx(10, rel=0.1)


def test_branches_in_flight_count_for_those_to_come():
    # 4 of 16 ended at 10 tokens: three quarters of the 160 to come are of 100 or more.
    left = remaining_seconds([10] * 4, [100] * 12, to_start=160, longest=8192, pace=120.0)
    assert left > 160 * 0.75 * 100 / 120


def test_no_branch_is_foretold_beyond_its_limit():
    left = remaining_seconds([5], [900] * 4, to_start=0, longest=1000, pace=40.0)
    assert left <= 100 / 10


def test_a_branch_longer_than_all_before_is_taken_to_be_half_way():
    lengths = Lengths([10, 20], [300], 8192)
    assert 300 < lengths.whole(300, 0.5) < 600
    assert lengths.whole(300, 0.999) <= 8192


def test_a_long_search_is_foretold_from_a_part_of_it():
    left = remaining_seconds([100] * 3000, [50] * 10, to_start=10**7, longest=8192, pace=100.0)
    assert left == pytest.approx(10**7, rel=0.01)


def test_the_pace_is_that_of_late():
    pace = Pace()
    seen = [pace.per_second(second, 100 * second) for second in range(1, 11)]
    assert seen[-1] == pytest.approx(100)
    for second in range(11, 31):  # half as fast from now on
        last = pace.per_second(second, 1000 + 50 * (second - 10))
    assert last == pytest.approx(50)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "1 s"),
        (7.4, "7 s"),
        (41.3, "40 s"),
        (100, "2 min"),
        (3000, "50 min"),
        (9000, "2 h"),
        (259200, "3 days"),
        (1e9, "11,574 days"),
    ],
)
def test_a_time_is_told_in_words(seconds, words):
    assert duration(seconds) == words
