"""Finals: what of an answer is compared, and when it says what a reference says."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_replies_are_graded_as_a_person_grades_them():
    """Verdicts by hand on replies in English and Chinese, right, wrong and seemingly right."""
    graded = json.loads(Path(__file__).with_name("graded_replies.json").read_text("utf-8"))
    assert len(graded) > 200
    wrong = [
        each
        for each in graded
        if agree(final_of(each["reply"], each["question"]), each["reference"]) != each["right"]
    ]
    assert wrong == []


PIECES = st.sampled_from(
    "the answer is|answer:|####|\\boxed{|}|\\frac{1}{2}|$|**|8|1,234|0.5|-3|1/2|50%|2 or 3|(3, 5)"
    "|√2|3x|= |+|yes|no|unknown|none|Tom|Jane is the tallest|A|(B)|wait|答案是|不是|八|一百"
    "|百分之|两|个|，|。|\n|. |?|? |and|e99|10^9|:|1:05|;|the |\u00bd|\uff18|\u2212|\u00b2"
    "|statement 2|[|]|(|)|\\text{|\\|i hope|so |not |1/0|of |\ufdfa|\u0301".split("|")
) | st.text(max_size=4)
QUESTIONS = (
    "", "How many apples?", "What percent is it?", "Is it so?", "Who is tallest, Tom or Jane?",
    "Which statements contradict?", "Sort 3, 1 and 2.", "Which? (A) one (B) two", "谁最高？",
    "多少个苹果？", "小华是 dask 吗？", "哪些话互相矛盾？", "How much is it?",
)  # fmt: skip


@given(st.lists(PIECES, max_size=12), st.sampled_from(["", " "]), st.sampled_from(QUESTIONS))
@settings(max_examples=300, deadline=None)
def test_any_text_has_a_final_that_is_its_own_final(pieces, gap, question):
    final = final_of(gap.join(pieces), question)
    assert final_of(final, question) == final
    agree(final, gap.join(pieces))


@pytest.mark.parametrize("question", ["How many apples?", "Who is it?", "谁最高？"])
@pytest.mark.parametrize(
    "unit",
    "8|8 |the answer is |\\boxed{|\\boxed{8}|(|$8 |*a |1,234,|√|\n|the |一|8-|three |####8\n|{"
    "|\\frac{|wait |是|8 of |? |°|½".split("|"),
)
def test_a_reply_of_a_hundred_kilobytes_takes_milliseconds(unit, question):
    reply = unit * (100_000 // len(unit))
    began = time.perf_counter()
    agree(final_of(reply, question), "8")
    assert time.perf_counter() - began < 1  # some 20 ms; a square would take a minute
