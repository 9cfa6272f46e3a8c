"""Filters of fine-tuning data: what each refuses, and the record of what is kept."""

import warnings

import pytest

from marco_fast.data.filters import FILTERS, Limits, repetition
from marco_fast.search.marco import REFLECTION
from tests.support.data_runs import OPEN, THOUGHT, make, records, reply, searched, write_lines


def only(
    solve, tmp_path, paths, limits=OPEN, answer=None, question="How many are there?", **options
):
    """(the filter that refused the one question or None, its record or None)."""
    solve(lambda chats, *_, **__: [searched(chat, paths, **options) for chat in chats])
    source = write_lines(tmp_path / "one.jsonl", [{"question": question, "answer": answer}])
    out = tmp_path / "one.out"
    out.unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing was kept
        summary = make(source, out, limits=limits, restart=True)
    refused = [name for name, count in summary.refused.items() if count]
    assert len(refused) + summary.kept == summary.done == 1
    assert out.exists() == summary.complete == bool(summary.kept)
    kept = records(out) if summary.kept else []
    assert len(kept) == summary.kept
    return (refused or [None])[0], (kept or [None])[0]


GOOD = reply(3)
LOOP = "and so on and on we go round again now. "
LONG = " ".join(f"Step {at} is another one." for at in range(40))
FILTERED = [
    ("answer", [("<Thought>\nI do not", 0.9)], OPEN),
    ("answer", [("<think>\nI do not", 0.9)], OPEN),
    ("answer", [], OPEN),
    ("tags", [("<Output>\n3\n</Output>", 0.9)], OPEN),
    ("tags", [("<Thought>\na\n<Output>\n3\n</Output>", 0.9)], OPEN),
    ("tags", [("<Thought>a</Thought><Thought>b</Thought><Output>3</Output>", 0.9)], OPEN),
    ("tags", [("<Output>3<Thought>a</Thought><Output>4</Output>", 0.9)], OPEN),
    ("tags", [("Well:\n" + GOOD, 0.9)], OPEN),
    ("tags", [("<Thought>a</Thought> so <Output>3</Output>", 0.9)], OPEN),
    ("tags", [("<Thought> \n</Thought>\n<Output>3</Output>", 0.9)], OPEN),
    ("tags", [("<Thought>a</Thought>\n3", 0.9)], OPEN),
    ("answer", [("<Thought>a</Thought>\n<Output>\n\n</Output>", 0.9)], OPEN),
    ("text", [("<Thought>a\ufffd</Thought>\n<Output>3</Output>", 0.9)], OPEN),
    ("text", [("<Thought>a<|im_end|></Thought>\n<Output>3</Output>", 0.9)], OPEN),
    ("text", [("3<|im_end|>", 0.9)], OPEN),
    (None, [("\n<Thought>a</Thought>\n\n<Output>3</Output>.", 0.9)], OPEN),
    (None, [("<think>\na\n</think>\n\n3", 0.9)], OPEN),
    (None, [("It is 3.", 0.9)], OPEN),
    (None, [("It is 3.", 0.9)], Limits(max_repetition=1)),
    ("length", [("<think>a</think>3", 0.9)], Limits()),
    ("length", [("<Thought>a</Thought><Output>3</Output>", 0.9)], Limits(min_tokens=99)),
    (None, [(f"<think>{LONG}</think>3", 0.9)], Limits(max_repetition=1)),
    ("length", [("It is 3.", 0.9)], Limits(min_tokens=9)),
    ("length", [(GOOD, 0.9)], Limits(len(GOOD) + 1, 10**6, 1, 0, 0)),
    (None, [(GOOD, 0.9)], Limits(len(GOOD), len(GOOD), 1, 0, 0)),
    ("length", [(GOOD, 0.9)], Limits(0, len(GOOD) - 1, 1, 0, 0)),
    ("repetition", [(reply(3, LOOP * 9), 0.9)], Limits(0, 10**6, 0.8, 0, 0)),
    ("repetition", [(LOOP * 9, 0.9)], Limits(0, 10**6, 0.8, 0, 0)),
    (None, [(reply(3, LOOP * 9), 0.9)], Limits(0, 10**6, 0.9, 0, 0)),
    ("agreement", [(GOOD, 0.9), (reply(4), 0.5), (reply(4), 0.5)], Limits(0, 10**6, 1, 0.5, 0)),
    (None, [(GOOD, 0.9), (reply(4), 0.5), (reply("3."), 0.1)], Limits(0, 10**6, 1, 0.5, 0)),
    (None, [("It is 3.", 0.9), ("4", 0.5), ("Three!", 0.1)], Limits(0, 10**6, 1, 0.5, 0)),
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
        ("#### 18", "So he has $18.", True),
        ("1200", "1,200", True),
        ("1 and 3", "1, 3", True),
        ("Peter", "peter.", True),
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
        "text",
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
        "messages": [
            {"role": "user", "content": "How many are there?"},
            {"role": "assistant", "content": text},
        ],
        "thought": THOUGHT,
        "output": "3",
        "final": "3",
        "format": "marco",
        "confidence": 0.75,
        "tree": {
            "nodes": 5, "expansions": 4, "rollout_nodes": 0, "finished": 3, "answers": 2,
            "depth": 1, "tokens": 4, "visits": 1, "stop_reason": "expansions",
            "reply_tokens": len(text), "agreement": 2 / 3, "repetition": 0.0,
        },
        "model": "fake",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "form", "thought", "output"),
    [
        ("<think>\na\n</think>\n\nSo it is 3.\n", "think", "a", "So it is 3."),
        ("a\n</think>\n\n3", "think", "a", "3"),
        ("  It is **3**.\n", "plain", "", "It is **3**."),
    ],
)
def test_a_reply_without_marcos_tags_is_kept_as_the_model_wrote_it(
    text, form, thought, output, solve, tmp_path
):
    _, record = only(solve, tmp_path, [(text, 0.9)], answer="3")
    assert record["messages"][-1] == {"role": "assistant", "content": text}
    assert (record["format"], record["thought"]) == (form, thought)
    assert (record["output"], record["final"]) == (output, "3")


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


@pytest.mark.parametrize(
    "values",
    [(-1,), (0, -1), (5, 4), (0, 9, 1.1), (0, 9, float("nan")), (0, 9, 1, "x"), (0, 9, 1, 0, True)],
)
def test_limits_are_checked(values):
    with pytest.raises(ValueError, match="expected m"):
        Limits(*values)
