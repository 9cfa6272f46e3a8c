"""Results, README tables and plots, made from what benchmarks measured.

python -m bench.report.tables [RAW.json] [--condense OUT.json]

RAW.json is what `pytest bench --benchmark-json=RAW.json` wrote: it is condensed to
bench/results/cpu/bench.json. README.md's tables and the plots are then made again from the files
in that folder (search.json, reasoning.json and scaling.json where they are there), and one table
from search.json of a machine without AVX-512. Nothing is written unless everything can be. With
--condense only OUT.json is written: results of another machine.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.report.readme import bench_table, between, search_table
from bench.report.results import AVX2, RESULTS, ReportError, condense, load
from bench.report.terminal import show

__all__ = ["main", "report"]

ROOT = Path(__file__).parents[2]


def report(root: Path, raw: Path | None) -> None:
    """Write everything below `root`, then print the tables. A ReportError writes nothing."""
    from bench.reasoning.tables import summary_table
    from bench.report.plots import plot_scaling, plot_search

    folder = root / RESULTS
    results = condense(load(raw)) if raw else load(folder / "bench.json")
    search, scaling = (
        load(folder / name) if (folder / name).is_file() else None
        for name in ("search.json", "scaling.json")
    )
    readme = (root / "README.md").read_text(encoding="utf-8")
    readme = between(readme, "bench", bench_table(results.get("benchmarks", [])))
    plots: dict[str, bytes] = {}
    try:
        if search:
            readme = between(readme, "search", search_table(search))
            plots |= plot_search(search)
        if (root / AVX2 / "search.json").is_file():
            other = search_table(load(root / AVX2 / "search.json"), AVX2)
            readme = between(readme, "search-avx2", other)
        if (folder / "reasoning.json").is_file():
            readme = between(readme, "reasoning", summary_table(load(folder / "reasoning.json")))
        if scaling:
            plots |= plot_scaling(scaling)
    except KeyError as error:
        raise ReportError(
            f"expected {error} in search.json, reasoning.json or scaling.json, got none"
        ) from error
    files = {folder / "plots" / name: data for name, data in plots.items()}
    files[root / "README.md"] = readme.encode()
    if raw:
        files[folder / "bench.json"] = (json.dumps(results, indent=1) + "\n").encode()
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    show(results["benchmarks"], search)


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
