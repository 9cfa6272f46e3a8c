"""The command line as a user meets it: output, exit codes, one line for bad input."""

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from marco_fast.cli import main
from tests.support.models import save_model

QUESTION = "How many times does the letter r occur in strawberry?"
FAST = ["--expansions", "4"]


def run(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "marco_fast", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"},
        check=False,
        **options,
    )


def test_the_answer_is_alone_on_standard_output():
    done = run("solve", QUESTION, *FAST)
    assert done.returncode == 0
    assert len(done.stdout.strip().splitlines()) == 1
    assert done.stdout.strip()
    for word in ("thought", "confidence", "expansions", "tokens", "KV sharing"):
        assert word in done.stderr
    assert "\x1b" not in done.stderr + done.stdout  # a pipe gets no colours and no bars
    assert "Loading" not in done.stderr
    assert max(map(len, done.stderr.splitlines())) <= 80


def test_quiet_prints_the_answer_alone(capfd):
    assert main(["solve", QUESTION, "--quiet", *FAST]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    assert captured.out.strip()


def test_json_is_the_tree_file(capfd, tmp_path):
    file = tmp_path / "tree.json"
    assert main(["solve", QUESTION, "--json", "--save", str(file), "--seed", "3", *FAST]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed == json.loads(file.read_text())
    assert printed["question"] == QUESTION
    assert printed["config"]["seed"] == printed["seed"] == 3
    assert printed["stats"]["expansions"] == 4


def test_the_question_may_come_from_standard_input():
    done = run("solve", "-", "--quiet", *FAST, input=QUESTION)
    assert done.returncode == 0
    assert done.stdout.strip()


def test_every_option_of_the_search_reaches_it(capfd):
    options = {
        "action": "step",
        "step-tokens": 8,
        "max-step-tokens": 40,
        "children": 3,
        "parallel": 5,
        "rollout-tokens": 100,
        "c-uct": 0.5,
        "temperature": 0.5,
        "top-p": 0.9,
        "top-k": 4,
        "value": "rollout",
        "answer": "vote",
        "max-tokens": 10000,
        "max-seconds": 50.0,
    }
    arguments = [str(each) for name, value in options.items() for each in (f"--{name}", value)]
    arguments += ["--reflect", "--normalize", "--json", "--quiet", *FAST]
    assert main(["solve", QUESTION, *arguments]) == 0
    config = json.loads(capfd.readouterr().out)["config"]
    for name, value in options.items():
        assert config[name.replace("-", "_")] == value
    assert config["reflect"] is True
    assert config["normalize"] is True


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """Folders that are no models."""
    good = save_model("qwen2", tmp_path_factory.mktemp("good"))
    pickled = shutil.copytree(good, tmp_path_factory.mktemp("bad") / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    broken = shutil.copytree(good, pickled.parent / "broken")
    (broken / "config.json").write_text("{")
    return {"pickled": str(pickled), "broken": str(broken)}


BAD = [
    ([""], "expected a question with some text"),
    (["   "], "expected a question with some text"),
    (["word " * 2000], "expected a question of fewer than"),
    (["q", "--model", "no-such-model"], "expected nano-marco"),
    (["q", "--model", "pickled"], "pickled weights"),
    (["q", "--model", "broken"], "expected readable JSON"),
    (["q", "--temperature", "nan"], "expected temperature to be a finite float, got nan"),
    (["q", "--c-uct", "inf"], "expected c_uct to be a finite float, got inf"),
    (["q", "--temperature", "-1"], "expected temperature to be from 0.0 to 100.0, got -1.0"),
    (["q", "--top-p", "0"], "expected top_p to be above 0"),
    (["q", "--expansions", "0"], "expected expansions to be from 1"),
    (["q", "--expansions", "many"], "invalid int value: 'many'"),
    (["q", "--action", "leap"], "invalid choice: 'leap'"),
    (["q", "--max-branches", "0"], "max_branches of at least 1"),
    (["q", "--kv-tokens", "1"], "kv_tokens of at least 16"),
    (["q", "--dtype", "int4"], "expected dtype to be one of"),
    (["q", "--device", "toaster"], "toaster"),
    (["q", "--device", ""], "expected device to be cpu or cuda, got ''"),
    (["q", "--history", "/dev/zero"], "expected JSON in '/dev/zero', got a device"),
    (["q", "--save", "nowhere/tree.json"], "folder that exists"),
    (["q", "--save", "."], "expected --save to name a file"),
    (["q", "--chat-template-kwargs", "{"], "to be an object of JSON, such as '{"),
    (["q", "--chat-template-kwargs", "[1]"], "to be an object of JSON, .* got '\\[1\\]'"),
    (["q", "--unknown"], "unrecognized arguments: --unknown"),
    (["q", "--kv-tokens", "16"], "expected a question of fewer than 16 tokens|free KV pages"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda each: str(each)[:40])
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, capfd, spoiled):
    arguments = [spoiled.get(each, each) for each in arguments]
    code = main(["solve", *arguments])
    captured = capfd.readouterr()
    assert code == 2
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1, captured.err
    assert re.match("marco-fast( solve)?: error: ", captured.err)
    assert re.search(message, captured.err), captured.err


def test_an_unwritable_file_is_found_before_the_search(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert main(["solve", QUESTION, "--save", str(tmp_path / "tree.json")]) == 2
    assert "expected --save to be writable" in capfd.readouterr().err


def read_until(descriptor: int, wanted: bytes, seconds: float = 90) -> bytes:
    """What a terminal shows until it shows `wanted`."""
    seen, end = b"", time.monotonic() + seconds
    while wanted not in seen and time.monotonic() < end:
        if select.select([descriptor], [], [], 1)[0]:
            seen += os.read(descriptor, 65536)
    assert wanted in seen, seen[-500:]
    return seen


def test_ctrl_c_on_a_terminal_prints_the_best_so_far_and_exits_130(tmp_path):
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    options = ["--expansions", "1000000", "--step-tokens", "4", "--save", str(tmp_path / "t.json")]
    process = subprocess.Popen(
        [sys.executable, "-m", "marco_fast", "solve", QUESTION, *options],
        stdout=subprocess.PIPE,
        stderr=side,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(side)
    try:
        live = read_until(terminal, b"tokens/s")  # the live view is up
        assert b"KV sharing" in live + read_until(terminal, b"KV sharing")
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        err = read_until(terminal, b"interrupted").decode()
        out = process.stdout.read().decode()
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    assert "Traceback" not in err
    assert out.strip()
    saved = json.loads((tmp_path / "t.json").read_text())
    assert saved["stop_reason"] == "interrupted"
    assert saved["answer"] == out.strip()


def test_info_names_versions_devices_and_backends(capfd):
    assert main(["info", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["versions"]["torch"]
    rows = {(row["operation"], row["device"]): row for row in report["operations"]}
    for name in ("topk_confidence", "sample_confidence", "append_kv", "tree_attention"):
        row = rows[name, "cpu"]
        assert row["runs"] == "cpu"
        assert {*row["others"]} == {"triton", "torch"}
    assert main(["info"]) == 0
    text = capfd.readouterr().out
    assert "tree_attention" in text


def test_no_command_is_bad_input(capfd):
    assert main([]) == 2
    assert "command" in capfd.readouterr().err


def test_the_version(capfd):
    assert main(["--version"]) == 0
    assert capfd.readouterr().out.startswith("marco-fast ")


def test_a_history_and_a_system_prompt_stand_in_front(capfd, tmp_path):
    history = tmp_path / "chat.json"
    history.write_text(
        json.dumps([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}])
    )
    options = ["--history", str(history), "--system", "marco-o1", "--json", "--quiet", *FAST]
    assert main(["solve", QUESTION, *options]) == 0
    messages = json.loads(capfd.readouterr().out)["messages"]
    assert [each["role"] for each in messages] == ["system", "user", "assistant", "user"]
    assert "Marco-o1" in messages[0]["content"]
    assert messages[-1]["content"] == QUESTION


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "expected JSON in"),
        ('{"role": "user"}', "expected a list of messages"),
        ('[{"role": "user"}]', "expected messages like"),
        ('[{"role": "tool", "content": "x"}]', "expected the role at index 0"),
    ],
)
def test_a_bad_history_is_refused(capfd, tmp_path, text, says):
    history = tmp_path / "chat.json"
    history.write_text(text)
    assert main(["solve", QUESTION, "--history", str(history), *FAST]) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("marco-fast solve: error: ")
    assert says in last


def test_a_saved_tree_becomes_a_page(capfd, tmp_path):
    tree, page = tmp_path / "tree.json", tmp_path / "tree.html"
    assert main(["solve", QUESTION, "--save", str(tree), "--quiet", *FAST]) == 0
    capfd.readouterr()
    assert main(["tree", str(tree), "--html", str(page)]) == 0
    assert capfd.readouterr().out == f"wrote {page}\n"
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("tree", "page", "says"),
    [
        ("nowhere.json", "tree.html", "nowhere.json"),
        ("bad.json", "tree.html", "expected JSON in"),
        ("bad.json", "nowhere/tree.html", "expected --html in a folder that exists"),
    ],
)
def test_a_bad_tree_is_refused(capfd, tmp_path, tree, page, says):
    (tmp_path / "bad.json").write_text("[")
    assert main(["tree", str(tmp_path / tree), "--html", str(tmp_path / page)]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "tree.html").exists()
