"""Reading JSON with errors that say what was expected; writing text whole or not at all."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any, NoReturn, TypeVar

__all__ = ["read_json", "short_json", "write_whole"]

Value = TypeVar("Value", dict[str, Any], list[Any])


def read_json(path: str | os.PathLike[str], expected: str, kind: type[Value]) -> Value:
    """Read a JSON file and check what its outermost value is.

    Args:
        path: the file, in UTF-8, UTF-16 or UTF-32.
        expected: what the value is, for the error message, such as "an object".
        kind: the type of the value, dict or list.

    Raises:
        ValueError: the file is not JSON (the numbers NaN and Infinity are not, although Python's
            own reader takes them), or its value is of another kind.
        OSError: the file cannot be read.
    """
    name = str(path)
    try:
        value = json.loads(Path(path).read_bytes(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON in {name!r}, got {error}") from None
    if not isinstance(value, kind):
        raise ValueError(f"expected {expected} in {name!r}, got {short_json(value)}")
    return value


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"the number {word}")


def short_json(value: Any) -> str:
    """A value as JSON on one line of at most 60 characters, for an error message."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file under a temporary name, then rename it: no reader ever sees half of it.

    Raises:
        OSError: the file cannot be written; an older file of that name is then as it was.
    """
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes a file that only its owner can read; a result gets the usual permissions.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
