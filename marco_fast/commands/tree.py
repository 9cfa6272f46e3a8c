"""marco-fast tree: a saved search as a page to look at."""

import argparse
from pathlib import Path
from typing import Any

from marco_fast.commands.options import OK, check_writable

__all__ = ["add"]


def add(commands: Any) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser("tree", help="show a saved tree as an HTML page")
    parser.set_defaults(run=run)
    parser.add_argument("tree", type=Path, metavar="TREE.json", help="written by solve --save")
    parser.add_argument("--html", type=Path, required=True, metavar="OUT.html", help="the page")


def run(options: argparse.Namespace) -> int:
    """Writes the page."""
    from marco_fast.tree_view.page import read_tree, write_tree_page

    check_writable(options.html, "--html")
    write_tree_page(read_tree(options.tree), options.html)
    print(f"wrote {options.html}")
    return OK
