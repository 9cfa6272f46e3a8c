"""The README: its example runs, and the map names what exists."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs_and_is_short(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = [line for line in example.splitlines() if line.strip() and not line.startswith("#")]
    assert len(code) <= 20
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "expansions/s" in done.stdout
    tree = json.loads((tmp_path / "tree.json").read_text())
    assert tree["stats"]["expansions"] == 32 or tree["stop_reason"] == "exhausted"


@pytest.mark.parametrize("folder", re.findall(r"^\| `([^`]+)/` \|", README, re.MULTILINE))
def test_the_map_names_folders_that_exist(folder):
    assert (ROOT / folder).is_dir()


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


def test_nothing_is_left_to_fill_in():
    # What bench/report/tables.py fills in stands between marks of its own.
    marks = re.sub(
        r"<!-- (bench|search|search-avx2|reasoning) -->.*?<!-- /\1 -->", "", README, flags=re.DOTALL
    )
    assert "<!--" not in marks
