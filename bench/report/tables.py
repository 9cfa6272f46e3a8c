"""From what benchmarks measured to what a reader sees: results, README tables, plots, a terminal.

python -m bench.report.tables [RAW.json] [--condense OUT.json]

RAW.json is what `pytest bench --benchmark-json=RAW.json` wrote: it is condensed to
bench/results/cpu/bench.json. README.md's tables and the plots are then made again from the files
in that folder (search.json, reasoning.json and scaling.json where they are there), and one table
from search.json of a machine without AVX-512. Nothing is written unless everything can be. With
--condense only OUT.json is written: results of another machine.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from marco_fast.files import read_json

ROOT = Path(__file__).parents[2]
RESULTS = Path("bench/results/cpu")
AVX2 = Path("bench/results/cpu-avx2")  # the same, on a machine without AVX-512
UNSCORED = "†"
TREES = {
    "qwen2-7b-prompt-1024-x16x64": "Qwen2-7B heads, prompt of 1024 x 16 branches of 64",
    "qwen2-7b-search-4x8-depth-6-steps-32": "the same heads, 4 trees x 8 branches, depth 6",
    "qwen2-7b-nothing-shared-16x1088": "the same heads, nothing shared, 16 x 1088",
    "llama-3b-prompt-1024-x16x64": "Llama-3.2-3B heads, 1024 x 16 of 64",
}
# The subjects of the terminal's tables, and how the names of their benchmarks begin.
SUBJECTS = {
    "confidence": ("test_topk_confidence[",),
    "LM head": ("test_lm_head_confidence[",),
    "sampling": ("test_sample_confidence[", "test_decode_step_of_a_small_model["),
    "attention": ("test_tree_attention[",),
    "planner and driver": ("test_plan[", "test_driver["),
    "search": ("test_solve_against_generate[",),
}


class ReportError(ValueError):
    """Something that the report needs is not there."""


# Of the terminal's tables: title, the fields of which the first there is counts, format.
COLUMNS = (
    ("us", ("us", "us_per_expansion"), "{:,.1f}"),
    ("aim, us", ("target_us",), "{:,.0f}"),
    ("peer, us", ("peer_us",), "{:,.1f}"),
    ("peer", ("peer",), "{}"),
    ("tokens/s", ("tokens_per_second",), "{:,.0f}"),
    ("generate, tokens/s", ("generate_tokens_per_second",), "{:,.0f}"),
    ("ratio", ("ratio",), "{:.2f}x"),
    ("of the floor", ("floor_share",), "{:.0%}"),
    ("expansions/s", ("expansions_per_second",), "{:,.1f}"),
)


def condense(raw: dict[str, Any]) -> dict[str, Any]:
    """What is kept of pytest-benchmark's JSON: the machine, and a median and the extra a benchmark.

    Raises:
        ReportError: it is not such JSON.
    """
    try:
        machine, commit = raw["machine_info"], raw["commit_info"]
        benchmarks = [
            {
                "name": each["name"],
                "median_us": round(each["stats"]["median"] * 1e6, 2),
                "rounds": each["stats"]["rounds"],
                **_rounded(each["extra_info"]),
            }
            for each in raw["benchmarks"]
        ]
        return {
            "command": "pytest bench --benchmark-only",
            "cpu": machine["cpu"].get("brand_raw"),
            "cores": machine["cpu"].get("count"),
            "python": machine["python_version"],
            **{name: version(name).partition("+")[0] for name in ("torch", "transformers")},
            "commit": commit["id"],
            "benchmarks": benchmarks,
        }
    except (KeyError, TypeError) as error:
        raise ReportError(f"expected pytest-benchmark's JSON, got one without {error}") from error


def _rounded(value: Any) -> Any:
    """The same with every float, however deep, at four decimals."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def bench_table(benchmarks: list[dict[str, Any]]) -> str:
    """README's table of operations.

    Raises:
        ReportError: a benchmark of a row is missing, or one of its fields.
    """
    found = {each["name"]: each for each in benchmarks}
    lines = ["| what | marco_fast | beside it | ratio |", "|---|---|---|---|"]
    for name, row in _rows():
        if name not in found:
            raise ReportError(f"expected a benchmark {name!r}, which a row shows, got none")
        try:
            peer = str(found[name].get("peer")).removeprefix("torch ")
            lines.append(row.format(**{**found[name], "peer": peer}))
        except KeyError as error:
            raise ReportError(f"expected {error} of the benchmark {name!r}, got none") from error
    return "\n".join(lines)


def _rows() -> Iterator[tuple[str, str]]:
    """The name of each row's benchmark, and the row with its fields to be filled in."""
    ratio = "{peer_us:.0f} us | {ratio:.1f}x |"
    for rows in (1, 8, 64):
        for i, dtype in enumerate(("float32", "bfloat16")):
            what = f"| `topk_confidence`, V 151,936, B {rows}, {dtype} "
            row = what + "| {us:.0f} us | {peer} in PyTorch: " + ratio
            yield f"test_topk_confidence[{rows}-dtype{i}]", row
    for tree, told in TREES.items():
        for dtype in ("float32", "bfloat16"):
            what = f"| `tree_attention`, {told}, {dtype} "
            row = what + "| {us:.0f} us | SDPA on gathered private KV: " + ratio
            yield f"test_tree_attention[{tree}-torch.{dtype}]", row
    aim = " us | aim: below {target_us:.0f} us | |"
    yield "test_plan[1000-random]", "| `plan_tree_attention`, 1,000 nodes | {us:.0f}" + aim
    driver = "| search driver with a null model, an expansion | {us_per_expansion:.0f}"
    yield "test_driver[1000]", driver + aim
    for n in (1, 4, 16, 64):
        yield (
            f"test_solve_against_generate[{n}]",
            f"| `solve` on nano-marco, {n} branch{'es' * (n > 1)} "
            "| {tokens_per_second:.0f} tokens/s | transformers `generate`, as many samples: "
            "{generate_tokens_per_second:.0f} tokens/s | {ratio:.1f}x |",
        )


def search_cells(search: dict[str, Any]) -> list[list[str]]:
    """A title row, then a row a case: marco_fast, its share of the floor, and every other engine.

    An engine that ran in no case has no column.

    Raises:
        ReportError: the first engine of a case is not marco_fast, or did not run.
    """
    cases = search["cases"]
    ran = [{e["engine"]: e for e in case["engines"] if "skipped" not in e} for case in cases]
    scored = {name: e["top_k"] for engines in ran for name, e in engines.items()}
    others = [name for name in scored if name != "marco_fast"]
    marks = {name: "" if scored[name] else f" {UNSCORED}" for name in others}
    table = [["model, precision, branches", "marco_fast", "of the floor"]]
    table[0] += [f"{name}{marks[name]}" for name in others]
    for case, engines in zip(cases, ran, strict=True):
        title = f"{case['model']}, {case['precision']}, {case['branches']}"
        if case["engines"][0]["engine"] != "marco_fast" or "marco_fast" not in engines:
            raise ReportError(f"expected marco_fast as the first engine of {title!r}, and that run")
        ours = engines["marco_fast"]
        speed = ours["expansions_per_second"]
        share = case["floor_seconds"] / statistics.median(ours["seconds"])
        row = [title, _short(speed), f"{share:.0%}"]
        for name in others:
            theirs = engines.get(name, {}).get("expansions_per_second")
            row.append(f"{_short(theirs)} ({_short(speed / theirs)}x)" if theirs else "-")
        table.append(row)
    return table


def _short(value: float) -> str:
    return f"{value:.{2 if value < 1 else 1 if value < 100 else 0}f}"


def search_table(search: dict[str, Any], folder: Path = RESULTS) -> str:
    """README's table of whole searches, whose JSON is in `folder`, with what its marks mean.

    Raises as search_cells does.
    """
    cells = search_cells(search)
    source = f"[search.json]({folder.as_posix()}/search.json)"
    notes = [f"Expansions/s, and in brackets how many times as many marco_fast does; {source}."]
    if any("-" in row for row in cells[1:]):
        notes.append("A dash: the engine did not run.")
    if any(title.endswith(UNSCORED) for title in cells[0]):
        notes.append(f"{UNSCORED} gives no top-k log-probabilities, so no confidences.")
    lines = [f"| {' | '.join(row)} |" for row in cells]
    lines.insert(1, "|---" * len(cells[0]) + "|")
    return "\n".join([*lines, "", " ".join(notes)])


def between(text: str, name: str, inner: str) -> str:
    """`text` with `inner` between the lines `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ReportError: there is not one of each marker, in this order.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
        raise ReportError(f"expected one {begin.strip()} and then one {end.strip()} in README.md")
    head, rest = text.split(begin)
    return f"{head}{begin}\n{inner}\n\n{end}{rest.split(end)[1]}"


def _load(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, "a JSON object", dict)
    except (OSError, ValueError) as error:
        raise ReportError(str(error)) from error


def report(root: Path, raw: Path | None) -> None:
    """Write everything below `root`, then print the tables. Raises ReportError, nothing written."""
    from bench.reasoning.summary import summary_table
    from bench.report.plots import plot_scaling, plot_search

    folder = root / RESULTS
    results = condense(_load(raw)) if raw else _load(folder / "bench.json")
    search, scaling = (
        _load(folder / name) if (folder / name).is_file() else None
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
            other = search_table(_load(root / AVX2 / "search.json"), AVX2)
            readme = between(readme, "search-avx2", other)
        if (folder / "reasoning.json").is_file():
            readme = between(readme, "reasoning", summary_table(_load(folder / "reasoning.json")))
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
    _print(results["benchmarks"], search)


def _print(benchmarks: list[dict[str, Any]], search: dict[str, Any] | None) -> None:
    """A table a subject; a benchmark of no subject is in the last one."""
    from rich.console import Console

    console = Console()
    groups: dict[str, list[dict[str, Any]]] = {subject: [] for subject in (*SUBJECTS, "other")}
    for each in benchmarks:
        subject = [key for key, names in SUBJECTS.items() if each["name"].startswith(names)]
        groups[subject[0] if subject else "other"].append(each)
    for subject, members in groups.items():
        if members:
            console.print(_table(subject, _cells(members)))
    if search:
        console.print(_table("search, expansions/s beside other engines", search_cells(search)))


def _cells(benchmarks: list[dict[str, Any]]) -> list[list[str]]:
    """A title row and a row a benchmark, without the columns that none of them has."""
    columns = [("benchmark", [each["name"].removeprefix("test_") for each in benchmarks])]
    for title, fields, form in COLUMNS:
        values = [next((each[f] for f in fields if f in each), None) for each in benchmarks]
        if any(value is not None for value in values):
            columns.append((title, ["" if v is None else form.format(v) for v in values]))
    if len(columns) == 1:
        columns.append(("median, us", [f"{each['median_us']:,.1f}" for each in benchmarks]))
    return [[title for title, _ in columns], *map(list, zip(*(c for _, c in columns), strict=True))]


def _table(title: str, cells: list[list[str]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for i, name in enumerate(cells[0]):
        table.add_column(name, overflow="fold", justify="right" if i and name != "peer" else "left")
    for row in cells[1:]:
        table.add_row(*map(Text, row))  # a str's brackets would be markup
    return table


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
            kept = condense(_load(options.raw))
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
