"""What a model is asked: chats as messages, prompts without a template."""

import pytest

from marco_fast.search.marco import (
    MARCO_PROMPT,
    UNTEMPLATED_SYSTEM,
    as_messages,
    untemplated_prompt,
)

CHAT = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Why?", "name": "Ann"},
]


def test_a_text_and_a_chat_become_messages():
    assert as_messages("Why?") == [{"role": "user", "content": "Why?"}]
    made = as_messages(CHAT)
    assert made == [{"role": m["role"], "content": m["content"]} for m in CHAT]
    assert made[0] is not CHAT[0]


def test_a_system_prompt_stands_in_front():
    assert as_messages(CHAT, "Be brief.")[0] == {"role": "system", "content": "Be brief."}
    assert as_messages("Why?", "marco-o1")[0]["content"] == MARCO_PROMPT
    assert len(as_messages(CHAT, "Be brief.")) == len(CHAT) + 1


@pytest.mark.parametrize(
    ("chat", "says"),
    [
        ([], "last message is the user's, got 'no message'"),
        (CHAT[:2], "last message is the user's, got 'assistant'"),
        ([*CHAT, {"role": "system", "content": "x"}], "at index 3 to be 'user' or 'assistant'"),
        ([{"role": "tool", "content": "x"}], "at index 0 to be 'user' or 'assistant' or 'system'"),
        ([{"content": "x"}], "messages like"),
        ([{"role": "user"}], "messages like"),
        ([{"role": "user", "content": ["x"]}], "messages like"),
        (["x", "y"], "got 'x' at index 0"),
        ([{"role": "user", "content": " \n"}], "some text"),
        ([{"role": "user", "content": None}], "messages like"),
        ([{"role": "user", "content": b"x"}], "messages like"),
        ([{"role": ["user"], "content": "x"}], "to be 'user'"),
        ([None], "got None at index 0"),
        (" ", "some text"),
        (None, "some text or a chat, got None"),
        (3, "some text or a chat, got 3"),
        (b"Why?", "some text or a chat, got b'Why"),
        ({"role": "user", "content": "x"}, "some text or a chat, got {'content'"),
        ("caf\udce9?", "Unicode text, got half of a surrogate pair"),
        ([{"role": "user", "content": "\ud83d"}], "Unicode text"),
        ([*CHAT[:1], {"role": "assistant", "content": "\udc00"}, CHAT[2]], "Unicode text"),
        ([{"role": "system", "content": "\ud83d"}, CHAT[2]], "Unicode text"),
    ],
)
def test_other_chats_are_refused(chat, says):
    with pytest.raises(ValueError, match=says):
        as_messages(chat)


@pytest.mark.parametrize(
    ("system", "says"),
    [
        (3, "a system prompt that is a text, got 3"),
        (b"Be brief.", "got b'Be brief.'"),
        (["Be brief."], "system prompt that is a text"),
        (False, "got False"),
        ("Be \ud83d brief.", "Unicode text, got half of a surrogate pair"),
    ],
)
def test_other_system_prompts_are_refused(system, says):
    with pytest.raises(ValueError, match=says):
        as_messages("Why?", system)


def test_two_system_prompts_are_refused():
    chat = [{"role": "system", "content": "a"}, *CHAT]
    with pytest.raises(ValueError, match="one system prompt"):
        as_messages(chat, "b")


def test_an_untemplated_prompt_ends_where_the_model_goes_on():
    asked = "User: Hello\n\nAssistant: Hi\n\nUser: Why?\n\nAssistant:\n"
    assert untemplated_prompt(as_messages(CHAT)) == f"{UNTEMPLATED_SYSTEM}\n\n{asked}"
    brief = untemplated_prompt(as_messages("Why?", "Be brief."))
    assert brief.startswith("Be brief.\n\nUser: Why?")
