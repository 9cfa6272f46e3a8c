"""The files that commands write: refused before the work, and after it an answer is not lost."""

import contextlib
import errno
import importlib
import json
import os
import stat

import pytest

from marco_fast import files
from marco_fast.cli import main
from marco_fast.data import journal
from marco_fast.data.generate import journal_of
from marco_fast.forest.result import SearchResult
from tests.support.data_runs import real_questions

QUESTION = "How many times does the letter r occur in strawberry?"
FAST = ["--expansions", "2"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder: a saved tree, a chat, questions; what the commands write is out of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chat.json").write_text('[{"role": "user", "content": "Hi"}]')
    (tmp_path / "tree.json").write_text("{}")
    real_questions(tmp_path / "q.jsonl")
    return tmp_path


# {option: the command with it; what it reads}
WRITING = {
    "--save": (["solve", QUESTION, *FAST, "--quiet", "--history", "chat.json"], "chat.json"),
    "--report": (["compare", "--questions", "1", "--tests", "letters", *FAST], None),
    "--html": (["tree", "tree.json"], "tree.json"),
    "--out": (["generate-data", "q.jsonl", "--restart", *FAST], "q.jsonl"),
}


def refuses(option: str, name: str, capfd) -> str:
    """The one line by which a command refuses an output."""
    assert main([*WRITING[option][0], option, name]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    command = WRITING[option][0][0]
    assert line.startswith(f"marco-fast {command}: error: expected {option} ")
    return line


@pytest.mark.parametrize("option", WRITING)
def test_what_is_no_file_is_refused_before_the_work(here, option, capfd, monkeypatch):
    monkeypatch.setattr("marco_fast.engine.engine.Engine.from_pretrained", pytest.fail)
    os.mkfifo("fifo")
    os.symlink("loop", "loop")
    os.symlink("/dev/null", "null")
    before = sorted(os.listdir())
    for name in ("/dev/null", "null", "/dev/stdout", "/dev/fd/1", "fifo", ".", "new/", "loop"):
        assert "to name a file, got" in refuses(option, name, capfd)
    for name in ("", "-", "a\0b", "x" * 256, "a\ud83d"):
        assert "to name a file, got" in refuses(option, name, capfd)
    assert "folder that exists" in refuses(option, "nowhere/x", capfd)
    assert sorted(os.listdir()) == before
    assert stat.S_ISFIFO(os.lstat("fifo").st_mode)


@pytest.mark.parametrize("option", [each for each, (_, read) in WRITING.items() if read])
def test_an_output_that_is_an_input_is_refused(here, option, capfd, monkeypatch):
    monkeypatch.setattr("marco_fast.engine.engine.Engine.from_pretrained", pytest.fail)
    read = WRITING[option][1]
    before = (here / read).read_bytes()
    os.link(read, "hard")
    os.symlink(read, "link")
    for name in (read, "./" + read, "hard", "link", str(here / read)):
        assert "to be another file than " in refuses(option, name, capfd)
    assert (here / read).read_bytes() == before


def test_a_file_of_the_model_is_no_output(here, capfd):
    os.mkdir("model")
    (here / "model" / "config.json").touch()
    for option in ("--save", "--out"):
        command = [*WRITING[option][0], "--model", "model", option, "model/config.json"]
        assert main(command) == 2
        assert "another file than the model, got the same" in capfd.readouterr().err
    models = ["--models", "nano-marco", "model"]
    assert main([*WRITING["--report"][0], *models, "--report", "model/config.json"]) == 2
    assert "another file than the model model" in capfd.readouterr().err


@pytest.fixture
def full_disk(here, monkeypatch):
    """What is there is written beforehand; from then on the disk is full."""
    real = files.replacing

    @contextlib.contextmanager
    def replacing(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with real(*arguments) as file:
                yield file

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "replacing", replacing)
    monkeypatch.setattr(journal, "replacing", replacing)


def test_an_answer_is_printed_when_its_file_cannot_be_written(here, full_disk, capfd):
    (here / "out").write_text("old")
    said = "error: the file was not written: [Errno 28] No space left on device"
    for form in ("--quiet", "--json"):
        assert main(["solve", QUESTION, *FAST, form, "--save", "out"]) == 1
        out, err = capfd.readouterr()
        assert (json.loads(out)["answer"] if form == "--json" else out.strip()) == "3"
        assert err == f"marco-fast solve: {said}\n"
    assert main([*WRITING["--report"][0], "--report", "out"]) == 1
    out, err = capfd.readouterr()
    assert "1/1 (" in out
    assert err.splitlines()[-1] == f"marco-fast compare: {said}"
    assert main([*WRITING["--out"][0], "--out", "out"]) == 1
    assert "No space left on device; the same command goes on" in capfd.readouterr().err
    assert journal_of("out").read_bytes().count(b"\n") == 9
    assert main(["solve", QUESTION, *FAST, "--quiet"]) == 0
    assert (here / "out").read_text() == "old"
    assert sorted(os.listdir()) == ["chat.json", "out", "out.journal", "q.jsonl", "tree.json"]


def test_a_folder_that_went_away_takes_no_answer_with_it(here, capfd, monkeypatch):
    os.mkdir("folder")
    real = SearchResult.save

    def save(result, path):
        os.rmdir("folder")
        os.mkdir("elsewhere")
        real(result, path)

    monkeypatch.setattr(SearchResult, "save", save)
    assert main(["solve", QUESTION, *FAST, "--quiet", "--save", "folder/t.json"]) == 1
    out, err = capfd.readouterr()
    assert out == "3\n"
    assert "error: the file was not written: [Errno 2] No such file or directory" in err

    def save_onto_folder(result, path):
        os.mkdir("t.json")
        real(result, path)

    monkeypatch.setattr(SearchResult, "save", save_onto_folder)
    assert main(["solve", QUESTION, *FAST, "--quiet", "--save", "t.json"]) == 1
    assert "error: the file was not written: expected path to name a file" in capfd.readouterr().err


def test_a_model_that_fails_on_the_way_loses_no_answers(here, capfd, monkeypatch):
    module = importlib.import_module("marco_fast.comparison.compare")
    real, calls = module._ask, []

    def ask(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("the matrix is on fire")
        return real(*arguments)

    monkeypatch.setattr(module, "_ask", ask)
    assert main([*WRITING["--report"][0], "--report", "r.html"]) == 1
    out, err = capfd.readouterr()
    assert "1/1 (" in out
    assert "marco-fast compare: error: RuntimeError: the matrix is on fire; the table shows" in err
    assert os.path.exists("r.html")


def test_links_names_and_permissions_stay_whoever_writes(here, capfd):
    os.mkdir("far")
    (here / "far" / "old").touch()
    os.chmod("far/old", 0o600)
    (here / "tree.json").unlink()
    long = "x" * 250
    assert main(["solve", QUESTION, *FAST, "--quiet", "--save", "tree.json"]) == 0
    for option, (command, _) in WRITING.items():
        if not os.path.lexists("link"):
            os.symlink("far/old", "link")
            os.symlink(f"far/{long}", "dangling")
        for link, target in (("link", "far/old"), ("dangling", f"far/{long}")):
            words = [each for each in command if each not in ("--history", "chat.json")]
            assert main([*words, option, link]) == 0, capfd.readouterr()
            assert os.path.islink(link)
            assert os.path.getsize(target) > 100
            assert (os.stat(target).st_mode & 0o777 == 0o600) == (link == "link")
        assert sorted(os.listdir("far")) == ["old", long]
        os.unlink(f"far/{long}")
    assert not [name for name in os.listdir() if name.endswith((".tmp", ".lock", ".journal"))]
