"""What the commands read and print: no console, encoding or reader can take an answer away."""

import contextlib
import errno
import io
import json
import logging
import os
import select
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TextIO

__all__ = ["notes", "print_json", "read_question", "saved", "stages", "standard_streams", "tell"]

# The reader has gone, or there is no console: nobody is left to tell.
GONE = {errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET, errno.ESHUTDOWN}
GONE |= {errno.EINVAL} if os.name == "nt" else set()
PIECE, MOST_BYTES = 2**20, 2**26  # of standard input: far more than any context holds
WHOLE = ("replace", "ignore", "xmlcharrefreplace", "namereplace", "backslashreplace")


class Output(io.RawIOBase):
    """Bytes to a stream: waits while it is full, and writes to nowhere once nobody reads it.

    Attributes:
        failure: the error that ended it, where that is not the reader's going away.
    """

    def __init__(self, raw: Any) -> None:
        self.raw, self.gone = raw, raw is None
        self.failure: OSError | None = None

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The file descriptor behind it."""
        return super().fileno() if self.raw is None else int(self.raw.fileno())

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        try:
            return self.raw is not None and bool(self.raw.isatty())
        except (OSError, ValueError):
            return False

    def write(self, data: Any) -> int:
        """Write everything."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and not self.gone:
                done = self.raw.write(rest)
                if done is None:
                    _wait(self.raw, writing=True)
                else:
                    rest = rest[done:]
        except (OSError, ValueError) as error:  # ValueError: somebody has closed it
            self.gone = True
            if isinstance(error, OSError) and error.errno not in GONE:
                self.failure = error
        return size


def _wait(stream: Any, *, writing: bool = False) -> None:
    """Until a stream that does not block is ready."""
    try:
        ready: tuple[list[Any], list[Any]] = ([], [stream]) if writing else ([stream], [])
        select.select(*ready, [], 1)
    except (OSError, ValueError):  # no stream that can be waited for
        time.sleep(0.01)


@contextlib.contextmanager
def standard_streams() -> Iterator[Output]:
    """Standard output and error that take every character, and fail nobody.

    What the encoding lacks becomes a backslash escape.

    Returns:
        Standard output: its `failure` tells whether something was not written.
    """
    for number in range(3):  # else a file that we open would become a standard stream
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    (sys.stdout, output), (sys.stderr, _) = _safe(before[0]), _safe(before[1])
    try:
        yield output
    finally:
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def notes(program: str) -> Iterator[None]:
    """Python's warnings become notes of one line, without the place in the code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: tell(program, f"note: {message}")
        yield


def _safe(stream: TextIO | None) -> tuple[Any, Output]:
    """A stream as standard_streams says, and the Output below it."""
    if stream is not None and not hasattr(stream, "buffer"):
        return stream, Output(None)  # not of this process: an editor's, a notebook's, a StringIO
    raw, encoding, errors = None, "utf-8", "backslashreplace"
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
        raw = getattr(stream.buffer, "raw", stream.buffer)
        encoding = stream.encoding or encoding
        errors = stream.errors if stream.errors in WHOLE else errors
    output = Output(raw)
    return io.TextIOWrapper(output, encoding, errors, write_through=True), output


@contextlib.contextmanager
def stages(model: str) -> Iterator[None]:
    """What an engine does while it loads a model, on a line of the terminal that is then cleared."""
    from rich.text import Text

    from marco_fast.forest.live import StderrView

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = f"loading {model}: {record.getMessage()}"
            view.show(lambda: Text(line, no_wrap=True, overflow="ellipsis"))

    log, handler = logging.getLogger("marco_fast.loading"), Shown()
    level = log.level
    with StderrView() as view:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            log.info("...")
            yield
        finally:
            log.removeHandler(handler)
            log.setLevel(level)


def tell(program: str, text: str) -> None:
    """One line on standard error."""
    print(f"{program}: {' '.join(str(text).split())}", file=sys.stderr)


def print_json(value: Any, **options: Any) -> None:
    """JSON on standard output; in ASCII where its encoding lacks a character."""
    text = json.dumps(value, ensure_ascii=False, **options)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeError, LookupError):
        text = json.dumps(value, **options)
    print(text)


def read_question() -> str:
    """The whole of standard input, UTF-8.

    Raises:
        ValueError: it is closed, no UTF-8, or above 64 MiB.
        OSError: it cannot be read.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise ValueError("expected the question on standard input, got a closed one")
    buffer = getattr(sys.stdin, "buffer", None)
    if buffer is None:
        return sys.stdin.read()
    data, raw = bytearray(), getattr(buffer, "raw", buffer)  # which sees one Ctrl-D, not the next
    while (piece := raw.read(PIECE)) != b"":
        data += piece or b""
        if piece is None:  # nothing yet, and the stream does not block
            _wait(raw)
        elif len(data) > MOST_BYTES:  # a device without an end, or a file by mistake
            raise ValueError(f"expected at most {MOST_BYTES >> 20} MiB on standard input, got more")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        got = f"the byte {error.object[error.start]:#04x} at {error.start}"
        raise ValueError(f"expected a question in UTF-8 on standard input, got {got}") from None


def saved(program: str, write: Callable[[], None]) -> bool:
    """Write a result's file; whether that went well, else one line says why not."""
    try:
        write()
    except (OSError, ValueError) as error:
        tell(program, f"error: the file was not written: {error}")
        return False
    return True
