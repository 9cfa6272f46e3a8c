"""marco-fast compare: two models side by side on the six tests."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from marco_fast.commands.console import print_json, saved, tell
from marco_fast.commands.options import (
    FAILED,
    INTERRUPTED,
    OK,
    add_config_options,
    add_engine_options,
    add_template_option,
    check_apart,
    check_writable,
    config_of,
    engine_options,
    template_options,
)
from marco_fast.forest.interrupts import interrupts
from marco_fast.forest.live import SafeConsole, StderrView
from marco_fast.questions.questions import TESTS, TITLES

if TYPE_CHECKING:
    from marco_fast.comparison.compare import Comparison
    from marco_fast.comparison.statistics import Share

__all__ = ["add"]

PROGRAM = "marco-fast compare"
EXPANSIONS = 8  # default per question: the six tests take the bundled models a minute or two


def add(commands: Any) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser("compare", help="compare two models on six tests")
    parser.set_defaults(run=run)
    parser.add_argument(
        "--models", nargs=2, default=["nano-marco", "nano-llama"], metavar=("A", "B"),
        help="bundled names, folders, GGUF files or hub ids (default nano-marco nano-llama)",
    )  # fmt: skip
    parser.add_argument("--questions", type=int, default=8, help="questions per test (default 8)")
    parser.add_argument(
        "--tests",
        nargs="+",
        default=list(TESTS),
        choices=list(TESTS),
        help="the tests (default: all six)",
    )
    parser.add_argument("--report", default=None, metavar="REPORT.html", help="write an HTML page")
    parser.add_argument("--json", action="store_true", help="print every answer as JSON")
    add_template_option(parser)
    add_engine_options(parser)
    add_config_options(parser.add_argument_group("search"), expansions=EXPANSIONS)


def run(options: argparse.Namespace) -> int:
    """Asks both models; the live table is on standard error, the final one on standard output.

    Returns:
        The exit code. OK: every question was asked, and the report is written; FAILED and
        INTERRUPTED: the table, and the report, show the answers until then.
    """
    config, template = config_of(options), template_options(options)
    if options.report is not None:
        check_writable(options.report, "--report")
        check_apart(options.report, "--report", {f"the model {m}": m for m in options.models})
    from marco_fast.comparison.compare import compare
    from marco_fast.engine.quiet import silence_libraries

    silence_libraries()
    _check_names(options.models)
    view, why, code = _View(), "", OK
    try:
        with view:
            compare(
                options.models, config, count=options.questions, tests=options.tests,
                watch=view, chat_template_kwargs=template, **engine_options(options),
            )  # fmt: skip
    except KeyboardInterrupt:
        why, code = "interrupted", INTERRUPTED
    except Exception as error:
        if view.comparison is None or not view.answered:
            raise
        why, code = f"error: {type(error).__name__}: {error}", FAILED
    with interrupts():
        return _hand_over(view.comparison, options, why, code)


def _check_names(models: list[str]) -> None:
    """A name that can be no model is found before the other model is asked, not after it."""
    from marco_fast.engine.engine import Engine
    from marco_fast.engine.loading.load import BUNDLED

    for model in models:
        if model not in BUNDLED and not os.path.exists(model) and model.count("/") != 1:
            Engine.from_pretrained(model).close()  # says what was expected


def _hand_over(made: "Comparison | None", options: argparse.Namespace, why: str, code: int) -> int:
    """Prints the answers so far before anything else that may fail; returns the exit code."""
    if made is not None and options.json:
        from marco_fast.comparison.page import to_dict

        print_json(to_dict(made))
    elif made is not None:
        SafeConsole(highlight=False).print(table(made))
    if why:
        tell(PROGRAM, why + ("; the table shows the answers so far" if made is not None else ""))
    if made is not None and options.report is not None:
        from marco_fast.comparison.page import write_report

        if not saved(PROGRAM, lambda: write_report(made, options.report)):
            return FAILED
        print(f"wrote {options.report}", file=sys.stderr)
    return code


class _View(StderrView):
    """The live table on a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.comparison: Comparison | None = None
        self.answered = False  # whether there is any answer yet
        self.began = time.monotonic()

    def __call__(self, comparison: "Comparison") -> None:
        self.comparison = comparison
        done = sum(comparison.share(model).total for model in comparison.models)
        self.answered = done > 0
        if self.answered:
            with interrupts() as interrupted:
                if interrupted.is_set():  # as a search ended
                    raise KeyboardInterrupt
        total = len(comparison.models) * sum(map(len, comparison.asked.values()))
        seconds = time.monotonic() - self.began
        self.show(lambda: self._render(comparison, done, total, seconds))

    def _render(self, comparison: "Comparison", done: int, total: int, seconds: float) -> Group:
        bar = ProgressBar(total=total, completed=done, width=self.console.width)
        line = Text(f"{done} of {total} answers, {seconds:.0f} s", style="dim")
        return Group(table(comparison), bar, line)


def table(comparison: "Comparison") -> Table:
    """Each model's accuracy per test, and below it the mean confidence, tokens and seconds."""
    made = Table(
        title="right answers of questions asked, 95% intervals",
        title_justify="left",
        caption="second lines: mean confidence, tokens and seconds per question; replies that a "
        "limit cut off are graded, too, and counted as unfinished",
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
    text.append(f"{confidence:.2f}  {tokens:.0f} tok  {seconds:.2f} s", style="dim")
    if unfinished := comparison.unfinished(model, test):
        text.append(f"\n{unfinished} unfinished", style="dim")
    return text


def _share(share: "Share") -> str:
    low, high = round(100 * share.low), round(100 * share.high)
    return f"{share.right}/{share.total} ({low}-{high}%)" if share.total else "-"
