"""No encoding, no reader and no console takes an answer away or makes a traceback of it."""

import io
import json
import os
import pty
import sys
import threading
import time

import pytest

from marco_fast.cli import main
from marco_fast.commands.console import read_question, standard_streams, tell
from tests.support.models import save_model

QUESTION = "How many times does the letter r occur in strawberry?"
CHINESE = "小红比小明高。小明比小刚高。谁最高？"
FAST = ["--expansions", "2", "--quiet"]
ENCODINGS = ["ascii", "cp1252", "latin-1", "gbk", "utf-16", "cp437", "utf-8", "ascii:replace"]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs a command with standard streams of its own: (exit code, output, errors), as bytes."""

    def run(*arguments, encoding="utf-8", output=None, errors=None, given=None):
        name, _, handler = encoding.partition(":")
        streams = [output or tmp_path / "out", errors or tmp_path / "err"]
        with (
            open(streams[0], "w", encoding=name, errors=handler or "strict") as out,
            open(streams[1], "w", encoding=name, errors="backslashreplace") as err,
        ):
            monkeypatch.setattr(sys, "stdout", out)
            monkeypatch.setattr(sys, "stderr", err)
            if given is not None:
                monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
            try:
                code = main([str(each) for each in arguments])
            finally:
                monkeypatch.undo()
        return code, *(b"" if each in (output, errors) else each.read_bytes() for each in streams)

    return run


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_answer_is_printed_in_any_encoding(command, encoding):
    name, _, handler = encoding.partition(":")
    code, out, err = command("solve", CHINESE, *FAST, encoding=encoding)
    assert (code, err.decode(name)) == (0, "")
    answer = out.decode(name).strip()
    code, out, _ = command("solve", CHINESE, *FAST, "--json", encoding=encoding)
    told = json.loads(out.decode(name))
    assert code == 0
    assert told["question"] == CHINESE
    assert told["answer"] == "小明"
    assert answer.encode(name) == told["answer"].encode(name, handler or "backslashreplace")


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "utf-16", "utf-8"])
def test_tables_are_drawn_in_any_encoding(command, encoding):
    code, out, _ = command("info", encoding=encoding)
    assert code == 0
    assert ("+--" in out.decode(encoding)) == (not encoding.startswith("utf"))
    assert "\\u" not in out.decode(encoding)
    options = ["--questions", "1", "--tests", "letters", "--expansions", "1"]
    code, out, _ = command("compare", *options, encoding=encoding)
    assert code == 0
    assert "/1 (" in out.decode(encoding)
    assert "\\u" not in out.decode(encoding)


def test_a_full_device_is_a_failure_that_loses_no_file(command, tmp_path):
    code, _, err = command(
        "solve", QUESTION, *FAST, "--save", tmp_path / "t.json", output="/dev/full"
    )
    assert code == 1
    assert err.endswith(b"the output was not printed: [Errno 28] No space left on device\n")
    assert json.loads((tmp_path / "t.json").read_text())["answer"]


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["solve", "--help"], ["info"]])
def test_what_a_full_device_does_not_take_is_a_failure(command, words):
    code, _, err = command(*words, output="/dev/full")
    assert code == 1
    assert err.endswith(b"the output was not printed: [Errno 28] No space left on device\n")


def pipe_without_reader() -> str:
    """The name of a pipe's end to write; nobody reads the other."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("options", [["--json"], ["--quiet"], []])
@pytest.mark.parametrize("gone", ["output", "errors", "both"])
def test_a_reader_that_has_gone_is_no_error(command, tmp_path, options, gone):
    streams = {}
    if gone in ("output", "both"):
        streams["output"] = pipe_without_reader()
    if gone in ("errors", "both"):
        streams["errors"] = pipe_without_reader()
    tree = tmp_path / "t.json"
    code, out, err = command(
        "solve", QUESTION, "--expansions", "2", "--save", tree, *options, **streams
    )
    assert code == 0
    assert b"rror" not in err
    assert bool(out) == (gone == "errors")
    assert json.loads(tree.read_text())["answer"]


@pytest.mark.parametrize("streams", [("stdout",), ("stderr",), ("stdin", "stdout", "stderr")])
def test_a_process_without_streams_works(monkeypatch, tmp_path, streams):
    for each in streams:
        monkeypatch.setattr(sys, each, None)
    options = ["--expansions", "2", "--save", str(tmp_path / "t.json")]
    assert main(["solve", QUESTION, *options]) == 0
    assert json.loads((tmp_path / "t.json").read_text())["answer"]
    assert main(["info"]) == 0
    assert main(["solve", "", *options]) == 2
    assert main(["solve", "-", *options]) == 2 or "stdin" not in streams


def test_a_pipe_that_does_not_wait_gets_everything(monkeypatch):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    read = []

    def slowly():
        while piece := os.read(reader, 70_000):
            read.append(piece)
            time.sleep(0.001)

    text = "小红" * 300_000
    thread = threading.Thread(target=slowly)
    thread.start()
    with open(writer, "w", encoding="utf-8") as out:
        monkeypatch.setattr(sys, "stdout", out)
        with standard_streams() as output:
            print(text)
        monkeypatch.undo()
    thread.join()
    os.close(reader)
    assert output.failure is None
    assert b"".join(read).decode() == text + "\n"


@pytest.mark.parametrize(
    ("given", "code", "says"),
    [
        (
            b"caf\xe9 r?",
            2,
            b"expected a question in UTF-8 on standard input, got the byte 0xe9 at 3",
        ),
        (b"\xff\xfeq\0", 2, b"got the byte 0xff at 0"),
        (b"", 2, b"expected a question with some text"),
        (b"\xef\xbb\xbf \n", 2, b"expected a question with some text"),
        (b"\xef\xbb\xbf" + QUESTION.encode() + b"\r\n", 0, b""),
        (b"word " * 200_000, 2, b"expected a question of fewer than"),
    ],
)
def test_what_standard_input_may_hold(command, given, code, says):
    found, out, err = command("solve", "-", *FAST, "--json", given=given)
    assert found == code
    assert says in err
    assert err.count(b"\n") == (code == 2)
    if code == 0:
        assert json.loads(out)["question"] == QUESTION


def test_standard_input_that_is_closed_is_refused(command, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = command("solve", "-", *FAST)
    assert code == 2
    assert b"expected the question on standard input, got a closed one" in err


def test_standard_input_without_an_end_is_refused(command, monkeypatch):
    with open("/dev/zero") as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        code, _, err = command("solve", "-", *FAST)
    assert code == 2
    assert b"expected at most 64 MiB on standard input, got more" in err


def test_one_end_of_file_on_a_terminal_ends_the_question(monkeypatch):
    ours, theirs = pty.openpty()
    os.write(ours, b"What is 3 plus 4?\n\x04")
    with open(theirs) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        thread = threading.Timer(5, os.write, (ours, b"again\n\x04\x04"))  # ends the old way
        thread.start()
        assert read_question() == "What is 3 plus 4?\n"
        thread.cancel()
    os.close(ours)


def test_standard_input_that_does_not_wait_is_waited_for(command, monkeypatch):
    reader, writer = os.pipe()
    os.set_blocking(reader, False)

    def later():
        for piece in (QUESTION[:10], QUESTION[10:]):
            time.sleep(0.2)
            os.write(writer, piece.encode())
        os.close(writer)

    thread = threading.Thread(target=later)
    thread.start()
    with open(reader) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        code, out, _ = command("solve", "-", *FAST, "--json")
    thread.join()
    assert (code, json.loads(out)["question"]) == (0, QUESTION)


def test_a_warning_is_a_note_of_one_line(command, tmp_path):
    folder = save_model("qwen2", tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    code, _, err = command("solve", "q", "--model", folder, *FAST, "--max-tokens", "9")
    assert code == 3
    note, why = err.decode().splitlines()
    assert note.startswith("marco-fast solve: note: the model '")
    assert why.startswith("marco-fast solve: no path finished: ")


def test_what_is_told_is_one_line(capsys):
    tell("marco-fast", "error: one\ntwo")
    assert capsys.readouterr().err == "marco-fast: error: one two\n"


CONSOLES = [
    {"COLUMNS": "0", "LINES": "0"},
    {"COLUMNS": "1", "LINES": "1"},
    {"COLUMNS": "10000"},
    {"COLUMNS": "²"},
    {"COLUMNS": "-3"},
    {"TERM": "dumb"},
    {"TERM": "unknown"},
    {"TERM": ""},
    {"NO_COLOR": "1"},
    {"FORCE_COLOR": "1"},
]


@pytest.mark.parametrize("console", CONSOLES, ids=str)
@pytest.mark.parametrize("terminal", [True, False])
def test_any_console_will_do(command, monkeypatch, console, terminal, tmp_path):
    """The live view is drawn on a terminal that can move its cursor, and nowhere else."""
    seen, (reader, writer) = [], pty.openpty() if terminal else os.pipe()

    def read():
        try:
            while piece := os.read(reader, 65536):
                seen.append(piece)
        except OSError:  # so a terminal ends
            pass

    thread = threading.Thread(target=read)
    thread.start()
    for name in ("COLUMNS", "LINES", "TERM", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in console.items():
        monkeypatch.setenv(name, value)
    code, out, _ = command("solve", QUESTION, "--expansions", "30", errors=writer)
    thread.join()
    os.close(reader)
    assert code == 0
    assert out
    shown = b"".join(seen)
    live = terminal and console.get("TERM") not in ("dumb", "unknown")
    assert (b"\x1b[?25l" in shown) == live
    assert (b"best so far" in shown) == (live and console.get("COLUMNS") != "1")


def test_a_terminal_that_goes_away_stops_no_search(command, tmp_path):
    terminal, side = pty.openpty()

    def leave():
        os.read(terminal, 1)  # it is drawn
        os.close(terminal)

    thread = threading.Thread(target=leave)
    thread.start()
    tree = tmp_path / "t.json"
    code, out, _ = command("solve", QUESTION, "--expansions", "60", "--save", tree, errors=side)
    thread.join()
    assert code == 0
    assert json.loads(tree.read_text())["answer"] == out.decode().strip()
