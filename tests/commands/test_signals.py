"""Signals in commands that ask many questions: what is done is printed, and kept."""

import json
import os
import signal

import pytest

from marco_fast.cli import main
from marco_fast.data.generate import journal_of
from marco_fast.forest.forest import Forest
from tests.support.data_runs import real_questions


@pytest.fixture(autouse=True)
def listening():
    """Signals as in a program that a person started."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = (signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL)
    before = [signal.signal(*each) for each in zip(numbers, handlers, strict=True)]
    yield
    for each in zip(numbers, before, strict=True):
        signal.signal(*each)


@pytest.fixture
def send(monkeypatch):
    """Sends a signal at a step of the n-th search."""

    def at(search: int, number: int) -> None:
        begun, real = [], Forest.on_step

        def on_step(forest):
            if forest not in begun:
                begun.append(forest)
                if len(begun) == search:
                    os.kill(os.getpid(), number)
            return real(forest)

        monkeypatch.setattr(Forest, "on_step", on_step)

    return at


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_compare_shows_and_writes_the_answers_so_far(send, number, code, tmp_path, capfd):
    send(2, number)
    report = tmp_path / "r.html"
    options = ["--questions", "1", "--tests", "letters", "--expansions", "2"]
    assert main(["compare", *options, "--report", str(report)]) == code
    out, err = capfd.readouterr()
    assert "1/1 (" in out
    assert "marco-fast compare: interrupted; the table shows the answers so far" in err
    assert report.exists()


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_generate_data_goes_on_from_what_is_done(send, number, code, tmp_path, capfd, monkeypatch):
    source, out = real_questions(tmp_path / "q.jsonl"), tmp_path / "out"
    words = ["generate-data", str(source), "--out", str(out), "--expansions", "2", "--batch", "3"]
    with monkeypatch.context():
        send(2, number)
        assert main([*words, "--json"]) == code
    said, err = capfd.readouterr()
    assert (json.loads(said)["done"], json.loads(said)["interrupted"]) == (3, True)
    assert "interrupted; 3 of 8 questions are done, the same command goes on from there" in err
    assert not out.exists()
    send(99, number)
    assert main([*words, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["resumed"] == 3
    assert sorted(os.listdir(tmp_path)) == ["out", "q.jsonl"]


@pytest.mark.parametrize("kind", ["fifo", "folder", "link"])
def test_a_journal_that_is_no_file_is_refused(kind, tmp_path, capfd):
    source, journal = real_questions(tmp_path / "q.jsonl"), journal_of(tmp_path / "out")
    makes = {"fifo": os.mkfifo, "folder": os.mkdir, "link": lambda at: os.symlink("/dev/null", at)}
    makes[kind](journal)
    words = ["generate-data", str(source), "--out", str(tmp_path / "out"), "--expansions", "2"]
    assert main(words) == 2
    assert "expected the journal to name a file, got the " in capfd.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["out.journal", "q.jsonl"]


def test_a_signal_while_the_tree_is_saved_lets_it_be_saved(tmp_path, capfd, monkeypatch):
    tree, real = tmp_path / "t.json", os.fsync

    def fsync(file):
        os.kill(os.getpid(), signal.SIGTERM)
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    question = "How many times does the letter r occur in strawberry?"
    words = ["solve", question, "--expansions", "2", "--quiet", "--save", str(tree)]
    assert main(words) == 143
    assert capfd.readouterr().out == "3\n"
    assert json.loads(tree.read_text())["answer"] == "3"
    assert os.listdir(tmp_path) == ["t.json"]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_while_the_model_is_loaded_is_one_line(number, code, capfd, monkeypatch):
    def load(*_, **__):
        os.kill(os.getpid(), number)

    monkeypatch.setattr("marco_fast.engine.engine.Engine.from_pretrained", load)
    assert main(["solve", "q"]) == code
    assert capfd.readouterr() == ("", "marco-fast solve: interrupted\n")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
