"""Questions with checkable answers and written thoughts: the data of the bundled nano models.

There are six tests of eight levels each, in English and in Chinese. Level 1 takes one short step;
level 8 takes more steps than a small model does reliably. The thought is always in English, as
Marco-o1's own prompt asks; the output is in the question's language. A question depends on nothing
but (test, level, split, language, seed, index).

A hash of a question's content decides its split: of every word of a letter question, the set of
names of an ordering, the person and numbers of a word problem, the shape and numbers of a geometry
question, the facts of a set of statements. Content of one split never occurs in another.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from marco_fast.questions.facts import facts
from marco_fast.questions.geometry import geometry
from marco_fast.questions.letters import letters
from marco_fast.questions.logic import logic
from marco_fast.questions.statements import contradictions
from marco_fast.questions.steps import steps
from marco_fast.questions.work import Work
from marco_fast.search.final import agree, final_of

TESTS = {
    "logic": logic,
    "letters": letters,
    "geometry": geometry,
    "steps": steps,
    "facts": facts,
    "contradictions": contradictions,
}
TITLES = {
    "logic": "logical reasoning",
    "letters": "counting letters",
    "geometry": "geometry",
    "steps": "step-by-step arithmetic",
    "facts": "irrelevant facts",
    "contradictions": "contradictory information",
}
LANGUAGES = ("en", "zh")
LEVELS = range(1, 9)
SPLITS = ("train", "validation", "test")
_ALWAYS_TEST = {"letters:strawberry"}


@dataclass(frozen=True)
class Question:
    """A question, its reference answer, and the steps that lead to it.

    Attributes:
        test, level, language: what was asked for.
        text: the question. answer: the reference answer.
        steps: the steps of the thought.
        keys: the pieces of content that decide the split, each written as `kind:content`.
        solve: writes the steps again and returns the answer; see plant_slip.
    """

    test: str
    level: int
    language: str
    text: str
    answer: str
    steps: tuple[str, ...]
    keys: tuple[str, ...]
    solve: Callable[[Work], str]


def split_of(key: str) -> str:
    """The split of a piece of content, `kind:content`: 80% train, 10% validation, 10% test."""
    if key in _ALWAYS_TEST:
        return "test"
    bucket = hashlib.blake2b(key.encode(), digest_size=4).digest()[0] * 10 // 256
    return SPLITS[max(0, bucket - 7)]


def make_question(
    test: str, level: int, split: str, rng: random.Random, language: str = "en"
) -> Question:
    """Make one question.

    Args:
        test: a key of TESTS.
        level: 1 (easy) to 8.
        split: "train", "validation" or "test".
        rng: every other choice is drawn from it.
        language: "en" or "zh".

    Raises:
        ValueError: an unknown test, level, split or language.
    """
    known = test in TESTS and level in LEVELS and split in SPLITS and language in LANGUAGES
    if not known:
        raise ValueError(
            "expected a test, level, split and language, got "
            f"{test!r}, {level!r}, {split!r}, {language!r}"
        )
    text, keys, solve = TESTS[test](level, rng, lambda key: split_of(key) == split, language)
    work = Work()
    answer = solve(work)
    return Question(test, level, language, text, answer, tuple(work.steps), keys, solve)


def questions(
    test: str, level: int, split: str, *, seed: int = 0, language: str = "en"
) -> Iterator[Question]:
    """An endless stream of distinct questions; the same arguments give the same stream."""
    rng = random.Random(f"{test} {level} {split} {language} {seed}")
    seen: set[str] = set()
    while True:
        question = make_question(test, level, split, rng, language)
        if question.text not in seen:
            seen.add(question.text)
            yield question


def sample_questions(split: str, count: int, *, seed: int = 0) -> list[Question]:
    """`count` English questions of a split in random order, spread evenly over tests and levels."""
    streams = [questions(test, level, split, seed=seed) for level in LEVELS for test in TESTS]
    rounds = -(-count // len(streams))
    drawn = [one for stream in streams for one in islice(stream, rounds)]
    random.Random(seed).shuffle(drawn)
    return drawn[:count]


def write_thought(steps: tuple[str, ...] | list[str]) -> str:
    """The thought part of a reply: the tags, and a blank line between two steps."""
    return "<Thought>\n" + "\n\n".join(steps) + "\n</Thought>\n"


def write_answer(question: Question) -> str:
    """The reply to a question: its thought, then its output."""
    return write_thought(question.steps) + write_output(question.answer)


def write_output(answer: str) -> str:
    """The output part of a reply."""
    return f"<Output>\n{answer}\n</Output>"


def plant_slip(question: Question, rng: random.Random) -> Work | None:
    """A thought whose step `slip_step` is wrong and which ends with a wrong answer.

    Returns:
        The finished Work; None if none of eight attempts changed the answer.
    """
    whole = Work()
    question.solve(whole)
    for _ in range(8):
        work = Work(rng.randrange(whole.spots), rng)
        try:
            if question.solve(work) != question.answer:
                return work
        except ValueError:  # the steps after the slip cannot use its wrong value
            continue
    return None


def is_correct(question: Question, output: str) -> bool:
    """Whether an output gives the reference answer, by the final that votes compare, too.

    A sentence around the answer does not matter; another final, or one more, is wrong.
    """
    return agree(final_of(output, question.text), question.answer)
