"""Results, README tables and plots, made from what benchmarks measured.

python -m bench.report.tables [RAW.json] [--condense OUT.json]

RAW.json is what `pytest bench --benchmark-json=RAW.json` wrote: it is condensed to
bench/results/cpu/bench.json. The tables of bench/results/README.md, those of README.md and the
plots are then made again from the files in that folder (OTHERS, where they are there), and one
table from search.json of a machine without AVX-512.
Nothing is written unless everything can be. With --condense only OUT.json is written: results of
another machine.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.report.readme import (
    accuracy_table,
    bench_table,
    between,
    search_table,
    speed_table,
)
from bench.report.real import drift_table, mgsm_table, real_table, short_real_table
from bench.report.results import AVX2, FRONT, PAGE, RESULTS, ReportError, condense, load
from bench.report.terminal import show

__all__ = ["main", "report"]

ROOT = Path(__file__).parents[2]
OTHERS = ("search", "scaling", "reasoning", "real", "drift", "mgsm")  # .json beside bench.json


def report(root: Path, raw: Path | None) -> None:
    """Write everything below `root`, then print the tables. A ReportError writes nothing."""
    from bench.report.plots import plot_scaling, plot_search

    folder = root / RESULTS
    results = condense(load(raw)) if raw else load(folder / "bench.json")
    paths = {name: folder / f"{name}.json" for name in OTHERS}
    paths["other"] = root / AVX2 / "search.json"
    found = {name: load(path) for name, path in paths.items() if path.is_file()}
    search, scaling = found.get("search"), found.get("scaling")
    plots: dict[str, bytes] = {}
    try:
        # What was kept of an earlier run may lack rows whose figures are out of date.
        operations = bench_table(results.get("benchmarks", []), whole=raw is not None)
        tables = _tables(found)
        if search:
            plots |= plot_search(search)
        if scaling:
            plots |= plot_scaling(scaling)
    except KeyError as error:
        raise ReportError(
            f"expected {error} in one of {', '.join(OTHERS)} (.json), got none"
        ) from error
    files = {folder / "plots" / name: data for name, data in plots.items()}
    tables[PAGE]["bench"] = operations
    for page, of_page in tables.items():
        text = (root / page).read_text(encoding="utf-8")
        for mark, table in of_page.items():
            text = between(text, mark, table, page)
        files[root / page] = text.encode()
    if raw:
        files[folder / "bench.json"] = (json.dumps(results, indent=1) + "\n").encode()
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    show(results["benchmarks"], search)


def _tables(found: dict[str, dict[str, Any]]) -> dict[Path, dict[str, str]]:
    """The tables of each page by their marks, of the results that are there.

    Args:
        found: results by the names of OTHERS; "other" is search.json without AVX-512.
    """
    from bench.reasoning.tables import summary_table

    pages: dict[Path, dict[str, str]] = {FRONT: {}, PAGE: {}}
    if search := found.get("search"):
        pages[FRONT]["speed"] = speed_table(search)
        pages[PAGE]["search"] = search_table(search, RESULTS.relative_to(PAGE.parent))
    if other := found.get("other"):
        pages[PAGE]["search-avx2"] = search_table(other, AVX2.relative_to(PAGE.parent))
    if reasoning := found.get("reasoning"):
        pages[FRONT]["accuracy"] = accuracy_table(reasoning)
        pages[PAGE]["reasoning"] = summary_table(reasoning)
    if real := found.get("real"):
        pages[FRONT]["real"] = short_real_table(real)
        pages[PAGE]["real"] = real_table(real)
    if drift := found.get("drift"):
        pages[PAGE]["drift"] = drift_table(drift)
    if mgsm := found.get("mgsm"):
        pages[PAGE]["mgsm"] = mgsm_table(mgsm)
    return pages


def main(argv: Sequence[str] | None = None, *, root: Path = ROOT) -> int:
    """Runs the command line; 2 where something is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("raw", type=Path, nargs="?", help="JSON of pytest-benchmark")
    parser.add_argument("--condense", type=Path, help="only write what is kept of RAW there")
    options = parser.parse_args(argv)
    if options.condense and not options.raw:
        parser.error("expected RAW.json beside --condense")
    try:
        if options.condense:
            kept = condense(load(options.raw))
            options.condense.parent.mkdir(parents=True, exist_ok=True)
            options.condense.write_text(json.dumps(kept, indent=1) + "\n")
            return 0
        report(root, options.raw)
    except ReportError as error:
        print(f"bench.report.tables: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
