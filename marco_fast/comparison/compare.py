"""Two models side by side on the six tests: their answers, confidences, tokens and seconds."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from marco_fast.comparison.statistics import Share
from marco_fast.engine.engine import Engine
from marco_fast.engine.loading.load import BUNDLED
from marco_fast.forest.result import SearchResult
from marco_fast.forest.solve import solve
from marco_fast.questions.questions import LEVELS, TESTS, Question, is_correct, questions
from marco_fast.search.answer import canonical, choose_answer
from marco_fast.search.config import SearchConfig
from marco_fast.search.marco import UNTEMPLATED_SYSTEM

__all__ = ["Answer", "Comparison", "compare", "questions_of", "system_prompt"]

TOGETHER = 8  # questions per call of solve: enough to fill the batch, few enough to show progress
CHINESE = 4  # one question in CHINESE is in Chinese


@dataclass(frozen=True)
class Answer:
    """One model's answer to one question.

    Attributes:
        text: the text inside <Output>, or the whole reply if it has no <Output>.
        thought: the text inside <Thought>.
        right: whether the text gives the reference answer.
        confidence: of the chosen path.
        tokens: decoded for the question.
        seconds: from the question's first branch to its last, while other questions were searched
            beside it.
        curve: (tokens spent so far, whether the best answer so far is right) after each finished
            path.
    """

    text: str
    thought: str
    right: bool
    confidence: float
    tokens: int
    seconds: float
    curve: tuple[tuple[int, bool], ...]


@dataclass
class Comparison:
    """The questions of each test, and each model's answers so far.

    Attributes:
        models: their names.
        config: of every search.
        asked: {test: questions}.
        answers: {model: {test: answers}}, in the order of the questions.
    """

    models: list[str]
    config: SearchConfig
    asked: dict[str, list[Question]]
    answers: dict[str, dict[str, list[Answer]]] = field(init=False)

    def __post_init__(self) -> None:
        self.answers = {model: {test: [] for test in self.asked} for model in self.models}

    def share(self, model: str, test: str | None = None) -> Share:
        """The share of right answers of a model on a test, or on all tests (None)."""
        tests = self.asked if test is None else [test]
        return Share.of([each.right for one in tests for each in self.answers[model][one]])

    def mean(self, model: str, test: str, name: str) -> float:
        """The mean of a field of Answer over a model's answers to a test; 0.0 without an answer."""
        values = [getattr(each, name) for each in self.answers[model][test]]
        return sum(values) / len(values) if values else 0.0

    def curve(self, model: str) -> list[tuple[float, float]]:
        """Accuracy against tokens spent.

        Returns:
            (mean tokens per question, share of right answers), one pair per token budget at which
            a path finished, as if every search had ended at that budget.
        """
        answers = [each for test in self.asked for each in self.answers[model][test]]
        if not answers:
            return []
        budgets = sorted({tokens for each in answers for tokens, _ in each.curve})
        points = []
        for budget in budgets:
            right = sum(_right_within(each, budget) for each in answers)
            spent = sum(min(budget, each.tokens) for each in answers)
            points.append((spent / len(answers), right / len(answers)))
        return points


def _right_within(answer: Answer, budget: int) -> bool:
    held = [right for tokens, right in answer.curve if tokens <= budget]
    return bool(held) and held[-1]


def questions_of(test: str, count: int, seed: int) -> list[Question]:
    """`count` held-out questions of a test from all levels; one in four is in Chinese."""
    sources = {
        (level, language): questions(test, level, "test", seed=seed, language=language)
        for level in LEVELS
        for language in ("en", "zh")
    }
    return [
        # Steps of three levels: even a few questions cover easy and hard levels.
        next(sources[1 + 3 * i % len(LEVELS), "zh" if 3 * i % CHINESE == CHINESE - 1 else "en"])
        for i in range(count)
    ]


def system_prompt(engine: Engine) -> str | None:
    """The system prompt that explains the tags, for a model that does not know them; else None."""
    template = engine.tokenizer.chat_template or ""
    if engine.name in BUNDLED or "<Output>" in str(template) or not template:
        return None
    return UNTEMPLATED_SYSTEM


def compare(
    models: Sequence[str | os.PathLike[str]],
    config: SearchConfig,
    *,
    count: int = 8,
    tests: Sequence[str] = tuple(TESTS),
    watch: Callable[[Comparison], None] = lambda _: None,
    **options: Any,
) -> Comparison:
    """Ask every model the same questions.

    Args:
        models: bundled names, folders or hub ids, loaded one after the other.
        config: of every search; its seed also decides the questions.
        count: questions per test, at least 1.
        tests: names of the tests.
        watch: a function that is called with the comparison before the first search and after
            every few answers.
        options: of Engine.from_pretrained.

    Returns:
        The Comparison. Ctrl-C raises KeyboardInterrupt; the answers so far are in the comparison
        that `watch` was given.

    Raises:
        ValueError: count is below 1, a test is unknown, or two models have one name.
        ModelError: a model cannot be loaded.
    """
    if count < 1:
        raise ValueError(f"expected at least 1 question per test, got {count}")
    if not models or len({str(each) for each in models}) < len(models):
        raise ValueError(f"expected models of different names, got {[str(m) for m in models]}")
    unknown = [test for test in tests if test not in TESTS]
    if unknown:
        raise ValueError(f"expected tests among {', '.join(TESTS)}, got {unknown[0]!r}")
    names = [str(each) for each in models]
    made = Comparison(
        names, config, {test: questions_of(test, count, config.seed) for test in tests}
    )
    watch(made)
    for name in names:
        with Engine.from_pretrained(name, **options) as engine:
            for test, asked in made.asked.items():
                _ask(engine, config, asked, made.answers[name][test], lambda: watch(made))
    return made


def _ask(
    engine: Engine,
    config: SearchConfig,
    asked: list[Question],
    answers: list[Answer],
    tell: Callable[[], None],
) -> None:
    system = system_prompt(engine)
    rest = iter(asked)
    while some := list(islice(rest, TOGETHER)):
        results = solve([each.text for each in some], engine, config, system=system)
        for question, result in zip(some, results, strict=True):
            if result.stop_reason == "interrupted":
                raise KeyboardInterrupt
            if result.error is not None:
                raise result.error
            answers.append(_graded(question, result))
        tell()


def _graded(question: Question, result: SearchResult) -> Answer:
    text = result.answer or result.text
    return Answer(
        text=text,
        thought=result.thought,
        right=is_correct(question, text),
        confidence=result.confidence,
        tokens=result.stats.tokens,
        seconds=result.stats.seconds,
        curve=_curve(question, result),
    )


def _curve(question: Question, result: SearchResult) -> tuple[tuple[int, bool], ...]:
    """(tokens spent, whether the answer at that time is right) after each finished path."""
    tree, points = result.tree, []
    spent, seen = 0, {}
    for node, token_ids in enumerate(tree.token_ids):
        spent += len(token_ids)
        if node in result.answers:
            seen[node] = result.answers[node]
            finals = {each: canonical(text) for each, text in seen.items()}
            best = choose_answer(tree, seen, finals, result.config.answer)
            if best is not None:
                points.append((spent, is_correct(question, seen[best])))
    return tuple(points)
