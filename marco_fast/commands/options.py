"""What the commands share: exit codes, and the options of engines and searches."""

import argparse
import json
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
    "add_model_option",
    "add_template_option",
    "check_apart",
    "check_writable",
    "config_of",
    "engine_options",
    "template_options",
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


def add_model_option(parser: Any) -> None:
    """Which model, where one is asked for."""
    parser.add_argument(
        "--model", default="nano-marco", metavar="PATH|FILE.gguf|ID",
        help="a bundled name, a folder, a GGUF file or a hub id (default nano-marco)",
    )  # fmt: skip


def add_template_option(parser: Any) -> None:
    """What is said to a model's chat template."""
    parser.add_argument(
        "--chat-template-kwargs", default=None, metavar="JSON",
        help="options of the model's chat template, such as '{\"enable_thinking\": false}'",
    )  # fmt: skip


def template_options(options: argparse.Namespace) -> dict[str, Any] | None:
    """The options of the chat template.

    Raises:
        ValueError: they are not a JSON object.
    """
    text = options.chat_template_kwargs
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(
            f"expected --chat-template-kwargs to be an object of JSON, such as "
            f"'{{\"enable_thinking\": false}}', got {text[:60]!r}"
        )
    return value


def add_engine_options(parser: Any) -> None:
    """Where and how a model runs."""
    parser.add_argument("--device", default=None, help="cpu or cuda (default: what there is)")
    parser.add_argument(
        "--dtype", default=None,
        help="float32, bfloat16 or float16; int8 or int4: weights quantised at loading (default: "
        "the model's own; on a CPU float32, but for what C++ runs in bfloat16)",
    )  # fmt: skip
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
