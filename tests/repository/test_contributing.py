"""CONTRIBUTING.md: the files, modules and make targets that it names exist."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MADE = (".peers/",)  # by the command beside it


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w.-]+/[\w./-]*)`", TEXT))))
def test_paths_exist(path):
    assert path in MADE or any((base / path).exists() for base in (ROOT, ROOT / "marco_fast"))


@pytest.mark.parametrize("path", sorted(set(re.findall(r"-m pytest ([\w./]+)", TEXT))))
def test_tests_that_one_is_told_to_run_exist(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize(
    "module", sorted(set(re.findall(r"python -m ([\w.]+)", TEXT)) - {"pytest"})
)
def test_modules_exist(module):
    assert find_spec(module)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?make ([\w-]+)`?(?:\s*#|`)", TEXT))))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
