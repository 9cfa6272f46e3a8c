"""The pages that people read: README's examples run, links lead somewhere, tables are the newest.

Of README.md, of everything in docs/, and of bench/results/README.md.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.report.pictures import LARGEST
from bench.report.results import FRONT, PAGE
from bench.report.tables import main

ROOT = Path(__file__).parents[2]
README = (ROOT / FRONT).read_text(encoding="utf-8")
PAGES = [FRONT, PAGE, *(path.relative_to(ROOT) for path in sorted((ROOT / "docs").glob("*.md")))]
MARKS = {
    FRONT: ["speed", "real", "accuracy"],
    PAGE: ["bench", "search", "search-avx2", "real", "drift", "mgsm", "reasoning"],
}
LINES, WORDS = 190, 1500  # the most of README.md, tables and code included


def text_of(page: Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def links() -> list[tuple[Path, str]]:
    """Every link and image of a page that leads to a file or a heading."""
    found = re.compile(r"\]\((?!https?:)([^)\s]+)\)")
    return [(page, link) for page in PAGES for link in found.findall(text_of(page))]


def anchor_of(heading: str) -> str:
    """The name by which a link may lead to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_python_examples_run_and_are_short(tmp_path):
    # They are one program: what the first imports, the second uses.
    example = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    code = [line for line in example.splitlines() if line.strip() and not line.startswith("#")]
    assert 0 < len(code) <= 20
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
    assert done.stdout.startswith("3 ")
    assert "expansions/s" in done.stdout
    tree = json.loads((tmp_path / "tree.json").read_text())
    assert tree["stats"]["expansions"] == 32 or tree["stop_reason"] == "exhausted"


def test_what_the_readme_shows_of_a_search_is_what_it_says():
    question, shown = re.findall(
        r'^marco-fast solve "([^"]*)"\n```\n\n```\n(.*?)```', README, re.DOTALL | re.MULTILINE
    )[0]
    command = [sys.executable, "-m", "marco_fast", "solve", question]
    done = subprocess.run(
        command,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    # The figures are those of one machine; the words are the same everywhere.
    words, told = (re.sub(r"\d[\d.]*", "0", each) for each in (done.stderr, shown))
    assert words.endswith(told.removesuffix("0\n"))
    assert shown.endswith(f"answer\n{done.stdout}")


def test_the_readme_is_short():
    assert len(README.splitlines()) <= LINES
    assert len(README.split()) <= WORDS


@pytest.mark.parametrize(("page", "link"), links(), ids=str)
def test_links_and_images_lead_somewhere(page, link):
    path, _, anchor = link.partition("#")
    target = (ROOT / page.parent / path) if path else ROOT / page
    assert target.exists()
    if anchor:
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in map(anchor_of, headings)


def test_images_are_small_and_shown():
    shown = {(ROOT / page.parent / link).resolve() for page, link in links()}
    for image in (ROOT / "docs/images").iterdir():
        assert image in shown
        assert image.stat().st_size <= LARGEST


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_nothing_is_left_to_fill_in(page):
    text = text_of(page)
    assert re.findall(r"<!-- (?!/)(.*?) -->", text) == MARKS.get(page, [])
    for mark in MARKS.get(page, []):
        text = re.sub(f"<!-- {mark} -->.*?<!-- /{mark} -->", "", text, flags=re.DOTALL)
    assert "<!--" not in text


def test_the_tables_show_what_the_results_hold(tmp_path):
    shutil.copytree(ROOT / "bench/results", tmp_path / "bench/results")
    shutil.copy(ROOT / FRONT, tmp_path / FRONT)
    assert main([], root=tmp_path) == 0
    for page in MARKS:
        assert (tmp_path / page).read_text(encoding="utf-8") == text_of(page)


def found(pattern: str) -> list[str]:
    """What a pattern finds on any page, each once."""
    return sorted({each for page in PAGES for each in re.findall(pattern, text_of(page), re.M)})


@pytest.mark.parametrize("folder", found(r"^\| `([^`]+)/` \|"))
def test_the_maps_name_folders_that_exist(folder):
    assert (ROOT / folder).is_dir()


@pytest.mark.parametrize(
    "path", found(r"`((?:marco_fast|kernels|csrc|bench|tests|examples)/[\w/.]+\.\w+)`")
)
def test_the_files_that_pages_name_exist(path):
    assert (ROOT / path).exists()
