"""Giving memory back while a model is loaded, so that the peak is the model and not twice as much.

A safetensors file is mapped: each page of it that was read counts until the file is closed, though
its numbers have been converted or packed elsewhere by then; and what the layers' own weights leave
behind stays with malloc, since what is packed next lies above it. Both are given back here, several
times a second: pages of the file come again from the system's cache if they are read once more.
"""

import ctypes
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["shed_memory"]

SECONDS = 0.05  # between two looks
GROWTH = 24 << 20  # bytes since the last time from which on memory is given back
MADV_DONTNEED = 4
HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ +(/.*)")


@contextmanager
def shed_memory() -> Iterator[None]:
    """Inside, memory that a model's loading no longer needs is given back; on Linux alone.

    Mappings of safetensors files that are there already are left alone, and so is one of whose
    pages any was written to.
    """
    if sys.platform != "linux":
        yield
        return
    ended = threading.Event()
    known = {begin for begin, _ in _mappings()}
    thread = threading.Thread(target=_shed, args=(ended, known), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _shed(ended: threading.Event, known: set[int]) -> None:
    libc = ctypes.CDLL(None)
    madvise, trim = _function(libc, "madvise"), _function(libc, "malloc_trim")
    least = _resident()
    while not ended.wait(SECONDS):
        now = _resident()
        least = min(least, now)
        if now - least >= GROWTH:
            _give_back(madvise, trim, known)
            least = _resident()
    _give_back(madvise, trim, known)


def _give_back(madvise: Callable, trim: Callable, known: set[int]) -> None:
    for begin, end in _mappings():
        if begin not in known:
            madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_DONTNEED)
    trim(ctypes.c_size_t(0))


def _function(libc: ctypes.CDLL, name: str) -> Callable:
    """A function of the C library; one that does nothing where it has none of that name."""
    return getattr(libc, name, lambda *_: 0)


def _resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def _mappings() -> list[tuple[int, int]]:
    """Where safetensors files are mapped of which no page was written to: begin and end."""
    found: list[tuple[int, int]] = []
    place: tuple[int, int] | None = None
    for line in Path("/proc/self/smaps").read_text(errors="replace").splitlines():
        if head := HEAD.match(line):
            begin, end, path = head.groups()
            place = (int(begin, 16), int(end, 16)) if ".safetensors" in path else None
        elif "-" in line.partition(" ")[0]:
            place = None
        elif place and line.startswith("Anonymous:"):
            if line.split()[1] == "0":
                found.append(place)
            place = None
    return found
