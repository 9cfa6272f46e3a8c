"""Reports of benchmarks: what is kept, what the README shows, and that errors write nothing."""

import json
import struct
import subprocess
from pathlib import Path

import pytest
import torch

from bench.report.plots import LARGEST, plot_search
from bench.report.readme import bench_table, table_rows
from bench.report.results import AVX2, FRONT, PAGE, RESULTS, ReportError, condense
from bench.report.tables import main
from tests.support.results import full_search, scaling, search

MARKS = {FRONT: ("speed", "accuracy"), PAGE: ("search", "search-avx2", "reasoning")}
FIELDS = {"us": 46.4682, "peer": "torch topk first", "peer_us": 367.01, "ratio": 7.8915}
FIELDS |= {"us_per_expansion": 13.93, "tokens_per_second": 943.4, "target_us": 25.0}
FIELDS |= {"generate_tokens_per_second": 769.5, "expansions_per_second": 17.79}


def raw() -> dict:
    """What pytest-benchmark writes, cut down to what counts; every row's benchmark is there."""
    names = [*(name for name, _ in table_rows()), "test_something_new[3]"]
    benchmarks = [
        {"name": name, "stats": {"median": 1.23456789e-3, "rounds": 5}, "extra_info": dict(FIELDS)}
        for name in names
    ]
    benchmarks[-1]["extra_info"] = {"us_quartiles": [1.00004, {"a": 2.000051}], "threads": 2}
    return {
        "machine_info": {"cpu": {"brand_raw": "A CPU", "count": 2}, "python_version": "3.11.7"},
        "commit_info": {"id": "abc", "dirty": False},
        "benchmarks": benchmarks,
    }


def empty(page: Path) -> str:
    """A page with every mark it must have, and text around them."""
    marks = "".join(f"<!-- {name} -->\n<!-- /{name} -->\nbelow {name}\n" for name in MARKS[page])
    bench = "<!-- bench -->\nstale\n<!-- /bench -->\n" if page == PAGE else ""
    return f"# Title\nbefore\n{bench}middle\n{marks}"


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "checkout"
    (root / RESULTS).mkdir(parents=True)
    for page in MARKS:
        (root / page).write_text(empty(page))
    return root


def put(path: Path, what: object) -> Path:
    path.write_text(json.dumps(what))
    return path


def files(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def run(root: Path, what: dict) -> int:
    return main([str(put(root.parent / "raw.json", what))], root=root)


def test_a_report_keeps_what_counts(root):
    assert run(root, raw()) == 0
    kept = json.loads((root / RESULTS / "bench.json").read_text())
    assert kept["commit"] == "abc"
    assert [kept[key] for key in ("cpu", "cores", "python")] == ["A CPU", 2, "3.11.7"]
    assert kept["torch"] == torch.__version__.partition("+")[0]
    new = kept["benchmarks"][-1]
    assert (new["median_us"], new["rounds"], new["threads"]) == (1234.57, 5, 2)
    assert new["us_quartiles"] == [1.0, {"a": 2.0001}]


def test_the_page_shows_the_rows_and_keeps_the_rest(root):
    assert run(root, raw()) == 0
    text = (root / PAGE).read_text()
    table = text.partition("<!-- bench -->")[2].partition("<!-- /bench -->")[0].strip().split("\n")
    assert len(table) == 2 + 6 + 8 + 2 + 4
    start = "| `topk_confidence`, V 151,936, B 64, bfloat16 | 46 us | topk first in PyTorch: 367 us"
    assert start + " | 7.9x |" in table
    assert "| `plan_tree_attention`, 1,000 nodes | 46 us | aim: below 25 us | |" in table
    solve = "| `solve` on nano-marco, 1 branch | 943 tokens/s | transformers `generate`, as many"
    assert f"{solve} samples: 770 tokens/s | 7.9x |" in table
    assert "stale" not in text
    head, rest = empty(PAGE).split("stale\n")
    assert text.startswith(head)
    assert text.endswith(rest)
    assert (root / FRONT).read_text() == empty(FRONT)


def test_without_raw_numbers_the_kept_ones_are_shown_again(root):
    assert run(root, raw()) == 0
    before = files(root)
    assert main([], root=root) == 0
    assert files(root) == before


def test_each_row_shows_its_own_benchmark(root):
    what = raw()
    for i, each in enumerate(what["benchmarks"][:-1]):
        each["extra_info"] |= {"us": i, "us_per_expansion": i, "tokens_per_second": i}
    lines = bench_table(condense(what)["benchmarks"], whole=True).split("\n")[2:]
    assert [line.split(" | ")[1].split()[0] for line in lines] == [str(i) for i in range(20)]
    place = {each["name"]: i for i, each in enumerate(what["benchmarks"])}
    assert "B 64, bfloat16 |" in lines[place["test_topk_confidence[64-dtype1]"]]


@pytest.mark.parametrize("name", [name for name, _ in table_rows()])
def test_a_missing_benchmark_is_named_and_nothing_is_written(root, name, capsys):
    what = raw()
    what["benchmarks"] = [each for each in what["benchmarks"] if each["name"] != name]
    before = files(root)
    assert run(root, what) == 2
    assert repr(name) in capsys.readouterr().err
    assert files(root) == before


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ({**raw(), "commit_info": {}}, "'id'"),
        ([], "JSON object"),
        ({**raw(), "benchmarks": [{"name": "x", "stats": {"rounds": 1}}]}, "median"),
    ],
)
def test_other_json_is_refused(root, what, told, capsys):
    before = files(root)
    assert run(root, what) == 2
    assert told in capsys.readouterr().err
    assert files(root) == before


def test_a_missing_field_is_named_with_its_benchmark():
    kept = condense(raw())["benchmarks"]
    del kept[7]["peer_us"]
    with pytest.raises(ReportError, match=r"'peer_us' of the benchmark 'test_tree_att"):
        bench_table(kept, whole=False)


def test_a_row_without_kept_figures_is_left_out(root):
    assert run(root, raw()) == 0
    path = root / RESULTS / "bench.json"
    kept = json.loads(path.read_text())
    kept["benchmarks"] = [each for each in kept["benchmarks"] if "solve" not in each["name"]]
    put(path, kept)
    assert main([], root=root) == 0
    text = (root / PAGE).read_text()
    assert "`solve` on nano-marco" not in text
    assert "| `topk_confidence`, V 151,936, B 1, float32 |" in text


@pytest.mark.parametrize(
    ("page", "missing"),
    [
        (PAGE, "<!-- bench -->\n"),
        (PAGE, "<!-- /bench -->\n"),
        (PAGE, "<!-- search -->\n"),
        (FRONT, "<!-- speed -->\n"),
    ],
)
def test_marks_must_be_there(root, page, missing, capsys):
    put(root / RESULTS / "search.json", full_search())
    (root / page).write_text(empty(page).replace(missing, ""))
    before = files(root)
    assert run(root, raw()) == 2
    told = capsys.readouterr().err
    assert missing.strip() in told
    assert told.endswith(f"in {page}\n")
    assert files(root) == before


def test_search_and_scaling_are_shown_and_drawn(root, capsys):
    put(root / RESULTS / "search.json", full_search())
    put(root / RESULTS / "scaling.json", scaling())
    assert run(root, raw()) == 0
    page = (root / PAGE).read_text()
    assert "| m-1, float32, 8 | 16.0 | 75% | 0.12 (128x) | 20.0 (0.80x) |\n" in page
    assert "| **marco_fast** | 16.0 |" in (root / FRONT).read_text()
    plots = {path.name: path.read_bytes() for path in (root / RESULTS / "plots").iterdir()}
    named = {f"scaling_{key}.png" for key in ("branches", "depth", "memory")}
    assert set(plots) == named | {"search.png"}
    for data in plots.values():
        assert data.startswith(b"\x89PNG")
        assert len(data) <= LARGEST
        assert all(300 < pixels < 1500 for pixels in struct.unpack(">2I", data[16:24]))


def test_results_of_another_machine_stand_in_a_table_of_their_own(root):
    (root / AVX2).mkdir()
    other = search()
    for engine in other["cases"][0]["engines"]:
        if "expansions_per_second" in engine:
            engine["expansions_per_second"] *= 3
    put(root / AVX2 / "search.json", other)
    put(root / RESULTS / "search.json", full_search())
    assert run(root, raw()) == 0
    first, second = (root / PAGE).read_text().split("<!-- search-avx2 -->")
    assert "| m-1, float32, 8 | 16.0 |" in first
    assert "| m-1, float32, 8 | 48.0 |" in second
    assert "(cpu-avx2/search.json)" in second


def test_what_a_search_adds_is_a_table_of_both_tiers(root):
    def share(part: float) -> dict:
        return {"share": part, "low": part - 0.1, "high": part + 0.1, "count": 50}

    searched = {"value": share(0.75), "tokens": 123.4, "answer_auroc": 0.876}
    beside = {"majority": share(0.5), "gain": {"points": 0.25, "low": -0.01, "high": 0.3}}
    hard = {
        "greedy": {"value": share(0.5), "tokens": 99.0, "answer_auroc": None},
        "samples": {"value": share(0.7), "tokens": 800.0, "answer_auroc": 0.5},
        "search, 32": searched,
        "majority at the tokens of search, 32": beside,
        "majority of all samples": {"majority": share(0.6), "tokens": 800.0},
    }
    easy = {**hard, "greedy": {**hard["greedy"], "value": share(0.9)}}
    tiers = {tier: {"all": rows} for tier, rows in (("easy", easy), ("hard", hard))}
    put(root / RESULTS / "reasoning.json", {"results": tiers})
    assert run(root, raw()) == 0
    table = (root / PAGE).read_text().split("<!-- reasoning -->\n\n")[1].split("\n")[2:]
    assert table[:5] == [
        "| greedy | 90.0 (80.0–100.0) | 50.0 (40.0–60.0) | 99 | – | – |",
        "| samples | 70.0 (60.0–80.0) | 70.0 (60.0–80.0) | 800 | – | 0.50 |",
        "| search, 32 | 75.0 (65.0–85.0) | 75.0 (65.0–85.0) | 123 | +25.0 (-1.0 to +30.0) | 0.88 |",
        "| majority of all samples | 60.0 (50.0–70.0) | 60.0 (50.0–70.0) | 800 | – | – |",
        "",
    ]
    short = (root / FRONT).read_text().split("<!-- accuracy -->\n\n")[1].split("\n")[2:]
    assert short[:5] == [
        "| one greedy answer | 90.0 (80.0–100.0) | 50.0 (40.0–60.0) |",
        "| majority of 32 samples | 60.0 (50.0–70.0) | 60.0 (50.0–70.0) |",
        "| most confident of 32 samples | 70.0 (60.0–80.0) | 70.0 (60.0–80.0) |",
        "| search of 32 expansions | 75.0 (65.0–85.0) | 75.0 (65.0–85.0) |",
        "",
    ]
    put(root / RESULTS / "reasoning.json", {"results": {"easy": {"all": easy}}})
    before = files(root)
    assert run(root, raw()) != 0
    assert files(root) == before


def test_condensing_writes_nothing_else(root):
    before, out = files(root), root.parent / "elsewhere" / "kept.json"
    what = str(put(root.parent / "raw.json", raw()))
    assert main([what, "--condense", str(out)], root=root) == 0
    assert json.loads(out.read_text()) == condense(raw())
    assert files(root) == before
    with pytest.raises(SystemExit):
        main(["--condense", str(out)], root=root)


def test_a_plot_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr("bench.report.plots.LARGEST", 1000)
    with pytest.raises(ValueError, match="at most 1000 bytes"):
        plot_search(search())


@pytest.mark.parametrize(
    ("name", "field"), [("search.json", "floor_seconds"), ("scaling.json", "sweeps")]
)
def test_a_field_that_a_plot_needs_is_named(root, name, field, capsys):
    wrong = full_search() if field == "floor_seconds" else scaling()
    for each in wrong.get("cases", wrong.get("models")):
        del each[field]
    put(root / RESULTS / name, wrong)
    before = files(root)
    assert run(root, raw()) == 2
    assert repr(field) in capsys.readouterr().err
    assert files(root) == before


def test_the_terminal_gets_a_table_a_subject(root, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    put(root / RESULTS / "search.json", full_search())
    assert run(root, raw()) == 0
    out = capsys.readouterr().out
    subjects = ["attention", "planner and driver", "search", "other"]
    places = [out.index("confidence"), *(out.index(f"\n{subject}") for subject in subjects)]
    assert places == sorted(places)
    assert "tree_attention[llama-3b-prompt-1024-x16x64-torch.float32]" in out
    assert "1,234.6" in out[out.index("something_new[3]") :]
    assert "0.12 (128x)" in out


def test_make_bench_hands_its_numbers_to_the_report():
    root = Path(__file__).parents[2]
    command = ["make", "-n", "-o", ".venv/.dev", "bench"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert "--benchmark-json=" in done.stdout
    assert done.stdout.index("pytest bench") < done.stdout.index("bench.report.tables")
