"""Filters of fine-tuning data: what each refuses, and the record of what is kept."""

import random

import pytest

from marco_fast.data.filters import FILTERS, Limits, repetition
from marco_fast.search.answer import canonical
from marco_fast.search.marco import REFLECTION
from tests.support.data_runs import OPEN, THOUGHT, make, records, reply, searched, write_lines


def only(solve, tmp_path, paths, limits=OPEN, answer=None, **options):
    """(the filter that refused the one question or None, its record or None)."""
    solve(lambda chats, *_, **__: [searched(chat, paths, **options) for chat in chats])
    source = write_lines(tmp_path / "one.jsonl", [{"question": "Q?", "answer": answer}])
    out = tmp_path / "one.out"
    summary = make(source, out, limits=limits, restart=True)
    refused = [name for name, count in summary.refused.items() if count]
    assert len(refused) + summary.kept == summary.done == 1
    kept = records(out)
    assert len(kept) == summary.kept
    return (refused or [None])[0], (kept or [None])[0]


GOOD = reply(3)
LOOP = "and so on and on we go round again now. "
FILTERED = [
    ("answer", [("<Thought>\nI do not", 0.9)], OPEN),
    ("answer", [], OPEN),
    ("tags", [("<Output>\n3\n</Output>", 0.9)], OPEN),
    ("tags", [("<Thought>\na\n<Output>\n3\n</Output>", 0.9)], OPEN),
    ("tags", [("<Thought>a</Thought><Thought>b</Thought><Output>3</Output>", 0.9)], OPEN),
    ("tags", [("<Output>3<Thought>a</Thought><Output>4</Output>", 0.9)], OPEN),
    ("tags", [("Well: " + GOOD, 0.9)], OPEN),
    ("tags", [("<Thought>a</Thought> so <Output>3</Output>", 0.9)], OPEN),
    ("tags", [("<Thought> \n</Thought>\n<Output>3</Output>", 0.9)], OPEN),
    ("answer", [("<Thought>a</Thought>\n<Output>\n\n</Output>", 0.9)], OPEN),
    ("tags", [("<Thought>a\ufffd</Thought>\n<Output>3</Output>", 0.9)], OPEN),
    ("tags", [("<Thought>a<|im_end|></Thought>\n<Output>3</Output>", 0.9)], OPEN),
    (None, [("\n<Thought>a</Thought>\n\n<Output>3</Output>.", 0.9)], OPEN),
    ("length", [(GOOD, 0.9)], Limits(len(GOOD) + 1, 10**6, 1, 0, 0)),
    (None, [(GOOD, 0.9)], Limits(len(GOOD), len(GOOD), 1, 0, 0)),
    ("length", [(GOOD, 0.9)], Limits(0, len(GOOD) - 1, 1, 0, 0)),
    ("repetition", [(reply(3, LOOP * 9), 0.9)], Limits(0, 10**6, 0.8, 0, 0)),
    (None, [(reply(3, LOOP * 9), 0.9)], Limits(0, 10**6, 0.9, 0, 0)),
    ("agreement", [(GOOD, 0.9), (reply(4), 0.5), (reply(4), 0.5)], Limits(0, 10**6, 1, 0.5, 0)),
    (None, [(GOOD, 0.9), (reply(4), 0.5), (reply("3."), 0.1)], Limits(0, 10**6, 1, 0.5, 0)),
    (None, [(GOOD, 0.5), (reply(4), 0.5)], Limits(0, 10**6, 1, 0.5, 0)),
    ("confidence", [(GOOD, 0.59)], Limits(0, 10**6, 1, 0, 0.6)),
    (None, [(GOOD, 0.6)], Limits(0, 10**6, 1, 0, 0.6)),
]


@pytest.mark.parametrize(("name", "paths", "limits"), FILTERED)
def test_every_filter_refuses_and_keeps(name, paths, limits, solve, tmp_path):
    assert only(solve, tmp_path, paths, limits)[0] == name


@pytest.mark.parametrize(
    ("answer", "output", "right"),
    [
        ("3", "The letter occurs 3 times.", True),
        (3, "3", True),
        ("3", "4", False),
        ("3", "3 or 4", False),
        ("-5", "It is −5.", True),
        ("-5", "5", False),
        ("3.5", "3.50 dollars", True),
        ("3.5", "3 and 5", False),
        ("1200", "1,200", True),
        ("1 and 3", "1, 3", True),
        ("Peter", "peter.", True),
        ("Peter", "Peter or Max", False),
        ("yes", "The  yes", True),
        (None, "anything", True),
    ],
)
def test_a_reference_answer_decides(answer, output, right, solve, tmp_path):
    name, _ = only(solve, tmp_path, [(reply(output), 0.9)], answer=answer)
    assert name == (None if right else "correct")


def test_the_first_filter_counts(solve, tmp_path):
    """A reply that all of them refuse is refused by each in turn as those before it let it by."""
    thought = LOOP * 9
    paths = [(reply(3, thought), 0.4), (reply(4), 0.3), (reply(4), 0.3)]
    limits = [10**5, 0, 1.0, 1.0]  # min_tokens, max_repetition, min_agreement, min_confidence
    for place, name in enumerate(["length", "repetition", "agreement", "confidence"]):
        low, most, agree, sure = [*[0, 1, 0, 0][:place], *limits[place:]]
        found = only(solve, tmp_path, paths, Limits(low, 10**9, most, agree, sure), answer="5")
        assert found[0] == name
    assert only(solve, tmp_path, paths, OPEN, answer="5")[0] == "correct"
    assert FILTERS == (
        "answer",
        "tags",
        "length",
        "repetition",
        "agreement",
        "confidence",
        "correct",
    )


def test_the_record(solve, tmp_path):
    paths = [(reply(3), 0.75), (reply(" 3."), 0.25), (reply("Tom"), 0.25), ("<Thought>\n", 0.9)]
    _, record = only(solve, tmp_path, paths)
    text = reply(3)
    assert record == {
        "id": "1",
        "messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": text}],
        "thought": THOUGHT,
        "output": "3",
        "confidence": 0.75,
        "tree": {
            "nodes": 5, "expansions": 4, "rollout_nodes": 0, "finished": 3, "answers": 2,
            "depth": 1, "tokens": 4, "visits": 1, "stop_reason": "expansions",
            "reply_tokens": len(text), "agreement": 1 / 1.25, "repetition": 0.0,
        },
        "model": "fake",
    }  # fmt: skip


def test_the_reply_keeps_its_reflection_and_ends_with_its_output(solve, tmp_path):
    twice = f"{THOUGHT}{REFLECTION}{THOUGHT}"
    _, record = only(
        solve, tmp_path, [(reply(3, twice) + " and more", 1)], Limits(0, 9999, 0, 0, 0)
    )
    assert record["messages"][-1]["content"] == reply(3, twice)
    assert record["thought"] == twice
    assert record["confidence"] == 1
    assert '"confidence": 1.0' in (tmp_path / "one.out").read_text()


def test_repetition_is_the_share_of_windows_seen_before():
    eight = "a b c d e f g h"
    assert repetition("") == repetition(eight) == 0
    assert repetition(f"{eight} {eight.upper()}") == 1 / 9  # the ninth window is the first again
    assert repetition("x " * 16) == 8 / 9
    assert repetition("数" * 16) == 8 / 9
    assert repetition("x" * 99) == 0
    assert repetition("one, two; three - four.") == 0


def test_answers_agree_as_the_questions_own_check_says():
    from marco_fast.questions.questions import LANGUAGES, TESTS, is_correct, make_question

    rng = random.Random(1)
    drawn = [
        make_question(test, level, "train", rng, language)
        for test in TESTS for level in (1, 4, 8) for language in LANGUAGES for _ in range(5)
    ]  # fmt: skip
    for one in drawn:
        assert is_correct(one, one.answer)
        for other in rng.sample(drawn, 20):
            agree = canonical(one.answer) == canonical(other.answer)
            assert agree == is_correct(one, other.answer), (one.answer, other.answer)


@pytest.mark.parametrize(
    "values",
    [(-1,), (0, -1), (5, 4), (0, 9, 1.1), (0, 9, float("nan")), (0, 9, 1, "x"), (0, 9, 1, 0, True)],
)
def test_limits_are_checked(values):
    with pytest.raises(ValueError, match="expected m"):
        Limits(*values)
