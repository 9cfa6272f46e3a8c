"""Fine-tuning data: lines in, filters, and a run that may be killed at any moment."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import types
from argparse import ArgumentParser
from pathlib import Path

import pytest

from marco_fast.data import generate as module
from marco_fast.data import journal as data_journal
from marco_fast.data.filters import FILTERS, Limits, repetition
from marco_fast.data.generate import check_output, default_batch, generate_data, journal_of
from marco_fast.data.questions_file import read_questions
from marco_fast.forest.result import Progress, SearchResult, SearchStats
from marco_fast.search.answer import canonical, choose_answer
from marco_fast.search.config import SearchConfig
from marco_fast.search.marco import REFLECTION
from marco_fast.search.mcts import Search
from marco_fast.search.replies import parse_reply

ROOT = Path(__file__).parents[2]
BYTES = [bytes([value]) for value in range(256)]
THOUGHT = "First the ones, then the tens, then both together make up the whole sum asked for."
OPEN = Limits(0, 10**9, 1, 0, 0)  # only form and reference answers count


class FakeEngine:
    """What a run asks of an engine; a token is a byte."""

    name, context, max_branches, dtype = "fake", 400, 4, "torch.float32"
    device = types.SimpleNamespace(type="cpu")
    cache = types.SimpleNamespace(num_pages=7)
    tokenizer = types.SimpleNamespace(all_special_tokens=["<|im_end|>"])

    def prompt_token_ids(self, messages, plain):
        return list("".join(each["content"] for each in messages).encode())


def reply(output: object, thought: str = THOUGHT) -> str:
    return f"<Thought>\n{thought}\n</Thought>\n<Output>\n{output}\n</Output>"


def searched(messages, paths, *, stop_reason="expansions", error=None) -> SearchResult:
    """A result whose paths have these texts and values; the best value answers."""
    config = SearchConfig(expansions=max(1, len(paths)), children=max(1, len(paths)))
    search, answers = Search(messages[-1]["content"], config), {}
    for text, value in paths:
        (ticket,) = search.ask()
        tokens = list(text.encode(errors="surrogateescape"))
        scores = [value] * len(tokens)
        answer = parse_reply(text).answer
        node = search.grow(ticket, tokens, scores, scores, terminal=True, finished=bool(answer))
        search.tell(ticket, value)
        if answer is not None:
            answers[node] = answer
    best = choose_answer(search.tree, answers, "value")
    return SearchResult(
        question=messages[-1]["content"],
        messages=messages,
        answer=answers.get(best, ""),
        thought="" if best is None else parse_reply(paths[best - 1][0]).thought,
        confidence=0.0 if best is None else search.tree.end_value[best],
        tree=search.tree,
        answers=answers,
        answer_node=best or 0,
        stats=SearchStats(len(paths), 0, 0.0, len(paths), 0.0, 0.0, 0, 0),
        stop_reason=stop_reason,
        model="fake",
        prompt_token_ids=[1],
        config=config,
        token_bytes=BYTES,
        error=error,
    )


def fake_solve(chats, engine, config, *, progress):
    """Answers that depend on the questions searched beside: as those of a real search may."""
    beside = sum(len(chat[-1]["content"]) * place for place, chat in enumerate(chats, 2))
    results = []
    for place, chat in enumerate(chats):
        rng = random.Random(f"{chat[-1]['content']} {beside} {place}")
        output = chat[-1]["content"][-40:] + str(rng.randrange(10))
        paths = [(reply(output), rng.uniform(0.3, 1)), (reply(rng.random()), rng.uniform(0, 0.5))]
        results.append(searched(chat, paths))
    progress(snapshot(len(chats), len(chats)))
    return results


def snapshot(done: int, questions: int) -> Progress:
    return Progress(0, questions, done, None, "", "", 0.0, 1, 1, 5, 0.1, 1, 1.0)


@pytest.fixture
def solve(monkeypatch):
    """Puts a search in place of the real one."""

    def put(function=fake_solve):
        monkeypatch.setattr(sys.modules["marco_fast.forest.solve"], "solve", function)

    import marco_fast.forest.solve  # noqa: F401

    put()
    return put


def write_lines(path: Path, lines: list) -> Path:
    path.write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    return path


@pytest.fixture
def source(tmp_path) -> Path:
    return write_lines(
        tmp_path / "q.jsonl", [{"question": f"What is {i} + {i * i}?"} for i in range(40)]
    )


def make(source: Path, out: Path, engine=None, config=None, system=None, **options):
    engine, config = engine or FakeEngine(), config or SearchConfig()
    options = {"limits": OPEN, "batch": 3} | options
    questions = read_questions(source, engine, system=system)
    return generate_data(questions, out, engine, config, **options)


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


# Lines


BAD = [
    (b"not JSON", "line 2: expected a JSON object, got: "),
    (b"", "expected a JSON object, got an empty line"),
    (b"[1]", "expected a JSON object, got list"),
    (b"[" * 100000, "expected a JSON object, got|maximum recursion"),
    (b'{"text": "x"}', 'expected the key "question" or the key "messages", got neither'),
    (b'{"question": "x", "messages": []}', "got both"),
    (b'{"question": 3}', "expected a text, got int"),
    (b'{"messages": "What?"}', "expected a list of messages, got str"),
    (b'{"messages": [{"role": "user"}]}', "expected messages like"),
    (b'{"messages": [{"role": "assistant", "content": "x"}]}', "whose last message is the user's"),
    (b'{"messages": []}', "whose last message is the user's"),
    (b'{"question": "  "}', "expected a question with some text"),
    (b'{"question": "x", "id": 1.5}', 'expected "id" to be a text or an integer, got 1.5'),
    (b'{"question": "x", "id": true}', 'expected "id" to be a text or an integer, got True'),
    (b'{"question": "x", "id": "1"}', "expected an id of its own, got '1' as in line 1"),
    (b'{"question": "x", "answer": [3]}', 'expected "answer" to be a text or a number'),
    (b'{"question": "x", "answer": " "}', 'expected "answer" to have some text'),
    (b'{"question": "\\ud83d"}', "half of a surrogate pair"),
    (b'{"question": "\xff"}', "expected UTF-8, got the byte 0xff"),
    (b'{"question": "' + b"x" * 400 + b'"}', "fewer than 400 tokens .*, got 400"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[str(each[0][:30]) for each in BAD])
def test_a_bad_line_is_named_and_what_was_expected(line, message, tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"question": "good"}\n' + line + b'\n{"question": "good too"}\n')
    found = read_questions(path, FakeEngine())
    assert [each.id for each in found.asked] == ["1", "3"]
    ((number, said),) = found.bad
    assert number == 2
    assert re.search(message.removeprefix("line 2: "), said), said
    assert "\n" not in said


def test_good_lines_are_taken_as_they_are(tmp_path):
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "</Output> 7\u2028\u2029\x85\n🙂 <Thought>", "name": "x"},
    ]
    lines = [
        {"messages": chat, "question": None, "id": None, "answer": None, "more": [1]},
        {"question": " spaces stay ", "id": 77, "answer": 3.5},
        {"question": "last", "id": "ä", "answer": "Tom"},
    ]
    path = tmp_path / "q.jsonl"
    text = "\r\n".join(json.dumps(each, ensure_ascii=False) for each in lines)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())  # a mark in front, no end of the last line
    found = read_questions(path, FakeEngine(), system="Be kind.")
    assert found.bad == []
    assert [each.id for each in found.asked] == ["1", "77", "ä"]
    assert [each.answer for each in found.asked] == [None, "3.5", "Tom"]
    system = {"role": "system", "content": "Be kind."}
    del chat[2]["name"]
    assert found.asked[0].messages == [system, *chat]
    assert found.asked[1].messages == [system, {"role": "user", "content": " spaces stay "}]


def test_a_second_system_prompt_is_a_bad_line(tmp_path):
    chat = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    path = write_lines(tmp_path / "q.jsonl", [{"messages": chat}])
    assert read_questions(path, FakeEngine()).bad == []
    assert "one system prompt" in read_questions(path, FakeEngine(), system="c").bad[0].message


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "q.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match="at least one question"):
        read_questions(tmp_path / "q.jsonl", FakeEngine())


# Filters


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
    ("tags", [("<Thought>a</Thought>\n<Output>\n\n</Output>", 0.9)], OPEN),
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


# A whole run


def test_every_question_once_and_in_order(solve, source, tmp_path):
    seen = []
    summary = make(source, tmp_path / "out", progress=seen.append)
    assert [each["id"] for each in records(tmp_path / "out")] == [str(i) for i in range(1, 41)]
    assert summary.complete
    assert summary.to_dict() | {"seconds": 0} == {
        "questions": 40, "bad_lines": 0, "done": 40, "kept": 40, "resumed": 0, "tokens": 80,
        "refused": dict.fromkeys(FILTERS, 0), "seconds": 0, "complete": True,
        "interrupted": False, "error": None,
    }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"q.jsonl", "out"}
    assert [each.done for each in seen] == sorted(each.done for each in seen)
    assert seen[-1][:4] == (40, 40, 40, 40)


def test_the_batches_are_those_of_the_file(solve, source, tmp_path):
    sizes = []

    def counted(chats, *arguments, **options):
        sizes.append(len(chats))
        return fake_solve(chats, *arguments, **options)

    solve(counted)
    make(source, tmp_path / "out", batch=None, config=SearchConfig(parallel=3))
    assert sizes == [2] * 20  # 4 branches, 3 of a question
    assert default_batch(FakeEngine(), SearchConfig(parallel=4)) == 1


def test_hostile_text_survives_in_one_line_each(solve, tmp_path):
    text = '</Output> "quotes" \\ \n\r\n\t\x00\x85\u2028\u2029 🙂 <|im_end|> {"id": "1"}'
    solve(
        lambda chats, *_, **__: [
            searched(c, [(reply("🙂\u2028\n3", text[9:30]), 1)]) for c in chats
        ]
    )
    source = write_lines(tmp_path / "q.jsonl", [{"question": text}, {"question": text, "id": text}])
    make(source, tmp_path / "out")
    written = (tmp_path / "out").read_text()
    assert len(written.splitlines()) == written.count("\n") == 2
    first, second = records(tmp_path / "out")
    assert first["messages"][0]["content"] == second["id"] == text
    assert first["output"] == "🙂\u2028\n3"
    assert "🙂" in written


def test_an_output_that_exists_is_refused_before_the_search(solve, source, tmp_path):
    out = tmp_path / "out"
    out.write_text("mine")
    solve(lambda *_, **__: pytest.fail("searched"))
    with pytest.raises(ValueError, match=r"that does not exist yet.*--restart"):
        make(source, out)
    assert out.read_text() == "mine"
    assert not journal_of(out).exists()
    with pytest.raises(ValueError, match="expected a file as output"):
        check_output(tmp_path, restart=True)
    solve(fake_solve)
    assert make(source, out, restart=True).kept == 40


def test_a_run_that_just_finished_is_not_made_again(solve, source, tmp_path, monkeypatch):
    """The output comes between the look at it and the lock."""
    out = tmp_path / "out"
    real = data_journal._lock

    def late(path):
        out.write_text("theirs")
        return real(path)

    monkeypatch.setattr(data_journal, "_lock", late)
    with pytest.raises(ValueError, match="that does not exist yet"):
        make(source, out)
    assert out.read_text() == "theirs"
    assert not journal_of(out).exists()


@pytest.mark.parametrize("batch", [0, -2])
def test_a_batch_has_a_question(batch, source, tmp_path):
    with pytest.raises(ValueError, match="expected a batch of at least 1"):
        make(source, tmp_path / "out", batch=batch)


# Interruptions


def stopping_after(batches: int, stop=None):
    """A search that works for some batches, then does what `stop` does."""
    left = [batches]

    def search(chats, *arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            return stop(chats)
        return fake_solve(chats, *arguments, **options)

    return search


def fail(chats):
    raise RuntimeError("no such luck")


def cut_off(reason, error=None):
    def stop(chats):
        whole = fake_solve(chats, None, None, progress=lambda now: None)
        return [*whole[:-1], searched(chats[-1], [], stop_reason=reason, error=error)]

    return stop


@pytest.mark.parametrize(
    ("stop", "error"),
    [
        (fail, "no such luck"),
        (cut_off("error", RuntimeError("NaN")), "NaN"),
        (cut_off("kv_full", RuntimeError("full")), "full"),
        (cut_off("interrupted"), None),
    ],
)
def test_what_is_done_is_kept_and_resumed(stop, error, solve, source, tmp_path):
    make(source, tmp_path / "whole")
    solve(stopping_after(4, stop))
    summary = make(source, tmp_path / "out")
    assert (summary.done, summary.complete, summary.interrupted) == (12, False, error is None)
    assert error is None or error in str(summary.error)
    assert not (tmp_path / "out").exists()
    solve(stopping_after(10))
    summary = make(source, tmp_path / "out")
    assert (summary.done, summary.resumed, summary.complete) == (40, 12, True)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_ctrl_c_at_the_very_end_of_a_batch_is_not_lost(solve, source, tmp_path):
    searches = []

    def search(chats, *arguments, **options):
        searches.append(chats)
        results = fake_solve(chats, *arguments, **options)
        if len(searches) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return results

    before = signal.getsignal(signal.SIGINT)
    solve(search)
    summary = make(source, tmp_path / "out")
    assert summary.interrupted
    assert summary.done == 3
    assert len(searches) == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_during_a_search_ends_it(solve, source, tmp_path):
    def search(chats, *arguments, progress):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(3):
            time.sleep(0.01)
            progress(snapshot(0, 3))
        pytest.fail("went on")

    solve(search)
    summary = make(source, tmp_path / "out")
    assert summary.interrupted
    assert summary.done == 0


def interrupted_run(solve, source, out, batches=5):
    solve(stopping_after(batches, fail))
    make(source, out)
    solve(fake_solve)
    return journal_of(out)


@pytest.mark.parametrize("cut", [1, 2, 40, 700, 1500, 99999])
def test_a_torn_journal_is_cut_off(cut, solve, source, tmp_path):
    make(source, tmp_path / "whole")
    journal = interrupted_run(solve, source, tmp_path / "out")
    data = journal.read_bytes()
    kept = data[: max(60, len(data) - cut)]
    journal.write_bytes(kept)
    summary = make(source, tmp_path / "out")
    assert summary.resumed == (max(0, kept.count(b"\n") - 1) // 3) * 3
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("damage", [b"\x00" * 50, b'{"id": "7"}\n', b"null\n", b'{"id": "x", "se'])
def test_what_follows_a_damaged_line_is_made_again(damage, solve, source, tmp_path):
    make(source, tmp_path / "whole")
    journal = interrupted_run(solve, source, tmp_path / "out")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:8], damage, *lines[8:]]))
    assert make(source, tmp_path / "out").resumed == 6
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_line_of_another_question_is_made_again(solve, source, tmp_path):
    make(source, tmp_path / "whole")
    journal = interrupted_run(solve, source, tmp_path / "out")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:5], lines[4], *lines[5:]]))  # a line twice
    assert make(source, tmp_path / "out").resumed == 3
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


OTHER = [
    ("seed", {"config": SearchConfig(seed=4)}),
    ("expansions", {"config": SearchConfig(expansions=4)}),
    ("batch", {"batch": 2}),
    ("chats with their system prompt", {"system": "Be kind."}),
]


@pytest.mark.parametrize(("name", "options"), OTHER)
def test_another_runs_journal_is_refused(name, options, solve, source, tmp_path):
    journal = interrupted_run(solve, source, tmp_path / "out")
    before = journal.read_bytes()
    with pytest.raises(ValueError, match=f"with {name} .*, got .*--restart"):
        make(source, tmp_path / "out", **options)
    assert journal.read_bytes() == before
    assert make(source, tmp_path / "out", restart=True, **options).resumed == 0


@pytest.mark.parametrize(
    ("name", "value"), [("name", "other"), ("max_branches", 8), ("dtype", "x")]
)
def test_another_engines_journal_is_refused(name, value, solve, source, tmp_path):
    interrupted_run(solve, source, tmp_path / "out")
    engine = FakeEngine()
    setattr(engine, name, value)
    with pytest.raises(ValueError, match="--restart"):
        make(source, tmp_path / "out", engine=engine)


def test_other_questions_are_refused(solve, source, tmp_path):
    interrupted_run(solve, source, tmp_path / "out")
    source.write_text(source.read_text().replace("39 +", "39  +"))
    with pytest.raises(ValueError, match="with questions "):
        make(source, tmp_path / "out")


@pytest.mark.parametrize("text", ["my notes\n", '{"format": "x"}\n', "[]\n", "my notes", '{"x'])
def test_a_file_that_is_no_journal_is_left_alone(text, solve, source, tmp_path):
    journal = journal_of(tmp_path / "out")
    journal.write_text(text)
    with pytest.raises(ValueError, match="expected a journal of generate-data"):
        make(source, tmp_path / "out")
    assert journal.read_text() == text


def test_the_limits_may_change_on_the_way(solve, source, tmp_path):
    strict = Limits(0, 10**9, 1, 0.5, 0.8)
    whole = make(source, tmp_path / "whole", limits=strict)
    interrupted_run(solve, source, tmp_path / "out")
    summary = make(source, tmp_path / "out", limits=strict)
    assert summary.refused == whole.refused
    assert 0 < summary.kept < 40
    assert summary.refused["confidence"] > 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_two_runs_on_one_output_are_refused(solve, source, tmp_path):
    def second(chats, *arguments, **options):
        for restart in (False, True):
            with pytest.raises(ValueError, match="expected to be the only run"):
                make(source, tmp_path / "out", restart=restart)
        return fake_solve(chats, *arguments, **options)

    solve(second)
    assert make(source, tmp_path / "out").kept == 40


def test_the_lock_is_that_of_the_file_that_is_there(solve, source, tmp_path, monkeypatch):
    """Another run finishes, and removes its journal, between our opening it and our locking it."""
    journal, real, calls = journal_of(tmp_path / "out"), data_journal.fcntl.flock, []

    def late(file, operation):
        calls.append(file)
        if len(calls) == 1:
            journal.unlink()
            journal.touch()  # and a third run has begun
        real(file, operation)

    def search(chats, *arguments, **options):
        assert journal.stat().st_size
        return fake_solve(chats, *arguments, **options)

    monkeypatch.setattr(data_journal.fcntl, "flock", late)
    solve(search)
    assert make(source, tmp_path / "out").complete
    assert len(calls) == 2


def test_what_is_reported_is_on_the_disk(solve, source, tmp_path, monkeypatch):
    """Each batch is one write, and synced before anything else; the output before it is moved."""
    calls = []

    def traced(name, real):
        return lambda *arguments: calls.append(name) or real(*arguments)

    for name in ("write", "fsync", "replace", "unlink"):
        monkeypatch.setattr(data_journal.os, name, traced(name, getattr(os, name)))

    def search(chats, *arguments, **options):
        calls.append("search")
        return fake_solve(chats, *arguments, **options)

    solve(search)
    make(source, tmp_path / "out", batch=20)
    begin = ["write", "fsync", "fsync", "fsync"]  # the header, its folder, what a resume cuts off
    end = ["fsync", "replace", "fsync", "unlink", "fsync"]
    assert calls == [*begin, *["search", "write", "fsync"] * 2, *end]


def test_a_full_disk_loses_nothing_that_was_done(solve, source, tmp_path, monkeypatch):
    make(source, tmp_path / "whole")
    real, calls = os.write, []

    def full(file, data):
        calls.append(0)
        if len(calls) == 6:
            return real(file, data[: len(data) // 2])
        if len(calls) == 7:
            raise OSError(28, "No space left on device")
        return real(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(data_journal.os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            make(source, tmp_path / "out")
    assert make(source, tmp_path / "out").resumed == 12
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


# Kills


class Children:
    """Runs in processes of their own, forked from one that has loaded what they need.

    That one runs nothing itself, so that no thread of it can hold a lock at a fork.
    """

    def __init__(self, *, real: bool) -> None:
        code = f"from tests.data.test_generate_data import serve; serve({real})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip

    def ask(self, *words: object) -> int:
        print(json.dumps([str(each) for each in words]), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def start(self, source: Path, out: Path, seconds: float, deadly: int = 0) -> int:
        """A run with a search of so many seconds a batch, which dies at that operation on files."""
        return self.ask(source, out, seconds, deadly)

    def close(self) -> None:
        self.process.stdin.close()
        assert self.process.wait(30) == 0

    def end(self) -> int:
        """The exit code of the run, once it has ended; until then its number is its own."""
        return self.ask()


def serve(real: bool) -> None:
    """What a Children's process does: a line with arguments is a run, an empty one its end."""
    pid = 0
    if real:
        from transformers import AutoModelForCausalLM, Qwen2ForCausalLM  # noqa: F401

        import marco_fast.forest.solve  # noqa: F401
    for line in sys.stdin:
        words = json.loads(line)
        if not words:
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            sys.stdout = sys.stderr  # the other one is for the parent's questions
            os._exit(command(words) if real else fake_run(*words))
        print(pid, flush=True)


@pytest.fixture
def children():
    made = Children(real=False)
    yield made
    made.close()


def fake_run(source: str, out: str, seconds: str, deadly: str) -> int:
    def slow(*arguments, **options):
        time.sleep(float(seconds))
        return fake_solve(*arguments, **options)

    # In place of the real one, which would load PyTorch.
    sys.modules["marco_fast.forest.solve"] = types.SimpleNamespace(
        solve=slow, interrupts=no_interrupts
    )
    die_at(int(deadly))
    make(Path(source), Path(out))
    return 0


def no_interrupts():
    import contextlib
    import threading

    return contextlib.nullcontext(threading.Event())


def die_at(deadly: int) -> None:
    """SIGKILL in front of the n-th operation on files; a write is cut in half by it."""
    calls = []

    def counted(name, real):
        def call(*arguments, **options):
            calls.append(name)
            if len(calls) == deadly:
                if name == "write":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    for name in ("open", "write", "fsync", "ftruncate", "replace", "unlink"):
        setattr(data_journal.os, name, counted(name, getattr(os, name)))


def finished(out: Path) -> bool:
    return out.exists() and not journal_of(out).exists()


def test_fifty_kills_leave_no_trace(children, solve, source, tmp_path):
    make(source, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    rng, kills, runs, resumed = random.Random(0), 0, 0, set()
    while kills < 50:
        out = tmp_path / f"out{runs}"
        runs += 1
        while not finished(out):
            pid = children.start(source, out, 0.01)
            time.sleep(rng.uniform(0, 0.15))
            os.kill(pid, signal.SIGKILL)
            code = children.end()
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
            if journal_of(out).exists():
                resumed.add(journal_of(out).read_bytes().count(b"\n"))
        assert out.read_bytes() == whole
        assert not [*tmp_path.glob("*.journal"), *tmp_path.glob("*.tmp")]
    assert len(resumed) > 5  # they came at different moments


def test_a_kill_at_every_operation_on_files_leaves_no_trace(children, solve, tmp_path):
    lines = [{"question": f"What is {i} + {i * i}?"} for i in range(5)]
    source = write_lines(tmp_path / "q.jsonl", lines)
    make(source, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for deadly in range(1, 40):
        out = tmp_path / f"out{deadly}"
        children.start(source, out, 0, deadly)
        code = children.end()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        if not finished(out):
            make(source, out)
        assert out.read_bytes() == whole
        assert not [*tmp_path.glob("*.journal"), *tmp_path.glob("*.tmp")]
    assert deadly > 15


def test_the_lock_dies_with_its_process(children, solve, source, tmp_path):
    out = tmp_path / "out"
    pid = children.start(source, out, 30)
    while not journal_of(out).exists() or not journal_of(out).stat().st_size:
        time.sleep(0.01)
    with pytest.raises(ValueError, match="expected to be the only run"):
        make(source, out)
    os.kill(pid, signal.SIGKILL)
    children.end()
    assert make(source, out).kept == 40


# The real search, and the command


@pytest.fixture(scope="module")
def nano():
    from marco_fast.engine.engine import Engine

    with Engine.from_pretrained("nano-marco", max_branches=8) as engine:
        yield engine


REAL = ["--expansions", "3", "--parallel", "4", "--max-branches", "8", "--min-agreement", "0"]
COMMAND = (
    "import sys; from tests.data.test_generate_data import command; sys.exit(command(sys.argv[1:]))"
)


@pytest.fixture(scope="module")
def real_source(tmp_path_factory) -> Path:
    words = ("strawberry", "cheese", "moon", "letter", "banana", "tomato", "kettle", "ladder")
    lines = [{"question": f"How many times does the letter e occur in {word}?"} for word in words]
    return write_lines(tmp_path_factory.mktemp("real") / "q.jsonl", lines)


def command(arguments) -> int:
    """marco-fast generate-data, as cli.main runs a command."""
    from marco_fast.commands import generate_data as the_command

    parser = ArgumentParser(prog="marco-fast")
    the_command.add(parser.add_subparsers(dest="command"))
    options = parser.parse_args(["generate-data", *map(str, arguments)])
    try:
        return options.run(options)
    except ValueError as error:
        print(f"marco-fast {options.command}: error: {error}", file=sys.stderr)
        return 2


def start_command(*arguments, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}, **options,
    )  # fmt: skip


def wait_for_lines(path: Path, lines: int, seconds: float = 120) -> None:
    """Until the journal has so many lines."""
    end = time.monotonic() + seconds
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < end
        time.sleep(0.002)


def test_the_real_search_after_kills(real_source, tmp_path, capfd):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert command([real_source, "--out", whole, *REAL]) == 0
    assert "kept 8" in capfd.readouterr().out
    children = Children(real=True)
    for lines in (1, 3, 5):
        pid = children.ask(real_source, "--out", out, *REAL)
        wait_for_lines(journal_of(out), lines)
        time.sleep(random.Random(lines).uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        assert children.end() == -signal.SIGKILL
        assert not out.exists()
    children.close()
    assert command([real_source, "--out", out, *REAL]) == 0
    said = capfd.readouterr().out
    assert int(said.split("searched 8 (")[1].split()[0]) >= 4
    assert out.read_bytes() == whole.read_bytes()


def test_ctrl_c_exits_130_and_says_how_to_go_on(real_source, tmp_path):
    out = tmp_path / "out"
    arguments = [real_source, "--out", out, *REAL, "--expansions", "100000", "--step-tokens", "2"]
    with start_command(
        *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as child:  # fmt: skip
        wait_for_lines(journal_of(out), 1)
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        said, error = child.communicate(timeout=60)
    assert child.returncode == 130, error
    assert "interrupted; 0 of 8 questions are done, the same command goes on from there" in error
    assert "Traceback" not in error
    assert "searched 0" in said
    assert journal_of(out).exists()
    assert not out.exists()


def test_a_real_record_is_the_searchs(nano, real_source, tmp_path):
    from marco_fast.forest.solve import solve

    config = SearchConfig(expansions=6, parallel=4, reflect=True, seed=5)
    make(real_source, tmp_path / "out", engine=nano, config=config, batch=2, system="Be kind.")
    record = records(tmp_path / "out")[0]
    begin = (int(record["id"]) - 1) // 2 * 2
    asked = read_questions(real_source, nano, system="Be kind.").asked[begin : begin + 2]
    results = solve([each.messages for each in asked], nano, config)
    (result,) = [r for r, each in zip(results, asked, strict=True) if each.id == record["id"]]
    assert record["messages"][:-1] == result.messages
    assert [each["role"] for each in record["messages"]] == ["system", "user", "assistant"]
    text = record["messages"][-1]["content"]
    assert result.text.startswith(text)
    assert text.endswith("</Output>")
    assert REFLECTION.strip() in text
    assert (record["thought"], record["output"]) == (result.thought, result.answer)
    assert record["confidence"] == result.confidence
    assert record["tree"]["nodes"] == len(result.tree)
    assert record["model"] == "nano-marco"


@pytest.mark.parametrize("mode", ["refuse", "skip"])
def test_bad_lines_are_refused_or_left_out(mode, tmp_path, capfd):
    source = tmp_path / "q.jsonl"
    good = json.dumps({"question": "How many times does the letter e occur in tree?"})
    source.write_text("\n".join([good, *["bad"] * 23, good, json.dumps({"question": "x " * 2000})]))
    arguments = [source, "--out", tmp_path / "out", *REAL, "--bad-lines", mode, "--json"]
    code = command(arguments)
    captured = capfd.readouterr()
    named = [line for line in captured.err.splitlines() if "generate-data: line " in line]
    assert len(named) == 20
    assert "line 2: expected a JSON object" in named[0]
    assert "24 bad lines (4 of them not shown)" in captured.err
    if mode == "refuse":
        assert (code, captured.out) == (2, "")
        assert not (tmp_path / "out").exists()
        assert not journal_of(tmp_path / "out").exists()
        return
    assert code == 0
    summary = json.loads(captured.out)
    assert (summary["questions"], summary["bad_lines"], summary["done"]) == (2, 24, 2)
    assert [each["id"] for each in records(tmp_path / "out")] == ["1", "25"][: summary["kept"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--min-confidence", "2"], "expected min_confidence to be from 0 to 1, got 2.0"),
        (["--expansions", "0"], "expected expansions to be from 1"),
        (["--out", "/nowhere/out"], "expected --out in a folder that exists"),
        (["--restart", "--out", "{source}"], "another file than the questions"),
        (["--out", "{source}"], "that does not exist yet"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(
    arguments, message, real_source, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr("marco_fast.engine.engine.Engine.from_pretrained", pytest.fail)
    words = [each.format(source=real_source) for each in arguments]
    before = real_source.read_bytes()
    assert command([real_source, "--out", tmp_path / "out", *words]) == 2
    assert message in capfd.readouterr().err
    assert command([tmp_path / "none", "--out", tmp_path / "out"]) == 2
    assert real_source.read_bytes() == before


def test_every_limit_reaches_its_filter(real_source, tmp_path, monkeypatch, capfd):
    found = []

    def stop(*arguments, limits, batch, **options):
        found.append((limits, batch))
        raise ValueError("enough")

    monkeypatch.setattr(module, "generate_data", stop)
    words = "--min-tokens 1 --max-tokens-kept 2 --max-repetition 0.3 --min-agreement 0.4"
    words += " --min-confidence 0.5 --batch 6 --max-tokens 999"
    assert command([real_source, "--out", tmp_path / "out", *words.split()]) == 2
    assert found == [(Limits(1, 2, 0.3, 0.4, 0.5), 6)]


def test_a_terminal_shows_how_far_it_is():
    from rich.console import Console

    from marco_fast.commands.generate_data import _View
    from marco_fast.data.generate import DataProgress

    view = _View()
    view.console = Console(width=100, record=True, force_terminal=True)
    view.live.console = view.console
    with view:
        view(DataProgress(1000, 100, 60, 50, 25000, 100.0))
    shown = view.console.export_text()
    assert "100 of 1000 questions, 60 kept, 0.50 questions/s, 250 tokens/s, 00:30:00 left" in shown


def test_trl_trains_on_the_file_as_it_is(solve, tmp_path):
    """One step of nano-marco; only the replies count, with a template that marks them."""
    trl = pytest.importorskip("trl")
    import torch
    import transformers
    from datasets import load_dataset

    lines = [{"question": f"What is {i} + 1?", "id": i if i % 2 else f"q{i}"} for i in range(6)]
    out = tmp_path / "out"
    make(write_lines(tmp_path / "q.jsonl", lines), out, system="Be kind.")
    data = load_dataset("json", data_files=str(out), split="train", cache_dir=str(tmp_path / "c"))
    assert data.to_list() == records(out)
    folder = ROOT / "marco_fast" / "models" / "nano-marco"
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = model.model.embed_tokens.weight.clone()
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path / "t"), max_steps=1, per_device_train_batch_size=2,
        assistant_only_loss=True, bf16=False, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=model, args=arguments, train_dataset=data, processing_class=tokenizer
    )
    batch = next(iter(trainer.get_train_dataloader()))
    for labels in batch["labels"]:
        text = tokenizer.decode(labels[labels != -100])
        assert text in {each["messages"][-1]["content"] + "<|im_end|>" for each in records(out)}
    assert trainer.train().training_loss > 0
    assert not torch.equal(model.model.embed_tokens.weight, before)
