"""Replies: how a format cuts what a model writes, and what each token completes in it.

Text is handled as UTF-8 bytes: a character may span tokens or nodes, and every marker is ASCII, so
a search in bytes finds it exactly where a search in the decoded text would.
"""

import re
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from marco_fast.search.marco import REFLECTION

__all__ = [
    "AUTO",
    "REPLIES",
    "Event",
    "PathText",
    "Reply",
    "ReplyFormat",
    "parse_reply",
    "reply_format",
]

REFLECTION_MARK = REFLECTION.strip().encode()
# A line may hold white space and still be blank; it may end with a carriage return as well.
_SPACE = rb"(?:[ \t\r\f\v]|\xc2\xa0|\xe3\x80\x80)*"
BLANK_LINE = re.compile(rb"\n" + _SPACE + rb"\n")
MARGIN = re.compile(rb"(?:" + _SPACE + rb"\n)*" + _SPACE)  # in front of a step's first character


class Reply(NamedTuple):
    """The parts of a reply.

    Attributes:
        thought: the reasoning, as far as it goes; "" without any.
        answer: the result; None while it is not complete, and where there is nothing in it.
    """

    thought: str
    answer: str | None


class ReplyFormat(NamedTuple):
    """How a reply is cut.

    Attributes:
        name: as tree.json names it.
        thought_end: ASCII, ends the thought, where a reflection may go; b"" where there is no
            thought: a reflection then goes where the reply ends.
        answer_end: ASCII, ends the answer and with it the path; b"" where only EOS does.
        parse: the reply's text -> its Reply. Only a path that ended by EOS or by `answer_end` is
            asked for its answer; of others it is what there is so far.
    """

    name: str
    thought_end: bytes
    answer_end: bytes
    parse: Callable[[str], Reply]


def parse_reply(text: str) -> Reply:
    """Cut a reply in Marco-o1's tags, both parts stripped of surrounding white space.

    A thought that is not closed in front of the answer ends where the answer begins. Without
    <Output> the answer is what follows the thought, or the whole reply where there is none.
    """
    body, ended, _ = text.partition("</Output>")
    begin = body.find("<Thought>")
    close = body.find("</Thought>", max(0, begin))
    output = body.rfind("<Output>")
    if begin < output < close:  # the thought speaks of the tag
        output = -1
    thought = ""
    if begin >= 0 or close >= 0:
        inside = body[begin + len("<Thought>") :] if begin >= 0 else body
        thought = inside.partition("</Thought>" if close >= 0 else "<Output>")[0]
    if output >= 0:
        answer = body[output + len("<Output>") :]
    elif ended or (begin >= 0 and close < 0):
        answer = ""
    else:
        answer = body[close + len("</Thought>") :] if close >= 0 else body
    return Reply(thought.strip(), answer.strip() or None)


def parse_think(text: str) -> Reply:
    """Cut a reply whose thought ends with </think>, both parts stripped of white space.

    <think> may stand in the prompt. Of several </think> the last one with something behind it
    counts, and those in code only where there is no other. A thought that is not closed has no
    answer.
    """
    ends = _outside_code(text, THINK_END) or [at for at in [text.find(THINK_END)] if at >= 0]
    answer, after = "", len(text)
    while ends and not answer:
        answer, after = text[ends[-1] + len(THINK_END) : after].strip(), ends.pop()
    before, opened, inside = text[:after].partition("<think>")
    thought = inside if opened else before
    unclosed = _outside_code(answer, "<think>")
    return Reply(thought.strip(), None if unclosed else answer or None)


def parse_plain(text: str) -> Reply:
    """The whole reply is the answer."""
    return Reply("", text.strip() or None)


def parse_any(text: str) -> Reply:
    """Cut a finished reply by the tags that it has, if it has any."""
    beginning = _beginning(text.encode())
    if beginning is not None:
        return beginning.parse(text)
    said = CODE.sub("", text)
    if MARCO_TAG.search(said):
        return parse_reply(text)
    if THINK_TAG.search(said):
        return parse_think(text)
    return parse_plain(text)


def _outside_code(text: str, tag: str) -> list[int]:
    """Where a tag stands that is not in Markdown's code."""
    code = [each.span() for each in CODE.finditer(text)]
    found = (each.start() for each in re.finditer(re.escape(tag), text))
    return [at for at in found if not any(begin <= at < end for begin, end in code)]


THINK_END = "</think>"
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
# A reply that does not begin with its tags has them at the beginnings of lines, or ends a thought
# that the prompt began; elsewhere it speaks of them.
MARCO_TAG = re.compile(r"^[ \t]*<(?:Thought|Output)>", re.MULTILINE)
THINK_TAG = re.compile(r"^[ \t]*<think>|\A(?:(?!<think>).)*</think>[ \t]*$", re.M | re.S)

MARCO = ReplyFormat("marco", b"</Thought>", b"</Output>", parse_reply)
THINK = ReplyFormat("think", b"</think>", b"", parse_think)
PLAIN = ReplyFormat("plain", b"", b"", parse_plain)
AUTO = ReplyFormat("auto", b"", b"", parse_any)
REPLIES = {each.name: each for each in (MARCO, THINK, PLAIN)}
BEGINNINGS = {b"<Thought>": MARCO, b"<Output>": MARCO, b"<think>": THINK}


def _beginning(text: bytes | bytearray) -> ReplyFormat | None:
    """The format of the tag that a text begins with."""
    head = bytes(text[:64]).lstrip()
    return next((form for tag, form in BEGINNINGS.items() if head.startswith(tag)), None)


def reply_format(reply: str | ReplyFormat, template: str, ending: str) -> ReplyFormat:
    """The format of the replies to one prompt.

    Args:
        reply: as SearchConfig.reply.
        template: the model's chat template, with the system prompt; what a user asks shows nothing.
        ending: the text with which the prompt ends, behind its last control token.

    Returns:
        For "auto", what the prompt shows: think where it opens a thought, plain where it closes one
        at once, marco where the model is asked for its tags. Else AUTO, which looks at each reply.
    """
    if not isinstance(reply, str):
        return reply
    ending = ending.rstrip()
    if ending.endswith(THINK_END) and reply in ("auto", THINK.name):
        return PLAIN
    if reply != AUTO.name:
        return REPLIES[reply]
    if ending.endswith("<think>"):
        return THINK
    return MARCO if "<Output>" in template else AUTO


class Event(Enum):
    """What a token completed."""

    NONE = 0
    STEP = 1  # a blank line: the end of a step
    THOUGHT = 2  # the first end of the thought, where a reflection may go
    ANSWER = 3  # the end of the answer: the path is finished


class PathText:
    """The text of one path while it is decoded.

    Args:
        text: bytes of the path so far (the prompt not included).
        form: how the reply is cut.
        steps: whether blank lines end actions.
        reflect: whether a reflection is still to come on this path.
    """

    __slots__ = ("action_begin", "form", "last_bytes", "reflect", "steps", "text")

    def __init__(self, text: bytes, form: ReplyFormat, *, steps: bool, reflect: bool) -> None:
        self.text = bytearray(text)
        self.form = form
        self.action_begin = len(text)
        self.steps = steps
        self._look_at_beginning()
        end = self.form.thought_end
        self.reflect = reflect and REFLECTION_MARK not in text and not (end and end in text)

    def _look_at_beginning(self) -> None:
        """Take the format of the tag with which the text begins, where none is known yet."""
        unknown = self.form is AUTO and len(self.text) < 64
        if self.form is AUTO:
            self.form = _beginning(self.text) or AUTO
        ends = (self.form.thought_end, self.form.answer_end, b">" if unknown else b"", b"\n")
        self.last_bytes = tuple({end[-1:] for end in ends if end})

    def push(self, piece: bytes) -> Event:
        """Append a token's bytes; says what it completed."""
        old = len(self.text)
        self.text += piece
        for last in self.last_bytes:
            if last in piece:
                return self._completed(old)
        return Event.NONE  # as for most tokens

    def _completed(self, old: int) -> Event:
        """What the bytes from `old` on completed."""
        if self.form is AUTO and b">" in self.last_bytes:
            self._look_at_beginning()
        if self.form.answer_end and self._find(self.form.answer_end, old) >= 0:
            return Event.ANSWER
        if self.reflect and self.form.thought_end:
            begin = self._find(self.form.thought_end, old)
            if begin >= self.action_begin:
                return Event.THOUGHT
            # One that began in an earlier action (a rollout was cut off there) is not taken back.
            self.reflect = begin < 0
        if self.steps:
            margin = MARGIN.match(self.text, self.action_begin)
            assert margin is not None  # it matches no text at all, too
            if BLANK_LINE.search(self.text, margin.end()):
                return Event.STEP
        return Event.NONE

    def _find(self, marker: bytes, old: int) -> int:
        """Where a marker begins that ends behind `old`; -1 where there is none."""
        return self.text.find(marker, max(0, old - len(marker) + 1))

    def begin_action(self) -> None:
        """The next token belongs to a new action."""
        self.action_begin = len(self.text)

    def may_take_back(self) -> bool:
        """Whether the text ends inside what may become the marker a reflection takes back.

        An action is not cut there: the tokens to take back must all belong to the open action.
        """
        end = self.form.thought_end
        if not self.reflect or not end:
            return False
        tail = bytes(self.text[-len(end) + 1 :])
        return any(end.startswith(tail[i:]) for i in range(len(tail)))

    def may_reflect_at_end(self) -> bool:
        """Whether a reply that ends here has no thought behind which its reflection could go."""
        if not self.reflect or not self.form.thought_end:
            return self.reflect
        return not self.form.parse(self.text.decode(errors="replace")).thought

    def take_back(self, pieces: list[bytes]) -> int:
        """Drop the tokens that hold the end of the thought; no reflection any more.

        Args:
            pieces: bytes of the open action's tokens, of which the newest is dropped anyhow: where
                the reply ended without a thought, it is the token that ended it.

        Returns:
            How many of the action's tokens stay.
        """
        begin = self.text.rfind(self.form.thought_end) if self.form.thought_end else -1
        kept = len(pieces)
        while kept and (kept == len(pieces) or len(self.text) > begin >= 0):
            kept -= 1
            del self.text[len(self.text) - len(pieces[kept]) :]
        self.reflect = False
        return kept
