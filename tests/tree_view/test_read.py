"""What tree.json must be: each field that is wrong is named."""

import json
import re

import pytest

from marco_fast.tree_view.read import read_tree
from tests.support.saved_trees import older, put, small_tree


def test_a_tree_is_read_as_it_was_saved(tmp_path):
    tree = small_tree()
    assert read_tree(put(tmp_path / "tree.json", tree)) == tree
    assert read_tree(put(tmp_path / "tree.json", older(tree))) == older(tree)
    for node in tree["nodes"]:
        del node["texts"], node["answer"]
    assert read_tree(str(put(tmp_path / "tree.json", tree))) == tree


def changed(path: str, value: object) -> dict:
    """The small tree with one value replaced, or left out."""
    tree: dict = small_tree()
    *way, last = (int(key) if key.isdigit() else key for key in path.split("."))
    place = tree
    for key in way:
        place = place[key]
    place[last] = value
    if value is LEFT_OUT:
        del place[last]
    return tree


LEFT_OUT = object()
NUMBERS = (True, "1", None, [], {})
NO_TEXT = (1, None, [], {})
WRONG: dict[str, tuple] = {
    "format": ("marco-fast", None, LEFT_OUT),
    "version": (3, 0, "2", True, None, [], LEFT_OUT),
    "model": (*NO_TEXT, LEFT_OUT),
    "question": (*NO_TEXT, LEFT_OUT),
    "prompt_token_ids": ([1.5], [None], "12", None, LEFT_OUT),
    "config": ([], None, "{}", LEFT_OUT),
    "seed": (0.5, *NUMBERS, LEFT_OUT),
    "nodes": ([], {}, None, "", [None], [[]], LEFT_OUT),
    "answer_node": (-1, 5, 1.0, *NUMBERS, LEFT_OUT),
    "answer": (*NO_TEXT, LEFT_OUT),
    "thought": (*NO_TEXT, LEFT_OUT),
    "confidence": (10**30, *NUMBERS, LEFT_OUT),
    "final": (*NO_TEXT, LEFT_OUT),
    "finished": (0, 1, "true", None, [], LEFT_OUT),
    "support": (10**30, *NUMBERS, LEFT_OUT),
    "stop_reason": (*NO_TEXT, LEFT_OUT),
    "stats": ([], None, {"tokens": "1"}, {"tokens": None}, LEFT_OUT),
    "nodes.1.id": (0, 2, -1, 1.0, *NUMBERS, LEFT_OUT),
    "nodes.0.parent": (0, 1, -2, LEFT_OUT),
    "nodes.2.parent": (2, 3, -1, 0.0, *NUMBERS, LEFT_OUT),
    "nodes.1.token_ids": ([7], [7, 8, 9], [7, None], [7, 0.5], [True, 8], "78", None, LEFT_OUT),
    "nodes.1.logprobs": ([0.0], [0.0, "x"], [0.0, True], {}, None, LEFT_OUT),
    "nodes.1.confidences": ([1.0], [1.0, 0.5, 0.5], [1.0, [0.5]], None, LEFT_OUT),
    "nodes.1.texts": (["strawber"], ["straw", None], "st", None),
    "nodes.1.visits": (-1, 1.0, *NUMBERS, LEFT_OUT),
    "nodes.1.value": NUMBERS,
    "nodes.1.path_confidence": (*NUMBERS, LEFT_OUT),
    "nodes.1.terminal": (0, 1, "false", None, LEFT_OUT),
    "nodes.1.end": ("eos", "", "stop", True, 1, [], {}, LEFT_OUT),  # it is not terminal
    "nodes.3.end": ("EOS", False, ["eos"], LEFT_OUT),
    "nodes.3.answer": (3, False, [], {}),
}


@pytest.mark.parametrize("path", WRONG)
def test_a_malformed_tree_is_named_with_its_file_and_field(path, tmp_path):
    file = tmp_path / "saved.json"
    for value in WRONG[path]:
        put(file, changed(path, value))
        with pytest.raises(ValueError, match=r"^expected .*, got .+") as error:
            read_tree(file)
        message = str(error.value)
        assert str(file) in message
        assert "\n" not in message
        field = re.sub(r"nodes\.(\d)", r"nodes[\1]", path)
        node = field.rpartition(".")[0]  # of lists of different lengths no one is the wrong one
        named = re.match(rf"expected {re.escape(field)}(?!\w)", message)
        assert named or (node and f"in {node} of" in message), message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "JSON in FILE, got Expecting value.*"),
        ("{", "JSON in FILE, got Expecting property name.*"),
        ('{"confidence": NaN}', "JSON in FILE, got the number NaN"),
        ('{"confidence": -Infinity}', "JSON in FILE, got the number -Infinity"),
        ("[" * 100_000, "JSON in FILE, got .*recursion.*"),
        ("[]", r"an object in FILE, got \[\]"),
        ('"tree"', 'an object in FILE, got "tree"'),
        (json.dumps(["x" * 10_000]), r'an object in FILE, got \["x{50,60}\.\.\.'),
        (
            json.dumps(small_tree()).replace("0.91234567", "1e999"),
            "confidence in FILE to be a finite number, got Infinity",
        ),
    ],
    ids=lambda each: each[:20],
)
def test_other_texts_are_refused(text, told, tmp_path):
    file = put(tmp_path / "saved.json", text)
    with pytest.raises(ValueError, match="expected") as error:
        read_tree(file)
    assert re.fullmatch("expected " + told.replace("FILE", repr(str(file))), str(error.value))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "saved.json").write_bytes(b'"\xff\xfe\xfd"')
    with pytest.raises(ValueError, match=r"^expected JSON in .*saved\.json', got "):
        read_tree(tmp_path / "saved.json")


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_tree(tmp_path / "saved.json")
