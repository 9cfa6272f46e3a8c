"""What solve() takes and gives: chats, progress, the live text, the tree file."""

import dataclasses
import json
import os
import stat
from itertools import pairwise

import pytest

import marco_fast
import marco_fast.forest.forest
from marco_fast import SearchConfig, solve
from marco_fast.forest.result import Progress
from marco_fast.search.marco import MARCO_PROMPT
from tests.support.searches import ATOL, QUESTION, SMALL, current_umask, same_tree


@pytest.mark.parametrize("question", ["", "  \n", None, 7])
def test_an_empty_question_is_refused(tiny, question):
    with pytest.raises(ValueError, match="expected a question with some text"):
        solve([question], tiny)


@pytest.mark.parametrize("options", [{"config": None}, {"config": {}}, {"progress": "yes"}])
def test_options_of_another_type_are_refused(tiny, options):
    with pytest.raises(ValueError, match=r"expected (a SearchConfig|progress to be True)"):
        solve("abc", tiny, **options)


def test_a_message_that_is_refused_is_shown_in_short(tiny):
    with pytest.raises(ValueError, match="expected messages like") as error:
        solve([{"role": "user", "text": "long " * 10_000}], tiny)
    assert len(str(error.value)) < 300


def test_a_question_longer_than_the_context_is_refused(tiny):
    with pytest.raises(ValueError, match="expected a question of fewer than 512 tokens"):
        solve("word " * 600, tiny)


def test_progress_is_reported_and_ends_with_the_whole(nano):
    seen: list[Progress] = []
    result = solve(QUESTION, nano, SearchConfig(expansions=8, step_tokens=16), progress=seen.append)
    assert seen[-1].expansions == 8
    assert seen[-1].done == 1
    assert seen[-1].answer == result.answer
    assert seen[-1].tokens == result.stats.tokens
    assert [each.tokens for each in seen] == sorted(each.tokens for each in seen)


def test_the_tree_file_is_written_whole_or_not_at_all(tiny, tmp_path, monkeypatch):
    result = solve("q", tiny, SMALL)
    target = tmp_path / "tree.json"
    result.save(target)
    data = json.loads(target.read_text())
    assert data["format"] == "marco-fast-tree"
    assert data["version"] == 2
    assert data["stats"]["expansions"] == 10
    assert data["nodes"][0]["parent"] == -1
    assert len(data["nodes"]) == len(result.tree)
    assert stat.S_IMODE(target.stat().st_mode) & 0o044 == 0o044 & ~current_umask()
    before = target.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        result.save(target)
    assert target.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["tree.json"]
    with pytest.raises(OSError, match="nowhere"):
        result.save(tmp_path / "nowhere" / "tree.json")


CHAT = [
    {"role": "user", "content": "How many s are in glass?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": QUESTION},
]


def test_a_chat_is_answered_after_all_that_was_said(nano, plain):
    result = solve(CHAT, nano, SMALL)
    text = nano.tokenizer.decode(result.prompt_token_ids)
    assert all(each["content"] in text for each in CHAT)
    assert result.question == QUESTION
    assert result.messages == CHAT == result.to_dict()["messages"]
    assert plain("nano-marco").check(result, ATOL) > 40


def test_what_was_said_before_keys_the_draws(nano):
    alone, after = solve([QUESTION, CHAT], nano, SMALL)
    assert same_tree(alone, solve(CHAT[-1:], nano, SMALL))
    assert same_tree(after, solve(CHAT, nano, SMALL))
    other = [{**CHAT[0], "content": "How many s are in lass?"}, *CHAT[1:]]
    assert after.tree.seed[0] != alone.tree.seed[0] != solve(other, nano, SMALL).tree.seed[0]


def test_a_system_prompt_stands_in_front_of_every_question(nano):
    results = solve([QUESTION, CHAT], nano, SMALL, system="marco-o1")
    for result in results:
        assert result.messages[0] == {"role": "system", "content": MARCO_PROMPT}
        assert MARCO_PROMPT in nano.tokenizer.decode(result.prompt_token_ids)


def test_a_bad_chat_is_refused_before_anything_is_decoded(nano):
    with pytest.raises(ValueError, match="the user's, got 'assistant'"):
        solve([QUESTION, CHAT[:2]], nano, SMALL)
    with pytest.raises(ValueError, match="messages like"):
        solve([{"role": "user"}], nano, SMALL)
    assert nano.cache.used_pages == 0


def test_the_live_text_is_that_of_a_path_being_decoded(nano):
    seen = []
    config = dataclasses.replace(SMALL, expansions=40, rollout_tokens=200)
    reporting = marco_fast.forest.forest.REPORT_SECONDS
    marco_fast.forest.forest.REPORT_SECONDS = 0.0
    try:
        result = solve(QUESTION, nano, config, progress=seen.append)
    finally:
        marco_fast.forest.forest.REPORT_SECONDS = reporting
    live = [each.live for each in seen]
    assert live[-1] == ""
    growing = [b for a, b in pairwise(live) if a and b.startswith(a) and b != a]
    assert len(growing) > 20
    texts = [
        b"".join(nano.token_bytes[i] for i in result.tree.path_token_ids(node)).decode(
            errors="replace"
        )
        for node in range(len(result.tree))
    ]
    assert all(any(text.startswith(each.rstrip("\ufffd")) for text in texts) for each in live)


def test_the_texts_of_the_tree_file_are_those_of_its_tokens(tiny):
    """Also where a character spans tokens, or nodes: the model's tokens are random bytes."""
    config = dataclasses.replace(SMALL, step_tokens=3, temperature=3.0, top_p=1.0)
    result = solve("自动 🍓", tiny, config)
    nodes = result.to_dict()["nodes"]
    for node in nodes:
        assert len(node["texts"]) == len(node["token_ids"])
        path = result.tree.path(node["id"])
        text = "".join(each for at in path for each in nodes[at]["texts"])
        whole = b"".join(tiny.token_bytes[i] for i in result.tree.path_token_ids(node["id"]))
        assert whole.decode(errors="replace").startswith(text)
        assert len(text.encode()) >= len(whole) - 3
    assert result.text == "".join(
        each for at in result.tree.path(result.answer_node) for each in nodes[at]["texts"]
    ) or result.text.endswith("\ufffd")
