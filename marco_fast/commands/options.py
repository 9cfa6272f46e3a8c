"""What the commands share: exit codes, and the options of engines and searches."""

import argparse
from dataclasses import MISSING, fields
from typing import Any

from marco_fast.files import check_apart, check_writable
from marco_fast.search.config import SearchConfig, option_of

__all__ = [
    "BAD_INPUT",
    "EXIT_CODES",
    "FAILED",
    "INTERRUPTED",
    "OK",
    "UNFINISHED",
    "add_config_options",
    "add_engine_options",
    "check_apart",
    "check_writable",
    "config_of",
    "engine_options",
]

OK, FAILED, BAD_INPUT, UNFINISHED, INTERRUPTED = 0, 1, 2, 3, 130
EXIT_CODES = """\
exit codes:
  0    a finished answer, or the file that was asked for, is there
  1    something failed on the way; what there is was printed
  2    bad input: one line says what was expected
  3    solve: no path finished; the best unfinished reply was printed
  130  Ctrl-C; also 143 (SIGTERM) and 129 (SIGHUP): the best so far was printed and saved, and
       what generate-data has done is in its journal
"""


def add_engine_options(parser: Any) -> None:
    """Where and how a model runs."""
    parser.add_argument("--device", default=None, help="cpu or cuda (default: what there is)")
    parser.add_argument("--dtype", default=None, help="float32, bfloat16 or float16")
    parser.add_argument("--max-branches", type=int, default=64, help="rows of a batch (default 64)")
    parser.add_argument(
        "--context", type=int, default=None, help="longest path in tokens (default: the model's)"
    )
    parser.add_argument(
        "--kv-tokens", type=int, default=None,
        help="tokens that the KV cache holds, all branches together (default: by free memory)",
    )  # fmt: skip


def engine_options(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of Engine.from_pretrained."""
    names = ("device", "dtype", "max_branches", "context", "kv_tokens")
    return {name: getattr(options, name) for name in names}


def add_config_options(group: Any, **defaults: Any) -> None:
    """One option for each field of SearchConfig, which checks the values itself.

    Args:
        group: of an argparse parser.
        defaults: of the fields whose default is another one here.
    """
    for each in _named():
        assert each.default is not MISSING
        option, default = option_of(each), defaults.get(each.name, each.default)
        form: dict[str, Any] = {"type": option.kind, "metavar": option.kind.__name__.upper()}
        if option.kind is bool:
            form = {"action": argparse.BooleanOptionalAction}
        elif option.choices:
            form = {"choices": option.choices}
        text = f"{option.text} (default {default})".replace("%", "%%")
        group.add_argument("--" + each.name.replace("_", "-"), default=default, help=text, **form)


def config_of(options: argparse.Namespace) -> SearchConfig:
    """The SearchConfig that the options name."""
    return SearchConfig(**{each.name: getattr(options, each.name) for each in _named()})


def _named() -> list[Any]:
    """The fields whose values have names: all but those that take a function alone."""
    options = [(each, option_of(each)) for each in fields(SearchConfig)]
    return [each for each, option in options if option.choices or not option.own]
