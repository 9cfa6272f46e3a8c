"""The paper's table: how tiers are chosen, answers summed up, and an interrupted run goes on."""

import argparse
import hashlib
import json

import pytest

from bench.reasoning import measure as reasoning
from bench.reasoning.measure import METHODS, jobs, read_journal
from bench.reasoning.summary import attempts, figures, majority, reflections, summarise
from bench.reasoning.tiers import easy_level, hard_level, hard_order, tier_questions
from marco_fast import Engine, SearchConfig
from marco_fast.questions.questions import TESTS


def path(answer: str, right: bool, value: float = 0.9, tokens: int = 10) -> dict:
    return {
        "answer": answer, "right": right, "value": value, "confidence": value, "tokens": tokens,
    }  # fmt: skip


def row(paths: list[dict], right: bool = True, tokens: int = 100, language: str = "en") -> dict:
    rules = dict.fromkeys(("value", "visits", "vote"), right)
    first = paths[0]["confidence"] if paths else None
    return {
        "language": language, "right": rules, "confidence": first, "paths": paths,
        "tokens": tokens, "stop": "",
    }  # fmt: skip


def test_tiers_are_chosen_by_their_rule():
    greedy = {1: 1.0, 2: 0.98, 3: 0.94, 4: 0.98, 5: 0.66, 6: 0.71, 7: 0.2}
    assert easy_level(greedy) == 2
    assert easy_level({1: 0.9, 2: 0.93}) == 2
    assert hard_order(greedy)[:2] == [6, 5]
    assert hard_order({1: 0.6, 2: 0.8}) == [1, 2]
    assert hard_order({1: 0.86, 2: 0.51, 3: 0.4}) == [2]  # inside the band, though further
    assert hard_order({1: 0.99, 2: 0.9, 3: 0.88, 4: 0.92}) == [3, 2, 4]  # none is inside
    assert hard_order({1: 0.99, 2: 0.95, 3: 0.2}) == []
    assert hard_level({6: 0.91, 5: 0.92, 4: 0.99}) == 5
    assert hard_level({6: 0.9, 5: 0.91, 4: 0.8}) == 5


def test_more_questions_of_a_tier_begin_with_the_same_ones():
    few, many = (tier_questions("facts", 3, "test", count, 0) for count in (10, 30))
    assert [each.text for each in few] == [each.text for each in many[:10]]
    assert [each.language for each in few[:8]] == ["en", "en", "en", "zh"] * 2


def test_attempts_are_the_paths_of_the_highest_value():
    rows = [row([path("1", False, 0.9), path("2", True, 0.5), path("3", False, 0.7)])]
    assert attempts(rows, 1, by_value=True)["share"] == 0.0
    assert attempts(rows, 2, by_value=True)["share"] == 0.0
    assert attempts(rows, 3, by_value=True)["share"] == 1.0


def test_attempts_of_samples_are_no_favourites():
    rows = [
        row([path(str(i), i == place, 1.0 - i / 100) for i in range(20)]) for place in range(20)
    ]
    assert attempts(rows, 1, by_value=False)["share"] == 1 / 20
    assert attempts(rows, 10, by_value=False)["share"] == 10 / 20


def test_a_majority_stays_within_its_budget():
    paths = [path("1", False)] * 2 + [path("2", True)] * 3
    assert majority(paths, 10**9)
    assert not majority([path("1", False)] * 3 + [path("2", True)] * 2, 10**9)
    assert majority([path("2", True, tokens=50)], 10)  # one sample is always taken
    assert not majority([], 100)
    long = [path("1", False, tokens=40)] + [path(str(i), True, tokens=500) for i in range(2, 30)]
    spent = sum(majority(long[i:] + long[:i], 100) for i in range(len(long)))
    assert spent == len(long) - 1  # whichever stands first alone fits


def test_figures_of_some_questions():
    rows = [
        row([path("1", True, 0.9), path("2", False, 0.6)], True, 100),
        row([path("1", False, 0.5), path("3", False, 0.95)], False, 300, "zh"),
        row([], False, 200),
    ]
    made = figures(rows, by_value=True)
    assert made["value"]["share"] == 1 / 3
    assert (made["chinese"]["share"], made["chinese"]["count"]) == (0.0, 1)
    assert (made["tokens"], made["paths"]) == (200, 4 / 3)
    assert made["path_auroc"] == 2 / 3
    assert made["answer_auroc"] == 1.0  # of the chosen paths, not of the most confident ones
    assert made["any"]["share"] == 1 / 3
    assert len(made["reliability"]) == 4


def test_a_summary_has_every_method_that_ran():
    done = {
        "easy/facts/samples/0": [row([path("1", True, tokens=40)] * 2, True, 80)] * 25,
        "easy/facts/search, 32/0": [row([path("1", False)], False, 40)] * 25,
        "easy/logic/samples/0": [row([path("x", False)], False)] * 25,
    }
    tiers = {"easy": {"facts": 3, "logic": 1}, "hard": {}}
    made = summarise(done, tiers, list(METHODS), 25, 25)
    assert made["easy"]["facts"]["search, 32"]["value"]["share"] == 0.0
    equal = made["easy"]["facts"]["majority at the tokens of search, 32"]
    assert equal["majority"]["share"] == 1.0
    assert equal["gain"]["points"] == -1.0
    assert -1.0 <= equal["gain"]["low"] < equal["gain"]["high"] < -0.7
    assert made["easy"]["all"]["samples"]["value"] == {
        **made["easy"]["all"]["samples"]["value"], "share": 0.5, "count": 50,
    }  # fmt: skip
    assert "greedy" not in made["easy"]["all"]
    assert "majority at the tokens of search, 32" not in made["easy"]["all"]  # logic is not done


def test_reflection_mends_and_spoils():
    wrong, right = row([], False), row([], True)
    done = {
        "hard/facts/greedy/0": [wrong, wrong, right, right, right],
        "hard/facts/greedy, reflection/0": [right, wrong, wrong, right, right],
        "hard/facts/samples/0": [right],
    }
    made = reflections(done)["hard"]["greedy"]
    assert (made["mended"]["share"], made["mended"]["count"]) == (0.5, 2)
    assert (made["spoiled"]["share"], made["spoiled"]["count"]) == (1 / 3, 3)


def test_the_work_is_every_method_on_every_question():
    tiers = {"easy": dict.fromkeys(TESTS, 1), "hard": {"logic": 4}}
    args = argparse.Namespace(questions=60, seed=0, methods=list(METHODS))
    work = list(jobs(args, tiers))
    assert len(work) == len({job.unit for job in work}) == 3 * len(METHODS) * (len(TESTS) + 1)
    assert sum(job.end - job.begin for job in work) == 60 * len(METHODS) * (len(TESTS) + 1)


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    """A line that was cut off, or of other options, is done again; what is there is not."""
    args = argparse.Namespace(work=tmp_path, questions=4, seed=0, methods=["greedy"])
    tiers = {"easy": {"letters": 1, "geometry": 1}, "hard": {}}
    solved = []
    real = reasoning.solve
    monkeypatch.setattr(
        reasoning, "solve", lambda asked, *rest: solved.append(len(asked)) or real(asked, *rest)
    )
    whole = reasoning.run(args, tiers, map)
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text(lines[0] + "\n" + lines[1][: len(lines[1]) // 2])
    assert set(read_journal(journal)) == {json.loads(lines[0])["unit"]}
    assert reasoning.run(args, tiers, map) == whole
    assert read_journal(journal) == whole
    assert reasoning.run(args, tiers, map) == whole
    assert solved == [4, 4, 4]
    monkeypatch.setitem(METHODS, "greedy", METHODS["samples"])
    assert not read_journal(journal)
    assert sum(each["right"]["value"] for each in whole["easy/geometry/greedy/0"]) >= 3


def test_a_journal_of_other_weights_or_questions_is_refused(tmp_path, monkeypatch):
    args = argparse.Namespace(work=tmp_path, validation=20, seed=0)
    reasoning.check_work(args)
    reasoning.check_work(args)
    for other in ({"seed": 1}, {"validation": 40}):
        with pytest.raises(SystemExit, match="got one of others: remove it"):
            reasoning.check_work(argparse.Namespace(**{**vars(args), **other}))
    monkeypatch.setattr(reasoning.hashlib, "sha256", hashlib.blake2b)  # as if the bytes differed
    with pytest.raises(SystemExit, match="a journal of these weights"):
        reasoning.check_work(args)


@pytest.mark.parametrize("method", ["greedy", "samples"])
def test_a_whole_reply_is_one_node(method):
    question = tier_questions("letters", 1, "test", 1, 0)[0]
    with Engine.from_pretrained("nano-marco") as engine:
        result = reasoning.solve(question.text, engine, METHODS[method].config)
    assert all(parent == 0 for parent in result.tree.parent[1:])
    assert sum(result.tree.decoded[1:]) == METHODS[method].config.expansions
    assert all(reasoning.row(question, result)["right"].values())


def test_the_confidence_of_a_row_is_that_of_the_chosen_path():
    questions = tier_questions("contradictions", 8, "test", 4, 0)
    with Engine.from_pretrained("nano-marco") as engine:
        options = METHODS["search, 32, value of the rollout"].options
        config = SearchConfig(**options, answer="value")
        results = reasoning.solve([each.text for each in questions], engine, config)
    rows = [reasoning.row(q, r) for q, r in zip(questions, results, strict=True)]
    for made, result in zip(rows, results, strict=True):
        assert made["confidence"] == result.tree.path_confidence(result.answer_node)
    # and not simply the highest one
    assert any(m["confidence"] < max(p["confidence"] for p in m["paths"]) for m in rows)
