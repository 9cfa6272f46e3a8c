"""Whose a model is, and whose turn: one engine for a model, one search at a time on an engine."""

import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

from marco_fast.errors import ModelError

__all__ = ["SearchLock", "check_free", "take_over"]

MARK = "_marco_fast_layers"  # attribute of a transformers model: what became of its layers
MOVED = "moved into an Engine"
SWAPPED = "are used by an Engine that is open"


class SearchLock:
    """Lets one search at a time have an engine, until the engine is closed.

    A second thread waits. What could only wait for ever is refused: a search inside a search of
    the same thread, and one in a forked process whose parent was searching.

    Attributes:
        closed: whether the engine is; set while the lock is held.
    """

    def __init__(self) -> None:
        self.closed = False
        self._lock = threading.Lock()
        self._thread: int | None = None  # that holds the lock
        self._process = os.getpid()  # that took it last

    def locked(self) -> bool:
        """Whether a search has the engine."""
        return self._lock.locked()

    def check_open(self) -> None:
        """Raises ValueError when the engine is closed."""
        if self.closed:
            raise ValueError("expected an open engine, got a closed one")

    def acquire(self) -> None:
        """Wait for the engine, closed or not.

        Raises:
            ValueError: the wait would never end.
        """
        held, process = self._lock.locked(), os.getpid()
        if held and self._process != process:
            raise ValueError(
                "expected an engine that was idle when this process was forked, got one whose "
                "search went on in the parent: load an engine in this process"
            )
        if held and self._thread == threading.get_ident():
            raise ValueError(
                "expected an engine that this thread does not use already, got one that is "
                "searching: a function that a search calls needs an engine of its own"
            )
        self._process = process
        self._lock.acquire()
        self._thread = threading.get_ident()

    def release(self) -> None:
        """The next one may have it."""
        self._thread = None
        self._lock.release()

    def __enter__(self) -> "SearchLock":
        self.acquire()
        if self.closed:
            self.release()
            self.check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def check_free(model: Any) -> None:
    """Raises ModelError when a model's layers belong to an engine already."""
    found = getattr(model, MARK, None)
    if found == MOVED:
        _refuse(model)
    if found is not None:
        raise ModelError(
            f"expected a model of its own, got one whose layers {SWAPPED}: close that or load the "
            "model once more"
        )


def take_over(engine: object, model: Any, attention: Any) -> Callable[[], Any]:
    """Note that a model's layers belong to `engine`.

    Args:
        engine: until it is closed or dropped.
        attention: the model's attention as it was before the engine swapped it; None where the
            weights moved into the engine, for good: the model alone cannot be run any more.

    Returns:
        To call when the engine is closed.
    """
    setattr(model, MARK, MOVED if attention is None else SWAPPED)
    if attention is None:
        model.base_model.register_forward_pre_hook(_refuse)
    finalizer = weakref.finalize(engine, _give_back, model, attention)
    finalizer.atexit = False
    return finalizer


def _refuse(module: Any, *_: Any) -> NoReturn:
    raise ModelError(
        f"expected a model with its layers, got one whose layers {MOVED}: run it by that, or load "
        "the model once more"
    )


def _give_back(model: Any, attention: Any) -> None:
    if attention is not None:
        model.set_attn_implementation(attention)
        delattr(model, MARK)
