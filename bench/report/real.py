"""The tables of real models: speed on GGUF files, drift in fewer bits, MGSM."""

from typing import Any

from bench.reasoning.tables import percent
from bench.report.results import ReportError

__all__ = ["drift_table", "mgsm_table", "real_table", "short_real_table"]

PEER = "llama.cpp"
OURS = ("float32", "int8")  # the roles of marco_fast with the weights of the file
DENSE = "bfloat16 weights"
COLUMNS = {
    OURS[1]: "marco_fast, 8-bit activations",
    OURS[0]: "float32 activations",
    DENSE: "its own bfloat16 weights",
    PEER: PEER,
}
ISAS = {"native": "all instructions", "avx2": "AVX2 alone"}
SHOWN = ("SmolLM2-135M-Instruct", "native")  # model and instructions of README.md's table
METHODS = {
    "greedy": "one greedy reply",
    "samples, majority": "8 samples, majority",
    "samples, vote": "8 samples, vote",
    "search": "search of 8 expansions",
}


def _ran(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The engines of a row that ran, by their roles."""
    return {each["role"]: each for each in row["engines"] if "skipped" not in each}


def _ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f}x"


def real_table(real: dict[str, Any]) -> str:
    """All rows of real.json: tokens/s and expansions/s, and how they compare with marco_fast's.

    The brackets behind a peer and behind marco_fast's own bfloat16 weights say how many times as
    fast the faster of its two columns is.

    Raises:
        ReportError: marco_fast did not run on the file of a row.
    """
    there = {role for row in real["rows"] for role in _ran(row)}
    columns = {role: title for role, title in COLUMNS.items() if role in there}
    lines = [
        f"| model, weights, instructions, branches | {' | '.join(columns.values())} |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for row in real["rows"]:
        ran, cells = _ran(row), []
        title = f"{row['model']}, {row['weights']}, {ISAS[row['isa']]}, {row['branches']}"
        best = _best(row)
        for role in columns:
            if role not in ran:
                cells.append("-")
                continue
            speed = ran[role]["tokens_per_second"]
            told = f"{speed:.0f} tok/s, {ran[role]['expansions_per_second']:.1f} exp/s"
            cells.append(told if role in OURS else f"{told} ({_ratio(best, speed)})")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _best(row: dict[str, Any]) -> float:
    """The tokens/s of marco_fast with the weights of the file."""
    speeds = [each["tokens_per_second"] for role, each in _ran(row).items() if role in OURS]
    if not speeds:
        told = {key: row[key] for key in ("model", "weights", "isa", "branches")}
        raise ReportError(f"expected marco_fast to have run in {told} of real.json")
    return max(speeds)


def short_real_table(real: dict[str, Any]) -> str:
    """README.md's table: tokens/s of marco_fast and of llama.cpp, and the ratio, losses too.

    Raises:
        ReportError: there is no row of SHOWN in which both ran.
    """
    cells: dict[int, dict[str, str]] = {}
    for row in real["rows"]:
        ran = _ran(row)
        if (row["model"], row["isa"]) == SHOWN and PEER in ran:
            ours, theirs = _best(row), ran[PEER]["tokens_per_second"]
            told = f"{ours:.0f} / {theirs:.0f} ({_ratio(ours, theirs)})"
            cells.setdefault(row["branches"], {})[row["weights"]] = told
    if not cells:
        raise ReportError(f"expected rows of {SHOWN} beside {PEER} in real.json, got none")
    kinds = list(dict.fromkeys(kind for each in cells.values() for kind in each))
    lines = [f"| branches | {' | '.join(kinds)} |", "|---" * (1 + len(kinds)) + "|"]
    for branches, told in sorted(cells.items()):
        lines.append(f"| {branches} | {' | '.join(told.get(kind, '-') for kind in kinds)} |")
    return "\n".join(lines)


def drift_table(drift: dict[str, Any]) -> str:
    """All rows of drift.json: KL, the largest difference and the agreement of each text."""
    texts = [key for key in drift["rows"][0] if key not in ("model", "weights")]
    titles = [f"{text}: KL | largest difference | same token" for text in texts]
    lines = [f"| model, weights | {' | '.join(titles)} |", "|---" * (1 + 3 * len(texts)) + "|"]
    for row in drift["rows"]:
        found = [row[text] for text in texts]
        cells = [f"{e['kl']:.2g} | {e['largest']:.2g} | {e['same']:.1%}" for e in found]
        lines.append(f"| {row['model']}, {row['weights']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def mgsm_table(mgsm: dict[str, Any]) -> str:
    """All runs of mgsm.json: a row for each method."""
    lines = [
        "| model, language, problems | method | right, % | finished | tokens | seconds "
        "| expansions/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in mgsm["runs"]:
        dtype = f" {run['dtype']}" if run["dtype"] else ""
        if run.get("activations"):
            dtype += f" {run['activations']} activations"
        for method, each in run["summary"].items():
            title = f"{run['model']}{dtype}, {run['language']}, {each['right']['count']}"
            lines.append(
                f"| {title} | {METHODS[method]} | {percent(each['right'])} "
                f"| {each['finished']:.1f} of {each['distinct']:.1f} | {each['tokens']:.0f} "
                f"| {each['seconds']:.1f} | {each['expansions_per_second']:.2f} |"
            )
    return "\n".join(lines)
