"""Written thoughts of questions: every equation holds, every step follows, slips are one step."""

import random
import re

import pytest

from marco_fast.questions import questions as generator
from marco_fast.questions.questions import Question
from tests.support import question_numbers as numbers
from tests.support import question_reasoning as reasoning
from tests.support import question_statements as statements
from tests.support.question_checks import CELLS, NONE, some, wrong_equations


def test_wrong_equations_are_found():
    assert not wrong_equations("14+8: 4+8=12, 1+1=2, so 22, times 10 is 220. 9/2=4 rest 1. 7/7=1")
    wrong = (
        "4+8=13|9/2=4 rest 0|9/2=3 rest 3|8/2=3|14/2: 14/2=7 rest 0, so 8|9-3-1=6|Half of 9 is 4"
    )
    for step in [*wrong.split("|"), "3*2=6, so 6, times 10 is 6."]:
        assert wrong_equations(step), step


@pytest.mark.parametrize(("test", "level", "language"), CELLS)
def test_every_written_equation_holds_and_the_thought_ends_in_the_answer(test, level, language):
    for question in some(test, level, language)[:60]:
        assert not [wrong for step in question.steps for wrong in wrong_equations(step)]
        answer = "nothing" if question.answer in NONE else question.answer
        assert re.search(rf"(?<!\w){answer}(?![^\W_])", question.steps[-1])
        assert all(step and "\n" not in step for step in question.steps)
        reply = "<Thought>\n" + "\n\n".join(question.steps) + "\n</Thought>\n<Output>\n"
        assert generator.write_answer(question) == f"{reply}{question.answer}\n</Output>"


def facts_thought(question: Question) -> bool:
    """The facts that do not matter in the text's order, then every total of the story."""
    totals, noise = numbers.read_facts(question.text)
    results = iter([int(re.findall(r"\d+", step)[-1]) for step in question.steps[1:]])
    assert re.findall(r"\d+", question.steps[0]) == noise, question.steps
    return all(total in results for total in totals)


def letters_thought(question: Question) -> bool:
    """Every letter of the words with the count so far."""
    letter, words = reasoning.read_letters(question.text)
    spelled = "".join(words)
    counted = [f"{char}{spelled[:at].count(letter)}" for at, char in enumerate(spelled, 1)]
    return " ".join(question.steps[1:-1]).split() == counted


def items(steps: tuple[str, ...], label: str) -> list[str]:
    """What the steps that begin with the label list."""
    return [
        each
        for step in steps
        if step.startswith(f"{label}: ")
        for each in step.removeprefix(f"{label}: ").removesuffix(".").split(", ")
    ]


def syllogism_thought(question: Question) -> bool:
    """What is so and what is not, as told; then the walk up to the kind asked for or the end."""
    told, steps = reasoning.read_syllogism(question.text), question.steps
    above, way = dict(told.so), [told.person]
    while way[-1] != told.asked and way[-1] in above:
        way.append(above[way[-1]])
    apart = [f"{a} not {b}{' asked' * (b == told.asked)}" for a, b in told.apart]
    return (
        items(steps, "Is") == [" ".join(pair) for pair in told.so]
        and f"No: {', '.join(apart) or 'none'}." in steps
        and f"So: {' '.join(way)}{' asked' * (way[-1] == told.asked)}." in steps
        and steps[-1] == f"So {told.answer}."
    )


def logic_thought(question: Question) -> bool:
    """What the text says, in its order; then the walk over it, and the verdict or the row."""
    steps = question.steps
    if question.keys[0].startswith("syllogisms"):
        return syllogism_thought(question)
    _, pairs = reasoning.read_ordering(question.text)
    row = re.findall(r"(\d+) ([^ ,.]+)", " ".join(s for s in steps if s.startswith("So ")))
    named = [(str(place), name) for place, name in enumerate(reasoning.sort({*pairs}), 1)]
    joint = "" if question.language == "zh" else " "
    pairs = [(a.removeprefix("小"), b.removeprefix("小")) for a, b in pairs]
    order = reasoning.sort({*pairs})
    return (
        steps[-1].startswith(steps[0].replace("Find the", "The")[:-1] + " is number ")
        and items(steps, "Less") == [joint.join(pair[::-1]) for pair in pairs]
        and f"Up: {joint.join(order[order.index(pairs[0][1]) :: -1])}." in steps
        and items(steps, "More") == [joint.join(pair) for pair in pairs]
        and f"Down: {joint.join(order)}." in steps
        and row == named
    )


def contradictions_thought(question: Question) -> bool:
    """Each statement after all of its subject, or with the way down from it."""
    _, facts, orders = statements.read_statements(question.text)
    for number, step in enumerate(question.steps[:-1], 1):
        if number in orders:
            _, more, name = orders[number]
            assert step.startswith(f"{number}: {more}{number} {name}"), step
            for by, below in re.findall(r"(\d+) (\w+?)(?=[\d.:])", step)[1:]:
                assert int(by) < number and orders[int(by)][1:] == (name, below), step  # noqa: PT018
                name = below
            assert step.endswith(": conflict.") == (name == more), step
            assert name == more or all(orders[n][1] != name for n in orders if n < number), step
            continue
        subject, about = facts[number][0]
        told = [n for n in facts if n <= number and facts[n][0][0] == subject]
        listed = ", ".join(f"{facts[n][0][1]} {facts[n][1]} ({n})" for n in told)
        space = "" if re.match(r"[^a-z]", listed) else " "
        verdict = ""
        for n in told[:-1]:
            if facts[n][0][1] == about:
                same = facts[n][1] == facts[number][1]
                verdict = ": same" if same else f": conflict with {n}"
        assert step == f"{number}: {subject}{space}{listed}{verdict}.", step
    conflicts = sum(": conflict" in step for step in question.steps)
    return conflicts == (question.answer not in NONE)


THOUGHTS = [cell for cell in CELLS if f"{cell[0]}_thought" in globals()]


@pytest.mark.parametrize(("test", "level", "language"), THOUGHTS)
def test_the_thought_follows_the_text(test, level, language):
    for question in some(test, level, language)[:60]:
        assert globals()[f"{test}_thought"](question), (question.text, question.steps)


@pytest.mark.parametrize(("test", "level", "language"), CELLS)
def test_a_slip_changes_one_step_and_the_answer(test, level, language):
    rng = random.Random(5)
    works = [(each, generator.plant_slip(each, rng)) for each in some(test, level, language)[:25]]
    assert sum(work is not None for _, work in works) >= 15
    for question, work in ((each, work) for each, work in works if work):
        same = [a == b for a, b in zip(work.steps, question.steps, strict=False)]
        assert same.index(False) == work.slip_step
        assert work.steps[-1] != question.steps[-1]
        false = [i for i, step in enumerate(work.steps) if wrong_equations(step)]
        assert false == ([work.slip_step] if test in ("geometry", "steps", "facts") else [])


def test_a_slip_of_a_syllogism_is_in_what_is_denied_or_on_the_way():
    rng, found = random.Random(5), set()
    for question in some("logic", 3, "en"):
        work = generator.plant_slip(question, rng)
        if work and question.keys[0].startswith("syllogisms"):
            found.add(work.steps[work.slip_step].split(":")[0])
    assert found == {"No", "So"}
