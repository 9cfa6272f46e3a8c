"""Marco-o1's text: tags, steps, the reflection phrase, and what a token means for the path it ends.

Text is handled as UTF-8 bytes: a character may span tokens or nodes, and every marker is ASCII, so
a search in bytes finds it exactly where a search in the decoded text would.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

__all__ = [
    "MARCO_PROMPT",
    "REFLECTION",
    "Chat",
    "Event",
    "PathText",
    "Reply",
    "as_messages",
    "may_complete_marker",
    "parse_reply",
    "plain_prompt",
]

Chat = Sequence[Mapping[str, str]]  # {"role": "system", "user" or "assistant", "content": text}

# Marco-o1's phrase (arXiv 2411.14405, section 5), on a line of its own with a blank line after it.
REFLECTION = "\nWait! Maybe I made some mistakes! I need to rethink from scratch.\n\n"

# The system prompt of AIDC-AI/Marco-o1's chat template: who it is; thoughts go inside <Thought>, in
# English as far as possible, the result inside <Output>, in the user's language.
MARCO_PROMPT = (
    "\n你是一个经过良好训练的AI助手，你的名字是Marco-o1.由阿里国际数字商业集团的AI Business创造.\n"
    "        \n## 重要！！！！！\n"
    "当你回答问题时，你的思考应该在<Thought>内完成，<Output>内输出你的结果。\n"
    "<Thought>应该尽可能是英文，但是有2个特例，一个是对原文中的引用，"
    "另一个是是数学应该使用markdown格式，<Output>内的输出需要遵循用户输入的语言。\n        "
)

THOUGHT_END = b"</Thought>"
OUTPUT_END = b"</Output>"
REFLECTION_MARK = REFLECTION.strip().encode()


# What a model is told that has no chat template of its own.
PLAIN_SYSTEM = (
    "Think step by step inside <Thought> and </Thought>, then write the result alone inside "
    "<Output> and </Output>."
)


def as_messages(question: str | Chat, system: str | None = None) -> list[dict[str, str]]:
    """A question or a chat as the messages of one, checked.

    Args:
        question: a text, or messages of which the last is the user's and only the first may be the
            system's.
        system: the system prompt; "marco-o1" stands for MARCO_PROMPT. None: none.

    Raises:
        ValueError: no text, a message of another form, or two system prompts.
    """
    if not isinstance(question, Sequence):
        raise ValueError(f"expected a question with some text or a chat, got {question!r}")
    if isinstance(question, str):
        messages = [{"role": "user", "content": question}]
    else:
        messages = [_checked(each, index) for index, each in enumerate(question)]
    if not messages or messages[-1]["role"] != "user":
        got = messages[-1]["role"] if messages else "no message"
        raise ValueError(f"expected a chat whose last message is the user's, got {got!r}")
    if not messages[-1]["content"].strip():
        raise ValueError(f"expected a question with some text, got {messages[-1]['content']!r}")
    if system is not None:
        if messages[0]["role"] == "system":
            raise ValueError(
                "expected one system prompt, got one in the chat and another beside it"
            )
        text = MARCO_PROMPT if system == "marco-o1" else system
        messages.insert(0, {"role": "system", "content": text})
    return messages


def _checked(message: Mapping[str, str], index: int) -> dict[str, str]:
    whole = isinstance(message, Mapping) and set(message) >= {"role", "content"}
    if not whole or not isinstance(message["content"], str):
        raise ValueError(
            'expected messages like {"role": "user", "content": "text"}, '
            f"got {message!r} at place {index}"
        )
    roles = ("user", "assistant", "system") if index == 0 else ("user", "assistant")
    if message["role"] not in roles:
        expected = " or ".join(repr(role) for role in roles)
        raise ValueError(
            f"expected the role at place {index} to be {expected}, got {message['role']!r}"
        )
    return {"role": message["role"], "content": message["content"]}


def plain_prompt(messages: list[dict[str, str]]) -> str:
    """A chat for a model without a chat template."""
    turns = list(messages)
    system = turns.pop(0)["content"].strip() if turns[0]["role"] == "system" else PLAIN_SYSTEM
    names = {"user": "User", "assistant": "Assistant"}
    written = "".join(f"{names[each['role']]}: {each['content'].strip()}\n\n" for each in turns)
    return f"{system}\n\n{written}Assistant:\n"


class Reply(NamedTuple):
    """The parts of a reply.

    Attributes:
        thought: the text inside <Thought>, as far as it goes; "" without one.
        answer: the text inside <Output>; None while it is not complete.
    """

    thought: str
    answer: str | None


def parse_reply(text: str) -> Reply:
    """Cut a reply into thought and answer, both stripped of surrounding white space."""
    _, opened, after = text.partition("<Thought>")
    thought = after.partition("</Thought>")[0].strip() if opened else ""
    body, closed, _ = text.partition("</Output>")
    _, output, answer = body.rpartition("<Output>")
    if not (closed and output):
        return Reply(thought.partition("<Output>")[0].strip(), None)
    return Reply(thought, answer.strip())


def may_complete_marker(piece: bytes) -> bool:
    """Whether a token of these bytes can complete a tag or a blank line; most cannot."""
    return b">" in piece or b"\n" in piece


class Event(Enum):
    """What a token completed."""

    NONE = 0
    STEP = 1  # a blank line: the end of a step
    THOUGHT = 2  # the first </Thought>, where a reflection may go
    OUTPUT = 3  # </Output>: the path is finished


class PathText:
    """The text of one path while it is decoded.

    Args:
        text: bytes of the path so far (the prompt not included).
        steps: whether blank lines end actions.
        reflect: whether a reflection is still to come on this path.
    """

    __slots__ = ("action_begin", "reflect", "steps", "text")

    def __init__(self, text: bytes, *, steps: bool, reflect: bool) -> None:
        self.text = bytearray(text)
        self.action_begin = len(text)
        self.steps = steps
        self.reflect = reflect and REFLECTION_MARK not in text and THOUGHT_END not in text

    def push(self, piece: bytes) -> Event:
        """Append a token's bytes; says what it completed."""
        old = len(self.text)
        self.text += piece
        if not may_complete_marker(piece):
            return Event.NONE
        if self.text.find(OUTPUT_END, max(0, old - len(OUTPUT_END) + 1)) >= 0:
            return Event.OUTPUT
        if self.reflect:
            begin = self.text.find(THOUGHT_END, max(0, old - len(THOUGHT_END) + 1))
            if begin >= self.action_begin:
                return Event.THOUGHT
            # One that began in an earlier action (a rollout was cut off there) is not taken back.
            self.reflect = begin < 0
        if self.steps and b"\n\n" in self.text[self.action_begin :].lstrip(b"\n"):
            return Event.STEP
        return Event.NONE

    def begin_action(self) -> None:
        """The next token belongs to a new action."""
        self.action_begin = len(self.text)

    def may_take_back(self) -> bool:
        """Whether the text ends inside what may become the </Thought> a reflection takes back.

        An action is not cut there: the tokens to take back must all belong to the open action.
        """
        if not self.reflect:
            return False
        tail = bytes(self.text[-len(THOUGHT_END) + 1 :])
        return any(THOUGHT_END.startswith(tail[i:]) for i in range(len(tail)))

    def take_back(self, pieces: list[bytes]) -> int:
        """Drop the tokens that hold the </Thought> at the end of the text; no reflection any more.

        Args:
            pieces: bytes of the open action's tokens.

        Returns:
            How many of the action's tokens stay.
        """
        begin = self.text.rfind(THOUGHT_END)
        kept = len(pieces)
        while kept and len(self.text) > begin:
            kept -= 1
            del self.text[len(self.text) - len(pieces[kept]) :]
        self.reflect = False
        return kept
