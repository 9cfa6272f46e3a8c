"""The command line as a process: signals, terminals that close, pipes, closed descriptors."""

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

QUESTION = "How many times does the letter r occur in strawberry?"
ENDLESS = ["--expansions", "1000000", "--children", "256", "--step-tokens", "4"]


def start(*arguments, ignored=(), **streams) -> subprocess.Popen:
    """A command with the signals of a program that a person started, but for ignored ones."""

    def signals():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, "-m", "marco_fast", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "80"},
        preexec_fn=signals, **streams,
    )  # fmt: skip


@contextlib.contextmanager
def searching(tree, **options):
    """(process, its terminal) of a search without an end, whose live view is up."""
    terminal, side = pty.openpty()
    process = start(
        "solve", QUESTION, *ENDLESS, "--save", tree, stdout=subprocess.PIPE, stderr=side, **options
    )
    os.close(side)
    try:
        wait_for(terminal, b"tokens/s")
        yield process, terminal
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        with contextlib.suppress(OSError):
            os.close(terminal)


def wait_for(terminal: int, wanted: bytes, seconds: float = 90) -> bytes:
    seen, end = b"", time.monotonic() + seconds
    while wanted not in seen and time.monotonic() < end:
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 65536)
    assert wanted in seen, seen[-500:]
    return seen


def check_saved(tree, out: bytes) -> None:
    saved = json.loads(tree.read_text())
    assert saved["stop_reason"] == "interrupted"
    text, node = "", saved["nodes"][saved["answer_node"]]
    while node["parent"] >= 0:
        text = "".join(node["texts"]) + text
        node = saved["nodes"][node["parent"]]
    assert out.decode() == (saved["answer"] or text) + "\n"
    assert text
    assert os.listdir(tree.parent) == [tree.name]


def test_sigterm_prints_and_saves_the_best_so_far(tmp_path):
    tree = tmp_path / "tree.json"
    with searching(tree, ignored=[signal.SIGHUP]) as (process, terminal):
        process.send_signal(signal.SIGTSTP)
        time.sleep(0.3)
        process.send_signal(signal.SIGCONT)
        wait_for(terminal, b"KV sharing")
        process.send_signal(signal.SIGHUP)  # as nohup has it: ignored
        time.sleep(0.3)
        wait_for(terminal, b"KV sharing")
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
        err = wait_for(terminal, b"stopped by: interrupted")
        out = process.stdout.read()
        assert process.wait(60) == 143
    assert b"Traceback" not in err
    check_saved(tree, out)


def test_a_terminal_that_closes_prints_and_saves_the_best_so_far(tmp_path):
    tree = tmp_path / "tree.json"
    with searching(tree) as (process, terminal):
        time.sleep(0.5)
        os.close(terminal)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGHUP)  # the shell, and the terminal itself
        out = process.stdout.read()
        assert process.wait(60) == 129
    check_saved(tree, out)


@pytest.mark.parametrize(
    ("number", "seconds"), [(signal.SIGINT, 0.4), (signal.SIGINT, 1.5), (signal.SIGTERM, 0.4)]
)
def test_a_signal_before_the_search_is_one_line(tmp_path, number, seconds):
    with start(
        "solve", QUESTION, *ENDLESS, "--save", tmp_path / "t", stderr=subprocess.PIPE
    ) as process:
        time.sleep(seconds)
        process.send_signal(number)
        assert process.communicate(timeout=60)[1] == b"marco-fast: interrupted\n"
    assert process.returncode == 128 + number
    assert os.listdir(tmp_path) == []


def test_a_reader_that_leaves_is_no_error(tmp_path):
    tree, (reader, writer) = tmp_path / "tree.json", os.pipe()
    arguments = ["solve", QUESTION, "--expansions", "40", "--save", tree, "--json", "--quiet"]
    with start(*arguments, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        assert os.read(reader, 10) == b'{"format":'
        os.close(reader)
        assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 0
    assert json.loads(tree.read_text())["answer"]


def test_closed_descriptors_are_no_files_of_ours(tmp_path):
    """A file that is opened with the number of standard output would get what is printed."""
    tree = tmp_path / "tree.json"
    words = f"exec '{sys.executable}' -m marco_fast solve '{QUESTION}' --expansions 2 --save {tree}"
    done = subprocess.run(["sh", "-c", f"{words} <&- >&- 2>&-"], timeout=60)
    assert done.returncode == 0
    assert json.loads(tree.read_text())["answer"]
    assert os.listdir(tmp_path) == ["tree.json"]
