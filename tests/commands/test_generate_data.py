"""marco-fast generate-data: its options, messages and exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from marco_fast.data import generate as module
from marco_fast.data.filters import Limits
from marco_fast.data.generate import journal_of
from tests.support.data_processes import REAL, command, wait_for_lines
from tests.support.data_runs import ROOT, real_questions, records

COMMAND = (
    "import sys; from tests.support.data_processes import command; sys.exit(command(sys.argv[1:]))"
)


@pytest.fixture(scope="module")
def real_source(tmp_path_factory) -> Path:
    return real_questions(tmp_path_factory.mktemp("real") / "q.jsonl")


def start_command(*arguments, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}, **options,
    )  # fmt: skip


def test_ctrl_c_exits_130_and_says_how_to_go_on(real_source, tmp_path):
    out = tmp_path / "out"
    arguments = [real_source, "--out", out, *REAL, "--expansions", "100000", "--step-tokens", "2"]
    with start_command(
        *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as child:  # fmt: skip
        wait_for_lines(journal_of(out), 1)
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        said, error = child.communicate(timeout=60)
    assert child.returncode == 130, error
    assert "interrupted; 0 of 8 questions are done, the same command goes on from there" in error
    assert "Traceback" not in error
    assert "searched 0" in said
    assert journal_of(out).exists()
    assert not out.exists()


@pytest.mark.parametrize("mode", ["refuse", "skip"])
def test_bad_lines_are_refused_or_left_out(mode, tmp_path, capfd):
    source = tmp_path / "q.jsonl"
    good = json.dumps({"question": "How many times does the letter e occur in tree?"})
    source.write_text("\n".join([good, *["bad"] * 23, good, json.dumps({"question": "x " * 2000})]))
    arguments = [source, "--out", tmp_path / "out", *REAL, "--bad-lines", mode, "--json"]
    code = command(arguments)
    captured = capfd.readouterr()
    named = [line for line in captured.err.splitlines() if "generate-data: line " in line]
    assert len(named) == 20
    assert "line 2: expected a JSON object" in named[0]
    assert "24 bad lines (4 of them not shown)" in captured.err
    if mode == "refuse":
        assert (code, captured.out) == (2, "")
        assert not (tmp_path / "out").exists()
        assert not journal_of(tmp_path / "out").exists()
        return
    assert code == 0
    summary = json.loads(captured.out)
    assert (summary["questions"], summary["bad_lines"], summary["done"]) == (2, 24, 2)
    assert [each["id"] for each in records(tmp_path / "out")] == ["1", "25"][: summary["kept"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--min-confidence", "2"], "expected min_confidence to be from 0 to 1, got 2.0"),
        (["--expansions", "0"], "expected expansions to be from 1"),
        (["--chat-template-kwargs", "x"], "to be an object of JSON"),
        (["--out", "/nowhere/out"], "expected --out in a folder that exists"),
        (["--restart", "--out", "{source}"], "another file than the questions"),
        (["--out", "{source}"], "that does not exist yet"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(
    arguments, message, real_source, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr("marco_fast.engine.engine.Engine.from_pretrained", pytest.fail)
    words = [each.format(source=real_source) for each in arguments]
    before = real_source.read_bytes()
    assert command([real_source, "--out", tmp_path / "out", *words]) == 2
    assert message in capfd.readouterr().err
    assert command([tmp_path / "none", "--out", tmp_path / "out"]) == 2
    assert real_source.read_bytes() == before


@pytest.mark.filterwarnings("ignore:of 2 questions no reply was kept")
def test_a_run_that_keeps_nothing_exits_3_and_says_why(real_source, tmp_path, capfd):
    out, strict = tmp_path / "out", ["--min-tokens", "5000", "--max-tokens-kept", "9999"]
    assert command([real_source, "--out", out, *REAL, *strict, "--kv-tokens", "8000"]) == 3
    captured = capfd.readouterr()
    last = captured.err.splitlines()[-1]
    assert "of 8 questions no reply was kept; refused: 8 by the filter 'length'" in last
    assert "wrote" not in captured.err
    assert "kept 0" in captured.out
    assert not out.exists()
    assert command([real_source, "--out", out, *REAL]) == 0  # with a cache as large as before
    captured = capfd.readouterr()
    assert "searched 8 (8 of them by earlier runs)" in captured.out
    assert f"wrote {out}" in captured.err


def test_every_limit_reaches_its_filter(real_source, tmp_path, monkeypatch, capfd):
    found = []

    def stop(*arguments, limits, batch, **options):
        found.append((limits, batch))
        raise ValueError("enough")

    monkeypatch.setattr(module, "generate_data", stop)
    words = "--min-tokens 1 --max-tokens-kept 2 --max-repetition 0.3 --min-agreement 0.4"
    words += " --min-confidence 0.5 --batch 6 --max-tokens 999"
    assert command([real_source, "--out", tmp_path / "out", *words.split()]) == 2
    assert found == [(Limits(1, 2, 0.3, 0.4, 0.5), 6)]


def test_a_terminal_shows_how_far_it_is():
    from rich.console import Console

    from marco_fast.commands.generate_data import _View
    from marco_fast.data.generate import DataProgress

    view = _View()
    view.console = Console(width=100, record=True, force_terminal=True)
    view.live.console = view.console
    with view:
        view(DataProgress(1000, 100, 60, 50, 25000, 100.0))
    shown = view.console.export_text()
    assert "100 of 1000 questions, 60 kept, 0.50 questions/s, 250 tokens/s, 00:30:00 left" in shown
