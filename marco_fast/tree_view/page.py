"""A saved search tree as a page: tree.json in, one self-contained HTML file out."""

import base64
import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Environment, PackageLoader, StrictUndefined

from marco_fast.files import write_whole
from marco_fast.search.replies import parse_reply

__all__ = ["read_tree", "write_tree_page"]

Check = tuple[str, Callable[[Any], bool]]  # what is expected, and whether a value is that


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # An integer too large for a float is no number that a page could show.
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
NODE_FIELDS: dict[str, Check] = {
    "id": INTEGER,
    "parent": INTEGER,
    "token_ids": IDS,
    "logprobs": SCORES,
    "confidences": SCORES,
    "visits": COUNT,
    "value": NUMBER,
    "path_confidence": NUMBER,
    "terminal": ("true or false", lambda value: isinstance(value, bool)),
}
TEXTS: Check = ("a list of texts", _is_list_of(TEXT[1]))
LABEL = 22  # characters of a text beside a node
LISTS = ("token_ids", "logprobs", "confidences", "texts")


def read_tree(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A tree.json, checked.

    Args:
        path: a file that SearchResult.save or `marco-fast solve --save` wrote.

    Returns:
        What the file holds. Nodes may lack "texts" (a text a token); everything else is there.

    Raises:
        ValueError: the file is not JSON, of another format or version, or a field is missing, of
            another type or out of its range; the message names the file and the field.
        OSError: the file cannot be read.
    """
    name = str(path)
    try:
        tree = json.loads(Path(path).read_bytes(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON in {name!r}, got {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"expected an object in {name!r}, got {_shown(tree)}")
    for key, wanted in (("format", "marco-fast-tree"), ("version", 1)):
        if tree.get(key) != wanted or isinstance(tree[key], bool):
            got = _shown(tree.get(key))
            raise ValueError(f"expected {key} {json.dumps(wanted)} in {name!r}, got {got}")
    _check_fields(tree, TREE_FIELDS, "", name)
    for index, node in enumerate(tree["nodes"]):
        _check_node(node, index, name)
    last = len(tree["nodes"]) - 1
    if not 0 <= tree["answer_node"] <= last:
        got = tree["answer_node"]
        raise ValueError(f"expected answer_node in {name!r} to be from 0 to {last}, got {got}")
    return tree


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"the number {word}")


def _shown(value: Any) -> str:
    """A value in an error message: short, on one line."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_fields(values: dict[str, Any], checks: dict[str, Check], where: str, file: str) -> None:
    for key, (expected, is_right) in checks.items():
        if key not in values:
            raise ValueError(f"expected {where}{key} in {file!r}, got nothing of that name")
        if not is_right(values[key]):
            got = _shown(values[key])
            raise ValueError(f"expected {where}{key} in {file!r} to be {expected}, got {got}")


def _check_node(node: Any, index: int, file: str) -> None:
    where = f"nodes[{index}]."
    if not isinstance(node, dict):
        raise ValueError(f"expected nodes[{index}] in {file!r} to be an object, got {_shown(node)}")
    _check_fields(node, NODE_FIELDS | ({"texts": TEXTS} if "texts" in node else {}), where, file)
    if node["id"] != index:
        raise ValueError(f"expected {where}id in {file!r} to be {index}, got {node['id']}")
    lowest, highest = (0, index - 1) if index else (-1, -1)
    if not lowest <= node["parent"] <= highest:
        expected = f"an earlier node (0 to {highest})" if index else "-1 (node 0 is the root)"
        got = node["parent"]
        raise ValueError(f"expected {where}parent in {file!r} to be {expected}, got {got}")
    lengths = {key: len(node[key]) for key in LISTS if key in node}
    if len(set(lengths.values())) != 1:
        got = ", ".join(f"{length} {key}" for key, length in lengths.items())
        raise ValueError(f"expected lists of one length in nodes[{index}] of {file!r}, got {got}")


def write_tree_page(tree: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the page that shows a tree: whole or not at all.

    The page is one HTML file without a reference to anything outside it. Everything that the tree
    says travels as JSON; the page's script alone turns it into text.

    Args:
        tree: from read_tree.
        path: the HTML file, in a folder that exists; an older one is replaced.

    Raises:
        OSError: the file cannot be written; an older one is then as it was.
    """
    environment = Environment(
        loader=PackageLoader("marco_fast.tree_view", "."),
        autoescape=True,
        undefined=StrictUndefined,
    )
    # The template's tojson escapes <, >, & and all that is not ASCII: no text can end the script.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters["sha256"] = _sha256
    page = environment.get_template("page.html.j2").render(data=_page_data(tree))
    write_whole(path, page)


def _sha256(text: str) -> str:
    """The hash by which a Content-Security-Policy allows this inline text."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _page_data(tree: dict[str, Any]) -> dict[str, Any]:
    """What the page's script reads."""
    nodes = [{**node, "texts": _texts(node)} for node in tree["nodes"]]
    children: list[list[dict[str, Any]]] = [[] for _ in nodes]
    for node in nodes[1:]:
        children[node["parent"]].append(node)
    for node in nodes:
        node["answer"] = _answer(nodes, node) if node["terminal"] else None
        node["ending"] = _label(node["answer"] or "")
        # What sets a child apart is what comes after the beginning that all siblings share.
        texts = ["".join(child["texts"]) for child in children[node["id"]]]
        shared = _shared(texts)
        for child, text in zip(children[node["id"]], texts, strict=True):
            child["beginning"] = _label(f"…{text[shared:]}" if text[shared:] and shared else text)
    keys = ("question", "answer", "answer_node")
    return {
        **{key: tree[key] for key in keys},
        "facts": _facts(tree),
        "options": [[key, _option(value)] for key, value in tree["config"].items()],
        "nodes": nodes,
    }


def _texts(node: dict[str, Any]) -> list[str]:
    """A text a token; its id where the file has no texts."""
    return node.get("texts", [f"⟨{token}⟩" for token in node["token_ids"]])


def _shared(texts: list[str]) -> int:
    """How many characters all texts begin with: those of the first and the last in order do."""
    low, high = min(texts, default=""), max(texts, default="")
    both = min(len(low), len(high))
    return next((i for i in range(both) if low[i] != high[i]), both)


def _label(text: str) -> str:
    """A text short enough to stand beside a node."""
    line = " ".join(text.split())
    return line if len(line) <= LABEL else f"{line[: LABEL - 1]}…"


def _answer(nodes: list[dict[str, Any]], node: dict[str, Any]) -> str | None:
    """The answer that a path ends with; None where it has none, or no texts."""
    pieces = ["".join(node["texts"])]
    while node["parent"] >= 0:
        node = nodes[node["parent"]]
        pieces.append("".join(node["texts"]))
    return parse_reply("".join(reversed(pieces))).answer


def _facts(tree: dict[str, Any]) -> list[list[str]]:
    """Names and figures of the header; a figure that the file lacks is left out."""
    stats, depths = tree["stats"], [0]
    for node in tree["nodes"][1:]:
        depths.append(depths[node["parent"]] + 1)
    facts = {
        "confidence": f"{tree['confidence']:.5g}",
        "model": tree["model"],
        "stopped by": tree["stop_reason"],
        "expansions": stats.get("expansions"),
        "expansions/s": stats.get("expansions_per_second"),
        "tokens": stats.get("tokens"),
        "seconds": stats.get("seconds"),
        "nodes": len(depths),
        "depth": max(depths),
        "seed": str(tree["seed"]),
    }
    return [[name, _plain(value)] for name, value in facts.items() if value is not None]


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and abs(value) >= 1:
        return f"{value:,.1f}"
    return f"{value:,}" if _is_int(value) else f"{value:.3g}"


def _option(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
