"""The command line: marco-fast solve | compare | generate-data | tree | info."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from marco_fast import __version__
from marco_fast.forest.interrupts import Interrupts

if TYPE_CHECKING:
    import argparse

__all__ = ["main"]

SIGNALLED = 128  # a shell's exit code of a process that signal n ended is SIGNALLED + n


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after the program's name. None is the program itself, which takes its words
            from the process and may end it: a signal before anything was begun does so at once.

    Returns:
        The exit code. 0: a finished answer, or the file that was asked for, is there; 1: something
        failed on the way, and what there is was printed; 2: bad input, and one line on standard
        error says what was expected; 3: no path of the search finished, and the best unfinished
        reply was printed; 130, 143 and 129: Ctrl-C, SIGTERM or SIGHUP came, and the best so far was
        printed and saved. A reader of standard output that went away is no error.
    """
    interrupts = Interrupts(_leave if argv is None else None)
    with interrupts.listening():  # before the imports, which take a second
        try:
            code = _run(sys.argv[1:] if argv is None else argv)
        except KeyboardInterrupt:  # at the very end
            code = SIGNALLED + 2
        ended = interrupts.number and code != 1
        return SIGNALLED + interrupts.number if ended else code


def _leave(number: int) -> NoReturn:
    """Ends a process that has begun nothing; an exception could get lost in an import."""
    try:
        os.write(2, b"marco-fast: interrupted\n")
    finally:
        os._exit(SIGNALLED + number)


def _run(argv: Sequence[str]) -> int:
    from marco_fast.commands.console import notes, standard_streams, tell
    from marco_fast.commands.options import FAILED, OK

    with standard_streams() as output:
        try:
            options = _parser().parse_args(argv)
        except SystemExit as ended:  # the help, the version, or a bad option
            program, code = "marco-fast", int(ended.code or OK)
        else:
            program = f"marco-fast {options.command}"
            with notes(program):
                code = _command(options, program)
        if output.failure is not None:
            tell(program, f"error: the output was not printed: {output.failure}")
            code = FAILED
        return code


def _command(options: "argparse.Namespace", program: str) -> int:
    from marco_fast.commands.console import tell
    from marco_fast.commands.options import BAD_INPUT, INTERRUPTED
    from marco_fast.errors import MarcoFastError

    try:
        code: int = options.run(options)
    except (ValueError, OSError, MarcoFastError) as error:
        tell(program, f"error: {error}")
        code = BAD_INPUT
    except KeyboardInterrupt:
        tell(program, "interrupted")
        code = INTERRUPTED
    return code


def _parser() -> "argparse.ArgumentParser":
    import argparse

    from marco_fast.commands import compare, generate_data, info, solve, tree
    from marco_fast.commands.options import BAD_INPUT, EXIT_CODES

    class Parser(argparse.ArgumentParser):
        """Answers bad input with one line on standard error."""

        def error(self, message: str) -> NoReturn:
            self.exit(BAD_INPUT, f"{self.prog}: error: {' '.join(message.split())}\n")

    parser = Parser(
        prog="marco-fast", description="Tree search over a model's reasoning.", epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"marco-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    for command in (solve, compare, generate_data, tree, info):
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
