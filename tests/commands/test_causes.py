"""Why no path finished: the state of a tree, and the sentence that a user reads."""

import pytest

from marco_fast.commands.causes import CAUSES, Room, no_effect, why_unfinished
from marco_fast.commands.figures import figures, support
from marco_fast.forest.result import SearchResult, SearchStats
from marco_fast.search.answer import AnswerGroup
from marco_fast.search.config import SearchConfig
from marco_fast.search.tree import SearchTree

ROOM = Room(context=512, longest=8192, kv_tokens=4096, may_skip_thought=False)
WORDS = ["", "<think>", "so", "</think>", "<Thought>", "<Output>", "8", "</Thought>"]


def result(paths, stop_reason="expansions", prompt=(1, 2, 3), **options) -> SearchResult:
    """A search whose paths are these: tokens of WORDS, and why nothing follows."""
    tree = SearchTree(0, 64)
    for tokens, end in paths:
        logprobs = [None if token is None else -0.1 for token in tokens]
        ids = [token or 0 for token in tokens]
        node = tree.add(0, tree.start_child(0), ids, logprobs, logprobs, end=end)
        tree.virtual_visits[node] += 1
        tree.backup(node, 0.5)
    stats = SearchStats(len(paths), 0, 0, len(paths), 1.0, 40, 5.0, 8.0, 9, 9)
    return SearchResult(
        question="q", messages=[], answer="", thought="", reply="plain", final="", ends=[],
        finished=False, confidence=0.5, support=0.0, answers=[], tree=tree, path_answers={},
        answer_node=0, stats=stats, stop_reason=stop_reason, model="m", prompt_token_ids=[*prompt],
        config=SearchConfig(**options), token_bytes=[each.encode() for each in WORDS],
    )  # fmt: skip


SAID = {
    "loop": ([([2] * 64, "loop")], {}, "went in circles: raise --temperature (now 0.7)"),
    "hot loop": ([([2], "loop")], {"temperature": 1.5}, "went in circles, at --temperature 1.5:"),
    "context": ([([2], "context")], {}, "filled the context of 512 tokens, 3 of them the prompt's: "
                "give more --context, up to 8192"),
    "kv": ([([2], "kv_full")], {}, "filled the KV cache of 4096 tokens: give more --kv-tokens"),
    "no rollout": ([([2], None)], {"rollout_tokens": 0}, "ended behind an action, with "
                   "--rollout-tokens 0: give more, or leave it out"),
    "think": ([([1, 2, 0], "eos")], {}, "ended inside <think>, before an answer: try"),
    "prompt's think": ([([2, 0], "eos")], {}, "ended inside <think>, before an answer"),
    "no think": ([([2, 0], "eos")], {"reply": "think"}, "wrote no </think>, behind which --reply"),
    "asked to think": ([([2, 0], "eos")], {"reply": "think", "prompt": (2, 1)},
                       "ended inside <think>, before an answer"),
    "thought": ([([4, 2, 0], "eos")], {}, "ended inside <Thought>, before an answer"),
    "empty": ([([0], "eos")], {}, "ended at once, without a word: ask in another way"),
    "no answer": ([([1, 2, 3, 0], "eos")], {}, "ended with nothing where the answer stands"),
    "no output": ([([4, 2, 7, 5], "reply")], {}, "ended with nothing where the answer stands"),
    "seconds": ([([2], None)], {"stop_reason": "seconds", "max_seconds": 8},
                "still ran after --max-seconds 8, at 5 tokens/s: give more"),
    "tokens": ([([2], None)], {"stop_reason": "tokens", "max_tokens": 40},
               "still ran when --max-tokens 40 were used up: give more, or fewer branches"),
    "interrupted": ([([2], None)], {"stop_reason": "interrupted"},
                    "still ran when the search ended (interrupted)"),
}  # fmt: skip


@pytest.mark.parametrize(("paths", "options", "says"), SAID.values(), ids=SAID)
def test_the_cause_is_that_of_the_tree(paths, options, says):
    assert why_unfinished(result(paths, **options), ROOM).startswith(f"the only path {says}")


def test_every_end_of_a_node_has_its_sentence():
    from marco_fast.search.tree import ENDS

    assert set(ENDS) - {"eos", "reply"} <= set(CAUSES)


def test_several_causes_are_counted_the_most_frequent_first():
    said = why_unfinished(result([([2], "context"), ([2, 2], "loop"), ([6], "loop")]), ROOM)
    first, second = said.split("; ")
    assert first.startswith("2 of 3 paths went in circles")
    assert second.startswith("1 of 3 paths filled the context")


def test_branches_that_wrote_the_same_are_counted_as_the_figures_count_them():
    search = result([([0], "eos")])
    search.tree.virtual_visits[1] += 1
    search.tree.backup(1, 0.5)
    assert why_unfinished(search, ROOM).startswith("all 2 paths ended at once")


def test_a_path_that_a_later_one_goes_on_from_is_not_counted():
    search = result([([2], None)], rollout_tokens=0)
    tree = search.tree
    tree.add(1, tree.start_child(1), [0], [-0.1], [0.9], end="kv_full")
    assert why_unfinished(search, ROOM).startswith("the only path filled the KV cache")


def test_a_rollout_at_its_limit_is_told_from_a_budget():
    search = result([([2], None)], "seconds", rollout_tokens=2, max_seconds=8.0)
    tree = search.tree
    ordinal = tree.start_child(1)
    tree.add(1, ordinal, [6, 6], [-0.1] * 2, [0.9] * 2, rollout=True)
    assert "reached --rollout-tokens 2: give more, or leave it out" in why_unfinished(search, ROOM)


@pytest.mark.parametrize(
    ("room", "says"),
    [
        (ROOM._replace(context=8192), "which is all that the model takes: ask for less"),
        (ROOM._replace(kv_tokens=512), "give more --kv-tokens or --context, up to 8192"),
        (ROOM._replace(context=8192, may_skip_thought=True), '{"enable_thinking": false}'),
    ],
)
def test_what_cannot_help_is_not_advised(room, says):
    assert says in why_unfinished(result([([2], "context")]), room)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stop_reason": "seconds", "max_seconds": 0}, "within --max-seconds 0; give more"),
        ({"stop_reason": "interrupted"}, "nothing was decoded; stopped by: interrupted"),
    ],
)
def test_a_search_without_a_token_says_so(options, says):
    assert says in why_unfinished(result([], **options), ROOM)


def test_a_reflection_that_was_never_put_is_told_of():
    assert "--reflect had no effect" in no_effect(result([([2, 0], "eos")], reflect=True))
    assert no_effect(result([([2, None, 0], "eos")], reflect=True)) is None
    assert no_effect(result([([2, 0], "eos")])) is None


GROUPS = [
    AnswerGroup("18", 0.81, 0.9, "So he has 18 apples.", (1, 2)),
    AnswerGroup("20", 0.12, 0.7, "20", (3,)),
    *(AnswerGroup(str(each), 0.01, 0.5, "x", (each,)) for each in range(4, 9)),
]


def test_support_is_a_sentence():
    votes = [0, 5, 1, 1, 1, 1, 1, 1, 1]
    assert support(GROUPS[0], votes, 8) == "6 of 8 finished paths say 18 (weight 0.81)"
    assert support(GROUPS[1], votes, 8) == "1 of 8 finished paths says 20 (weight 0.12)"
    assert support(GROUPS[1], votes, 1) == "the only finished path says 20"
    assert "say this (" in support(GROUPS[0]._replace(final="long " * 20), votes, 8)


def test_figures_tell_of_the_final_and_of_the_other_answers():
    import dataclasses

    search = result([([6, 0], "eos")] * 8)
    found = dataclasses.replace(
        search, finished=True, answer="So he has 18 apples.", final="18", answers=GROUPS
    )
    rows = figures(found)
    assert rows[0] == ("final", "18")
    assert rows[1][1] == "2 of 8 finished paths say 18 (weight 0.81)"
    assert rows[2] == ("", "1 says 20 (weight 0.12)")
    assert rows[5] == ("", "3 more answers (weight 0.03)")
    assert ("paths", "8 finished (0 different), 0 unfinished") in rows
    assert (
        "exhausted (every path has ended"
        in dict(figures(dataclasses.replace(found, stop_reason="exhausted")))["search"]
    )
    same = dataclasses.replace(found, answer="18")
    assert "final" not in dict(figures(same))
