"""The page that shows a saved search tree: one self-contained HTML file."""

import base64
import hashlib
import json
import os
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from marco_fast.files import write_whole
from marco_fast.search.replies import AUTO, MARCO, REPLIES

__all__ = ["write_tree_page"]

LABEL = 22  # most characters of a text that is written beside a node


def write_tree_page(tree: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the page that shows a tree: whole or not at all.

    The page is one HTML file without a reference to anything outside it. Every text of the tree
    travels as JSON, and the page's script alone turns it into visible text.

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
    # The template's tojson escapes <, >, & and every non-ASCII character, so that no text of the
    # tree can end the script element.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters["sha256"] = _sha256
    page = environment.get_template("page.html.j2").render(data=_page_data(tree))
    write_whole(path, page)


def _sha256(text: str) -> str:
    """The hash by which a Content-Security-Policy allows this inline text."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _page_data(tree: dict[str, Any]) -> dict[str, Any]:
    """What the page's script reads: the nodes with their labels, and the lists of the header."""
    nodes = [{**node, "texts": _texts(node)} for node in tree["nodes"]]
    children: list[list[dict[str, Any]]] = [[] for _ in nodes]
    for node in nodes[1:]:
        children[node["parent"]].append(node)
    for node in nodes:
        node["answer"] = _answer(tree, nodes, node)
        node["end"] = node.get("end")
        node["ending"] = _label(node["answer"] or "")
        # A child's label begins after the characters that all its siblings begin with too.
        texts = ["".join(child["texts"]) for child in children[node["id"]]]
        shared = _shared_length(texts)
        for child, text in zip(children[node["id"]], texts, strict=True):
            child["beginning"] = _label(f"…{text[shared:]}" if text[shared:] and shared else text)
    keys = ("question", "answer", "answer_node")
    return {
        **{key: tree[key] for key in keys},
        "finished": tree.get("finished", tree["answer"] != ""),
        "facts": _facts(tree),
        "options": [[key, _option(value)] for key, value in tree["config"].items()],
        "nodes": nodes,
    }


def _texts(node: dict[str, Any]) -> list[str]:
    """One text per token; the token's id in brackets if the file has no texts."""
    if "texts" in node:
        return list(node["texts"])
    return [f"⟨{token}⟩" for token in node["token_ids"]]


def _shared_length(texts: list[str]) -> int:
    """The number of characters that all texts begin with.

    Texts that lie between two others in alphabetical order share the beginning of those two, so
    comparing the first text with the last is enough.
    """
    low, high = min(texts, default=""), max(texts, default="")
    both = min(len(low), len(high))
    return next((i for i in range(both) if low[i] != high[i]), both)


def _label(text: str) -> str:
    """A text on one line, cut to LABEL characters."""
    line = " ".join(text.split())
    return line if len(line) <= LABEL else f"{line[: LABEL - 1]}…"


def _answer(tree: dict[str, Any], nodes: list[dict[str, Any]], node: dict[str, Any]) -> str | None:
    """The answer of the finished path that ends at a node; None where none does.

    A file that does not say it has the reply's text: cut as the search did, in version 1 by tags.
    """
    if "answer" in node:
        return node["answer"]
    newer = tree["version"] == 2
    if node["end"] not in ("eos", "reply") if newer else not node["terminal"]:
        return None
    pieces, at = ["".join(node["texts"])], node
    while at["parent"] >= 0:
        at = nodes[at["parent"]]
        pieces.append("".join(at["texts"]))
    text = "".join(reversed(pieces))
    form = REPLIES.get(str(tree["config"].get("reply")), AUTO) if newer else MARCO
    return form.parse(text).answer if newer or "</Output>" in text else None


def _facts(tree: dict[str, Any]) -> list[list[str]]:
    """Names and figures of the header; a figure that the file lacks is left out."""
    stats, depths = tree["stats"], [0]
    for node in tree["nodes"][1:]:
        depths.append(depths[node["parent"]] + 1)
    facts = {
        "confidence": f"{tree['confidence']:.5g}",
        "support": f"{tree['support']:.0%}" if tree.get("finished") else None,
        "model": tree["model"],
        "stopped by": tree["stop_reason"],
        "finished paths": stats.get("finished_paths"),
        "distinct paths": stats.get("distinct_paths"),
        "expansions": stats.get("expansions"),
        "expansions/s": stats.get("expansions_per_second"),
        "tokens": stats.get("tokens"),
        "seconds": stats.get("seconds"),
        "nodes": len(depths),
        "depth": max(depths),
        "seed": str(tree["seed"]),
    }
    return [[name, _figure(value)] for name, value in facts.items() if value is not None]


def _figure(value: str | int | float) -> str:
    """A figure of the header as text: integers with commas, others with one or three digits."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and abs(value) >= 1:
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _option(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
