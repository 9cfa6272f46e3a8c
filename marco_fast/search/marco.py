"""What Marco-o1 is asked: chats as messages, its system prompt, the reflection phrase."""

from collections.abc import Mapping, Sequence

from marco_fast.search.numbers import shown
from marco_fast.text import check_unicode

__all__ = [
    "MARCO_PROMPT",
    "REFLECTION",
    "Chat",
    "as_messages",
    "untemplated_prompt",
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

# What a model is told that has no chat template of its own.
UNTEMPLATED_SYSTEM = (
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
        ValueError: no text, text that is not Unicode, a message of another form, a system prompt
            that is no text, or two of them.
    """
    if not isinstance(question, Sequence) or isinstance(question, bytes | bytearray | memoryview):
        raise ValueError(f"expected a question with some text or a chat, got {shown(question)}")
    if system is not None and not isinstance(system, str):
        raise ValueError(f"expected a system prompt that is a text, got {shown(system)}")
    if isinstance(question, str):
        messages = [{"role": "user", "content": question}]
    else:
        messages = [_checked(each, index) for index, each in enumerate(question)]
    if not messages or messages[-1]["role"] != "user":
        got = messages[-1]["role"] if messages else "no message"
        raise ValueError(f"expected a chat whose last message is the user's, got {got!r}")
    if not messages[-1]["content"].strip():
        raise ValueError(
            f"expected a question with some text, got {shown(messages[-1]['content'])}"
        )
    if system is not None:
        if messages[0]["role"] == "system":
            raise ValueError(
                "expected one system prompt, got one in the chat and another beside it"
            )
        text = MARCO_PROMPT if system == "marco-o1" else system
        messages.insert(0, {"role": "system", "content": text})
    check_unicode(*(each["content"] for each in messages))
    return messages


def _checked(message: Mapping[str, str], index: int) -> dict[str, str]:
    whole = isinstance(message, Mapping) and set(message) >= {"role", "content"}
    if not whole or not isinstance(message["content"], str):
        raise ValueError(
            'expected messages like {"role": "user", "content": "text"}, '
            f"got {shown(message)} at index {index}"
        )
    roles = ("user", "assistant", "system") if index == 0 else ("user", "assistant")
    if message["role"] not in roles:
        expected = " or ".join(repr(role) for role in roles)
        raise ValueError(
            f"expected the role at index {index} to be {expected}, got {shown(message['role'])}"
        )
    return {"role": message["role"], "content": message["content"]}


def untemplated_prompt(messages: list[dict[str, str]]) -> str:
    """A chat for a model without a chat template."""
    turns = list(messages)
    system = turns.pop(0)["content"].strip() if turns[0]["role"] == "system" else UNTEMPLATED_SYSTEM
    names = {"user": "User", "assistant": "Assistant"}
    written = "".join(f"{names[each['role']]}: {each['content'].strip()}\n\n" for each in turns)
    return f"{system}\n\n{written}Assistant:\n"
