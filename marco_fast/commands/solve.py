"""marco-fast solve: answer a question by tree search."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marco_fast.commands.options import (
    FAILED,
    INTERRUPTED,
    OK,
    add_config_options,
    add_engine_options,
    check_writable,
    config_of,
    engine_options,
)
from marco_fast.errors import KVCacheFull
from marco_fast.files import read_json

if TYPE_CHECKING:
    from marco_fast.forest.result import SearchResult

__all__ = ["add"]


def add(commands: Any) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser("solve", help="answer a question by tree search")
    parser.set_defaults(run=run)
    parser.add_argument("question", help='the question, or "-" to read it from standard input')
    parser.add_argument("--model", default="nano-marco", help="bundled name, folder or hub id")
    add_engine_options(parser)
    parser.add_argument(
        "--system", default=None, help='system prompt; "marco-o1" for the one of Marco-o1'
    )
    parser.add_argument(
        "--history", type=Path, default=None, metavar="CHAT.json",
        help='messages in front of the question: [{"role": "user", "content": "..."}, ...]',
    )  # fmt: skip
    parser.add_argument(
        "--save", type=Path, default=None, metavar="TREE.json", help="write the tree"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, not as text")
    parser.add_argument("--quiet", action="store_true", help="print the answer alone")
    add_config_options(parser.add_argument_group("search"))


def run(options: argparse.Namespace) -> int:
    """Searches; the live view and figures go to standard error, the answer to standard output."""
    config = config_of(options)
    question = sys.stdin.read() if options.question == "-" else options.question
    if not question.strip():
        raise ValueError("expected a question with some text, got an empty one")
    chat = [*_history(options.history), {"role": "user", "content": question.strip()}]
    if options.save is not None:
        check_writable(options.save, "--save")
    from marco_fast.engine.engine import Engine
    from marco_fast.engine.quiet import silence_libraries
    from marco_fast.forest.solve import solve

    silence_libraries()
    if not options.quiet and sys.stderr.isatty():
        print(f"loading {options.model} ...", end="\r", file=sys.stderr, flush=True)
    with Engine.from_pretrained(options.model, **engine_options(options)) as engine:
        result = solve(chat, engine, config, system=options.system, progress=not options.quiet)
    if options.save is not None:
        result.save(options.save)
    if options.json:
        print(json.dumps(result.to_dict(), ensure_ascii=False))
    else:
        _print_result(result, quiet=options.quiet)
    return _exit_code(result)


def _history(path: Path | None) -> list[dict[str, str]]:
    if path is None:
        return []
    return read_json(path, "a list of messages", list)


def _exit_code(result: "SearchResult") -> int:
    if result.error is not None:
        kind = "" if isinstance(result.error, KVCacheFull) else f"{type(result.error).__name__}: "
        print(f"marco-fast solve: the search ended early: {kind}{result.error}", file=sys.stderr)
        return FAILED
    return INTERRUPTED if result.stop_reason == "interrupted" else OK


def _print_result(result: "SearchResult", *, quiet: bool) -> None:
    """Thought and figures to standard error, the answer last and alone to standard output."""
    if not quiet:
        from rich.console import Console

        console = Console(stderr=True, highlight=False)
        console.print("[bold]thought[/]")
        console.print(result.thought or "(none)", style="dim", markup=False)
        stats = result.stats
        sharing = stats.kv_tokens_path / max(1, stats.kv_tokens_unique)
        console.print(f"[bold]confidence[/]  {result.confidence:.3f}")
        console.print(
            f"[bold]search[/]      {stats.expansions} expansions in {stats.seconds:.1f} s "
            f"({stats.expansions_per_second:.1f}/s), stopped by: {result.stop_reason}"
        )
        console.print(
            f"[bold]tokens[/]      {stats.tokens} ({stats.tokens_per_second:.0f}/s), "
            f"KV sharing {sharing:.1f}x"
        )
        if result.answers:
            console.print("[bold]answer[/]")
    if not result.answers:
        print(
            "no path reached an answer: give more --expansions, --rollout-tokens or time",
            file=sys.stderr,
        )
    print(result.answer, flush=True)
