"""The command line: marco-fast solve | compare | generate-data | tree | info."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from marco_fast import __version__
from marco_fast.commands import compare, generate_data, info, solve, tree
from marco_fast.commands.options import BAD_INPUT, INTERRUPTED
from marco_fast.errors import MarcoFastError

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """A parser that answers bad input with one line on standard error and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code. 0: done; 1: the model failed during a search; 2: bad input, and one line on
        standard error says what was expected; 130: interrupted, and the best answer so far was
        printed.
    """
    options = _parser().parse_args(argv)
    try:
        code: int = options.run(options)
        return code
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
    for command in (solve, compare, generate_data, tree, info):
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
