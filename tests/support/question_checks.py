"""Questions of every test, level and language, made once, and the check of their equations."""

import re
from functools import cache
from itertools import islice

from marco_fast.questions.questions import LANGUAGES, LEVELS, TESTS, Question, questions

CELLS = [(test, level, each) for test in TESTS for level in LEVELS for each in LANGUAGES]
NONE = "none", "没有"


@cache
def some(test: str, level: int, language: str) -> list[Question]:
    """200 distinct questions."""
    return list(islice(questions(test, level, "train", seed=3, language=language), 200))


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
