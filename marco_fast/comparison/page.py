"""A comparison as one self-contained HTML page, and as JSON."""

import io
import os
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from marco_fast.comparison.compare import Comparison
from marco_fast.files import write_whole
from marco_fast.questions.questions import TITLES

__all__ = ["to_dict", "write_report"]

COLORS = ("#0072b2", "#d55e00")  # colour-blind readers can tell them apart, on light and dark


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON values: shares, curves, and every question with all answers."""
    tests: dict[str, Any] = {}
    for test, asked in comparison.asked.items():
        rows = []
        for index, question in enumerate(asked):
            answers = {
                model: vars(comparison.answers[model][test][index])
                for model in comparison.models
                if index < len(comparison.answers[model][test])
            }
            rows.append(
                {
                    "question": question.text,
                    "level": question.level,
                    "language": question.language,
                    "reference": question.answer,
                    "answers": answers,
                }
            )
        shares = {model: comparison.share(model, test)._asdict() for model in comparison.models}
        tests[test] = {"title": TITLES[test], "shares": shares, "questions": rows}
    return {
        "models": comparison.models,
        "config": comparison.config.to_dict(),
        "tests": tests,
        "curves": {model: comparison.curve(model) for model in comparison.models},
    }


def write_report(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Write the page, whole or not at all; every text of a question or a model is escaped."""
    environment = Environment(
        loader=PackageLoader("marco_fast.comparison", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def unfinished(model: str, test: str | None) -> str:
        count = comparison.unfinished(model, test)
        return f", {count} unfinished" if count else ""

    page = environment.get_template("page.html.j2").render(
        comparison=comparison, data=to_dict(comparison), plot=_plot(comparison),
        unfinished=unfinished,
    )  # fmt: skip
    write_whole(path, page)


def _plot(comparison: Comparison) -> str:
    """Accuracy against tokens spent as an SVG element, one line per model."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for model, color in zip(comparison.models, COLORS, strict=True):
        points = comparison.curve(model)
        if points:
            tokens, shares = zip(*points, strict=True)
            axes.step(
                tokens, [100 * share for share in shares], where="post", color=color, linewidth=2
            )
            axes.plot(tokens[-1], 100 * shares[-1], "o", color=color)
            name = axes.annotate(
                os.path.basename(model), (tokens[-1], 100 * shares[-1]),
                xytext=(6, 0), textcoords="offset points", color=color, va="center",
            )  # fmt: skip
            name.set_parse_math(False)
    axes.set_xlabel("tokens decoded per question")
    axes.set_ylabel("right answers (%)")
    axes.set_ylim(-3, 103)
    axes.set_xlim(left=0)
    axes.margins(x=0.2)
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
