"""marco-fast compare: two models side by side on the six tests."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from marco_fast.commands.options import (
    INTERRUPTED,
    OK,
    add_config_options,
    add_engine_options,
    check_writable,
    config_of,
    engine_options,
)
from marco_fast.forest.live import StderrView
from marco_fast.questions.questions import TESTS, TITLES

if TYPE_CHECKING:
    from marco_fast.comparison.compare import Comparison
    from marco_fast.comparison.statistics import Share

__all__ = ["add"]

EXPANSIONS = 8  # default per question: the six tests take the bundled models a minute or two


def add(commands: Any) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser("compare", help="compare two models on six tests")
    parser.set_defaults(run=run)
    parser.add_argument(
        "--models", nargs=2, default=["nano-marco", "nano-llama"], metavar=("A", "B"),
        help="bundled names, folders or hub ids (default nano-marco nano-llama)",
    )  # fmt: skip
    parser.add_argument("--questions", type=int, default=8, help="questions per test (default 8)")
    parser.add_argument(
        "--tests",
        nargs="+",
        default=list(TESTS),
        choices=list(TESTS),
        help="the tests (default: all six)",
    )
    parser.add_argument(
        "--report", type=Path, default=None, metavar="REPORT.html", help="write an HTML page"
    )
    parser.add_argument("--json", action="store_true", help="print every answer as JSON")
    add_engine_options(parser)
    add_config_options(parser.add_argument_group("search"), expansions=EXPANSIONS)


def run(options: argparse.Namespace) -> int:
    """Asks both models; the live table is on standard error, the final one on standard output."""
    config = config_of(options)
    if options.report is not None:
        check_writable(options.report, "--report")
    from marco_fast.comparison.compare import compare
    from marco_fast.comparison.page import to_dict, write_report
    from marco_fast.engine.quiet import silence_libraries

    silence_libraries()
    view = _View()
    code = OK
    with view:
        try:
            compare(
                options.models, config, count=options.questions, tests=options.tests,
                watch=view, **engine_options(options),
            )  # fmt: skip
        except KeyboardInterrupt:
            code = INTERRUPTED
    made = view.comparison
    if made is None:
        return code
    if options.report is not None:
        write_report(made, options.report)
    if options.json:
        print(json.dumps(to_dict(made), ensure_ascii=False))
    else:
        Console(highlight=False).print(table(made))
    if code == INTERRUPTED:
        print(
            "marco-fast compare: interrupted; the table shows the answers so far", file=sys.stderr
        )
    elif options.report is not None:
        print(f"wrote {options.report}", file=sys.stderr)
    return code


class _View(StderrView):
    """The live table on a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.comparison: Comparison | None = None
        self.began = time.monotonic()

    def __call__(self, comparison: "Comparison") -> None:
        self.comparison = comparison
        if not self.console.is_terminal:
            return
        total = len(comparison.models) * sum(map(len, comparison.asked.values()))
        done = sum(comparison.share(model).total for model in comparison.models)
        bar = ProgressBar(total=total, completed=done, width=self.console.width)
        seconds = time.monotonic() - self.began
        line = Text(f"{done} of {total} answers, {seconds:.0f} s", style="dim")
        self.show(Group(table(comparison), bar, line))


def table(comparison: "Comparison") -> Table:
    """Each model's accuracy per test, and below it the mean confidence, tokens and seconds."""
    made = Table(
        title="right answers of questions asked, 95% intervals",
        title_justify="left",
        caption="second lines: mean confidence, tokens and seconds per question",
        caption_justify="left",
    )
    made.add_column("test")
    for model in comparison.models:
        made.add_column(Text(Path(model).name), justify="right")
    for test in comparison.asked:
        cells = [_cell(comparison, model, test) for model in comparison.models]
        made.add_row(TITLES[test], *cells)
    made.add_section()
    shares = [_share(comparison.share(model)) for model in comparison.models]
    made.add_row("all", *shares, style="bold")
    return made


def _cell(comparison: "Comparison", model: str, test: str) -> Text:
    share = comparison.share(model, test)
    if not share.total:
        return Text("-")
    confidence, tokens, seconds = (
        comparison.mean(model, test, name) for name in ("confidence", "tokens", "seconds")
    )
    text = Text(_share(share) + "\n")
    return text.append(f"{confidence:.2f}  {tokens:.0f} tok  {seconds:.2f} s", style="dim")


def _share(share: "Share") -> str:
    low, high = round(100 * share.low), round(100 * share.high)
    return f"{share.right}/{share.total} ({low}–{high}%)" if share.total else "-"
