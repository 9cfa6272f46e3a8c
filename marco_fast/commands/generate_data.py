"""marco-fast generate-data: searches a file of questions and writes fine-tuning data."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from marco_fast.commands.console import print_json, tell
from marco_fast.commands.options import (
    BAD_INPUT,
    FAILED,
    INTERRUPTED,
    OK,
    UNFINISHED,
    add_config_options,
    add_engine_options,
    add_model_option,
    add_template_option,
    check_apart,
    check_writable,
    config_of,
    engine_options,
    template_options,
)
from marco_fast.forest.interrupts import interrupts
from marco_fast.forest.live import SafeConsole, StderrView

if TYPE_CHECKING:
    from marco_fast.data.filters import Limits
    from marco_fast.data.generate import DataProgress, DataSummary
    from marco_fast.data.questions_file import BadLine

__all__ = ["add"]

PROGRAM = "marco-fast generate-data"
SHOWN = 20  # most bad lines that are named
DESCRIPTION = """\
Searches every question of a JSONL file and writes the replies that pass the filters as ChatML
messages, one JSON object per line, ready for TRL's SFTTrainer or datasets.load_dataset("json").

A line of QUESTIONS.jsonl:  {"question": "text"}  or  {"messages": [{"role": "user", "content":
"text"}, ...]}, whose last message is the user's.  Optional keys: "id", a text or an integer (by
default the line's number), and "answer", the reference answer.  Other keys are ignored.

A line of the output:  {"id", "messages", "thought", "output", "final", "format", "confidence",
"tree", "model"}.  "messages" end with the reply as the model wrote it; "format" says how it was cut
into "thought" and "output": marco (tags), think or plain, whose thought is empty.

If the command was interrupted or killed, the same command continues its work; the limits of the
filters may differ then.  If they refuse every reply, no output is written, and the same command
with other limits searches nothing again.
"""


def add(commands: Any) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser(
        "generate-data", help="search many questions and write fine-tuning data",
        description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(run=run)
    parser.add_argument("questions", type=Path, metavar="QUESTIONS.jsonl")
    parser.add_argument("--out", required=True, metavar="DATA.jsonl", help="the file to write")
    add_model_option(parser)
    add_template_option(parser)
    add_engine_options(parser)
    parser.add_argument(
        "--system", default=None,
        help='system prompt of every question; "marco-o1" stands for the prompt of Marco-o1',
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=int, default=None,
        help="questions searched together (default: max-branches / parallel, rounded up; with more "
        "questions some wait, with fewer the decode batch is not full)",
    )  # fmt: skip
    parser.add_argument(
        "--bad-lines", choices=("refuse", "skip"), default="refuse",
        help="what to do if lines hold no question: name these lines and stop, or leave them out "
        "(default refuse)",
    )  # fmt: skip
    parser.add_argument(
        "--restart", action="store_true", help="discard an existing output and journal"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    _add_filters(parser.add_argument_group("filters, in the order in which they are applied"))
    add_config_options(parser.add_argument_group("search"))


def _add_filters(group: Any) -> None:
    from marco_fast.data.filters import Limits

    limits = Limits()
    group.add_argument(
        "--min-tokens", type=int, default=limits.min_tokens,
        help="least tokens of a reply (default 32 with a thought, since the four tags take about "
        "15, and a thought of fewer tokens than that explains nothing; else 1)",
    )  # fmt: skip
    group.add_argument(
        "--max-tokens-kept", type=int, default=limits.max_tokens,
        help=f"most tokens of a reply (default {limits.max_tokens}: reply and prompt then fit into "
        "the 4,096 tokens with which a 7B model is usually fine-tuned)",
    )  # fmt: skip
    group.add_argument(
        "--max-repetition", type=float, default=limits.max_repetition,
        help="largest share of windows of 8 words that repeat an earlier one, of the thought or, "
        f"without one, of the answer (default {limits.max_repetition}: worked sums repeat some "
        "phrases, a loop soon repeats more than half)",
    )  # fmt: skip
    group.add_argument(
        "--min-agreement", type=float, default=limits.min_agreement,
        help="smallest support: the share of the finished paths' vote whose answers say the same "
        f"(default {limits.min_agreement}: at least as much as all other answers together; use 0 "
        "if answers are prose, which hardly ever agrees)",
    )  # fmt: skip
    group.add_argument(
        "--min-confidence", type=float, default=limits.min_confidence,
        help=f"smallest confidence of the chosen path (default {limits.min_confidence}: below it "
        "the model was unsure of most words; few replies are refused, since a search picks "
        "confident paths)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Searches; shows progress on standard error, prints the summary on standard output.

    Returns:
        The exit code. OK: the output is written, with whatever replies passed the filters;
        UNFINISHED: none did; FAILED and INTERRUPTED: what is done is in the journal, and the same
        command goes on from there.
    """
    from marco_fast.data.filters import Limits
    from marco_fast.data.generate import check_output

    config, template = config_of(options), template_options(options)
    limits = Limits(
        options.min_tokens, options.max_tokens_kept, options.max_repetition,
        options.min_agreement, options.min_confidence,
    )  # fmt: skip
    check_writable(options.out, "--out")
    check_output(options.out, restart=options.restart)
    if not options.questions.is_file():
        raise ValueError(f"expected a file of questions, got {str(options.questions)!r}")
    inputs = {"the questions": options.questions, "the model": options.model}
    check_apart(options.out, "--out", inputs)
    return _generate(options, config, limits, template)


def _generate(
    options: argparse.Namespace, config: Any, limits: "Limits", template: dict[str, Any] | None
) -> int:
    from marco_fast.data.generate import generate_data, kv_tokens_of
    from marco_fast.data.questions_file import read_questions
    from marco_fast.engine.engine import Engine
    from marco_fast.engine.quiet import silence_libraries

    silence_libraries()
    given = engine_options(options)
    if given["kv_tokens"] is None and not options.restart:
        given["kv_tokens"] = kv_tokens_of(options.out)
    with Engine.from_pretrained(options.model, **given) as engine:
        questions = read_questions(
            options.questions, engine, system=options.system, chat_template_kwargs=template
        )
        _name(questions.bad, skipped=options.bad_lines == "skip")
        if questions.bad and options.bad_lines == "refuse":
            return BAD_INPUT
        with interrupts():
            try:
                with _View() as view:
                    summary = generate_data(
                        questions, options.out, engine, config, limits=limits,
                        batch=options.batch, restart=options.restart,
                        chat_template_kwargs=template, progress=view,
                    )  # fmt: skip
            except OSError as error:
                tell(PROGRAM, f"error: {error}; the same command goes on from what is done")
                return FAILED
            if options.json:
                print_json(summary.to_dict())
            else:
                _print_summary(summary)
            return _exit_code(summary, options.out)


def _name(bad: list["BadLine"], *, skipped: bool) -> None:
    """Prints the first bad lines and their number on standard error."""
    for each in bad[:SHOWN]:
        tell(PROGRAM, f"line {each.line}: {each.message}")
    if bad:
        rest = f" ({len(bad) - SHOWN} of them not shown)" if len(bad) > SHOWN else ""
        end = "left out" if skipped else "nothing was done; --bad-lines skip leaves them out"
        tell(PROGRAM, f"error: {len(bad)} bad lines{rest}: {end}")


def _print_summary(summary: "DataSummary") -> None:
    rows = [("questions", summary.questions, ""), ("bad lines", summary.bad_lines, "left out")]
    rows += [("searched", summary.done, f"{summary.resumed} of them by earlier runs")]
    from marco_fast.data.filters import ADVICE

    rows += [(f"- {name}", n, ADVICE[name][0]) for name, n in summary.refused.items()]
    rows += [("kept", summary.kept, "")]
    console = SafeConsole(highlight=False)
    if not console.is_terminal:
        for name, count, text in rows:
            print(f"{name} {count}{f' ({text})' if text else ''}")
        return
    table = Table("", "", "", show_header=False)
    table.columns[1].justify = "right"
    for name, count, text in rows:
        style = "bold" if name == "kept" else "dim" if not count else ""
        table.add_row(Text(name), f"{count}", Text(text), style=style)
    console.print(table)


def _exit_code(summary: "DataSummary", out: str) -> int:
    if summary.complete:
        print(f"wrote {out}", file=sys.stderr)
        return OK
    if summary.done == summary.questions:
        tell(PROGRAM, f"{summary.why_nothing()}; {out} is not written, and the same command with "
             "other limits searches nothing again")  # fmt: skip
        return UNFINISHED
    kind, code = "interrupted", INTERRUPTED
    if summary.error is not None:
        kind = f"the model failed: {type(summary.error).__name__}: {summary.error}"
        code = FAILED
    done = f"{summary.done} of {summary.questions} questions are done"
    tell(PROGRAM, f"{kind}; {done}, the same command goes on from there")
    return code


class _View(StderrView):
    """The progress bar on a terminal."""

    def __call__(self, now: "DataProgress") -> None:
        self.show(lambda: self._render(now))

    def _render(self, now: "DataProgress") -> Table:
        seconds = max(now.seconds, 1e-9)
        left = "?"
        if now.new:
            rest = seconds / now.new * (now.questions - now.done)
            left = time.strftime("%H:%M:%S", time.gmtime(rest)) if rest < 86400 else "over a day"
        line = Text(
            f"{now.done} of {now.questions} questions, {now.kept} kept, "
            f"{now.new / seconds:.2f} questions/s, {now.tokens / seconds:.0f} tokens/s, "
            f"{left} left",
            style="dim", overflow="ellipsis", no_wrap=True,
        )  # fmt: skip
        bar = ProgressBar(total=now.questions, completed=now.done, width=self.console.width)
        grid = Table.grid()
        grid.add_row(bar)
        grid.add_row(line)
        return grid
