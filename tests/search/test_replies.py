"""Replies: parsing, markers over token borders, the reflection's take-back, other formats."""

import random

import pytest

from marco_fast.search.marco import REFLECTION
from marco_fast.search.replies import (
    AUTO,
    MARCO,
    REPLIES,
    Event,
    PathText,
    Reply,
    ReplyFormat,
    parse_reply,
    reply_format,
)

REPLY = "<Thought>\nOne.\n\nTwo.\n</Thought>\n<Output>\n42\n</Output>"


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        (REPLY, "One.\n\nTwo.", "42"),
        ("", "", None),
        (" no tags at all\n", "", "no tags at all"),
        ("<Thought>a</Thought>\nb", "a", "b"),
        ("a</Thought><Output>b</Output>", "a", "b"),
        ("<Thought>half a", "half a", None),
        ("<Thought>a</Thought>", "a", None),
        ("<Thought>a</Thought><Output>b", "a", "b"),
        ("<Thought>a</Thought><Output></Output>", "a", None),
        ("<Thought>a</Thought><Output> \n</Output>", "a", None),
        ("<Output>x</Output>", "", "x"),
        ("x</Output>", "", None),
        ("<Output>a<Output>b</Output>", "", "b"),
        ("<Thought>never closed <Output>7</Output>", "never closed", "7"),
        ("<Thought>x<Output>1</Output></Thought>", "x", "1"),
        ("<Thought>x<Output></Output>", "x", None),
        ("<Thought>what <Output> is for</Thought><Output>1</Output>", "what <Output> is for", "1"),
        ("<Thought>what <Output> is for</Thought>", "what <Output> is for", None),
        ("<Thought>答案</Thought><Output> 四十二 </Output>", "答案", "四十二"),
        ("<Thought>a</Thought><Output>1</Output> and <Output>2</Output>", "a", "1"),
    ],
)
def test_replies_are_cut_into_thought_and_answer(text, thought, answer):
    assert parse_reply(text) == (thought, answer)


def pieces(text: str, rng: random.Random) -> list[bytes]:
    """The text's bytes cut at random places, also inside characters."""
    data, out = text.encode(), []
    while data:
        size = rng.randint(1, 6)
        out.append(data[:size])
        data = data[size:]
    return out


@pytest.mark.parametrize("seed", range(20))
def test_the_end_of_the_output_is_found_wherever_tokens_are_cut(seed):
    path = PathText(b"", MARCO, steps=False, reflect=False)
    parts = pieces(REPLY + "自動 more </Output>", random.Random(seed))
    for count, piece in enumerate(parts):
        event = path.push(piece)
        whole = b"".join(parts[: count + 1])
        if event is Event.ANSWER:
            assert b"</Output>" in whole
            assert b"</Output>" not in b"".join(parts[:count])
            return
        assert b"</Output>" not in whole
    pytest.fail("the end of the output was not seen")


@pytest.mark.parametrize("seed", range(20))
def test_steps_end_at_blank_lines_wherever_tokens_are_cut(seed):
    rng = random.Random(seed)
    text = "\n\nfirst step\nwith two lines\n\nsecond\n\n\nthird"
    path, actions, action = PathText(b"", MARCO, steps=True, reflect=False), [], b""
    for piece in pieces(text, rng):
        action += piece
        if path.push(piece) is Event.STEP:
            path.begin_action()
            actions.append(action)
            action = b""
    actions.append(action)
    assert b"".join(actions).decode() == text
    for each in actions[:-1]:
        assert b"\n\n" in each.lstrip(b"\n")
        assert len(each.split()) >= 1


@pytest.mark.parametrize(
    "blank", ["\n\n", "\r\n\r\n", "\n \n", "\n\t\n", "\r\n \t\r\n", "\n\u3000\n", "\n\xa0\n"]
)
@pytest.mark.parametrize("seed", range(5))
def test_a_line_of_white_space_is_blank_wherever_tokens_are_cut(blank, seed):
    path = PathText(b"", MARCO, steps=True, reflect=False)
    head = f"{blank}  {blank}one\r\ntwo\n  three\n\t"
    for piece in pieces(head, random.Random(seed)):
        assert path.push(piece) is Event.NONE
    events = [path.push(piece) for piece in pieces(f"four{blank}", random.Random(seed))]
    assert events[-1] is Event.STEP
    assert set(events[:-1]) <= {Event.NONE}


def test_blank_lines_end_nothing_in_mini_steps():
    path = PathText(b"", MARCO, steps=False, reflect=False)
    assert path.push(b"a\n\nb") is Event.NONE


@pytest.mark.parametrize("seed", range(20))
def test_the_thoughts_end_is_taken_back_to_whole_tokens(seed):
    rng = random.Random(seed)
    before = b"<Thought>\nOne.\n"
    path = PathText(b"", MARCO, steps=False, reflect=True)
    tokens = []
    for piece in [*pieces(before.decode(), rng), *pieces("</Thought>\n", rng)]:
        tokens.append(piece)
        if path.push(piece) is Event.THOUGHT:
            break
    else:
        pytest.fail("the end of the thought was not seen")
    kept = path.take_back(tokens)
    assert bytes(path.text) == b"".join(tokens[:kept])
    assert b"</Thought>" not in path.text
    assert before.startswith(bytes(path.text))
    assert len(tokens[kept]) > 0
    dropped = b"".join(tokens[kept:])
    assert b"</Thought>" in dropped
    assert dropped.index(b"</Thought>") < len(tokens[kept])  # not one token more than needed


def test_a_path_reflects_once():
    path = PathText(b"<Thought>\n1\n", MARCO, steps=False, reflect=True)
    assert path.push(b"</Thought>") is Event.THOUGHT
    path.take_back([b"</Thought>"])
    path.push(REFLECTION.encode())
    assert path.push(b"again\n</Thought>") is Event.NONE
    child = PathText(
        bytes(path.text[: path.text.rfind(b"again")]), MARCO, steps=False, reflect=True
    )
    assert child.push(b"</Thought>") is Event.NONE  # the phrase is in the path already
    unreflected = PathText(b"<Thought>\n1\n", MARCO, steps=False, reflect=True)
    assert unreflected.push(b"</Thought>") is Event.THOUGHT


def test_no_reflection_unless_asked_or_after_the_thought():
    assert PathText(b"", MARCO, steps=False, reflect=False).push(b"</Thought>") is Event.NONE
    after = PathText(b"<Thought>a</Thought>\n", MARCO, steps=False, reflect=True)
    assert after.push(b"</Thought>") is Event.NONE


@pytest.mark.parametrize("cut", range(1, 10))
def test_an_action_is_not_cut_inside_what_may_be_taken_back(cut):
    path = PathText(b"", MARCO, steps=False, reflect=True)
    path.push(b"x" + b"</Thought>"[:cut])
    assert path.may_take_back()
    path.push(b"y")
    assert not path.may_take_back()
    calm = PathText(b"", MARCO, steps=False, reflect=False)
    calm.push(b"</Thou")
    assert not calm.may_take_back()


def test_a_thought_that_ends_outside_the_open_action_is_left_alone():
    path = PathText(b"<Thought>a</Thou", MARCO, steps=False, reflect=True)
    assert path.push(b"ght>") is Event.NONE


def think(text: str) -> Reply:
    thought, ended, answer = text.partition("</think>")
    return Reply(thought, answer.strip() if ended else None)


def test_another_format_ends_where_it_says():
    form = ReplyFormat("think", b"</think>", b"DONE", think)
    path = PathText(b"", form, steps=False, reflect=True)
    assert path.push(b"a </Thought></Output> b") is Event.NONE
    assert path.push(b"</think") is Event.NONE
    assert path.may_take_back()
    assert path.push(b"> ") is Event.THOUGHT
    assert path.take_back([b"a </Thought></Output> b", b"</think", b"> "]) == 1
    assert path.push(b"</think> 7") is Event.NONE  # it reflects once
    assert path.push(b" DONE") is Event.ANSWER


def test_a_format_without_markers_ends_nothing_but_steps():
    form = ReplyFormat("bare", b"", b"", lambda text: Reply("", text))
    path = PathText(b"", form, steps=True, reflect=True)
    assert not path.may_take_back()
    assert path.push(b"</Thought></Output>") is Event.NONE
    assert path.push(b"\n\n") is Event.STEP


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>\na\n</think>\n\nb", "a", "b"),
        ("a</think>b", "a", "b"),  # the prompt began the thought
        ("<think>\n\n</think>\n\nb", "", "b"),
        ("", "", None),
        ("a", "a", None),
        ("<think>a", "a", None),
        ("<think>a</think>", "a", None),
        ("<think>a</think> \n", "a", None),
        ("<think>a</think>b</think>c", "a</think>b", "c"),
        ("<think>a</think>b</think>", "a", "b"),
        ("<think>a</think>x<think>b</think>c", "a</think>x<think>b", "c"),
        ("<think>a</think>x<think>b", "a", None),
        ("<think>say `</think>` soon</think>b", "say `</think>` soon", "b"),
        ("<think>an open ``` fence</think>b", "an open ``` fence", "b"),
        ("<think>a</think>write `</think>` then", "a", "write `</think>` then"),
        ("<think>a</think>```\n<think>x</think>\n```", "a", "```\n<think>x</think>\n```"),
        ("<think>想</think> 四十二 ", "想", "四十二"),
    ],
)
def test_replies_that_think_are_cut_where_the_thought_ends(text, thought, answer):
    assert REPLIES["think"].parse(text) == (thought, answer)


@pytest.mark.parametrize("text", [" a\n", "<think>a</think>b", "<Output>1</Output>"])
def test_a_plain_reply_is_its_answer(text):
    assert REPLIES["plain"].parse(text) == ("", text.strip())
    assert REPLIES["plain"].parse(" \n\t") == ("", None)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("a", "plain"),
        (" \n<think>a</think>b", "think"),
        ("<think>a", "think"),
        ("Well.\n<think>a</think>b", "think"),
        ("a\n</think>\n\nb", "think"),
        ("a</think>\nb", "think"),
        ("<Thought>a</Thought>\n<Output>b</Output>", "marco"),
        ("\n<Output>b</Output>", "marco"),
        ("Well.\n<Thought>a</Thought>\n<Output>b</Output>", "marco"),
        ("The tags are `<Output>` and `</think>`.", "plain"),
        ("The tag </think> ends a thought, <Output> begins an answer.", "plain"),
        ("```html\n<Output>1</Output>\n</think>\n```", "plain"),
        ("~~~\n<think>\n</think>\n~~~\ndone", "plain"),
        ("Like this:\n\n    <Output>1</Output>\n    </think>", "plain"),
        ("```\n<Output>cut", "plain"),
        ("```\ncode\n```\n<Output>1</Output>", "marco"),
    ],
)
def test_the_text_of_a_finished_reply_tells_its_format(text, form):
    assert AUTO.parse(text) == REPLIES[form].parse(text)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("text", "event"),
    [
        (" \n" + REPLY, Event.ANSWER),
        ("<think>a</think>b</Output>", Event.THOUGHT),
        (f"{'x' * 70}<think>a</think>b</Output>", Event.NONE),
        ("x <Thought></Thought><Output>1</Output>", Event.NONE),
    ],
)
def test_a_reply_shows_its_format_by_how_it_begins_wherever_tokens_are_cut(text, event, seed):
    path = PathText(b"", AUTO, steps=False, reflect=event is Event.THOUGHT)
    parts = pieces(text, random.Random(seed))
    for count, piece in enumerate(parts):
        if path.push(piece) is event is not Event.NONE:
            whole = b"".join(parts[: count + 1])
            assert (b"</Output>" if event is Event.ANSWER else b"</think>") in whole
            half = PathText(whole[:15], AUTO, steps=False, reflect=False)  # as a child's begins
            assert half.form is path.form
            return
    assert event is Event.NONE
    assert path.form is AUTO


@pytest.mark.parametrize(
    ("reply", "template", "ending", "form"),
    [
        ("auto", "", "assistant\n", "auto"),
        ("auto", "knows <think> and </think>", "assistant\n", "auto"),
        ("auto", "<Thought> then <Output>", "assistant\n", "marco"),
        ("auto", "", "assistant\n<think>\n", "think"),
        ("auto", "<Output>", "<think>", "think"),
        ("auto", "", "<think>\n\n</think>\n\n", "plain"),
        ("auto", "", "what is <think> for?", "auto"),
        ("think", "", "<think>\n\n</think>\n\n", "plain"),
        ("think", "", "", "think"),
        ("marco", "", "<think>\n", "marco"),
        ("plain", "<Output>", "<think>\n", "plain"),
    ],
)
def test_the_prompt_shows_the_format_of_its_replies(reply, template, ending, form):
    assert reply_format(reply, template, ending).name == form
    own = ReplyFormat("own", b"", b"", parse_reply)
    assert reply_format(own, template, ending) is own
