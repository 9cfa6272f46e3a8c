"""What is made of the rows of a GPU run: lines, tables, documents."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench.gpu.machine import Machine
from bench.gpu.run import PARTS
from bench.gpu.table import Results, fill, line, read

ROOT = Path(__file__).parents[2]


def test_a_line_that_was_cut_is_left_out(tmp_path):
    file = tmp_path / "gpu.jsonl"
    whole = json.dumps({"part": "smoke", "case": "a", "us": 1.0})
    file.write_text(f"{whole}\n{whole[:20]}")
    assert [row["case"] for row in read(file).rows["smoke"]] == ["a"]
    file.write_text(f"{whole[:20]}\n{whole}\n")
    with pytest.raises(ValueError, match="expected a record in line 1"):
        read(file)


def test_a_row_has_floor_and_peer():
    row = {
        "case": "x",
        "us": 10.0,
        "floor_us": 5.0,
        "peer_us": 30.0,
        "ratio": 3.0,
        "captured": True,
    }
    text = line(row)
    assert "10.0 us" in text
    assert "50% of the floor" in text
    assert "peer 30.0 us (3.00x)" in text
    assert "not captured" in line({**row, "captured": False})
    assert "FAILED ValueError: no" in line({"case": "x", "error": "ValueError: no\nmore"})


def test_documents_are_filled():
    text = (
        "| case | predicted us | measured | of the floor |\n|---|---|---|---|\n"
        "| `a` | 3 | | |\n| `b` | 4 | 9.0 | 1% |\n\n| `a` | `b` |\n|---|---|\n| `a` | |\n"
    )
    results = Results()
    results.add({"part": "x", "case": "a", "us": 12.34, "floor_us": 6.17})
    filled = fill(text, results).split("\n")
    assert filled[2] == "| `a` | 3 | 12.3 | 50% |"
    assert filled[3] == "| `b` | 4 | 9.0 | 1% |"
    assert filled[4:] == text.split("\n")[4:]


def test_documents_name_cases_of_the_run():
    """Else a run could not fill them."""
    machine = Machine("record")
    cases = {case.name for part in PARTS for case in part.cases(machine)}
    text = (ROOT / "docs" / "gpu.md").read_text()
    named = re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
    assert len(named) >= 40
    assert [name for name in named if name not in cases] == []
    assert fill(text, Results()) == text
    for part in PARTS:
        assert part.name in text, part.name
