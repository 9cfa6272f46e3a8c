"""The picture of README.md: what the browser shows, its size, and errors that write nothing."""

import io
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from bench.report import pictures

PAGE = """<!doctype html><body style='background: #00f'>
<script>document.body.style.background = '#f00'</script>"""


@pytest.fixture
def page(tmp_path) -> Path:
    if not any(map(shutil.which, pictures.BROWSERS)):
        told = "no Chromium is installed: nothing to take the picture"
        pytest.fail(told) if os.environ.get("CI") else pytest.skip(told)
    path = tmp_path / "page.html"
    path.write_text(PAGE)
    return path


def test_the_picture_is_the_window_after_its_scripts_ran(page):
    image = Image.open(io.BytesIO(pictures.photograph(page))).convert("RGB")
    assert image.size == pictures.SIZE
    assert image.getpixel((10, image.height - 10)) == (255, 0, 0)


def test_a_picture_that_is_too_large_is_refused(page, monkeypatch):
    monkeypatch.setattr(pictures, "LARGEST", 100)
    with pytest.raises(ValueError, match="at most 100 bytes"):
        pictures.photograph(page)


def test_without_a_browser_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pictures, "BROWSERS", ("no-such-browser",))
    monkeypatch.setattr(pictures, "search", lambda path: None)
    monkeypatch.setattr(pictures, "read_tree", lambda path: {})
    monkeypatch.setattr(pictures, "write_tree_page", lambda tree, path: None)
    out = tmp_path / "tree.png"
    assert pictures.main(["--out", str(out)]) == 2
    assert "no-such-browser" in capsys.readouterr().err
    assert not out.exists()
