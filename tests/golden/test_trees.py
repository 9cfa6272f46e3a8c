"""Searches whose every number is recorded: no change of form may change a bit of them.

`python -m tests.golden.test_trees` records them again, which a change of what a search does, or of
an order of summation, needs; its commit says why.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from marco_fast import Engine, SearchConfig, SearchResult, solve

_C = pytest.importorskip("marco_fast._C")

GOLDEN = Path(__file__).parent / "trees.json"
ISAS = ("scalar", "avx2")  # what any x86 machine runs; wider ones sum in another order
QUESTIONS = [
    "How many times does the letter r occur in strawberry?",
    "Tom has 3 apples and buys 4 more. How many apples does Tom have?",
    "What is 17 + 26?",
]
TIMES = ("seconds", "expansions_per_second", "tokens_per_second")
SMALL = {"expansions": 6, "step_tokens": 8, "rollout_tokens": 48, "parallel": 4}
# name: (engine options, search options, questions)
SEARCHES: dict[str, tuple[dict[str, Any], dict[str, Any], Sequence[str]]] = {
    "mini-step": ({}, {}, QUESTIONS[:1]),
    "mini-step bfloat16": ({"dtype": "bfloat16"}, {"seed": 3}, QUESTIONS[:1]),
    "step": ({}, {"action": "step", "max_step_tokens": 24, "value": "rollout"}, QUESTIONS[1:2]),
    "step, reflection": (
        {"dtype": "bfloat16"},
        {"action": "step", "reflect": True, "rollout_tokens": 160, "expansions": 3},
        QUESTIONS[:1],
    ),
    "reflection": ({}, {"reflect": True, "rollout_tokens": 160, "expansions": 3}, QUESTIONS[1:2]),
    "a list of questions": ({}, {"answer": "vote", "expansions": 3}, QUESTIONS),
    "a list in an evicting pool": (
        {"dtype": "bfloat16", "kv_tokens": 512},
        {"answer": "visits", "expansions": 3},
        QUESTIONS,
    ),
    "an evicting pool": ({"kv_tokens": 384}, {"expansions": 7, "seed": 11}, QUESTIONS[:1]),
    "other rules": (
        {},
        {"normalize": True, "virtual_loss": True, "value": "logprob", "top_p": 0.5, "seed": -5},
        QUESTIONS[2:],
    ),
    "greedy": ({}, {"temperature": 0.0, "children": 2, "top_k": 3}, QUESTIONS[2:]),
}
SLOW = pytest.mark.slow
LONG = ("a list of questions", "a list in an evicting pool", "an evicting pool", "step, reflection")


def digest(results: list[SearchResult]) -> str:
    """SHA-256 of all that tree.json holds, but for the options and what a clock says."""
    trees = [result.to_dict() for result in results]
    for tree in trees:
        del tree["config"]
        tree["stats"] = {k: v for k, v in tree["stats"].items() if k not in TIMES}
    return hashlib.sha256(json.dumps(trees, sort_keys=True).encode()).hexdigest()


def searched(name: str) -> str:
    engine_options, options, questions = SEARCHES[name]
    config = SearchConfig(**(SMALL | options))
    with Engine.from_pretrained("nano-marco", max_branches=8, **engine_options) as engine:
        return digest(solve(list(questions), engine, config))


@pytest.mark.parametrize(
    ("name", "isa"),
    [
        # Scalar code takes ten times as long: of it, the long ones are for a run by hand.
        pytest.param(name, isa, marks=[SLOW] if isa == "scalar" and name in LONG else [])
        for isa in ISAS
        if isa in _C.supported_isas()
        for name in SEARCHES
    ],
    indirect=["isa"],
)
def test_a_search_is_what_it_was(name, isa):
    assert searched(name) == json.loads(GOLDEN.read_text())[name][isa]


def record() -> None:
    found: dict[str, dict[str, str]] = {name: {} for name in SEARCHES}
    for isa in ISAS:
        _C.set_isa(isa)
        for name, row in found.items():
            row[isa] = searched(name)
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    record()
