"""A search in place of the real one, and files of questions."""

import sys
from pathlib import Path

import pytest

from tests.support.data_processes import Children
from tests.support.data_runs import fake_solve, real_questions, write_lines


@pytest.fixture
def solve(monkeypatch):
    """Puts a search in place of the real one."""

    def put(function=fake_solve):
        monkeypatch.setattr(sys.modules["marco_fast.forest.solve"], "solve", function)

    import marco_fast.forest.solve  # noqa: F401

    put()
    return put


@pytest.fixture
def source(tmp_path) -> Path:
    return write_lines(
        tmp_path / "q.jsonl", [{"question": f"What is {i} + {i * i}?"} for i in range(40)]
    )


@pytest.fixture(scope="module")
def real_source(tmp_path_factory) -> Path:
    return real_questions(tmp_path_factory.mktemp("real") / "q.jsonl")


@pytest.fixture
def children():
    made = Children(real=False)
    yield made
    made.close()
