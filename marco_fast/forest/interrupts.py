"""Ctrl-C and its kin: they end a search with the best so far, and cut no step in half."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Interrupts", "interrupts"]

ENDING = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
SAME_SECONDS = 0.5


class Interrupts:
    """A handler of signals. While it is held, the first signal sets the event; a later one raises.

    What comes right after the first is taken for the same: a terminal that closes sends two.

    Attributes:
        event: set by the first signal.
        number: of that signal; 0 before.
        at_once: until it is first held, a function that a signal calls with its number; without
            one, a signal raises KeyboardInterrupt.
        whole_process: whether at_once was given: the process is a program of ours, which ends when
            listening has ended.
    """

    def __init__(self, at_once: Callable[[int], None] | None = None) -> None:
        self.event, self.number, self.holders = threading.Event(), 0, 0
        self.came = 0.0  # when the first one came
        self.at_once, self.whole_process = at_once, at_once is not None

    def __call__(self, number: int, frame: Any) -> None:
        first, now = not self.number, time.monotonic()
        if first:
            self.came, self.number = now, number  # in this order: another may come in between
        if self.at_once is not None:
            self.at_once(number)
        if not self.holders or now - self.came >= SAME_SECONDS:
            raise KeyboardInterrupt
        if first:  # once: whoever is setting the event holds its lock
            self.event.set()

    @contextlib.contextmanager
    def hold(self) -> Iterator[threading.Event]:
        """Let the first signal set the event, which is for the caller to look at."""
        self.at_once = None
        self.holders += 1
        try:
            yield self.event
        finally:
            self.holders -= 1

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle Ctrl-C, SIGTERM and SIGHUP, where neither a parent nor a caller does already.

        What is ignored (by nohup, in a background job of a shell) stays ignored.
        """
        before = {}
        if _in_main_thread():
            for number in _numbers():
                handler = signal.getsignal(number)
                if handler in (signal.SIG_DFL, signal.default_int_handler):
                    before[number] = signal.signal(number, self)
        try:
            yield
        finally:
            for number, handler in before.items():
                # All is done: a program that is ending keeps the exit code that it has.
                signal.signal(number, signal.SIG_IGN if self.whole_process else handler)


@contextlib.contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that no decode step is cut in half; a second one raises.

    On the command line so do SIGTERM and SIGHUP; in somebody else's program they stay theirs, and
    so does Ctrl-C in another thread or where a handler of theirs is installed.
    """
    main = _in_main_thread()
    handlers = [signal.getsignal(number) for number in _numbers()] if main else []
    ours = next((each for each in handlers if isinstance(each, Interrupts)), None)
    if ours is not None:
        with ours.hold() as event:
            yield event
        return
    made = Interrupts()
    with made.hold() as event:
        if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield event
            return
        signal.signal(signal.SIGINT, made)
        try:
            yield event
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _numbers() -> list[int]:
    return [getattr(signal, name) for name in ENDING if hasattr(signal, name)]


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
