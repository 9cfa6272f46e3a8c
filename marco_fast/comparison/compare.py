"""Two models side by side on the six tests: their answers, confidences, tokens and seconds."""

import os
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from marco_fast.comparison.statistics import Share
from marco_fast.engine.engine import Engine
from marco_fast.forest.result import SearchResult
from marco_fast.forest.solve import solve
from marco_fast.questions.questions import LEVELS, TESTS, Question, questions
from marco_fast.search.answer import choose_answer
from marco_fast.search.config import SearchConfig
from marco_fast.search.final import agree, final_of

__all__ = ["Answer", "Comparison", "compare", "questions_of"]

TOGETHER = 8  # questions per call of solve: enough to fill the batch, few enough to show progress
CHINESE = 4  # one question in CHINESE is in Chinese


@dataclass(frozen=True)
class Answer:
    """One model's answer to one question.

    Attributes:
        text: what the reply's format calls the answer; of an unfinished reply as far as it goes.
        thought: the reasoning before it; "" where the format has none.
        final: what of the answer was graded.
        finished: whether the path ended by itself; one that a limit cut off is graded as well.
        right: whether `final` gives the reference answer.
        confidence: of the path that was graded. support: its share of the vote; 0.0 if unfinished.
        tokens: decoded for the question.
        seconds: from the question's first branch to its last, while other questions were searched
            beside it.
        curve: (tokens decoded so far, whether the best answer so far is right) whenever a branch
            ended, from the first finished path on; of an unfinished reply its end alone.
    """

    text: str
    thought: str
    final: str
    finished: bool
    right: bool
    confidence: float
    support: float
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

    def unfinished(self, model: str, test: str | None = None) -> int:
        """How many answers of a model to a test, or to all tests (None), are unfinished replies."""
        tests = self.asked if test is None else [test]
        return sum(not each.finished for one in tests for each in self.answers[model][one])

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


def compare(
    models: Sequence[str | os.PathLike[str]],
    config: SearchConfig,
    *,
    count: int = 8,
    tests: Sequence[str] = tuple(TESTS),
    watch: Callable[[Comparison], None] = lambda _: None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Comparison:
    """Ask every model the same questions, each in the form of its own chat template.

    Nothing is added to the questions: a model that was trained on tags writes them, one that
    answers plainly does that, and `final` grades both.

    Args:
        models: bundled names, folders, GGUF files or hub ids, loaded one after the other.
        config: of every search; its seed also decides the questions.
        count: questions per test, at least 1.
        tests: names of the tests.
        watch: a function that is called with the comparison before the first search and after
            every few answers.
        chat_template_kwargs: of every model's chat template, as solve() takes them.
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
                rest = iter(asked)
                while some := list(islice(rest, TOGETHER)):
                    made.answers[name][test] += _ask(engine, config, some, chat_template_kwargs)
                    watch(made)
    return made


def _ask(
    engine: Engine,
    config: SearchConfig,
    asked: list[Question],
    template: Mapping[str, Any] | None,
) -> list[Answer]:
    texts = [each.text for each in asked]
    results = solve(texts, engine, config, chat_template_kwargs=template)
    for result in results:
        if result.stop_reason == "interrupted":
            raise KeyboardInterrupt
        if result.error is not None:
            raise result.error
    return [_graded(*pair) for pair in zip(asked, results, strict=True)]


def _graded(question: Question, result: SearchResult) -> Answer:
    final = result.final
    if not result.finished:
        final = (result.config.final or final_of)(result.answer, question.text)
    right = agree(final, question.answer)
    return Answer(
        text=result.answer,
        thought=result.thought,
        final=final,
        finished=result.finished,
        right=right,
        confidence=result.confidence,
        support=result.support,
        tokens=result.stats.tokens,
        seconds=result.stats.seconds,
        curve=_curve(question, result) or ((result.stats.tokens, right),),
    )


def _curve(question: Question, result: SearchResult) -> tuple[tuple[int, bool], ...]:
    """(tokens decoded, whether the answer at that time is right) from the first answer on."""
    finals = {node: group.final for group in result.answers for node in group.nodes}
    tree, seen, points = copy(result.tree), {}, []
    tree.ended = [0] * len(tree)  # as it was when the branch ended
    for tokens, node in result.ends:
        tree.ended[node] += 1
        if node in finals:
            seen[node] = result.path_answers[node]
        best = choose_answer(tree, seen, finals, result.config.answer)
        if best is not None:
            points.append((tokens, agree(finals[best], question.answer)))
    return tuple(points)
