"""JSON files: what is refused, and by which message."""

import re

import pytest

from marco_fast.files import read_json


def test_objects_and_lists_are_read(tmp_path):
    file = tmp_path / "x.json"
    file.write_text('{"a": [1.5, "é"]}', encoding="utf-8")
    assert read_json(file, "an object", dict) == {"a": [1.5, "é"]}
    file.write_bytes(b"\xef\xbb\xbf[]")
    assert read_json(str(file), "a list", list) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"{", "JSON in FILE, got Expecting property name.*"),
        (b"[NaN]", "JSON in FILE, got the number NaN"),
        (b"[" * 100_000, "JSON in FILE, got .*recursion.*"),
        (b'"\xff\xfe\xfd"', "JSON in FILE, got .*decode.*"),
        (b'{"role": "user"}', 'a list of messages in FILE, got {"role": "user"}'),
    ],
)
def test_anything_else_is_named_with_its_file(text, told, tmp_path):
    file = tmp_path / "x.json"
    file.write_bytes(text)
    with pytest.raises(ValueError, match="expected") as error:
        read_json(file, "a list of messages", list)
    assert re.fullmatch("expected " + told.replace("FILE", repr(str(file))), str(error.value))


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json", "an object", dict)
