"""marco-fast solve: answer a question by tree search."""

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marco_fast.commands.causes import no_effect, room_of, why_unfinished
from marco_fast.commands.console import print_json, read_question, saved, stages, tell
from marco_fast.commands.figures import figures
from marco_fast.commands.options import (
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
from marco_fast.errors import KVCacheFull
from marco_fast.files import read_json
from marco_fast.forest.interrupts import interrupts
from marco_fast.search.marco import as_messages

if TYPE_CHECKING:
    from marco_fast.engine.engine import Engine
    from marco_fast.forest.result import SearchResult

__all__ = ["add"]

PROGRAM = "marco-fast solve"


def add(commands: Any) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser("solve", help="answer a question by tree search")
    parser.set_defaults(run=run)
    parser.add_argument("question", help='the question, or "-" to read it from standard input')
    add_model_option(parser)
    add_engine_options(parser)
    add_template_option(parser)
    parser.add_argument(
        "--system", default=None, help='system prompt; "marco-o1" for the one of Marco-o1'
    )
    parser.add_argument(
        "--history", type=Path, default=None, metavar="CHAT.json",
        help='messages in front of the question: [{"role": "user", "content": "..."}, ...]',
    )  # fmt: skip
    parser.add_argument("--save", default=None, metavar="TREE.json", help="write the tree")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, not as text")
    parser.add_argument("--quiet", action="store_true", help="print the answer alone")
    add_config_options(parser.add_argument_group("search"))


def run(options: argparse.Namespace) -> int:
    """Searches; the live view and figures go to standard error, the answer to standard output."""
    config, template = config_of(options), template_options(options)
    if options.save is not None:
        check_writable(options.save, "--save")
        inputs = {"--history": options.history, "the model": options.model}
        check_apart(options.save, "--save", inputs)
    question = read_question() if options.question == "-" else options.question
    if not question.strip():
        raise ValueError("expected a question with some text, got an empty one")
    chat = [*_history(options.history), {"role": "user", "content": question.strip()}]
    as_messages(chat, options.system)  # what is wrong with it is said before a model is loaded
    from marco_fast.engine.engine import Engine
    from marco_fast.engine.quiet import silence_libraries
    from marco_fast.forest.solve import solve

    silence_libraries()
    with contextlib.nullcontext() if options.quiet else stages(options.model):
        loaded = Engine.from_pretrained(options.model, **engine_options(options))
    # From here on Ctrl-C ends the search, and leaves time for what comes after it.
    with loaded as engine, interrupts():
        result = solve(
            chat, engine, config, system=options.system, chat_template_kwargs=template,
            progress=not options.quiet,
        )  # fmt: skip
        return _hand_over(result, options, engine)


def _history(path: Path | None) -> list[dict[str, str]]:
    if path is None:
        return []
    return read_json(path, "a list of messages", list)


def _hand_over(result: "SearchResult", options: argparse.Namespace, engine: "Engine") -> int:
    """Prints the result before anything else that may fail; returns the exit code."""
    if not options.json and not options.quiet:
        _print_figures(result)
    if options.json:
        print_json(result.to_dict())
    else:
        print(result.answer)
    code = INTERRUPTED if result.stop_reason == "interrupted" else OK
    if result.error is not None:
        kind = "" if isinstance(result.error, KVCacheFull) else f"{type(result.error).__name__}: "
        tell(PROGRAM, f"the search ended early: {kind}{result.error}")
        code = FAILED
    elif not result.finished:
        tell(PROGRAM, f"no path finished: {why_unfinished(result, room_of(engine))}")
        code = code or UNFINISHED
    if (note := no_effect(result)) is not None:
        tell(PROGRAM, f"note: {note}")
    if options.save is not None and not saved(PROGRAM, lambda: result.save(options.save)):
        code = FAILED
    return code


def _print_figures(result: "SearchResult") -> None:
    """Thought and figures to standard error; the answer comes below them."""
    from rich.text import Text

    from marco_fast.forest.live import SafeConsole

    console = SafeConsole(stderr=True, highlight=False)
    if result.thought:
        console.print("[bold]thought[/]")
        console.print(result.thought, style="dim", markup=False)
    for name, text in figures(result):
        console.print(Text.assemble((f"{name:12}", "bold"), text), soft_wrap=True)
    console.print("[bold]answer[/]" if result.finished else "[bold]best unfinished reply[/]")
