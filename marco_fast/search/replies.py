"""Replies: how a format cuts what a model writes, and what each token completes in it.

Text is handled as UTF-8 bytes: a character may span tokens or nodes, and every marker is ASCII, so
a search in bytes finds it exactly where a search in the decoded text would.
"""

import re
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from marco_fast.search.marco import REFLECTION

__all__ = ["MARCO", "REPLIES", "Event", "PathText", "Reply", "ReplyFormat", "parse_reply"]

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
        thought_end: ASCII, ends the thought, where a reflection may go; b"" where none can.
        answer_end: ASCII, ends the answer and with it the path; b"" where only EOS does.
        parse: the reply's text -> its Reply.
    """

    name: str
    thought_end: bytes
    answer_end: bytes
    parse: Callable[[str], Reply]


def parse_reply(text: str) -> Reply:
    """Cut a reply in Marco-o1's tags, both parts stripped of surrounding white space.

    A thought that is not closed in front of the answer ends where the answer begins.
    """
    body, ended, _ = text.partition("</Output>")
    _, output, answer = body.rpartition("<Output>")
    thought, closed, _ = body.partition("<Thought>")[2].partition("</Thought>")
    if not closed:
        thought = thought.partition("<Output>")[0]
    return Reply(thought.strip(), (ended and output and answer.strip()) or None)


MARCO = ReplyFormat("marco", b"</Thought>", b"</Output>", parse_reply)
REPLIES = {MARCO.name: MARCO}


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
        seen = REFLECTION_MARK in text or form.thought_end in text
        self.reflect = reflect and bool(form.thought_end) and not seen
        ends = (form.thought_end, form.answer_end, b"\n")
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
        if self.form.answer_end and self._find(self.form.answer_end, old) >= 0:
            return Event.ANSWER
        if self.reflect:
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
        if not self.reflect:
            return False
        end = self.form.thought_end
        tail = bytes(self.text[-len(end) + 1 :])
        return any(end.startswith(tail[i:]) for i in range(len(tail)))

    def take_back(self, pieces: list[bytes]) -> int:
        """Drop the tokens that hold the end of the thought; no reflection any more.

        Args:
            pieces: bytes of the open action's tokens.

        Returns:
            How many of the action's tokens stay.
        """
        begin = self.text.rfind(self.form.thought_end)
        kept = len(pieces)
        while kept and len(self.text) > begin:
            kept -= 1
            del self.text[len(self.text) - len(pieces[kept]) :]
        self.reflect = False
        return kept
