"""Lines of a questions file: what is taken, and what a bad one is told."""

import json
import re

import pytest

from marco_fast.data.questions_file import read_questions
from tests.support.data_runs import FakeEngine, write_lines

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
