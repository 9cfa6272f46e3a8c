"""Questions with checkable answers and written thoughts: the data of the bundled nano models.

Six tests, eight levels each, from one short step to more than a small model does reliably, in
English and in Chinese. The thought is in English for both, as Marco-o1's own prompt asks for; the
output is in the question's language. Everything is a pure function of (test, level, split,
language, seed, ordinal).

The split of a question is decided by a hash of its content: every word of a letter question, the
set of names of an ordering, the person and numbers of a word problem, the shape and numbers of a
geometry question, the facts of a set of statements. What is in one split is never in another.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from marco_fast.questions.facts import facts
from marco_fast.questions.geometry import geometry
from marco_fast.questions.letters import letters
from marco_fast.questions.logic import logic
from marco_fast.questions.statements import contradictions
from marco_fast.questions.steps import steps
from marco_fast.questions.work import Work
from marco_fast.search.answer import canonical

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
    """A question, its reference answer, and the way to it."""

    test: str
    level: int
    language: str
    text: str
    answer: str
    steps: tuple[str, ...]
    keys: tuple[str, ...]  # what decides the split
    solve: Callable[[Work], str]  # writes the steps, returns the answer


def split_of(key: str) -> str:
    """The split that a piece of content, `kind:content`, belongs to: 80%, 10% and 10%."""
    if key in _ALWAYS_TEST:
        return "test"
    bucket = hashlib.blake2b(key.encode(), digest_size=4).digest()[0] * 10 // 256
    return SPLITS[max(0, bucket - 7)]


def make_question(
    test: str, level: int, split: str, rng: random.Random, language: str = "en"
) -> Question:
    """One question.

    Args:
        test: a key of TESTS.
        level: 1 (easy) to 8.
        split: "train", "validation" or "test".
        rng: decides everything else.
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
    """Endless distinct questions: the same arguments give the same ones."""
    rng = random.Random(f"{test} {level} {split} {language} {seed}")
    seen: set[str] = set()
    while True:
        question = make_question(test, level, split, rng, language)
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
    """Whether the text of an output gives the reference answer, as votes compare answers.

    An output with another set of numbers, or with more than one name, is wrong.
    """
    return canonical(output) == canonical(question.answer)
