"""Reading JSON with errors that say what was expected; writing files whole or not at all."""

import contextlib
import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

__all__ = [
    "check_apart",
    "check_writable",
    "read_json",
    "replacing",
    "short_json",
    "sync_folder",
    "target_of",
    "write_whole",
]

Name = str | os.PathLike[str]

Value = TypeVar("Value", dict[str, Any], list[Any])
UNMOVED = {errno.EBUSY, errno.EPERM, errno.EACCES}  # a mount; another user's file, as in /tmp
MOST_LINKS = 40  # in a row, as Linux has it
OPEN_FILES = re.compile(r"/dev/fd|/proc/[^/]+(/task/[^/]+)?/fd")  # folders of them
KINDS = {
    stat.S_IFDIR: "the folder",
    stat.S_IFCHR: "the device",
    stat.S_IFBLK: "the device",
    stat.S_IFIFO: "the FIFO",
    stat.S_IFSOCK: "the socket",
}


def read_json(path: str | os.PathLike[str], expected: str, kind: type[Value]) -> Value:
    """Read a JSON file and check what its outermost value is.

    Args:
        path: the file, in UTF-8, UTF-16 or UTF-32.
        expected: what the value is, for the error message, such as "an object".
        kind: the type of the value, dict or list.

    Raises:
        ValueError: the file is a device or not JSON (NaN and Infinity are not, although Python's
            own reader takes them), or its value is of another kind.
        OSError: the file cannot be read.
    """
    name = str(path)
    try:
        if stat.S_IFMT(os.stat(path).st_mode) in (stat.S_IFCHR, stat.S_IFBLK):
            raise ValueError("a device")  # which may have no end
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


def target_of(path: Name, name: str = "path") -> str:
    """The file that writing to `path` means: absolute, and behind every link.

    Args:
        path: a name. What a link names need not exist. "~" is a character like any other.
        name: of the option or argument, for error messages.

    Raises:
        ValueError: the name is empty or none that this system can spell; it names a folder, a
            device, a FIFO, a socket or an open file of a process; or its links form a loop.
        OSError: a folder on the way cannot be looked into.
    """
    text = os.fspath(path)
    expected = f"expected {name} to name a file, got"
    if not text:
        raise ValueError(f"{expected} an empty name")
    if text.endswith((os.sep, os.altsep or os.sep)):
        raise ValueError(f"{expected} the folder {text!r}")
    try:
        if b"\0" in os.fsencode(text):
            raise ValueError(f"{expected} {text!r} with a NUL in it")
        target = _behind_links(text, expected)
        found = _stat(target)
    except UnicodeEncodeError:
        raise ValueError(f"{expected} {text!r}, which the file system cannot spell") from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ValueError(f"{expected} one that is too long, {text!r}") from None
    if found is not None and not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "no file:")
        raise ValueError(f"{expected} {kind} {text!r}")
    return target


def _behind_links(text: str, expected: str) -> str:
    """The end of a chain of links, in a folder without links; nothing needs to be there."""
    target = text
    for _ in range(MOST_LINKS):
        folder = os.path.realpath(os.path.dirname(target))
        if OPEN_FILES.fullmatch(folder):  # of a process, such as /dev/stdout: perhaps a pipe
            raise ValueError(f"{expected} the device {text!r}")
        target = os.path.join(folder, os.path.basename(target))
        if not os.path.islink(target):
            return target
        target = os.path.join(folder, os.readlink(target))
    raise ValueError(f"{expected} a loop of links, {text!r}")


def _stat(path: str) -> os.stat_result | None:
    """None where nothing of that name is, nor can be."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def check_writable(path: Name, name: str) -> None:
    """Refuse a file that cannot be written: before the work, not after it.

    Args:
        path: where the result shall go. name: of the option, for error messages.

    Raises:
        ValueError: `path` names no file, as target_of says; it is "-", or standard input, output or
            error; its folder does not exist; or nothing can be written there.
    """
    expected = f"expected {name} to be writable, got {str(path)!r}"
    if os.fspath(path) == "-":
        raise ValueError(f"expected {name} to name a file, got '-'; './-' is the file of that name")
    try:
        target = target_of(path, name)
        folder, found = os.path.dirname(target), _stat(target)
    except OSError as error:
        raise ValueError(f"{expected}: {error.strerror}") from None
    for number, stream in enumerate(("input", "output", "error")):
        with contextlib.suppress(OSError):
            if found is not None and os.path.samestat(os.fstat(number), found):
                raise ValueError(
                    f"expected {name} to be another file than standard {stream}, got the same"
                )
    if not os.path.isdir(folder):
        raise ValueError(f"expected {name} in a folder that exists, got {str(path)!r}")
    if not os.access(folder, os.W_OK | os.X_OK) or (found and not os.access(target, os.W_OK)):
        raise ValueError(expected)
    temporary = _temporary(target)
    try:  # access() does not know of quotas, of full tables, of what a server of files forbids
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.unlink(temporary)
    except OSError as error:
        raise ValueError(f"{expected}: {error.strerror}") from None


def check_apart(path: Name, name: str, others: Mapping[str, Name | None]) -> None:
    """Refuse an output that is one of the inputs, or another output, by whatever name.

    Args:
        path: the output. name: of its option.
        others: {what it is: path}; of a folder, every file in it; None is no path.

    Raises:
        ValueError: two are one file.
    """
    target = target_of(path, name)
    for what, other in others.items():
        folder = other is not None and os.path.isdir(other)
        for each in os.scandir(other) if folder else [other]:
            if each is not None and _same(target, os.fspath(each)):
                raise ValueError(f"expected {name} to be another file than {what}, got the same")


def _same(target: str, other: str) -> bool:
    try:
        return os.path.samefile(target, other)
    except (OSError, ValueError):  # at least one is not there: are their names the same?
        return os.path.normcase(target) == os.path.normcase(os.path.realpath(other))


def write_whole(path: Name, text: str) -> None:
    """Write a text file, UTF-8 with "\\n" at the ends of lines, as replacing() does.

    Raises:
        ValueError: `path` names no file; as target_of says.
        OSError: the file cannot be written; an older file of that name is then as it was.
    """
    data = text.encode()
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Name, temporary: Name | None = None) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when all is well: no reader sees half of it.

    It is written beside its target and renamed. A link stays, and the file behind it is replaced.
    An older file's permissions are kept, and its owner where the system allows. A file with
    several names (hard links), so that all of them keep showing one file, and one that may be
    written but not replaced, is overwritten instead; only there can a kill leave half of it.

    Args:
        path: the target, in a folder that exists.
        temporary: the name that is written first, in the same folder; what has that name is
            removed. By default a new name, so that any number of writers do not meet.

    Raises:
        ValueError: `path` names no file; as target_of says.
        OSError: the file cannot be written; an older file of that name is then as it was.
    """
    target = target_of(path)
    found, name = _stat(target), os.fspath(temporary or _temporary(target))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.remove(name)  # and not what a link of that name names
        # The system applies the umask to a new file; a replaced one gets its permissions back.
        handle = os.open(name, flags, 0o666 if found is None else 0o600)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if found is not None:
                _pass_on(found, file.fileno())
            os.fsync(file.fileno())
        _move(name, target, found)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    sync_folder(os.path.dirname(target))


def _temporary(target: str) -> str:
    """A new name beside a file; short, so that it fits wherever the file's own does."""
    return os.path.join(os.path.dirname(target), f".{secrets.token_hex(5)}.tmp")


def _pass_on(found: os.stat_result, file: int) -> None:
    """Gives an open file the owner, the group and the permissions of another."""
    mode = stat.S_IMODE(found.st_mode)
    if hasattr(os, "fchown"):
        try:
            os.fchown(file, -1, found.st_gid)
        except OSError:  # what the old group might do is no right of the new one
            mode = mode & ~0o070 | (mode & 0o007) << 3
        with contextlib.suppress(OSError):
            os.fchown(file, found.st_uid, -1)
    if hasattr(os, "fchmod"):
        with contextlib.suppress(OSError):  # a file system without permissions
            os.fchmod(file, mode)


def _move(temporary: str, target: str, found: os.stat_result | None) -> None:
    """Puts the written file where the old one is."""
    if found is None or found.st_nlink == 1:
        try:
            os.replace(temporary, target)
            return
        except OSError as error:
            if found is None or error.errno not in UNMOVED:
                raise
    new, old = Path(temporary).read_bytes(), Path(target).read_bytes()
    try:
        _overwrite(target, new)
    except BaseException:
        _overwrite(target, old)
        raise
    os.unlink(temporary)


def _overwrite(target: str, data: bytes) -> None:
    with open(target, "r+b", buffering=0) as file:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
        file.truncate(len(data))
        os.fsync(file.fileno())


def sync_folder(folder: Name) -> None:
    """Make files created, renamed or removed in a folder survive a loss of power, where it can."""
    with contextlib.suppress(OSError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
