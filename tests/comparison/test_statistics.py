"""Intervals, AUROC, and the reliability of confidences."""

import pytest

from marco_fast.comparison.statistics import Share, auroc, gain, reliability, wilson


def test_wilson_intervals():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == pytest.approx(1.0)
    assert wilson(0, 0) == (0.0, 1.0)


def test_a_share_knows_its_interval():
    made = Share.of([True] * 8 + [False] * 2)
    assert (made.right, made.total, made.share) == (8, 10, 0.8)
    assert (made.low, made.high) == wilson(8, 10)
    assert Share.of([]).share == 0.0


def test_a_gain_is_that_of_the_same_questions():
    before = [True] * 50 + [False] * 40 + [True] * 2 + [False] * 8
    after = [True] * 50 + [False] * 40 + [False] * 2 + [True] * 8
    # by hand: up 9/102, down 3/102, half 1.96 * sqrt((12/102 - (6/102)^2) / 102)
    assert gain(before, after) == pytest.approx((0.06, -0.006755, 0.124402), abs=1e-6)
    assert gain(after, before) == pytest.approx((-0.06, -0.124402, 0.006755), abs=1e-6)
    assert gain([True] * 9, [True] * 9)[0] == 0.0
    assert gain([True], [False])[1] == -1.0
    assert gain([], []) == (0.0, -1.0, 1.0)


def test_auroc_counts_pairs():
    pairs = [(0.9, True), (0.8, False), (0.8, True), (0.1, False)]
    assert auroc(pairs) == pytest.approx(3.5 / 4)
    assert auroc([(0.1, True), (0.2, True)]) is None
    assert auroc([]) is None


def test_reliability_sorts_by_confidence():
    pairs = [(i / 100, i >= 50) for i in range(100)][::-1]
    rows, error = reliability(pairs, bins=4)
    assert [round(mean, 3) for mean, _ in rows] == [0.12, 0.37, 0.62, 0.87]
    counted = [(share.right, share.total) for _, share in rows]
    assert counted == [(0, 25), (0, 25), (25, 25), (25, 25)]
    assert error == pytest.approx((0.12 + 0.37 + 0.38 + 0.13) / 4)


def test_reliability_of_few_and_of_none():
    rows, error = reliability([(0.8, True), (0.6, False)])
    assert len(rows) == 2
    assert error == pytest.approx((0.2 + 0.6) / 2)
    assert reliability([]) == ([], 0.0)
