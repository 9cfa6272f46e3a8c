"""The tables and the reliability diagram of a run, in Markdown and PNG, and a short table."""

from pathlib import Path
from typing import Any

from bench.reasoning.summary import ATTEMPTS
from marco_fast.files import write_whole
from marco_fast.questions.questions import LEVELS, TESTS, TITLES

__all__ = ["summary_table", "write_tables"]


def percent(made: dict[str, float] | None) -> str:
    """62.0 (55.1-68.4)"""
    if not made or not made["count"]:
        return "–"
    return f"{100 * made['share']:.1f} ({100 * made['low']:.1f}–{100 * made['high']:.1f})"


def points(made: dict[str, float] | None) -> str:
    """+2.5 (-0.4 to +5.4)"""
    if not made:
        return "–"
    low, high = 100 * made["low"], 100 * made["high"]
    return f"{100 * made['points']:+.1f} ({low:+.1f} to {high:+.1f})"


def write_tables(report: dict[str, Any], out: Path) -> None:
    """Markdown tables and the reliability diagram beside the JSON file."""
    parts = [
        "# Six tests, two tiers, and what a search adds\n",
        "Written by `python -m bench.reasoning.measure`; percent right with 95% Wilson intervals, "
        "differences in points with those of Bonett and Price for pairs. "
        f"{report['settings']['questions']} held-out questions per test and tier, one in four "
        "Chinese.\n\nTest@k: one of k attempts is right; of a search the k paths of the highest "
        "value, of samples any k.\n",
    ]
    for tier, tests in report["results"].items():
        levels = report["tiers"][tier]
        parts.append(f"\n## {tier.capitalize()} tier\n")
        named = ", ".join(f"{TITLES[t]} {levels[t]}" for t in TESTS if t in levels)
        parts.append(f"Levels: {named or 'none'}.\n")
        if tests.get("all"):
            parts.append(_methods_table(tests["all"]))
            parts.append(_tests_table(tests, levels))
    parts.append("\n## Greedy on validation questions, by level\n\n" + _levels(report))
    parts.append("\n## Reflection\n\n" + _reflection(report))
    write_whole(out.with_suffix(".md"), "\n".join(parts) + "\n")
    _diagram(report, out.with_suffix(".png"))


def summary_table(report: dict[str, Any]) -> str:
    """The short table: all tests of a tier together; from the tokens on, the hard tier's.

    Raises:
        KeyError: the report lacks a tier.
    """
    easy, hard = (report["results"][tier]["all"] for tier in ("easy", "hard"))
    lines = [
        "| method | easy | hard | its tokens | over a majority of as many | AUROC of answers |",
        "|---|---|---|---|---|---|",
    ]
    for method, row in hard.items():
        key = "value" if "value" in row else "majority"
        if key == "majority" and "tokens" not in row:
            continue  # shown in the row of its search
        over = hard.get(f"majority at the tokens of {method}", {}).get("gain")
        told = row.get("answer_auroc")
        cells = [
            method,
            percent(easy.get(method, {}).get(key)),
            percent(row[key]),
            f"{row['tokens']:.0f}",
            points(over),
            "–" if told is None else f"{told:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _methods_table(made: dict[str, Any]) -> str:
    lines = [
        "| method | best value | most visits | vote | Test@1 | Test@8 | Test@32 | majority of "
        "samples at its tokens | best value over that | tokens | AUROC of paths | AUROC of "
        "answers |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method, row in made.items():
        if "value" not in row:
            continue
        tries = row.get("attempts", {})
        beside = made.get(f"majority at the tokens of {method}", {})
        if method == "samples":
            beside = made.get("majority of all samples", {})
        cells = [
            method,
            *(percent(row[rule]) for rule in ("value", "visits", "vote")),
            *(percent(tries.get(str(k))) for k in ATTEMPTS),
            percent(beside.get("majority")),
            points(beside.get("gain")),
            f"{row['tokens']:.0f}",
            *(
                f"{row[k]:.2f}" if row[k] is not None else "–"
                for k in ("path_auroc", "answer_auroc")
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _tests_table(tests: dict[str, Any], levels: dict[str, int]) -> str:
    names = [test for test in TESTS if test in levels]
    lines = [
        f"| best value | {' | '.join(TITLES[test] for test in names)} |",
        "|---" * (1 + len(names)) + "|",
    ]
    for method, row in tests["all"].items():
        if "gain" in row:
            continue  # majorities at the tokens of a search hardly differ: only the JSON has them
        key = "value" if "value" in row else "majority"
        cells = [percent(tests[test].get(method, {}).get(key)) for test in names]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _levels(report: dict[str, Any]) -> str:
    lines = [f"| test | {' | '.join(map(str, LEVELS))} |", "|---" * (1 + len(LEVELS)) + "|"]
    for test, seen in report["validation"].items():
        shares = {int(level): share for level, share in seen["greedy"].items()}
        cells = [f"{100 * shares[level]:.0f}" for level in LEVELS]
        lines.append(f"| {TITLES[test]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _reflection(report: dict[str, Any]) -> str:
    lines = [
        "| tier | method | wrong answers mended | right answers spoiled |",
        "|---|---|---|---|",
    ]
    for tier, rows in report.get("reflection", {}).items():
        for method, made in rows.items():
            mended, spoiled = percent(made["mended"]), percent(made["spoiled"])
            lines.append(f"| {tier} | {method} | {mended} | {spoiled} |")
    return "\n".join(lines) + "\n"


def _diagram(report: dict[str, Any], path: Path) -> None:
    """Confidence of finished paths against the share that is right, one line per tier and method.

    Nearly all confidences are above 0.99, so the axis shows 1 minus the confidence.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.5, 4.5), layout="constrained")
    for tier, color in (("easy", "#0072b2"), ("hard", "#d55e00")):
        for method, style in (("samples", "o-"), ("search, 32", "s--")):
            row = report["results"].get(tier, {}).get("all", {}).get(method)
            if row:
                means, rights = zip(*[each[:2] for each in row["reliability"]], strict=True)
                missing = [max(1 - mean, 1e-8) for mean in means]
                axes.plot(missing, rights, style, color=color, label=f"{tier}: {method}")
    axes.set_xscale("log")
    axes.invert_xaxis()
    low, high = sorted(axes.get_xlim())
    line = [low * (high / low) ** (i / 50) for i in range(51)]
    axes.plot(line, [1 - x for x in line], color="gray", linewidth=1, label="as often as it says")
    axes.set(
        ylim=(0, 1.02), ylabel="share of them that is right",
        xlabel="1 - mean confidence of a finished path (tenths of all paths, surest last)",
    )  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
