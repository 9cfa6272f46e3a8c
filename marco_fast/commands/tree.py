"""marco-fast tree: writes the page that shows a saved search."""

import argparse
from pathlib import Path
from typing import Any

from marco_fast.commands.options import OK, check_writable

__all__ = ["add"]


def add(commands: Any) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser("tree", help="write an HTML page that shows a saved tree")
    parser.set_defaults(run=run)
    parser.add_argument("tree", type=Path, metavar="TREE.json", help="the file of solve --save")
    parser.add_argument(
        "--html", type=Path, required=True, metavar="OUT.html", help="the page to write"
    )


def run(options: argparse.Namespace) -> int:
    """Writes the page."""
    from marco_fast.tree_view.page import write_tree_page
    from marco_fast.tree_view.read import read_tree

    check_writable(options.html, "--html")
    write_tree_page(read_tree(options.tree), options.html)
    print(f"wrote {options.html}")
    return OK
