"""What the commands share: exit codes, and the options of engines and searches."""

import argparse
import os
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from marco_fast.search.config import SearchConfig, option_of

__all__ = [
    "BAD_INPUT",
    "FAILED",
    "INTERRUPTED",
    "OK",
    "add_config_options",
    "add_engine_options",
    "check_writable",
    "config_of",
    "engine_options",
]

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


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
    for each in fields(SearchConfig):
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
    return SearchConfig(**{each.name: getattr(options, each.name) for each in fields(SearchConfig)})


def check_writable(path: Path, option: str) -> None:
    """A file that cannot be written is found before the work, not after it."""
    folder = path.parent
    if path.is_dir():
        raise ValueError(f"expected {option} to name a file, got the folder {str(path)!r}")
    if not folder.is_dir():
        raise ValueError(f"expected {option} in a folder that exists, got {str(path)!r}")
    if not os.access(folder, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise ValueError(f"expected {option} to be writable, got {str(path)!r}")
