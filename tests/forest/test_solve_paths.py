"""What ends a path besides its own reply: loops, and a reflection that takes the end back."""

import pytest

from marco_fast import Engine
from marco_fast.search.marco import REFLECTION
from tests.support.models import CHAT
from tests.support.scripts import EOS, answered

PHRASE = REFLECTION.strip()
OPENS = CHAT.replace("assistant\n", "assistant\n<think>\n")


@pytest.fixture(scope="module")
def tiny(folders):
    with Engine.from_pretrained(folders["qwen2"], kv_tokens=4096) as engine:
        yield engine


@pytest.mark.parametrize("step_tokens", [7, 32, 64, 100, 4096])
def test_a_loop_ends_the_rollout_wherever_actions_are_cut(tiny, step_tokens):
    text = "abc" + "de" * 60
    result = answered(tiny, [text], step_tokens=step_tokens, rollout_tokens=300)
    length = len(tiny.tokenizer("abc", add_special_tokens=False)["input_ids"]) + 64
    leaf = len(result.tree) - 1
    assert result.tree.end == [None] * leaf + ["loop"]
    assert len(result.tree.path_token_ids(leaf)) == length
    assert not result.finished
    assert result.stats.expansions == 1


def test_a_loop_that_began_in_the_parent_ends_its_child(tiny):
    """Actions of 40 tokens without a rollout: the second expansion completes the loop."""
    result = answered(tiny, ["z" * 200], step_tokens=40, rollout_tokens=0, expansions=2, children=1)
    assert [len(each) for each in result.tree.token_ids] == [0, 40, 24]
    assert result.tree.end == [None, None, "loop"]
    assert result.stop_reason in ("expansions", "exhausted")


def test_the_end_of_the_reply_comes_before_a_loop(tiny):
    ids = tiny.tokenizer("z" * 63, add_special_tokens=False)["input_ids"]
    assert len(ids) == 63
    result = answered(tiny, ["z" * 63 + EOS])
    assert (result.tree.end[1], result.finished) == ("eos", True)


def test_a_reply_without_a_thought_reflects_where_it_ends_once(tiny):
    result = answered(tiny, [f"five{EOS}"], reflect=True, step_tokens=6, rollout_tokens=300)
    plain = answered(tiny, [f"five{EOS}"])
    phrase = tiny.tokenizer(REFLECTION, add_special_tokens=False)["input_ids"]
    ids = result.tree.path_token_ids(len(result.tree) - 1)
    kept = plain.tree.token_ids[1][:-1]  # EOS is taken back
    assert ids[: len(kept) + len(phrase)] == kept + phrase
    scores = [each for node in result.tree.logprobs for each in node]
    assert [n for n, each in enumerate(scores) if each is None] == list(
        range(len(kept), len(kept) + len(phrase))
    )
    assert result.text.startswith(f"five{REFLECTION}")
    assert result.text.count(PHRASE) == 1


def test_an_end_of_the_reply_behind_the_reflection_is_the_end(tiny):
    phrase = len(tiny.tokenizer(REFLECTION, add_special_tokens=False)["input_ids"])
    start = len(tiny.tokenizer("five", add_special_tokens=False)["input_ids"])
    script = f"five{EOS}" + "a" * (phrase - 1) + f"six{EOS}"
    result = answered(tiny, [script], reflect=True)
    assert len(tiny.tokenizer("a" * (phrase - 1), add_special_tokens=False)["input_ids"]) + 1 == (
        phrase
    )
    assert start + phrase < len(result.tree.path_token_ids(1))
    assert (result.answer, result.finished) == (f"five{REFLECTION}six", True)


@pytest.mark.parametrize(
    ("template", "reply", "reflects"),
    [
        (OPENS, f"five</think>six{EOS}", "five"),
        (CHAT, f"<think>five</think>six{EOS}", "<think>five"),
        (CHAT, "<Thought>five</Thought><Output>six</Output>", "<Thought>five"),
        (OPENS, f"five{EOS}", None),  # it has not ended its thought
        (CHAT, f"<think>five{EOS}", None),
    ],
)
def test_a_reply_with_a_thought_reflects_where_the_thought_ends(
    tiny, monkeypatch, template, reply, reflects
):
    monkeypatch.setattr(tiny.tokenizer, "chat_template", template)
    result = answered(tiny, [reply], reflect=True)
    assert (PHRASE in result.text) == (reflects is not None)
    if reflects is not None:
        assert result.text.startswith(f"{reflects}{REFLECTION}")


def test_no_reflection_without_room_for_as_long_a_reply(tiny, monkeypatch):
    phrase = len(tiny.tokenizer(REFLECTION, add_special_tokens=False)["input_ids"])
    plain = answered(tiny, [f"five{EOS}"])
    needed = len(plain.prompt_token_ids) + 2 * len(plain.tree.token_ids[1]) + phrase
    for context, reflects in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(tiny, "context", context)
        result = answered(tiny, [f"five{EOS}"], reflect=True)
        assert (PHRASE in result.text) == reflects
        assert result.finished != reflects  # what follows the phrase is cut off


def test_the_options_of_the_draws_reach_the_sampler(tiny):
    seen = []

    class Seen(Exception):
        pass

    def sample(*given, seeds, **options):
        seen.append(options)
        raise Seen

    tiny.sample = sample
    try:
        from marco_fast import SearchConfig, solve

        options = {"temperature": 0.5, "top_p": 0.75, "min_p": 0.125, "sample_top_k": 9, "top_k": 3}
        with pytest.raises(Seen):
            solve("q", tiny, SearchConfig(**options))
    finally:
        del tiny.sample
    assert seen == [options]
