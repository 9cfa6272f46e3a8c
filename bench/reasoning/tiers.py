"""Two tiers of difficulty per test, chosen on validation questions alone.

    python -m bench.reasoning.tiers nano-marco        greedy accuracy by level

- easy: the highest level of at least 97.5% greedy accuracy with every lower level at 95% or more;
- hard: of the levels with 50% to 85% greedy accuracy (three are tried, the nearest to 70% first)
  the first one where at least one of 16 samples is right in 92% of the questions or more; if there
  is none, the level where this happens most often. If no level is in that band, the levels below
  95% are tried in the same way. A test without such a level has no hard tier: the model solves all
  of it, or nothing.
"""

import argparse
import functools
import json
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from marco_fast import Engine, SearchConfig, solve
from marco_fast.comparison.compare import CHINESE
from marco_fast.files import write_whole
from marco_fast.questions.questions import LEVELS, TESTS, Question, is_correct, questions

Map = Callable[
    [Callable[..., Any], Iterable[Any]], Iterable[Any]
]  # map(), or the map of a pool of processes

GOAL = 0.70  # greedy accuracy that the hard tier should have
BAND = (0.50, 0.85)  # of greedy accuracy for the hard tier
HIGHEST = 0.95  # greedy accuracy of the hard tier at most, if no level is in the band
REACH = 0.92  # share of questions with a right sample that the hard tier should have
SAMPLES = 16


def tier_questions(test: str, level: int, split: str, count: int, seed: int) -> list[Question]:
    """The first `count` questions of a test's level, one in four of them Chinese."""
    english = questions(test, level, split, seed=seed)
    chinese = questions(test, level, split, seed=seed, language="zh")
    mixed = (next(chinese if i % CHINESE == CHINESE - 1 else english) for i in range(count))
    return list(islice(mixed, count))


def shares(engine: Engine, asked: list[Question], samples: int) -> tuple[float, float]:
    """(share of right replies, share of questions with a right one); greedy for one sample."""
    config = SearchConfig(
        expansions=samples,
        children=samples,
        parallel=samples,
        step_tokens=4096,
        rollout_tokens=0,
        temperature=0.0 if samples == 1 else SearchConfig.temperature,
    )
    right = [
        [is_correct(question, text) for text in result.answers.values()]
        for question, result in zip(
            asked, solve([each.text for each in asked], engine, config), strict=True
        )
    ]
    total = sum(map(sum, right)) / (samples * len(asked))
    return total, sum(any(each) for each in right) / len(asked)


def easy_level(greedy: dict[int, float]) -> int:
    """The easy tier's level, from the greedy accuracy of every level."""
    steady = [
        level
        for level in greedy
        if greedy[level] >= 0.975 and all(greedy[low] >= 0.95 for low in greedy if low < level)
    ]
    return max(steady, default=max(greedy, key=lambda level: greedy[level]))


def hard_order(greedy: dict[int, float]) -> list[int]:
    """The levels in the order in which they are tried as the hard tier's."""
    inside = [level for level in greedy if BAND[0] <= greedy[level] <= BAND[1]]
    above = [level for level in greedy if BAND[1] < greedy[level] < HIGHEST]
    return sorted(inside or above, key=lambda level: (abs(greedy[level] - GOAL), level))


def hard_level(reached: dict[int, float]) -> int:
    """The first level whose share with a right sample is REACH or more, else the best level."""
    enough = [level for level in reached if reached[level] >= REACH]
    return enough[0] if enough else max(reached, key=lambda level: reached[level])


def try_levels(test: str, count: int, seed: int) -> tuple[str, dict[int, float], dict[int, float]]:
    """(test, greedy accuracy by level, share with a right sample by level that was tried)."""
    with Engine.from_pretrained("nano-marco") as engine:
        asked = {level: tier_questions(test, level, "validation", count, seed) for level in LEVELS}
        greedy = {level: shares(engine, asked[level], 1)[0] for level in LEVELS}
        reached: dict[int, float] = {}
        for level in hard_order(greedy)[:3]:
            reached[level] = shares(engine, asked[level], SAMPLES)[1]
            if reached[level] >= REACH:
                break
    return test, greedy, reached


def choose_tiers(args: argparse.Namespace, each: Map) -> dict[str, Any]:
    """{"tiers": {tier: {test: level}}, "validation": the accuracies that decided}.

    The choice is kept in args.work, so that a run that goes on has the same tiers.
    """
    path = args.work / "tiers.json"
    if path.exists():
        return json.loads(path.read_text())
    tiers: dict[str, dict[str, int]] = {"easy": {}, "hard": {}}
    seen: dict[str, dict[str, Any]] = {}
    tried = functools.partial(try_levels, count=args.validation, seed=args.seed)
    for test, greedy, reached in each(tried, TESTS):
        tiers["easy"][test] = easy_level(greedy)
        if reached:
            tiers["hard"][test] = hard_level(reached)
        seen[test] = {"greedy": greedy, "any of 16": reached}
        print(test, greedy, reached, flush=True)
    chosen = {"tiers": tiers, "validation": seen}
    write_whole(path, json.dumps(chosen))
    return chosen


def main() -> None:
    """Prints a model's greedy accuracy on validation questions, as rows of a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m bench.reasoning.tiers")
    parser.add_argument("model", help="bundled name or folder")
    parser.add_argument("--count", type=int, default=40, help="questions of a level")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with Engine.from_pretrained(args.model) as engine:
        for test in TESTS:
            cells = []
            for level in LEVELS:
                asked = tier_questions(test, level, "validation", args.count, args.seed)
                cells.append(f"{100 * shares(engine, asked, 1)[0]:.0f}")
            print(f"| {test} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
