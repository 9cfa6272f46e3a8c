"""The journal of a data run: what an interrupted or killed run goes on from."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from marco_fast.data.filters import Limits, refused_by

__all__ = ["FORMAT", "Journal"]

FORMAT = {"format": "marco-fast-journal", "version": 1}


class Journal:
    """The file that a run can be resumed from; one process at a time has it.

    Args:
        path: of the file, made if need be. header: what all its lines depend on.
        restart: begin anew, whatever is in it.

    Raises:
        ValueError: another process has it, or it is of another run, or no journal at all.
    """

    def __init__(self, path: Path, header: dict[str, Any], *, restart: bool) -> None:
        self.path, self.header = path, json.loads(json.dumps(header))
        self.file = _lock(path)
        self.begin = 0  # byte where the first question's line begins
        self.fresh = False  # its header was written just now
        try:
            if restart:
                os.ftruncate(self.file, 0)
            self._check_header()
        except BaseException:
            os.close(self.file)
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.file)  # gives the lock back

    def _check_header(self) -> None:
        line = next(self._lines(0), b"")
        if not line.endswith(b"\n"):
            start = json.dumps(FORMAT)[:-1].encode()
            if line[: len(start)] != start[: len(line)]:
                raise self._foreign()
            os.ftruncate(self.file, 0)  # killed before its first line was whole
            line = _dump(self.header)
            self._write(line)
            _sync_folder(self.path.parent)
            self.fresh = True
        self.begin = len(line)
        try:
            found = json.loads(line)
        except ValueError:
            raise self._foreign() from None
        if not isinstance(found, dict) or any(found.get(k) != v for k, v in FORMAT.items()):
            raise self._foreign()
        names = [name for name in self.header | found if found.get(name) != self.header.get(name)]
        if names:
            differs = ", ".join(f"{name} {found.get(name)!r}" for name in names)
            now = ", ".join(repr(self.header.get(name)) for name in names)
            raise ValueError(
                f"expected the run that {str(self.path)!r} is of, with {differs}, got {now}; "
                "--restart (restart=True) throws away what is done"
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
        """Cuts off all behind the last whole batch; what the filters look at of each question.

        A line is whole if it ends, is JSON and has the id that is due.
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
        """One line each, in one write; on the disk when this returns."""
        self._write(b"".join(map(_dump, entries)))

    def _write(self, data: bytes) -> None:
        os.lseek(self.file, 0, os.SEEK_END)
        while data:
            data = data[os.write(self.file, data) :]
        os.fsync(self.file)

    def write_output(self, out: Path, limits: Limits) -> None:
        """Writes what the filters keep, whole or not at all, and removes the journal."""
        temporary = out.with_name(out.name + ".tmp")  # the lock makes it ours
        with open(temporary, "wb") as file:
            for line in self._lines(self.begin):
                entry = json.loads(line)
                if refused_by(entry["seen"], limits) is None:
                    file.write(_dump(entry["record"]))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, out)
        _sync_folder(out.parent)  # the output is there for good before the journal goes
        os.unlink(self.path)
        _sync_folder(out.parent)


def _lock(path: Path) -> int:
    """The file open and locked; the lock ends with the process, however it ends."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except BlockingIOError:
            os.close(file)
            raise ValueError(
                f"expected to be the only run that makes this output, got another one at work: it "
                f"has {str(path)!r}"
            ) from None
        os.close(file)  # the run that had it has just finished and removed it


def _entry_of(line: bytes) -> dict[str, Any] | None:
    """A line of a journal; None if it is not whole."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    whole = isinstance(entry, dict) and entry.keys() == {"id", "seen", "record"}
    return entry if whole else None


def _dump(value: Mapping[str, Any]) -> bytes:
    """A line of JSON. The signs that some readers take for the end of a line are escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    for sign in ("\x85", "\u2028", "\u2029"):
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text.encode() + b"\n"


def _sync_folder(folder: Path) -> None:
    """What was made, renamed or removed in it outlives a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
