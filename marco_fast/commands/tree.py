"""marco-fast tree: writes the page that shows a saved search."""

import argparse
from pathlib import Path
from typing import Any

from marco_fast.commands.console import saved
from marco_fast.commands.options import FAILED, OK, check_apart, check_writable
from marco_fast.forest.interrupts import interrupts

__all__ = ["add"]


def add(commands: Any) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser("tree", help="write an HTML page that shows a saved tree")
    parser.set_defaults(run=run)
    parser.add_argument("tree", type=Path, metavar="TREE.json", help="the file of solve --save")
    parser.add_argument("--html", required=True, metavar="OUT.html", help="the page to write")


def run(options: argparse.Namespace) -> int:
    """Writes the page."""
    from marco_fast.tree_view.page import write_tree_page
    from marco_fast.tree_view.read import read_tree

    check_writable(options.html, "--html")
    check_apart(options.html, "--html", {"the tree": options.tree})
    tree = read_tree(options.tree)
    with interrupts():  # it does not take long enough to stop half-way
        if not saved("marco-fast tree", lambda: write_tree_page(tree, options.html)):
            return FAILED
    print(f"wrote {options.html}")
    return OK
