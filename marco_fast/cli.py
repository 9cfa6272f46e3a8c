"""The command line: marco-fast solve | info."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from marco_fast import __version__
from marco_fast.errors import KVCacheFull, MarcoFastError
from marco_fast.search.mcts import CHOICES, RANGES, SearchConfig

if TYPE_CHECKING:
    from marco_fast.result import SearchResult

__all__ = ["main"]

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

_HELP = {
    "action": "what a tree node holds: a step up to a blank line, or step_tokens tokens",
    "step_tokens": "tokens of a mini-step",
    "max_step_tokens": "most tokens of a step",
    "expansions": "nodes to add",
    "children": "actions sampled from a selected node",
    "parallel": "branches decoded at once",
    "rollout_tokens": "most tokens of a rollout; 0: none",
    "c_uct": "weight of exploration",
    "normalize": "scale values by the smallest and largest in the tree",
    "virtual_loss": "visits in flight count as visits of value 0",
    "temperature": "of the draws; 0: the most likely token",
    "top_p": "nucleus of the draws",
    "top_k": "candidates in the confidence",
    "reflect": "reconsider once at the end of a thought",
    "value": "mean confidence of the whole path or of the last rollout",
    "answer": "which finished path answers",
    "seed": "same seed, same tree",
    "max_tokens": "budget of decoded tokens",
    "max_seconds": "budget of seconds",
}


class _Parser(argparse.ArgumentParser):
    """One line on standard error and exit code 2 for bad input."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0: done; 1: the model failed in mid-search; 2: bad input, with one line that says what was
    expected; 130: interrupted, after printing the best so far.
    """
    options = _parser().parse_args(argv)
    try:
        return options.run(options)
    except (ValueError, OSError, MarcoFastError) as error:
        message = " ".join(str(error).split())
        print(f"marco-fast {options.command}: error: {message}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"marco-fast {options.command}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="marco-fast", description="Tree search over a model's reasoning.")
    parser.add_argument("--version", action="version", version=f"marco-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    solve = commands.add_parser("solve", help="answer a question by tree search")
    solve.set_defaults(run=_solve)
    solve.add_argument("question", help='the question, or "-" to read it from standard input')
    solve.add_argument("--model", default="nano-marco", help="bundled name, folder or hub id")
    solve.add_argument("--device", default=None, help="cpu or cuda (default: what there is)")
    solve.add_argument("--dtype", default=None, help="float32, bfloat16 or float16")
    solve.add_argument("--max-branches", type=int, default=64, help="rows of a batch (default 64)")
    solve.add_argument("--kv-tokens", type=int, default=None, help="capacity of the KV cache")
    solve.add_argument(
        "--save", type=Path, default=None, metavar="TREE.json", help="write the tree"
    )
    solve.add_argument("--json", action="store_true", help="print the result as JSON, not as text")
    solve.add_argument("--quiet", action="store_true", help="print the answer alone")
    _add_config_options(solve.add_argument_group("search"))
    info = commands.add_parser("info", help="versions, devices, and which backend runs what")
    info.set_defaults(run=_info)
    info.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_config_options(group: Any) -> None:
    """One option for each field of SearchConfig; SearchConfig itself checks the values."""
    for each in fields(SearchConfig):
        assert each.default is not MISSING
        name, default = "--" + each.name.replace("_", "-"), each.default
        kind: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if each.name in CHOICES:
            kind = {"choices": CHOICES[each.name]}
        elif not isinstance(default, bool):
            number = RANGES[each.name][0]
            kind = {"type": number, "metavar": number.__name__.upper()}
        text = f"{_HELP[each.name]} (default {default})"
        group.add_argument(name, default=default, help=text, **kind)


def _solve(options: argparse.Namespace) -> int:
    config = SearchConfig(
        **{each.name: getattr(options, each.name) for each in fields(SearchConfig)}
    )
    question = sys.stdin.read() if options.question == "-" else options.question
    if not question.strip():
        raise ValueError("expected a question with some text, got an empty one")
    if options.save is not None:
        _check_writable(options.save)
    from marco_fast.engine.engine import Engine
    from marco_fast.engine.notices import silence_libraries
    from marco_fast.solve import solve

    silence_libraries()
    if not options.quiet and sys.stderr.isatty():
        print(f"loading {options.model} ...", end="\r", file=sys.stderr, flush=True)
    engine = Engine.from_pretrained(
        options.model,
        device=options.device,
        dtype=options.dtype,
        max_branches=options.max_branches,
        kv_tokens=options.kv_tokens,
    )
    with engine:
        result = solve(question.strip(), engine, config, progress=not options.quiet)
    if options.save is not None:
        result.save(options.save)
    if options.json:
        print(json.dumps(result.to_dict(), ensure_ascii=False))
    else:
        _print_result(result, quiet=options.quiet)
    return _exit_code(result)


def _exit_code(result: "SearchResult") -> int:
    if result.error is not None:
        kind = "" if isinstance(result.error, KVCacheFull) else f"{type(result.error).__name__}: "
        print(f"marco-fast solve: the search ended early: {kind}{result.error}", file=sys.stderr)
        return FAILED
    return INTERRUPTED if result.stop_reason == "interrupted" else OK


def _check_writable(path: Path) -> None:
    """Found before the search, not after it."""
    folder = path.parent
    if path.is_dir():
        raise ValueError(f"expected --save to name a file, got the folder {str(path)!r}")
    if not folder.is_dir():
        raise ValueError(f"expected --save in a folder that exists, got {str(path)!r}")
    if not os.access(folder, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise ValueError(f"expected --save to be writable, got {str(path)!r}")


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
        console.print("[bold]answer[/]" if result.answer else "[bold]no path reached an answer[/]")
    print(result.answer, flush=True)


def _info(options: argparse.Namespace) -> int:
    report = _report()
    if options.json:
        print(json.dumps(report, indent=2))
        return OK
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for section in ("versions", "devices", "cpu"):
        table = Table(title=section, title_justify="left", show_header=False)
        for name, value in report[section].items():
            table.add_row(name, Text(str(value)))
        console.print(table)
    table = Table(title="which backend runs what", title_justify="left")
    for title in ("operation", "device", "runs", "the others"):
        table.add_column(title)
    for row in report["operations"]:
        others = "\n".join(f"{name}: {why}" for name, why in row["others"].items())
        table.add_row(row["operation"], row["device"], row["runs"], Text(others))
    console.print(table)
    return OK


def _report() -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from marco_fast.ops.backends import OPERATIONS, backend_status, default_backend

    versions = {"marco_fast": __version__, "python": sys.version.split()[0]}
    for package in ("torch", "transformers", "tokenizers", "numpy", "triton", "cupy-cuda13x"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    names = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    devices = {
        name: torch.cuda.get_device_name(name) if name != "cpu" else f"{os.cpu_count()} cores"
        for name in names
    }
    operations = []
    for op in OPERATIONS:
        for name in names:
            device = torch.device(name)
            runs = default_backend(device, op)
            others = {k: v for k, v in backend_status(device, op).items() if k != runs}
            operations.append({"operation": op, "device": name, "runs": runs, "others": others})
    return {"versions": versions, "devices": devices, "cpu": _cpu(), "operations": operations}


def _cpu() -> dict[str, Any]:
    import torch

    try:
        from marco_fast import _C
    except ImportError as error:
        return {"kernels": f"not built ({error})", "threads": torch.get_num_threads()}
    return {
        "kernels": _C.isa(),
        "can also run": ", ".join(each for each in _C.supported_isas() if each != _C.isa()),
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    sys.exit(main())
