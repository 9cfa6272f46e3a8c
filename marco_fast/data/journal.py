"""The journal of generate_data: the file from which an interrupted or killed run is continued."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from marco_fast.data.filters import Limits, refused_by
from marco_fast.files import replacing, sync_folder, target_of

__all__ = ["FORMAT", "Journal", "beside", "header_of"]

FORMAT = {"format": "marco-fast-journal", "version": 2}
MOST_BYTES = 255  # in the name of a file


def beside(path: Path, ending: str) -> Path:
    """The path with an ending; a name that becomes too long for a file is cut and gets a hash."""
    name = os.fsencode(path.name)
    if len(name) + len(ending) > MOST_BYTES:
        mark = hashlib.sha256(name).hexdigest()[:16]
        begin = name[: MOST_BYTES - len(mark) - len(ending)].decode(errors="ignore")
        return path.with_name(begin + mark + ending)
    return path.with_name(path.name + ending)


def header_of(path: Path) -> dict[str, Any]:
    """What the first line of a journal says; nothing where there is no journal."""
    if not path.is_file():  # opening a FIFO would wait for a writer
        return {}
    try:
        with open(path, "rb") as file:
            found = json.loads(file.readline())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class Journal:
    """A file with a header line and one line per entry, locked by one process at a time.

    The lock is a file of its own beside it, since Windows lets nobody read what is locked.

    Args:
        path: of the file, which is created if it does not exist.
        header: everything that the entries depend on.
        restart: discard what the file holds.

    Raises:
        ValueError: another process holds the lock, the file has another header, or it is not a
            journal, nor any file.
    """

    def __init__(self, path: Path, header: dict[str, Any], *, restart: bool) -> None:
        target_of(path, "the journal")
        self.path, self.header = path, json.loads(json.dumps(header))
        self.begin = 0  # byte at which the first entry begins
        self.fresh = False  # whether this object wrote the header
        self.lock = _lock(path)
        try:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
            self.file = os.open(path, flags, 0o666)
        except BaseException:
            self._unlock()
            raise
        try:
            if restart:
                os.ftruncate(self.file, 0)
            self._check_header()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and let other runs have it."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1
        self._unlock()

    def _unlock(self) -> None:
        with contextlib.suppress(OSError):  # where it cannot be removed it stays, and is used again
            os.remove(self.lock.lock_file)  # while it is ours
        self.lock.release()

    def discard(self) -> None:
        """Remove the file; other runs are still kept out."""
        os.close(self.file)  # Windows removes no open file
        self.file = -1
        os.unlink(self.path)

    def _check_header(self) -> None:
        line = next(self._lines(0), b"")
        if not line.endswith(b"\n"):
            start = json.dumps(FORMAT)[:-1].encode()
            if line[: len(start)] != start[: len(line)]:
                raise self._foreign()
            os.ftruncate(self.file, 0)  # a run was killed while it wrote the header
            line = _dump(self.header)
            self._write(line)
            sync_folder(self.path.parent)
            self.fresh = True
        self.begin = len(line)
        try:
            found = json.loads(line)
        except ValueError:
            raise self._foreign() from None
        if not isinstance(found, dict) or found.get("format") != FORMAT["format"]:
            raise self._foreign()
        if found.get("version") != FORMAT["version"]:
            raise ValueError(
                f"expected a journal of version {FORMAT['version']} in {str(self.path)!r}, got "
                f"version {found.get('version')!r}, of another version of marco_fast; --restart "
                "(restart=True) discards what is done"
            )
        names = [name for name in self.header | found if found.get(name) != self.header.get(name)]
        if names:
            differs = ", ".join(f"{name} {found.get(name)!r}" for name in names)
            now = ", ".join(repr(self.header.get(name)) for name in names)
            raise ValueError(
                f"expected the options with which {str(self.path)!r} was begun, "
                f"with {differs}, got {now}; --restart (restart=True) discards what is done"
            )

    def _foreign(self) -> ValueError:
        return ValueError(
            f"expected a journal of generate-data in {str(self.path)!r}, got another file; "
            "--restart (restart=True) overwrites it"
        )

    def _lines(self, begin: int) -> Iterator[bytes]:
        with open(self.path, "rb") as file:
            file.seek(begin)
            yield from file

    def resume(self, ids: Sequence[str], batch: int) -> list[Mapping[str, Any] | None]:
        """Cuts off everything after the last whole batch.

        A line counts if it has an end, is an entry, and has the id of the question that is next.

        Args:
            ids: of the questions, in order.
            batch: questions per batch.

        Returns:
            The figures for the filters, one element per entry that is left; None where the
            question has no finished path.
        """
        seen: list[Mapping[str, Any] | None] = []
        end = whole_end = self.begin
        for line, due in zip(self._lines(self.begin), ids, strict=False):
            entry = _entry_of(line)
            if entry is None or entry["id"] != due:
                break
            seen.append(entry["seen"])
            end += len(line)
            if len(seen) % batch == 0 or len(seen) == len(ids):
                whole_end = end
        if len(seen) < len(ids):
            del seen[len(seen) - len(seen) % batch :]
        os.ftruncate(self.file, whole_end)
        os.fsync(self.file)
        return seen

    def append(self, entries: list[dict[str, Any]]) -> None:
        """Adds entries in one write; they are on the disk when this returns."""
        self._write(b"".join(map(_dump, entries)))

    def _write(self, data: bytes) -> None:
        os.lseek(self.file, 0, os.SEEK_END)
        while data:
            data = data[os.write(self.file, data) :]
        os.fsync(self.file)

    def write_output(self, out: Path, limits: Limits) -> None:
        """Writes the lines that the filters keep, all or none, and removes the journal."""
        # Only the holder of the lock writes it, so that a run that is killed leaves one at most.
        with replacing(out, beside(out, ".tmp")) as file:
            for line in self._lines(self.begin):
                entry = json.loads(line)
                if refused_by(entry["seen"], limits) is None:
                    file.write(_dump(entry["record"]))
        # The output now survives a loss of power, and the journal may go.
        self.discard()
        sync_folder(out.parent)


def _lock(path: Path) -> FileLock:
    """The lock of a journal; the system releases it when the process ends in any way."""
    lock = FileLock(beside(path, ".lock"), thread_local=False)
    try:
        # A moment, not none: a run that has just ended may have removed the file under our hands.
        lock.acquire(timeout=0.1, poll_interval=0.02)
    except Timeout:
        raise ValueError(
            f"expected to be the only run that writes this output, got another one, which has "
            f"locked {str(path)!r}"
        ) from None
    return lock


def _entry_of(line: bytes) -> dict[str, Any] | None:
    """The entry in a line of a journal; None if the line is not a whole entry."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    whole = isinstance(entry, dict) and entry.keys() == {"id", "seen", "record"}
    return entry if whole else None


def _dump(value: Mapping[str, Any]) -> bytes:
    """A line of JSON, with every character escaped that some readers take for the end of a line."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    for sign in ("\x85", "\u2028", "\u2029"):
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text.encode() + b"\n"
