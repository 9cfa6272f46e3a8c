"""The tables that pages show: their rows, their marks, and what they need."""

from pathlib import Path

import pytest

from bench.report.readme import between, search_cells, search_table, speed_table
from bench.report.results import ReportError
from tests.support.results import case, full_search, search


def test_marks_in_the_wrong_order_or_twice_are_refused():
    for text in ("<!-- /a -->\n<!-- a -->\n", "<!-- a -->\n<!-- a -->\n<!-- /a -->\n"):
        with pytest.raises(ReportError, match=r"<!-- a -->.*in PAGE\.md"):
            between(text, "a", "x", Path("PAGE.md"))


def test_the_short_table_has_a_row_for_every_engine_the_fastest_first():
    assert speed_table(full_search()).split("\n")[2:] == [
        "| blind | 20.0 | 0.80x as fast |",
        "| **marco_fast** | 16.0 |  |",
        "| slow | 0.12 | 128x as fast |",
    ]


def test_the_short_table_needs_its_case_and_our_speed():
    with pytest.raises(ReportError, match="'qwen2-80m', 'bfloat16', 32"):
        speed_table(search())
    without = full_search()
    without["cases"][-1]["engines"][0]["skipped"] = "no answer"
    with pytest.raises(ReportError, match="marco_fast to have run"):
        speed_table(without)


def test_the_search_table_has_a_column_for_every_engine_that_ran():
    title, first, second = search_cells(search())
    assert title == ["model, precision, branches", "marco_fast", "of the floor", "slow", "blind †"]
    assert first == ["m-1, float32, 8", "16.0", "75%", "0.12 (128x)", "20.0 (0.80x)"]
    assert second == ["m-1, float32, 32", "16.0", "75%", "-", "20.0 (0.80x)"]


def test_the_search_table_says_what_its_marks_mean():
    full = search_table(search(), Path("cpu"))
    assert "[search.json](cpu/search.json)" in full
    assert "A dash: the engine did not run." in full
    assert "† gives no top-k" in full
    plain = case()
    del plain["engines"][2:]
    assert not {"dash:", "†"} & set(search_table({"cases": [plain]}, Path("cpu")).split())


def test_marco_fast_must_be_the_first_engine_and_have_run():
    swapped, skipped = case(), case()
    swapped["engines"].reverse()
    skipped["engines"][0]["skipped"] = "no answer"
    for wrong in (swapped, skipped):
        with pytest.raises(ReportError, match="marco_fast as the first engine of 'm-1, flo"):
            search_cells({"cases": [wrong]})
