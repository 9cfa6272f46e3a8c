"""Tables of the rows of a run: python -m bench.gpu.table gpu.jsonl [--docs FILE]

The file may be that of a run that was killed in the middle of a line. --docs fills the columns
"measured" and "of the floor" of the tables in a Markdown file, whose first column names the cases.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Results", "fill", "line", "main", "read", "table"]


@dataclass
class Results:
    """The records of a run by part, in the order in which they came."""

    run: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, list[dict]] = field(default_factory=dict)
    ends: dict[str, dict] = field(default_factory=dict)

    def add(self, record: dict) -> None:
        if "run" in record:
            self.run = record["run"]
        elif "ended" in record:
            self.rows.setdefault(record["part"], [])
            self.ends[record["part"]] = record
        else:
            self.rows.setdefault(record["part"], []).append(record)

    def every_row(self) -> Iterator[dict]:
        for rows in self.rows.values():
            yield from rows

    def environment(self) -> dict:
        return next(iter(self.rows.get("environment", [])), {})

    def ceilings(self) -> dict[str, float]:
        """Bytes/s and FLOP/s, or nothing where they were not measured."""
        row = next(iter(self.rows.get("ceilings", [])), {})
        return {key: value for key, value in row.items() if key.endswith("_s")}

    def failures(self) -> list[str]:
        """The cases that failed, and the parts that ended badly without a failed case."""
        failed = [f"{row['part']}: {row['case']}" for row in self.every_row() if "error" in row]
        for part, end in self.ends.items():
            good = end["ended"] in ("ok", "out of time", "no time left")
            if not (good or any(each.startswith(f"{part}: ") for each in failed)):
                failed.append(f"{part}: {end['ended']}")
        return failed


def read(path: Path) -> Results:
    """Read a run's file. Raises ValueError if a line other than the last is not a record."""
    results = Results()
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, text in enumerate(lines, 1):
        try:
            results.add(json.loads(text))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # the run was killed while it wrote
                break
            raise ValueError(
                f"expected a record in line {number} of {path}, got: {error}"
            ) from error
    return results


HIDDEN = ("part", "case", "traceback", "log", "seconds", "us_low", "us_high", "captured", "choices")


def line(row: dict) -> str:
    """One row as text: a time with its floor and peer, or the fields as they are."""
    name = f"{row.get('case', ''):58}"
    if "error" in row:
        return f"{name} FAILED {row['error'].splitlines()[0]}"
    told = []
    if row.get("us") is not None:
        told.append(f"{row['us']:10.1f} us")
        if row.get("floor_us"):
            told.append(f"{row['floor_us'] / row['us']:4.0%} of the floor")
        if not row.get("captured", True):
            told.append("not captured")
    if "ratio" in row:
        told.append(f"peer {row['peer_us']:.1f} us ({row['ratio']:.2f}x)")
    if "best" in row:
        told.append(f"own: {row['own']}; best: {row['best']} {row['best_us']:.1f} us")
    shown = ("us", "floor_us", "peer_us", "peer_captured", "ratio", "own", "best", "best_us")
    for key, value in row.items():
        if key not in HIDDEN and key not in shown:
            text = f"{value:.4g}" if isinstance(value, float) else f"{value}"
            told.append(f"{key} {text}")
    return f"{name} {', '.join(told)}"


def table(results: Results) -> str:
    """Every row of a run, part by part, and what failed."""
    environment, lines = results.environment(), []
    gpu, commit = environment.get("gpu", "no GPU was told"), environment.get("commit")
    lines.append(f"{gpu}, commit {commit}, started {results.run.get('started')}")
    for part, rows in results.rows.items():
        end = results.ends.get(part)
        told = f"{end['ended']}, {end['seconds']} s" if end else "was under way"
        lines += ["", f"== {part} ({told})", *("  " + line(row) for row in rows)]
        if end and end.get("left"):
            lines.append(f"  not begun: {'; '.join(end['left'])}")
    failed = results.failures()
    lines += ["", f"{len([*results.every_row()])} rows, failed: {'; '.join(failed) or 'none'}", ""]
    return "\n".join(lines)


def fill(text: str, results: Results) -> str:
    """Markdown whose tables have the columns "measured" and "of the floor" filled.

    The first column of such a table holds the names of cases in backticks, as the file's rows have
    them. A case that was not measured keeps its cells.
    """
    times: dict[str, dict] = {}
    for row in results.every_row():
        if row.get("us") is not None:
            times.setdefault(row["case"], row)
    lines, columns = text.split("\n"), None
    for i, each in enumerate(lines):
        if not each.startswith("|"):
            columns = None
            continue
        cells = [cell.strip() for cell in each.strip().strip("|").split("|")]
        if columns is None:
            columns = {name: at for at, name in enumerate(cells)}
            continue
        row = times.get(cells[0].strip("`"))
        if row is None or "measured" not in columns:
            continue
        cells[columns["measured"]] = f"{row['us']:.1f}"
        if "of the floor" in columns and row.get("floor_us"):
            cells[columns["of the floor"]] = f"{row['floor_us'] / row['us']:.0%}"
        lines[i] = f"| {' | '.join(cells)} |"
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; 2 where a file cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.table", description=__doc__)
    parser.add_argument("file", type=Path, help="gpu.jsonl of a run")
    parser.add_argument("--docs", type=Path, help="a Markdown file whose tables are filled")
    args = parser.parse_args(argv)
    try:
        results = read(args.file)
        if args.docs:
            filled = fill(args.docs.read_text(encoding="utf-8"), results)
            args.docs.write_text(filled, encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"bench.gpu.table: {error}", file=sys.stderr)
        return 2
    print(table(results), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
