"""The journal of a run: damaged, of another run, locked, and on the disk before it is reported."""

import os

import pytest

from marco_fast.data import journal as data_journal
from marco_fast.data.generate import journal_of
from marco_fast.search.config import SearchConfig
from tests.support.data_runs import FakeEngine, fake_solve, interrupted_run, make


@pytest.mark.parametrize("cut", [1, 2, 40, 700, 1500, 99999])
def test_a_torn_journal_is_cut_off(cut, solve, source, tmp_path):
    make(source, tmp_path / "whole")
    journal = interrupted_run(solve, source, tmp_path / "out")
    data = journal.read_bytes()
    kept = data[: max(60, len(data) - cut)]
    journal.write_bytes(kept)
    summary = make(source, tmp_path / "out")
    assert summary.resumed == (max(0, kept.count(b"\n") - 1) // 3) * 3
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("damage", [b"\x00" * 50, b'{"id": "7"}\n', b"null\n", b'{"id": "x", "se'])
def test_what_follows_a_damaged_line_is_made_again(damage, solve, source, tmp_path):
    make(source, tmp_path / "whole")
    journal = interrupted_run(solve, source, tmp_path / "out")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:8], damage, *lines[8:]]))
    assert make(source, tmp_path / "out").resumed == 6
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_line_of_another_question_is_made_again(solve, source, tmp_path):
    make(source, tmp_path / "whole")
    journal = interrupted_run(solve, source, tmp_path / "out")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:5], lines[4], *lines[5:]]))  # a line twice
    assert make(source, tmp_path / "out").resumed == 3
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


OTHER = [
    ("seed", {"config": SearchConfig(seed=4)}),
    ("expansions", {"config": SearchConfig(expansions=4)}),
    ("batch", {"batch": 2}),
    ("chats with their system prompt", {"system": "Be kind."}),
    ("chat_template_kwargs", {"chat_template_kwargs": {"enable_thinking": False}}),
]


@pytest.mark.parametrize(("name", "options"), OTHER)
def test_another_runs_journal_is_refused(name, options, solve, source, tmp_path):
    journal = interrupted_run(solve, source, tmp_path / "out")
    before = journal.read_bytes()
    with pytest.raises(ValueError, match=f"with {name} .*, got .*--restart"):
        make(source, tmp_path / "out", **options)
    assert journal.read_bytes() == before
    assert make(source, tmp_path / "out", restart=True, **options).resumed == 0


@pytest.mark.parametrize(
    ("name", "value"), [("name", "other"), ("max_branches", 8), ("dtype", "x")]
)
def test_another_engines_journal_is_refused(name, value, solve, source, tmp_path):
    interrupted_run(solve, source, tmp_path / "out")
    engine = FakeEngine()
    setattr(engine, name, value)
    with pytest.raises(ValueError, match="--restart"):
        make(source, tmp_path / "out", engine=engine)


def test_other_questions_are_refused(solve, source, tmp_path):
    interrupted_run(solve, source, tmp_path / "out")
    source.write_text(source.read_text().replace("39 +", "39  +"))
    with pytest.raises(ValueError, match="with questions "):
        make(source, tmp_path / "out")


@pytest.mark.parametrize("text", ["my notes\n", '{"format": "x"}\n', "[]\n", "my notes", '{"x'])
def test_a_file_that_is_no_journal_is_left_alone(text, solve, source, tmp_path):
    journal = journal_of(tmp_path / "out")
    journal.write_text(text)
    with pytest.raises(ValueError, match="expected a journal of generate-data"):
        make(source, tmp_path / "out")
    assert journal.read_text() == text


def test_a_journal_of_another_version_is_refused(solve, source, tmp_path):
    journal = interrupted_run(solve, source, tmp_path / "out")
    old = journal.read_bytes().replace(b'"version": 2', b'"version": 1', 1)
    journal.write_bytes(old)
    with pytest.raises(ValueError, match=r"of version 2 .*, got version 1, .*--restart"):
        make(source, tmp_path / "out")
    assert journal.read_bytes() == old


def test_two_runs_on_one_output_are_refused(solve, source, tmp_path):
    def second(chats, *arguments, **options):
        for restart in (False, True):
            with pytest.raises(ValueError, match="expected to be the only run"):
                make(source, tmp_path / "out", restart=restart)
        return fake_solve(chats, *arguments, **options)

    solve(second)
    assert make(source, tmp_path / "out").kept == 40


def test_the_lock_is_that_of_the_file_that_is_there(solve, source, tmp_path, monkeypatch):
    """Another run finishes, and removes its lock, between our opening it and our locking it."""
    fcntl = pytest.importorskip("fcntl")
    lock, real, calls = tmp_path / "out.journal.lock", fcntl.flock, []

    def late(file, operation):
        calls.append(file)
        if len(calls) == 1:
            lock.unlink()
        real(file, operation)

    def search(chats, *arguments, **options):
        assert lock.exists()
        with pytest.raises(ValueError, match="expected to be the only run"):
            make(source, tmp_path / "out")
        return fake_solve(chats, *arguments, **options)

    monkeypatch.setattr(fcntl, "flock", late)
    solve(search)
    assert make(source, tmp_path / "out").complete
    assert len(calls) > 2
    assert not lock.exists()


def test_what_is_reported_is_on_the_disk(solve, source, tmp_path, monkeypatch):
    """Each batch is one write, and synced before anything else; the output before it is moved."""
    calls = []

    def traced(name, real):
        return lambda *arguments: calls.append(name) or real(*arguments)

    for name in ("write", "fsync", "replace", "unlink"):
        monkeypatch.setattr(data_journal.os, name, traced(name, getattr(os, name)))

    def search(chats, *arguments, **options):
        calls.append("search")
        return fake_solve(chats, *arguments, **options)

    solve(search)
    make(source, tmp_path / "out", batch=20)
    begin = ["write", "fsync", "fsync", "fsync"]  # the header, its folder, what a resume cuts off
    end = ["fsync", "replace", "fsync", "unlink", "fsync"]
    assert calls == [*begin, *["search", "write", "fsync"] * 2, *end]
