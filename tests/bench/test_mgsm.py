"""MGSM: reading the problems, grading, and going on where a run was cut off."""

import json

import pytest

from bench.reasoning import mgsm
from bench.report.real import mgsm_table
from tests.support.models import save_model

DATA = 'What is 3 + 4?\t7\n"Two" apples, and one more?\t3\n'


@pytest.fixture
def data(tmp_path):
    (tmp_path / "mgsm_en.tsv").write_text(DATA)
    return tmp_path


def test_problems_are_read_as_they_stand(data):
    first, second = mgsm.problems(data, "en", 2)
    assert first == (1, "What is 3 + 4?", "7")
    assert second.question == '"Two" apples, and one more?'


@pytest.mark.parametrize(("language", "count"), [("en", 3), ("fr", 1)])
def test_missing_problems_are_an_error_of_one_line(data, language, count, capsys):
    command = ["m", "--data", str(data), "--language", language, "--questions", str(count)]
    assert mgsm.main(command) == 2
    assert f"mgsm_{language}.tsv" in capsys.readouterr().err


def test_every_method_answers_and_a_run_goes_on_where_it_was(data, tmp_path, monkeypatch, capsys):
    model = save_model("llama3", tmp_path / "model")
    out, asked = tmp_path / "mgsm.json", []
    solve = mgsm.solve

    def counted(question, engine, config):
        asked.append(question)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return solve(question, engine, config)

    monkeypatch.setattr(mgsm, "solve", counted)
    command = [str(model), "--data", str(data), "--questions", "2", "--tokens", "6"]
    command += ["--threads", "1", "--out", str(out)]
    with pytest.raises(KeyboardInterrupt):
        mgsm.main(command)
    (run,) = json.loads(out.read_text())["runs"]
    assert [row["line"] for row in run["rows"]] == [1] * 4
    assert mgsm.main(command) == 0
    assert len(asked) == 3 + 1 + 3
    (run,) = json.loads(out.read_text())["runs"]
    assert [row["method"] for row in run["rows"]] == [
        "greedy", "samples, majority", "samples, vote", "search",
    ] * 2  # fmt: skip
    by_method = {row["method"]: row for row in run["rows"]}
    assert by_method["greedy"]["expansions"] == 1
    assert by_method["samples, vote"]["expansions"] == by_method["search"]["expansions"] == 8
    assert mgsm_table({"runs": [run]}) in capsys.readouterr().out


class Result:
    """What a search found, as far as a row needs it: finals by path, the values of the paths."""

    class Tree:
        """Three paths, the first of the lowest value; each ended one branch."""

        end_value = {1: 0.5, 2: 0.9, 3: 0.4}  # noqa: RUF012
        ended = {1: 1, 2: 1, 3: 1}  # noqa: RUF012

    class Stats:
        finished_paths, distinct_paths, expansions, tokens, seconds = 3, 3, 8, 99, 2.0

    tree, stats, stop_reason, answer = Tree, Stats, "expansions", "unfinished"

    def __init__(self, finals: dict[int, str]) -> None:
        from marco_fast.search.answer import AnswerGroup

        self.path_answers = {node: f"So it is {final}." for node, final in finals.items()}
        self.answers = [
            AnswerGroup(final, 0.5, 0.5, "", tuple(n for n, f in finals.items() if f == final))
            for final in dict.fromkeys(finals.values())
        ]


def test_samples_are_graded_under_both_rules_and_no_answer_is_wrong():
    problem = mgsm.Problem(1, "How many?", "7")
    majority, vote = mgsm.rows_of(problem, "samples", Result({1: "7", 2: "8", 3: "7"}))
    assert (majority["right"], majority["final"]) == (True, "7")
    assert (majority["method"], vote["method"]) == ("samples, majority", "samples, vote")
    (none,) = mgsm.rows_of(problem, "greedy", Result({}))
    assert (none["right"], none["final"], none["answer"]) == (False, "", "unfinished")
    figures = mgsm.summarise([majority, none | {"method": majority["method"]}])
    assert figures["samples, majority"]["right"]["share"] == 0.5
    assert figures["samples, majority"]["expansions_per_second"] == 4.0
