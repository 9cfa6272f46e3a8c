"""Reading tree.json: a saved search, with every field checked before a page shows it."""

import json
import math
import os
from collections.abc import Callable
from typing import Any

from marco_fast.files import read_json, short_json
from marco_fast.search.tree import ENDS

__all__ = ["read_tree"]

Check = tuple[str, Callable[[Any], bool]]  # what is expected, and whether a value meets it


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # An integer beyond 64 bits cannot be shown: the page's script reads every number as a float.
    return (_is_int(value) and abs(value) < 2**63) or (
        isinstance(value, float) and math.isfinite(value)
    )


def _is_list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(check(each) for each in value)


TEXT: Check = ("a text", lambda value: isinstance(value, str))
NUMBER: Check = ("a finite number", _is_number)
INTEGER: Check = ("an integer", _is_int)
COUNT: Check = ("an integer of at least 0", lambda value: _is_int(value) and value >= 0)
IDS: Check = ("a list of integers", _is_list_of(_is_int))
TEXTS: Check = ("a list of texts", _is_list_of(TEXT[1]))
SWITCH: Check = ("true or false", lambda value: isinstance(value, bool))
SCORES: Check = (
    "a list of finite numbers or nulls",
    _is_list_of(lambda value: value is None or _is_number(value)),
)

TREE_FIELDS: dict[str, Check] = {
    "model": TEXT,
    "question": TEXT,
    "prompt_token_ids": IDS,
    "config": ("an object", lambda value: isinstance(value, dict)),
    "seed": INTEGER,
    "nodes": ("a list of at least one node", lambda value: isinstance(value, list) and value != []),
    "answer_node": INTEGER,
    "answer": TEXT,
    "thought": TEXT,
    "confidence": NUMBER,
    "stop_reason": TEXT,
    "stats": (
        "an object of numbers",
        lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
    ),
}
# What version 2 has besides.
RESULT_FIELDS: dict[str, Check] = {"final": TEXT, "finished": SWITCH, "support": NUMBER}
NODE_FIELDS: dict[str, Check] = {
    "id": INTEGER,
    "parent": INTEGER,
    "token_ids": IDS,
    "logprobs": SCORES,
    "confidences": SCORES,
    "visits": COUNT,
    "value": NUMBER,
    "path_confidence": NUMBER,
    "terminal": SWITCH,
}
END_FIELDS: dict[str, Check] = {
    "end": (
        f"null or one of {', '.join(ENDS)}",
        lambda value: value is None or (isinstance(value, str) and value in ENDS),
    ),
}
# What a node may lack.
OPTIONAL_FIELDS: dict[str, Check] = {
    "texts": TEXTS,
    "answer": ("null or a text", lambda value: value is None or isinstance(value, str)),
}
# The lists of a node with one element per token; a node may lack "texts".
TOKEN_LISTS = ("token_ids", "logprobs", "confidences", "texts")


def read_tree(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A tree.json, checked.

    Args:
        path: a file that SearchResult.save or `marco-fast solve --save` wrote.

    Returns:
        What the file holds, and all fields of its version are there: 2, or 1, which lacks "final",
        "finished", "support", and the nodes' "end". Nodes may lack "texts" (one text per token) and
        "answer" (of a finished path, else null).

    Raises:
        ValueError: the file is not JSON or of another format or version, or a field is missing,
            has another type, or is out of its range; the message names the file and the field.
        OSError: the file cannot be read.
    """
    name = str(path)
    tree = read_json(path, "an object", dict)
    for key, allowed in (("format", ("marco-fast-tree",)), ("version", (1, 2))):
        if tree.get(key) not in allowed or isinstance(tree[key], bool):
            expected, got = " or ".join(map(json.dumps, allowed)), short_json(tree.get(key))
            raise ValueError(f"expected {key} {expected} in {name!r}, got {got}")
    newer = tree["version"] == 2
    _check_fields(tree, TREE_FIELDS | (RESULT_FIELDS if newer else {}), "", name)
    for index, node in enumerate(tree["nodes"]):
        _check_node(node, NODE_FIELDS | (END_FIELDS if newer else {}), index, name)
    last = len(tree["nodes"]) - 1
    if not 0 <= tree["answer_node"] <= last:
        got = tree["answer_node"]
        raise ValueError(f"expected answer_node in {name!r} to be from 0 to {last}, got {got}")
    return tree


def _check_fields(values: dict[str, Any], checks: dict[str, Check], where: str, file: str) -> None:
    for key, (expected, is_right) in checks.items():
        if key not in values:
            raise ValueError(f"expected {where}{key} in {file!r}, got nothing of that name")
        if not is_right(values[key]):
            got = short_json(values[key])
            raise ValueError(f"expected {where}{key} in {file!r} to be {expected}, got {got}")


def _check_node(node: Any, checks: dict[str, Check], index: int, file: str) -> None:
    where = f"nodes[{index}]."
    if not isinstance(node, dict):
        got = short_json(node)
        raise ValueError(f"expected nodes[{index}] in {file!r} to be an object, got {got}")
    _check_fields(
        node, checks | {k: v for k, v in OPTIONAL_FIELDS.items() if k in node}, where, file
    )
    if node["id"] != index:
        raise ValueError(f"expected {where}id in {file!r} to be {index}, got {node['id']}")
    lowest, highest = (0, index - 1) if index else (-1, -1)
    if not lowest <= node["parent"] <= highest:
        expected = f"an earlier node (0 to {highest})" if index else "-1 (node 0 is the root)"
        got = node["parent"]
        raise ValueError(f"expected {where}parent in {file!r} to be {expected}, got {got}")
    if node.get("end") is not None and not node["terminal"]:
        got = node["end"]
        raise ValueError(
            f"expected {where}end in {file!r} to be null where not terminal, got {got}"
        )
    lengths = {key: len(node[key]) for key in TOKEN_LISTS if key in node}
    if len(set(lengths.values())) != 1:
        got = ", ".join(f"{length} {key}" for key, length in lengths.items())
        raise ValueError(f"expected lists of one length in nodes[{index}] of {file!r}, got {got}")
