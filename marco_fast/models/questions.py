"""Questions with checkable answers and written thoughts: the data of the bundled nano models.

Four tests (letters, sums, orderings, geometry), eight levels each, from one short step to more than
a small model does reliably. Everything is a pure function of (test, level, split, seed, ordinal).

The split of a question is decided by a hash of its content: every word of a letter question, the
set of names of an ordering, the person and numbers of a sum, the shape and numbers of a geometry
question. What is in one split is never in another.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .question_letters import letters, orderings
from .question_numbers import geometry, sums
from .question_work import Work

TESTS = {"letters": letters, "sums": sums, "orderings": orderings, "geometry": geometry}
LEVELS = range(1, 9)
SPLITS = ("train", "validation", "test")
REFLECTION = "\nWait! Maybe I made some mistakes! I need to rethink from scratch.\n\n"
_ALWAYS_TEST = {"strawberry"}


@dataclass(frozen=True)
class Question:
    """A question, its reference answer, and the way to it."""

    test: str
    level: int
    text: str
    answer: str
    steps: tuple[str, ...]
    keys: tuple[str, ...]  # what decides the split
    solve: Callable[[Work], str]  # writes the steps, returns the answer


def split_of(test: str, key: str) -> str:
    """The split that a piece of content belongs to: 80% train, 10% validation, 10% test."""
    if key in _ALWAYS_TEST:
        return "test"
    bucket = hashlib.blake2b(f"{test}:{key}".encode(), digest_size=4).digest()[0] * 10 // 256
    return SPLITS[max(0, bucket - 7)]


def make_question(test: str, level: int, split: str, rng: random.Random) -> Question:
    """One question.

    Args:
        test: a key of TESTS.
        level: 1 (easy) to 8.
        split: "train", "validation" or "test".
        rng: decides everything else.

    Raises:
        ValueError: an unknown test, level or split.
    """
    if test not in TESTS or level not in LEVELS or split not in SPLITS:
        raise ValueError(f"expected a test, level and split, got {test!r}, {level!r}, {split!r}")
    text, keys, solve = TESTS[test](level, rng, lambda key: split_of(test, key) == split)
    work = Work()
    answer = solve(work)
    return Question(test, level, text, answer, tuple(work.steps), keys, solve)


def questions(test: str, level: int, split: str, *, seed: int = 0) -> Iterator[Question]:
    """Endless distinct questions: the same arguments give the same ones."""
    rng = random.Random(f"{test} {level} {split} {seed}")
    seen: set[str] = set()
    while True:
        question = make_question(test, level, split, rng)
        if question.text not in seen:
            seen.add(question.text)
            yield question


def write_thought(steps: tuple[str, ...] | list[str]) -> str:
    """The steps between the tags, one blank line between two steps."""
    return "<Thought>\n" + "\n\n".join(steps) + "\n</Thought>\n"


def write_answer(question: Question) -> str:
    """The whole reply: thought, then output."""
    return write_thought(question.steps) + write_output(question.answer)


def write_output(answer: str) -> str:
    """The output part of a reply."""
    return f"<Output>\n{answer}\n</Output>"


def plant_slip(question: Question, rng: random.Random) -> Work | None:
    """A thought with one wrong step, at `slip_step`, and a wrong end; None: none found."""
    whole = Work()
    question.solve(whole)
    for _ in range(8):
        work = Work(rng.randrange(whole.spots), rng)
        try:
            if question.solve(work) != question.answer:
                return work
        except ValueError:  # the wrong value cannot be worked with further
            continue
    return None


def is_correct(question: Question, output: str) -> bool:
    """Whether the text of an output gives the reference answer.

    Case, spaces, trailing punctuation, a leading "the" and a unit after a number do not matter. An
    output with two different numbers, or with more than one name, is wrong.
    """
    text = output.strip().strip(".!\"'` \n").lower()
    if question.answer.isdigit():
        numbers = set(re.findall(r"\d+", text.replace(",", "")))
        return numbers == {question.answer}
    return text.removeprefix("the ").strip() == question.answer.lower()
