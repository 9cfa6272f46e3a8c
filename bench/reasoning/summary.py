"""Figures of a run: shares of right answers, attempts, majorities, calibration."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from marco_fast.comparison.statistics import Share, auroc, gain, reliability

ATTEMPTS = (1, 8, 32)
Rows = list[dict[str, Any]]


def summarise(
    done: dict[str, Rows],
    tiers: dict[str, dict[str, int]],
    methods: Sequence[str],
    count: int,
    batch: int,
) -> dict[str, Any]:
    """{tier: {test or "all": {method: figures}}} of all rows; a method without rows is left out."""
    made: dict[str, Any] = {}
    for tier, levels in tiers.items():
        rows = {
            test: {
                method: [
                    row
                    for begin in range(0, count, batch)
                    for row in done.get(f"{tier}/{test}/{method}/{begin}", [])
                ]
                for method in methods
            }
            for test in levels
        }
        rows["all"] = {m: [r for test in levels for r in rows[test][m]] for m in methods}
        made[tier] = {
            test: {
                method: figures(these, method != "samples") for method, these in by.items() if these
            }
            | majorities(by, methods)
            for test, by in rows.items()
        }
    return made


def figures(rows: Rows, by_value: bool) -> dict[str, Any]:
    """One method on some questions."""
    pairs = [(path["confidence"], path["right"]) for row in rows for path in row["paths"]]
    result: dict[str, Any] = {
        rule: share([row["right"][rule] for row in rows]) for rule in ("value", "visits", "vote")
    }
    result["tokens"] = sum(row["tokens"] for row in rows) / len(rows)
    result["paths"] = sum(len(row["paths"]) for row in rows) / len(rows)
    result["chinese"] = share([r["right"]["value"] for r in rows if r["language"] == "zh"])
    result["path_auroc"] = auroc(pairs)
    bins, error = reliability(pairs)
    result["reliability"] = [[mean, each.share, each.low, each.high] for mean, each in bins]
    result["calibration_error"] = error
    chosen = [(row["confidence"], row["right"]["value"]) for row in rows if row["paths"]]
    result["answer_auroc"] = auroc(chosen)
    if result["paths"] > 1:
        result["attempts"] = {str(k): attempts(rows, k, by_value) for k in ATTEMPTS}
        result["any"] = share([any(path["right"] for path in row["paths"]) for row in rows])
    return result


def attempts(rows: Rows, k: int, by_value: bool) -> dict[str, float]:
    """Test@k: how often one of k attempts is right.

    Of a search the k paths of the highest value count, of samples any k.
    """
    flags = []
    for row in rows:
        paths = row["paths"]
        ordered = sorted(paths, key=lambda p: -p["value"]) if by_value else shuffled(paths)
        flags.append(any(path["right"] for path in ordered[:k]))
    return share(flags)


def shuffled(paths: Rows) -> Rows:
    """The paths in random order: samples that are decoded together end shortest first, and any k
    of them must not be the k shortest."""
    return random.Random(len(paths)).sample(paths, len(paths))


def majorities(by: dict[str, Rows], methods: Sequence[str]) -> dict[str, Any]:
    """Self-consistency: the most frequent answer of samples, within the tokens of each search.

    "gain" is how much more often the search's answer of the highest value is right on them.
    """
    samples = by.get("samples", [])
    made = {}
    for method in methods:
        if not method.startswith("search") or len(by[method]) != len(samples) or not samples:
            continue
        flags = [
            majority(row["paths"], other["tokens"])
            for row, other in zip(samples, by[method], strict=True)
        ]
        found = [row["right"]["value"] for row in by[method]]
        made[f"majority at the tokens of {method}"] = {
            "majority": share(flags),
            "gain": dict(zip(("points", "low", "high"), gain(flags, found), strict=True)),
        }
    if samples:
        made["majority of all samples"] = {
            "majority": share([majority(row["paths"], 10**9) for row in samples]),
            "tokens": sum(row["tokens"] for row in samples) / len(samples),
        }
    return made


def majority(paths: Rows, budget: int) -> bool:
    """Whether the most frequent answer (of equals the first) of samples within budget is right."""
    taken, spent = [], 0
    for path in shuffled(paths):
        if taken and spent + path["tokens"] > budget:
            break
        taken.append(path)
        spent += path["tokens"]
    if not taken:
        return False
    votes = Counter(path["answer"] for path in taken)
    winner = votes.most_common(1)[0][0]
    return next(path["right"] for path in taken if path["answer"] == winner)


def share(flags: Sequence[bool]) -> dict[str, float]:
    """A share with its interval, as JSON holds it."""
    made = Share.of(flags)
    return {"share": made.share, "low": made.low, "high": made.high, "count": made.total}


def reflections(done: dict[str, Rows]) -> dict[str, Any]:
    """Per method the share of wrong answers that reflection mends, and of right ones it spoils."""
    flags: dict[tuple[str, str], tuple[list[bool], list[bool]]] = {}
    for unit, rows in done.items():
        tier, test, method, begin = unit.split("/")
        other = done.get(f"{tier}/{test}/{method}, reflection/{begin}")
        if other is None:
            continue
        mended, spoiled = flags.setdefault((tier, method), ([], []))
        for before, after in zip(rows, other, strict=True):
            if before["right"]["value"]:
                spoiled.append(not after["right"]["value"])
            else:
                mended.append(after["right"]["value"])
    made: dict[str, Any] = {}
    for (tier, method), (mended, spoiled) in flags.items():
        made.setdefault(tier, {})[method] = {"mended": share(mended), "spoiled": share(spoiled)}
    return made
