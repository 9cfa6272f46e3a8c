"""marco-fast solve: answer a question by tree search."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marco_fast.commands.console import print_json, read_question, saved, tell
from marco_fast.commands.options import (
    FAILED,
    INTERRUPTED,
    OK,
    UNFINISHED,
    add_config_options,
    add_engine_options,
    check_apart,
    check_writable,
    config_of,
    engine_options,
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
    parser.add_argument("--model", default="nano-marco", help="bundled name, folder or hub id")
    add_engine_options(parser)
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
    config = config_of(options)
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
    if not options.quiet and sys.stderr.isatty():
        print(f"loading {options.model} ...", end="\r", file=sys.stderr, flush=True)
    # From here on Ctrl-C ends the search, and leaves time for what comes after it.
    with Engine.from_pretrained(options.model, **engine_options(options)) as engine, interrupts():
        result = solve(chat, engine, config, system=options.system, progress=not options.quiet)
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
        print(result.answer if result.answers else result.text)
    code = INTERRUPTED if result.stop_reason == "interrupted" else OK
    if result.error is not None:
        kind = "" if isinstance(result.error, KVCacheFull) else f"{type(result.error).__name__}: "
        tell(PROGRAM, f"the search ended early: {kind}{result.error}")
        code = FAILED
    elif not result.answers:
        tell(PROGRAM, f"no path finished: {_why(result, engine)}")
        code = code or UNFINISHED
    if options.save is not None and not saved(PROGRAM, lambda: result.save(options.save)):
        code = FAILED
    return code


def _why(result: "SearchResult", engine: "Engine") -> str:
    """Why no path of a search finished, and what to change."""
    tree, done = result.tree, result.stats
    ends = [
        node for node, terminal in enumerate(tree.terminal) if terminal and tree.token_ids[node]
    ]
    whole = [node for node in ends if tree.token_ids[node][-1] in engine.eos_ids]
    if whole:
        return f"{len(whole)} paths ended without <Output>, which this model does not write"
    if ends and result.stop_reason not in ("interrupted", "seconds", "tokens"):
        longest = max(len(tree.path_token_ids(node)) for node in ends) + len(
            result.prompt_token_ids
        )
        full = longest < engine.context
        by = "a full KV cache" if full else f"the context of {engine.context} tokens"
        more = "--kv-tokens" if full else "--context, as far as the model's own goes"
        return f"{len(ends)} paths were cut off by {by}; give more {more}, or ask for less"
    ended = {
        "interrupted": "the search was interrupted",
        "seconds": f"the search ended after {done.seconds:.1f} s; give more --max-seconds",
        "tokens": f"the search ended after {done.tokens} tokens; give more --max-tokens",
        "expansions": f"the search ended after --expansions {done.expansions}, its paths cut off "
        f"by --rollout-tokens {result.config.rollout_tokens}; give more of either",
    }
    return ended.get(result.stop_reason, f"the search ended: {result.stop_reason}")


def _print_figures(result: "SearchResult") -> None:
    """Thought and figures to standard error; the answer comes below them."""
    from marco_fast.forest.live import SafeConsole

    console = SafeConsole(stderr=True, highlight=False)
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
    console.print("[bold]answer[/]")
