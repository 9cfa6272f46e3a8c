"""MGSM by a real model: one greedy reply, samples and a search, all with their answers.

python -m bench.reasoning.mgsm MODEL --data FOLDER [--language en] [--questions 20] [--dtype NAME]

MODEL is a folder, a GGUF file or whatever Engine.from_pretrained takes; FOLDER holds
mgsm_en.tsv, mgsm_zh.tsv and so on, a problem and its answer a line, from
https://github.com/google-research/url-nlp (CC-BY 4.0). The result is written after every reply, and
the same command goes on where it was killed.
"""

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.common.machine import describe
from bench.reasoning.summary import share
from bench.report.real import mgsm_table
from marco_fast import Engine, SearchConfig, SearchResult, solve
from marco_fast.files import write_whole
from marco_fast.search.answer import choose_answer
from marco_fast.search.final import agree

__all__ = ["METHODS", "Problem", "main", "problems", "rows_of", "summarise"]

OUT = Path(__file__).parents[1] / "results" / "cpu" / "mgsm.json"
PATHS = 8
# How each method searches; all are given the same most tokens of a reply. The answers of samples
# are chosen twice: samples that vote cost what those of a majority cost.
METHODS: dict[str, dict[str, Any]] = {
    "greedy": {"expansions": 1, "children": 1, "temperature": 0.0},
    "samples": {"expansions": PATHS, "children": PATHS, "parallel": PATHS},
    "search": {"expansions": PATHS},
}
RULES = {"greedy": ("vote",), "samples": ("majority", "vote"), "search": ("vote",)}


class Problem(NamedTuple):
    """A problem of the data, by its line from 1."""

    line: int
    question: str
    reference: str


def problems(folder: Path, language: str, count: int) -> list[Problem]:
    """The first problems of a language.

    Raises:
        ValueError: the file is not there, is not in two columns, or is shorter than that.
    """
    path = folder / f"mgsm_{language}.tsv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except OSError as error:
        raise ValueError(f"expected the problems in {path}: {error}") from error
    if len(rows) < count or any(len(row) != 2 for row in rows):
        raise ValueError(f"expected {count} lines of problem, tab, answer in {path}")
    return [Problem(line, *row) for line, row in enumerate(rows[:count], 1)]


def config_of(method: str, tokens: int) -> SearchConfig:
    """The search that a method is, of replies of at most so many tokens."""
    if method == "search":
        return SearchConfig(rollout_tokens=tokens, **METHODS[method])
    return SearchConfig(step_tokens=tokens, rollout_tokens=0, **METHODS[method])


def rows_of(problem: Problem, method: str, result: SearchResult) -> list[dict[str, Any]]:
    """What is kept of a result: one row for each rule that chose an answer."""
    finals = {node: group.final for group in result.answers for node in group.nodes}
    stats, rows = result.stats, []
    for rule in RULES[method]:
        node = choose_answer(result.tree, result.path_answers, finals, rule)
        final = "" if node is None else finals[node]
        rows.append(
            {
                "line": problem.line,
                "method": method if len(RULES[method]) == 1 else f"{method}, {rule}",
                "right": node is not None and agree(final, problem.reference),
                "final": final,
                "reference": problem.reference,
                "answer": result.answer if node is None else result.path_answers[node],
                "finals": {group.final: len(group.nodes) for group in result.answers},
                "finished": stats.finished_paths,
                "distinct": stats.distinct_paths,
                "expansions": stats.expansions,
                "tokens": stats.tokens,
                "seconds": round(stats.seconds, 2),
                "stop": result.stop_reason,
            }
        )
    return rows


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each method's figures: the share right with its 95% interval, and means of a problem."""
    made = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        total = {
            key: sum(row[key] for row in mine)
            for key in ("tokens", "seconds", "expansions", "finished", "distinct")
        }
        made[method] = {
            "right": share([row["right"] for row in mine]),
            **{
                key: total[key] / len(mine) for key in ("tokens", "seconds", "finished", "distinct")
            },
            "expansions_per_second": total["expansions"] / max(total["seconds"], 1e-9),
            "tokens_per_second": total["tokens"] / max(total["seconds"], 1e-9),
        }
    return made


class Run:
    """The rows of one model and language in the result file, which holds those of others too."""

    def __init__(self, out: Path, key: dict[str, Any]) -> None:
        self.out = out
        self.runs = json.loads(out.read_text(encoding="utf-8"))["runs"] if out.is_file() else []
        found = [each for each in self.runs if {name: each.get(name) for name in key} == key]
        if not found:
            self.runs.append({**key, "machine": describe(), "rows": []})
        self.run = found[0] if found else self.runs[-1]

    def has(self, problem: Problem, method: str) -> bool:
        """Whether a problem was answered by a method before."""
        done = {(row["line"], row["method"].partition(",")[0]) for row in self.run["rows"]}
        return (problem.line, method) in done

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Write them with all others."""
        self.run["rows"] += rows
        self.run["summary"] = summarise(self.run["rows"])
        self.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"runs": self.runs}, indent=1, ensure_ascii=False)
        write_whole(self.out, text + "\n")


def answered(
    options: argparse.Namespace, run: Run, engine: Engine, asked: Sequence[Problem]
) -> Iterator[list[dict[str, Any]]]:
    """Answer what the run lacks, method by method of each problem."""
    for problem in asked:
        for method in METHODS:
            if run.has(problem, method):
                continue
            result = solve(problem.question, engine, config_of(method, options.tokens))
            if result.stop_reason == "interrupted":
                raise KeyboardInterrupt
            rows = rows_of(problem, method, result)
            run.add(rows)
            yield rows


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--language", default="en")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=512, help="most of a reply")
    parser.add_argument("--dtype", default=None, help="as of Engine.from_pretrained")
    parser.add_argument("--activations", default=None, help="as of Engine.from_pretrained")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; 2 where the data cannot be read."""
    options = _options(argv)
    try:
        asked = problems(options.data, options.language, options.questions)
    except ValueError as error:
        print(f"bench.reasoning.mgsm: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    key = {
        "model": Path(options.model).name,
        "dtype": options.dtype,
        "activations": options.activations,
        "language": options.language,
        "tokens": options.tokens,
        "threads": options.threads,
    }
    run = Run(options.out, key)
    precision = {"dtype": options.dtype, "activations": options.activations}
    with Engine.from_pretrained(options.model, **precision) as engine:
        for rows in answered(options, run, engine, asked):
            for row in rows:
                mark = "right" if row["right"] else "wrong"
                print(
                    f"{row['line']:3} {row['method']:17} {mark} {row['final'][:20]!r} of "
                    f"{row['reference']}, {row['finished']} finished, {row['tokens']} tokens, "
                    f"{row['seconds']} s",
                    flush=True,
                )
    print(mgsm_table({"runs": [run.run]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
