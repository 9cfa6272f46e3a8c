"""Trees as tree.json holds them: a small one, large ones as a search leaves them, a hostile one."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

WORDS = " so| the| letter| r| occurs|.| three| times| wait|\n\n| check| café|\n".split("|")
OUTPUT = ["</Thought>", "\n<Output>\n", "3", "\n</Output>"]


def as_tree(nodes: list[dict], **changed: object) -> dict:
    return {
        "format": "marco-fast-tree",
        "version": 2,
        "model": "nano-marco",
        "question": "How many times does the letter r occur in strawberry?",
        "prompt_token_ids": [1, 2],
        "config": {"action": "mini-step", "c_uct": 1.414, "max_tokens": None, "seed": 2**62 + 1},
        "seed": 2**62 + 1,
        "nodes": nodes,
        "answer_node": 0,
        "answer": "3",
        "final": "3",
        "finished": True,
        "thought": "so",
        "confidence": 0.91234567,
        "support": 0.8,
        "stop_reason": "expansions",
        "stats": {"expansions": 12345, "expansions_per_second": 17.26, "tokens": 640},
    } | changed


def older(tree: dict) -> dict:
    """The same tree as version 1 has it."""
    newer = ("final", "finished", "support")
    nodes = [
        {k: v for k, v in node.items() if k not in ("end", "answer")} for node in tree["nodes"]
    ]
    return {k: v for k, v in tree.items() if k not in newer} | {"version": 1, "nodes": nodes}


def small_tree(**changed: object) -> dict:
    """Two thoughts below the root, the first with two ends of which one answers."""
    rows = [
        # parent, visits, value, end, (text, id, confidence, logprob) ...
        (-1, 4, 0.7, None),
        (0, 3, 0.8, None, ("straw", 7, 1.0, 0.0), ("ber", 8, 0.5, math.log(0.25))),
        (0, 1, 0.4, None, ("none", 9, 0.9, -0.1)),
        (1, 1, 0.9, "eos", ("ry", 10, 0.2, -2.0), ("", 11, 0.7, -0.5), ("é", 12, 0.95, -0.1)),
        (1, 1, 0.7, "loop", ("Wait!\n", 13, None, None), ("<b>", 14, 0.6, -1.0)),
    ]
    nodes = [
        {
            "id": index,
            "parent": parent,
            "texts": [token[0] for token in tokens],
            "token_ids": [token[1] for token in tokens],
            "confidences": [token[2] for token in tokens],
            "logprobs": [token[3] for token in tokens],
            "visits": visits,
            "value": value,
            "path_confidence": 0.5,
            "terminal": end is not None,
            "end": end,
            "answer": "3" if end == "eos" else None,
        }
        for index, (parent, visits, value, end, *tokens) in enumerate(rows)
    ]
    return as_tree(nodes, **{"answer_node": 3} | changed)


def searched_tree(size: int, seed: int = 1) -> dict:
    """A tree as a search leaves it: forks of up to four, and chains that rollouts left."""
    rng = random.Random(seed)
    parent, children, terminal = [-1], [[]], [False]
    while len(parent) < size:
        node = 0
        while len(children[node]) == 4:
            below = [child for child in children[node] if not terminal[child]] or children[0]
            node = rng.choice(below)
        if terminal[node]:
            continue
        length = rng.choice([1, 2, 3, 8])
        for step in range(min(length, size - len(parent))):
            children[node].append(len(parent))
            parent.append(node)
            children.append([])
            terminal.append(step == length - 1)
            node = len(parent) - 1
    nodes = []
    for index, above in enumerate(parent):
        texts = [rng.choice(WORDS) for _ in range(12)] if index else []
        texts += OUTPUT if terminal[index] else []
        confidences: list[float | None] = [min(1.0, rng.betavariate(8, 0.6)) for _ in texts]
        if index % 9 == 1:
            confidences[:2] = None, None
        node = {"id": index, "parent": above, "visits": 0, "value": 0.0, "path_confidence": 0.9}
        node |= {"texts": texts, "token_ids": [rng.randrange(1000) for _ in texts]}
        node |= {"confidences": confidences, "terminal": terminal[index]}
        node |= (
            {"end": "reply", "answer": "3"} if terminal[index] else {"end": None, "answer": None}
        )
        node["logprobs"] = [c if c is None else math.log(c) - 0.01 for c in confidences]
        nodes.append(node)
    for leaf in (index for index in range(size) if not children[index]):
        value = rng.betavariate(30, 2)
        for node in path_to(nodes, leaf):
            nodes[node]["visits"] += 1
            nodes[node]["value"] += (value - nodes[node]["value"]) / nodes[node]["visits"]
    ends = [index for index in range(size) if terminal[index]]
    return as_tree(nodes, answer_node=max(ends, key=lambda end: nodes[end]["value"]))


def path_to(nodes: list[dict], node: int) -> list[int]:
    path = []
    while node >= 0:
        path.append(node)
        node = nodes[node]["parent"]
    return path[::-1]


def kept(nodes: list[dict], passes: Callable[[dict], bool]) -> set[int]:
    """The nodes that pass, and all that stands above them."""
    passing = (node["id"] for node in nodes if passes(node))
    return {0}.union(*(path_to(nodes, node) for node in passing))


def put(path: Path, what: object) -> Path:
    path.write_text(what if isinstance(what, str) else json.dumps(what))
    return path


HOSTILE = (
    "</script><script>window.hacked = 1</script><!--<script><img src=x onerror='window.hacked=1'>"
    '<svg onload="window.hacked=1">\u2028\u2029&lt;b&gt; {{ 7 * 7 }} {% raw %} \\u003c'
    " \ud800 \0 \U0001f353"
)


def hostile_tree() -> dict:
    tree = small_tree(question=HOSTILE, answer=HOSTILE, model=HOSTILE, stop_reason=HOSTILE)
    tree["config"] = {HOSTILE: HOSTILE, "list": [HOSTILE]}
    tree["nodes"][1]["texts"] = ["<Output>", HOSTILE]
    tree["nodes"][3]["texts"] = [HOSTILE, "", "</Output>"]
    tree["nodes"][3]["answer"] = HOSTILE * 2
    return tree


LARGE, TREE = searched_tree(2000), searched_tree(300)
NODES, CHOSEN = TREE["nodes"], path_to(TREE["nodes"], TREE["answer_node"])
EVERY = list(range(300))
PARTS = (":not(.chosen)", ".chosen")
