"""The tables that a report prints: benchmarks by subject, and whole searches."""

from typing import Any

from bench.report.readme import search_cells

__all__ = ["show"]

# The subject of each table, and how the names of its benchmarks begin.
SUBJECTS = {
    "confidence": ("test_topk_confidence[",),
    "LM head": ("test_lm_head_confidence[", "test_lm_head_records["),
    "sampling": ("test_sample_confidence[", "test_decode_step_of_a_small_model["),
    "attention": ("test_tree_attention[", "test_append_kv["),
    "planner and driver": ("test_plan[", "test_driver["),
    "search": ("test_solve_against_generate[",),
}
# Title of a column, its fields (the first that a benchmark has is shown), format.
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


def show(benchmarks: list[dict[str, Any]], search: dict[str, Any] | None) -> None:
    """Print one table per subject; a benchmark of no subject is in the last one."""
    from rich.console import Console

    console = Console()
    members_of: dict[str, list[dict[str, Any]]] = {subject: [] for subject in (*SUBJECTS, "other")}
    for each in benchmarks:
        subject = [key for key, names in SUBJECTS.items() if each["name"].startswith(names)]
        members_of[subject[0] if subject else "other"].append(each)
    for subject, members in members_of.items():
        if members:
            console.print(_table(subject, _cells(members)))
    if search:
        console.print(_table("search, expansions/s beside other engines", search_cells(search)))


def _cells(benchmarks: list[dict[str, Any]]) -> list[list[str]]:
    """A title row and one row per benchmark, without the columns that no benchmark has."""
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
