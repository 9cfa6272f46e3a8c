"""Files that are written: whole or not at all, where the name leads, with what they had before."""

import errno
import os
import re
import socket
import stat

import pytest

from marco_fast import files
from marco_fast.files import check_apart, check_writable, write_whole

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def names(folder) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder with a short path."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(kind: str) -> str:
    """Something that is no file, in the current folder."""
    if kind == "FIFO":
        os.mkfifo("it")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("it")
    elif kind == "folder":
        os.mkdir("it")
    elif not ROOT:
        pytest.skip("needs root")
    else:
        os.mknod("it", 0o666 | (stat.S_IFBLK if kind == "block" else stat.S_IFCHR), 0x103)
    return "it"


@pytest.mark.parametrize("by", ["name", "link"])
@pytest.mark.parametrize("kind", ["folder", "FIFO", "socket", "device", "block"])
def test_what_is_no_file_is_refused_and_stays(here, kind, by):
    name, before = make(kind), os.lstat("it")
    if by == "link":
        name = "link"
        os.symlink("it", name)
    told = "device" if kind == "block" else kind
    for write in (lambda: check_writable(name, "--save"), lambda: write_whole(name, "x")):
        with pytest.raises(ValueError, match=f"to name a file, got the {told} '{name}'"):
            write()
    assert os.path.samestat(before, os.lstat("it"))
    assert names(here) == (["it", "link"] if by == "link" else ["it"])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "an empty name"),
        ("new/", "the folder 'new/'"),
        ("..", "the folder '..'"),
        ("/", "the folder '/'"),
        ("a\0b", "'a\\x00b' with a NUL in it"),
        ("a\ud83d", "'a\\ud83d', which the file system cannot spell"),
        ("loop", "a loop of links, 'loop'"),
        ("x" * 256, "one that is too long, 'x"),
        ("é" * 128, "one that is too long, 'é"),
        ("/dev/null", "the device '/dev/null'"),
        ("/dev/stdout", "the device '/dev/stdout'"),
        ("/dev/fd/1", "the device '/dev/fd/1'"),
        ("/proc/self/fd/1", "the device '/proc/self/fd/1'"),
        ("out", "the device 'out'"),
    ],
)
def test_names_of_nothing_that_can_be_a_file_are_refused(here, name, told):
    os.symlink("loop2", "loop")
    os.symlink("loop", "loop2")
    os.symlink("/dev/stderr", "out")
    for write in (lambda: check_writable(name, "--save"), lambda: write_whole(name, "x")):
        with pytest.raises(ValueError, match=re.escape(f"to name a file, got {told}")):
            write()
    assert names(here) == ["loop", "loop2", "out"]


def test_the_check_refuses_what_would_fail_later(here, capfd):
    for name, told in [
        ("-", "got '-'; './-' is the file of that name"),
        ("nowhere/x", "in a folder that exists, got 'nowhere/x'"),
        ("file/x", "in a folder that exists, got 'file/x'"),
    ]:
        (here / "file").touch()
        with pytest.raises(ValueError, match=re.escape(told)):
            check_writable(name, "--save")
    check_writable("./-", "--save")
    with open("log", "w") as log:
        kept = os.dup(1)
        os.dup2(log.fileno(), 1)
        try:
            with pytest.raises(ValueError, match="another file than standard output, got the same"):
                check_writable("log", "--save")
        finally:
            os.dup2(kept, 1)
            os.close(kept)
    assert names(here) == ["file", "log"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EDQUOT, errno.ENOSPC, errno.EACCES])
def test_the_check_tries_it(here, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "open", refuse)
    told = f"expected --save to be writable, got 'x': {os.strerror(code)}"
    with pytest.raises(ValueError, match=re.escape(told)):
        check_writable("x", "--save")


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "x" * 255,
        "é" * 127,
        "文" * 85,
        "caf\udce9",
        "~",
        " ",
        "-",
        "new\nline",
        "a b.tmp",
        "x.",
    ],
)
def test_any_name_of_a_file_will_do(here, name):
    check_writable(os.path.join(".", name), "--save")
    for text in ("a\r\nb\n", "short"):
        write_whole(name, text)
        assert names(here) == [name]
        with open(name, newline="") as file:
            assert file.read() == text


def test_links_stay_and_the_file_behind_them_is_written(here):
    os.makedirs("far/away")
    (here / "old").write_text("old")
    os.symlink("old", "link")
    os.symlink("link", "chain")
    os.symlink("../new", "far/dangling")
    os.symlink(here / "far", "folder")
    for name, target in [("link", "old"), ("chain", "old"), ("folder/dangling", "new")]:
        check_writable(name, "--save")
        write_whole(name, f"by {name}")
        assert (here / target).read_text() == f"by {name}"
        assert os.path.islink(name)
    assert names(here) == ["chain", "far", "folder", "link", "new", "old"]
    assert names("far") == ["away", "dangling"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755, 0o200])
def test_a_file_keeps_its_permissions(here, mode):
    (here / "x").touch()
    os.chmod("x", mode)
    write_whole("x", "new")
    assert stat.S_IMODE(os.stat("x").st_mode) == mode


def test_a_new_file_has_the_usual_permissions_and_the_umask_is_left_alone(here, monkeypatch):
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", lambda _: pytest.fail("another thread would see it"))
            write_whole("x", "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat("x").st_mode) == 0o640


@pytest.mark.skipif(not ROOT, reason="needs root")
def test_a_file_keeps_its_owner(here):
    (here / "x").touch()
    os.chown("x", 1234, 2345)
    os.chmod("x", 0o640)
    write_whole("x", "new")
    found = os.stat("x")
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 2345, 0o640)


def test_no_right_passes_to_another_group(here, monkeypatch):
    def refuse(*_):
        raise PermissionError

    (here / "x").touch()
    os.chmod("x", 0o664)
    monkeypatch.setattr(os, "fchown", refuse)
    write_whole("x", "new")
    assert stat.S_IMODE(os.stat("x").st_mode) == 0o644


def test_all_names_of_a_file_keep_showing_one_file(here):
    (here / "x").write_text("a long old text")
    os.link("x", "y")
    for text in ("short", "a text that is longer than the old one was"):
        write_whole("x", text)
        assert (here / "y").read_text() == text
    assert os.path.samefile("x", "y")
    assert names(here) == ["x", "y"]


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EPERM, errno.EACCES])
def test_a_file_that_is_mounted_or_may_only_be_written_is_overwritten(here, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, "no")

    (here / "x").write_text("old")
    monkeypatch.setattr(os, "replace", refuse)
    write_whole("x", "new")
    assert (here / "x").read_text() == "new"
    assert names(here) == ["x"]


@pytest.mark.parametrize("other", ["x", "./x", "folder/../x", "link", "hard", "folder", "new"])
def test_an_output_that_is_an_input_is_refused(here, other):
    os.mkdir("folder")
    (here / "x").touch()
    os.symlink("x", "link")
    os.link("x", "hard")
    os.link("x", "folder/weights")
    output = "folder/../new" if other == "new" else "x"  # two that are not there yet
    with pytest.raises(ValueError, match="--out to be another file than the input, got the same"):
        check_apart(output, "--out", {"nothing": None, "the input": other})
    check_apart("y", "--out", {"nothing": None, "the input": "x", "the model": "nano-marco"})
