"""The question generator: answers worked out again from the text, true thoughts, slips, splits."""

import random
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import combinations, islice

import pytest

from marco_fast.questions import questions as generator
from marco_fast.questions.questions import LANGUAGES, LEVELS, SPLITS, TESTS, Question, questions
from marco_fast.questions.work import Work
from tests.support import question_numbers as numbers
from tests.support import question_reasoning as reasoning

CELLS = [(test, level, each) for test in TESTS for level in LEVELS for each in LANGUAGES]
SOLVERS = {**vars(numbers), **vars(reasoning)}  # that of a test is named <test>_answer
NONE = "none", "没有"


@cache
def some(test: str, level: int, language: str) -> list[Question]:
    """200 distinct questions."""
    return list(islice(questions(test, level, "train", seed=3, language=language), 200))


def test_every_test_has_a_title_and_names_have_one_sex():
    assert list(TESTS) == list(generator.TITLES)
    assert not numbers.HE & numbers.SHE


@pytest.mark.parametrize(("test", "level", "language"), CELLS)
def test_the_reference_answer_follows_from_the_text(test, level, language):
    for question in some(test, level, language)[:60]:
        assert (question.test, question.level, question.language) == (test, level, language)
        assert SOLVERS[f"{test}_answer"](question.text) == question.answer, question.text


@pytest.mark.parametrize(("test", "level", "language"), CELLS)
def test_no_constant_answer_is_mostly_right(test, level, language):
    counts = Counter(question.answer for question in some(test, level, language))
    assert counts.most_common(1)[0][1] <= 120


@pytest.mark.parametrize("language", LANGUAGES)
def test_one_of_three_sets_of_statements_is_consistent_and_circles_are_long(language):
    answers = [each.answer for level in LEVELS for each in some("contradictions", level, language)]
    assert 0.3 < sum(answer in NONE for answer in answers) / len(answers) < 0.36
    assert {len(re.findall(r"\d+", answer)) for answer in answers} == {0, 2, 3, 4, 5}


def test_five_sides_always_close():
    for question in islice(questions("geometry", 5, "train"), 2000):
        numbers.geometry_answer(question.text)


def test_a_sample_is_even_over_tests_and_levels_and_in_one_split():
    drawn, again = (generator.sample_questions("test", 2 * 48, seed=5) for _ in range(2))
    assert [each.text for each in drawn] == [each.text for each in again]
    cells = Counter((each.test, each.level) for each in drawn)
    assert cells == {(test, level): 2 for test in TESTS for level in LEVELS}
    assert {generator.split_of(key) for each in drawn for key in each.keys} == {"test"}
    levels = [each.level for each in drawn]
    assert levels != sorted(levels)  # in random order
    assert len(generator.sample_questions("train", 50)) == 50


def wrong_equations(step: str) -> list[str]:
    """The equations of a step that do not hold."""
    made = re.findall(r"(\d+(?:[-+*/]\d+)+)=(\d+)(?: rest (\d+))?", step)
    made += [(*each, "") for each in re.findall(r"(\d+[-+*/]\d+):.*?, so (\d+)", step)]
    wrong = [left for left, right, rest in made if not _holds(left, int(right), int(rest or 0))]
    wrong += [n for n in re.findall(r"so (\d+), times", step) if f"is {n}0." not in step]
    halves = re.findall(r"Half of (\d+) is (\d+)", step)
    return wrong + [whole for whole, half in halves if int(whole) != 2 * int(half)]


def _holds(left: str, right: int, rest: int) -> bool:
    """Whether left is right; in a division, right times the divisor and a smaller rest."""
    if "/" in left:
        whole, divisor = map(int, left.split("/"))
        return rest < divisor and whole == right * divisor + rest
    total = 0
    for sign, a, b in re.findall(r"([-+]?)(\d+)(?:\*(\d+))?", left):
        total += int(a) * int(b or 1) * (-1 if sign == "-" else 1)
    return total == right


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
    _, facts, orders = reasoning.read_statements(question.text)
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


@pytest.mark.parametrize("test", TESTS)
def test_no_content_is_in_two_splits_of_either_language(test):
    found = {(split, language): set() for split in SPLITS for language in LANGUAGES}
    for (split, language), keys in found.items():
        for level in LEVELS:
            for each in islice(questions(test, level, split, seed=1, language=language), 20):
                keys.update(each.keys)
        assert len(keys) > 100
        assert {generator.split_of(key) for key in keys} == {split}
    for one, other in combinations(SPLITS, 2):
        assert not (found[one, "en"] | found[one, "zh"]) & (found[other, "en"] | found[other, "zh"])
    assert found["test", "en"] & found["test", "zh"] or test not in ("letters", "geometry")


def content(question: Question) -> list[str]:
    """What the keys of a question have to name, read from its text."""
    if question.test == "letters":
        return reasoning.read_letters(question.text)[1]
    if question.test == "facts":
        totals, _ = numbers.read_facts(question.text)
        return [str(abs(a - b)) for a, b in zip(totals, [0, *totals[:-1]], strict=True)]
    if question.keys[0].startswith("orderings"):
        return reasoning.sort({*reasoning.read_ordering(question.text)[1]})
    return re.findall(r"[1-9]\d*", question.text)


@pytest.mark.parametrize(
    ("test", "level", "language"), [c for c in CELLS if c[0] != "contradictions"]
)
def test_the_keys_name_the_content(test, level, language):
    for question in some(test, level, language)[:60]:
        named = re.findall(r"[^\W_]+", " ".join(key.split(":")[1] for key in question.keys))
        assert not Counter(content(question)) - Counter(named), (question.keys, question.text)


@pytest.mark.parametrize("test", TESTS)
def test_thousands_of_distinct_questions(test):
    cells = [(level, language) for level in LEVELS for language in LANGUAGES]
    assert len({each.text for cell in cells for each in some(test, *cell)}) >= 3100


def test_a_split_holds_its_share_and_the_demo_word_is_a_test_word():
    assert generator.split_of("letters:strawberry") == "test"
    splits = [generator.split_of(f"sums:Mia {n}") for n in range(4000)]
    assert 0.77 < splits.count("train") / 4000 < 0.84
    assert 0.07 < splits.count("test") / 4000 < 0.13


@pytest.mark.parametrize("test", TESTS)
def test_the_same_seed_gives_the_same_questions(test):
    first, again, other, chinese = (
        [(each.text, each.steps) for each in islice(questions(test, 4, "test", **options), 20)]
        for options in ({"seed": 7}, {"seed": 7}, {"seed": 8}, {"seed": 7, "language": "zh"})
    )
    assert first == again != other
    assert not {*first} & {*chinese}


@pytest.mark.parametrize(
    "arguments",
    ["sums 1 test en", "facts 0 test en", "facts 9 test en", "facts 1 all en", "facts 1 test de"],
)
def test_bad_arguments_are_refused(arguments):
    test, level, split, language = arguments.split()
    with pytest.raises(ValueError, match="expected"):
        generator.make_question(test, int(level), split, random.Random(0), language)


# answer: outputs that give it / outputs that do not
OUTPUTS = {
    "2": "2| 2.\n|2 marbles|2个苹果。|The answer is 2. / |two|-2|−2|2.2|2/2|12|22|2 or 3|1/2|2,000",
    "1566": "1,566|1566 cm|1,566 cm.|1566厘米。 / 1.566|1,567|1566 or 1567|15 66|-1,566",
    "1, 3 and 4": "1, 3 and 4|4, 1, 3|1,3,4|Statements 4, 3 and 1.|1、3和4。 / "
    "1 and 3|1, 3|1, 2, 3 and 4|134|none|1, 3 and -4",
    "1 和 3": "1 和 3|3 和 1。|1, 3|1 and 3 / 13|1 和 2|没有|3",
    "none": "none|None.| NONE\n / |1 and 2|no|没有",
    "没有": "没有|没有。| 没有 。 / |1 和 2|none|有",
    "camel": "camel|CAMEL|the camel| The Camel.\n|'camel' / |camels|the cow|camel and cow|nobody",
    "小明": "小明|小明。| 小明\n / |小明明|小|小红|小明和小红",
    "不是": "不是|不是。 / 是|是。|不知道|不",
    "yes": "yes|Yes! / no|unknown|yes and no",
}


@pytest.mark.parametrize("answer", OUTPUTS)
def test_outputs_are_compared_by_their_meaning(answer):
    question = replace(some("facts", 1, "en")[0], answer=answer)
    right, wrong = (each.split("|") for each in OUTPUTS[answer].split(" / "))
    assert [output for output in right if not generator.is_correct(question, output)] == []
    assert [output for output in wrong if generator.is_correct(question, output)] == []


@pytest.mark.parametrize("seed", range(20))
def test_digit_by_digit_arithmetic(seed):
    rng = random.Random(seed)
    for _ in range(50):
        a, b, digit = rng.randint(0, 999), rng.randint(0, 999), rng.randint(2, 9)
        work = Work()
        for result, (text, value) in (
            (a + b, work.add(a, b)), (abs(a - b), work.subtract(max(a, b), min(a, b))),
            (a * digit, work.scale(a, digit)), (a, work.divide(a * digit, digit)),
        ):  # fmt: skip
            assert value == result == int(re.findall(r"\d+", text)[-1])
            assert not wrong_equations(text), text
        two = rng.randint(2, 99), rng.randint(2, 99)
        assert work.multiply(*two) == two[0] * two[1]
        assert not [w for step in work.steps for w in wrong_equations(step)]
        with pytest.raises(ValueError, match="multiple"):
            work.divide(a * digit + 1, digit)
    with pytest.raises(ValueError, match="a >= b"):
        Work().subtract(3, 4)
