"""Files that cannot be written: the old one stays whole, and nothing else is left."""

import errno
import os
import threading

import pytest

from marco_fast import files
from marco_fast.files import replacing, write_whole


def names(folder) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(half_way=None, name="x") -> None:
    """Writes a file; something happens half-way."""
    with replacing(name) as file:
        file.write(b"new")
        if half_way:
            half_way()


@pytest.mark.parametrize("call", ["open", "fdopen", "fsync", "replace", "fchmod", "stop"])
@pytest.mark.parametrize("links", [1, 2])
def test_what_fails_leaves_the_old_file_and_nothing_else(here, monkeypatch, call, links):
    (here / "x").write_text("old")
    if links == 2:
        os.link("x", "y")
    before = os.stat("x")
    stop = KeyboardInterrupt if call in ("stop", "fchmod") else OSError

    def fail(*_):
        raise stop(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if call == "replace" and links == 2:
            patch.setattr(files, "_overwrite", lambda *_: fail())
        elif call != "stop":
            patch.setattr(os, call, fail)
        with pytest.raises(stop):
            write(fail if call == "stop" else None)
    assert (here / "x").read_text() == "old"
    assert os.path.samestat(before, os.stat("x"))
    assert names(here) == ["x", "y"][:links]


def test_a_file_system_that_is_full_leaves_the_old_file(here):
    resource = pytest.importorskip("resource")
    (here / "x").write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_whole("x", "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (here / "x").read_text() == "old"
    assert names(here) == ["x"]


def test_half_an_overwritten_file_is_put_back(here, monkeypatch):
    (here / "x").write_text("old")
    os.link("x", "y")
    real, calls = os.fsync, []

    def fail(file):
        calls.append(file)
        if len(calls) == 2:  # the first is of the temporary file
            raise OSError(errno.EIO, "broken")
        real(file)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="broken"):
        write_whole("x", "a new text")
    assert (here / "y").read_text() == "old"
    assert names(here) == ["x", "y"]


def test_a_folder_that_goes_away_is_an_os_error(here):
    os.mkdir("folder")
    with pytest.raises(FileNotFoundError):
        write(lambda: os.rename("folder", "other"), "folder/x")
    write_whole("other/x", "new")


def test_writers_at_once_leave_one_whole_file(here):
    texts = [str(number) * 50_000 for number in range(8)]
    threads = [threading.Thread(target=write_whole, args=("x", text)) for text in texts]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert (here / "x").read_text() in texts
    assert names(here) == ["x"]
