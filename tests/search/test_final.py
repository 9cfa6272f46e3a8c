"""Finals: what of an answer is compared, and when it says what a reference says."""

import pytest

from marco_fast.search.final import agree, final_of

APPLES = "How many apples does Tom have?"


@pytest.mark.parametrize(
    "same",
    [
        (
            "12",
            "12.",
            " 12 ",
            "12 apples",
            "12.0",
            "twelve",
            "**12**",
            "Tom has 3 + 9 = 12 apples.",
        ),
        ("1,234", "1234", "$1,234.00", "1{,}234", "\\boxed{1\\,234}"),
        ("-3", "\u22123", "The answer is -3.", "答案是 -3。"),
        ("2.5", "2.50", "5/2", "\\frac{5}{2}", "2 1/2"),
    ],
)
def test_answers_with_one_number_have_one_final(same):
    assert len({final_of(each, APPLES) for each in same}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [("12", "1.2"), ("3", "-3"), ("1/2", "12"), ("3 and 4", "3"), ("100", "10"), ("unknown", "0")],
)
def test_answers_that_differ_have_two_finals(one, other):
    assert final_of(one, APPLES) != final_of(other, APPLES)
    assert not agree(final_of(one, APPLES), other)
