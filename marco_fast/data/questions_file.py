"""The input of generate_data: a JSONL file of questions, checked line by line."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from marco_fast.search.marco import as_messages, untemplated_prompt
from marco_fast.text import check_unicode

if TYPE_CHECKING:
    from marco_fast.engine.engine import Engine

__all__ = ["Asked", "BadLine", "Questions", "read_questions"]


class Asked(NamedTuple):
    """A question of the input: its id, the whole chat, and the reference answer or None."""

    id: str
    messages: list[dict[str, str]]
    answer: str | None


class BadLine(NamedTuple):
    """A line of the input that holds no question: its number from 1, and what was expected."""

    line: int
    message: str


class Questions(NamedTuple):
    """An input file: its questions in order, its bad lines, and the SHA-256 of its bytes."""

    asked: list[Asked]
    bad: list[BadLine]
    sha256: str


def read_questions(
    path: Path,
    engine: "Engine",
    *,
    system: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Questions:
    """Read the questions of a JSONL file, one object per line.

    `marco-fast generate-data --help` describes the keys of such an object.

    Args:
        path: the file, UTF-8. Lines end at "\\n" alone.
        engine: its tokenizer and context decide which questions are too long.
        system, chat_template_kwargs: of every question, as solve() takes them.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is empty.
    """
    data = path.read_bytes()
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1]:
        lines.pop()  # the empty piece after the last line feed
    if not lines:
        raise ValueError(f"expected at least one question in {str(path)!r}, got an empty file")
    asked: list[Asked] = []
    bad: list[BadLine] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        try:
            one = _question(line, number, system)
            _check_fits(one.messages, engine, chat_template_kwargs)
            if one.id in first_line:
                raise ValueError(
                    f"expected an id of its own, got {one.id!r} as in line {first_line[one.id]}"
                )
        except (ValueError, RecursionError) as error:
            bad.append(BadLine(number, " ".join(str(error).split())))
            continue
        first_line[one.id] = number
        asked.append(one)
    return Questions(asked, bad, hashlib.sha256(data).hexdigest())


def _question(line: bytes, number: int, system: str | None) -> Asked:
    """The question in a line; a key whose value is null counts as missing.

    Programs that write tables as JSONL fill empty cells with null.
    """
    if not line.strip():
        raise ValueError("expected a JSON object, got an empty line")
    try:
        found = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8, got the byte {line[error.start]:#04x}") from error
    except ValueError as error:
        raise ValueError(f"expected a JSON object, got: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, got {type(found).__name__}")
    given = {name for name in ("question", "messages") if found.get(name) is not None}
    if len(given) != 1:
        got = "both" if given else "neither"
        raise ValueError(f'expected the key "question" or the key "messages", got {got}')
    kind, text = (str, "text") if "question" in given else (list, "list of messages")
    content = found[given.pop()]
    if not isinstance(content, kind):
        raise ValueError(f"expected a {text}, got {type(content).__name__}")
    name, answer = found.get("id"), found.get("answer")
    if isinstance(name, bool) or not isinstance(name, str | int | None):
        raise ValueError(f'expected "id" to be a text or an integer, got {name!r}')
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise ValueError(f'expected "answer" to be a text or a number, got {answer!r}')
    if isinstance(answer, str) and not answer.strip():
        raise ValueError('expected "answer" to have some text, got an empty one')
    messages = as_messages(content, system)
    one = Asked(
        str(number if name is None else name), messages, None if answer is None else str(answer)
    )
    check_unicode(one.id, one.answer or "")
    return one


def _check_fits(
    messages: list[dict[str, str]], engine: "Engine", template: Mapping[str, Any] | None
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the search will warn of the same
        options = None if template is None else dict(template)
        length = len(engine.prompt_token_ids(messages, untemplated_prompt(messages), options))
    if length >= engine.context:
        raise ValueError(
            f"expected a question of fewer than {engine.context} tokens with its prompt "
            f"(the context), got {length}"
        )
